"""Maps of the globe: projections, land, coasts, a grid of longitudes and latitudes, and cells drawn on them.

Nothing is downloaded: projections are pyproj's, the coasts are in the package. Letters: R rows and C columns of cells.
"""

import functools
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import Normal, withStroke

from nenya.errors import InputFileError
from nenya.tables.grids import Grid, coastlines

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]

LAND, COAST = "0.78", "0.15"
_HATCHED = {"facecolor": "white", "edgecolor": "0.85", "hatch": "/" * 6}
_PROJ = {
    "equal_earth": "+proj=eqearth +R=1",
    "mollweide": "+proj=moll +R=1",
    "hammer": "+proj=hammer +R=1",
    "robinson": "+proj=robin +R=1",
    "north": "+proj=laea +lat_0=90 +R=1",
    "south": "+proj=laea +lat_0=-90 +R=1",
}
POLES = {"north": 1, "south": -1}
_EDGE = 180 - 1e-6  # degrees from the middle of a map to its edge
_STEP = 1.0  # degrees between the points of a curved line
_LEAST_REACH = 60.0  # the latitude to which polar maps reach at least


@dataclass(frozen=True)
class Globe:
    """How longitudes and latitudes are laid on paper.

    Attributes:
        projection: one of `nenya.plotting.style.PROJECTIONS`.
        central: longitude in the middle, degrees east.
        reach: latitude at the rim of a polar map, degrees from the equator.
    """

    projection: str = "plain"
    central: float = 0.0
    reach: float = 0.0

    @property
    def pole(self) -> int:
        """1 for a map around the north pole, -1 for one around the south pole, else 0."""
        return POLES.get(self.projection, 0)

    @property
    def latitudes(self) -> tuple[float, float]:
        """Southern and northern end."""
        return {0: (-90.0, 90.0), 1: (self.reach, 90.0), -1: (-90.0, -self.reach)}[self.pole]

    def grid(self, degrees: float) -> Grid:
        """Return cells of about this many degrees, over all that the map shows."""
        south, north = self.latitudes
        ends = (self.central - 180, self.central + 180)
        return Grid(ends, (south, north), round(360 / degrees), max(1, round((north - south) / degrees)))

    def wrap(self, lon: FloatArray) -> Float64Array:
        """Return longitudes as central - 180 up to, but not including, central + 180."""
        found: Float64Array = (np.asarray(lon, np.float64) - self.central + 180) % 360 - 180 + self.central
        return found

    def place(self, lon: FloatArray, lat: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return where longitudes, within 180 degrees of the central one, and latitudes lie on paper."""
        east: Float64Array = np.asarray(lon, np.float64)
        north: Float64Array = np.asarray(lat, np.float64)
        if self.projection == "plain":
            return east, north
        x, y = _proj(self.projection)(np.clip(east - self.central, -_EDGE, _EDGE), north)
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    def frame(self) -> Float64Array:
        """Return the outline of the map in degrees, relative to the central longitude: (n, 2)."""
        south, north = self.latitudes
        if self.pole:
            around = np.linspace(-_EDGE, _EDGE, 721)
            return np.column_stack([around, np.full(721, south if self.pole > 0 else north)])
        up = np.linspace(south, north, 361)
        across = np.linspace(-_EDGE, _EDGE, 721)
        parts = (
            np.column_stack([np.full(361, _EDGE), up]),
            np.column_stack([across[::-1], np.full(721, north)]),
            np.column_stack([np.full(361, -_EDGE), up[::-1]]),
            np.column_stack([across, np.full(721, south)]),
        )
        return np.concatenate(parts)

    def on_paper(self, relative: FloatArray) -> Float64Array:
        """Return degrees, relative to the central longitude, (n, 2), on paper: (n, 2)."""
        return np.column_stack(self.place(relative[:, 0] + self.central, relative[:, 1]))


def globe_for(projection: str, central: float, lat: FloatArray) -> Globe:
    """Return the map on which to draw points; a polar one reaches as far from its pole as they do, at most the equator.

    Args:
        projection: one of `nenya.plotting.style.PROJECTIONS`.
        central: longitude in the middle, degrees east.
        lat: (N,) latitudes, degrees north.

    Raises:
        InputFileError: No point lies on the hemisphere of a polar map.
    """
    if projection not in POLES:
        return Globe(projection, central)
    own = POLES[projection] * np.asarray(lat, np.float64)
    own = own[own > 0]
    if not own.size:
        raise InputFileError(f"projection={projection}: none of {len(lat):,} rows lies {projection} of the equator")
    return Globe(projection, central, float(np.clip(10 * np.floor(own.min() / 10), 0, _LEAST_REACH)))


@functools.cache
def _proj(name: str) -> Any:
    from pyproj import Proj

    return Proj(_PROJ[name])


def draw_cells(axes: Any, globe: Globe, grid: Grid, values: Any, cmap: Any, norm: Any) -> Any:
    """Draw values (R, C) of the cells of `Globe.grid`, NaN ones not at all; return what a colour bar takes."""
    shown = np.ma.masked_invalid(values)
    if globe.projection == "plain":
        return axes.imshow(
            shown, extent=grid.extent, origin="lower", aspect="auto", interpolation="nearest", cmap=cmap, norm=norm
        )
    lon, lat = np.linspace(*grid.x, grid.columns + 1), np.linspace(*grid.y, grid.rows + 1)
    more = max(1, round(3 / ((grid.x[1] - grid.x[0]) / grid.columns)))  # sides of large cells are curved
    fine_lon, fine_lat = _finer(lon, max(1, 4 // more)), _finer(lat, max(1, 4 // more))
    repeat = max(1, 4 // more)
    x, y = globe.place(*np.meshgrid(fine_lon, fine_lat))
    fine = np.ma.repeat(np.ma.repeat(shown, repeat, axis=0), repeat, axis=1)
    return axes.pcolormesh(x, y, fine, cmap=cmap, norm=norm, rasterized=True, zorder=1)


def _finer(edges: Float64Array, times: int) -> Float64Array:
    return np.linspace(edges[0], edges[-1], (len(edges) - 1) * times + 1)


def draw_land(axes: Any, globe: Globe, sea: dict[str, Any]) -> None:
    """Fill land, below the data, and what has no data in the colours `sea`."""
    south, north = globe.latitudes
    frame = globe.on_paper(globe.frame())
    axes.add_patch(PathPatch(Outline(frame, closed=False), linewidth=0, zorder=-2, **sea))
    for inner, colours in ((False, {"facecolor": LAND, "edgecolor": LAND, "linewidth": 0.2}), (True, {**sea, "lw": 0})):
        shapes = []
        for ring in coastlines():
            if _is_lake(ring) is not inner:
                continue
            for shift in (-360.0, 0.0, 360.0):
                relative = ring.astype(np.float64) - (globe.central - shift, 0)
                for axis, low, high in ((0, -180.0, 180.0), (1, south, north)):
                    relative = _clip(_clip(relative, axis, low, 1), axis, high, -1)
                if len(relative) > 2:  # a line has no area
                    shapes.append(globe.on_paper(_dense(relative)))
        axes.add_collection(PolyCollection(shapes, zorder=-1, **colours), autolim=False)


def _is_lake(ring: FloatArray) -> bool:
    x, y = ring.astype(np.float64).T
    return bool((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0)


def _clip(ring: Float64Array, axis: int, edge: float, side: int) -> Float64Array:
    """Return the part of a closed ring (n, 2) where side * coordinate >= side * edge (Sutherland and Hodgman 1974)."""
    if not len(ring):
        return ring
    inside = side * ring[:, axis] >= side * edge
    if inside.all():
        return ring
    if not inside.any():
        return ring[:0]
    after = np.roll(ring, -1, axis=0)
    step = after[:, axis] - ring[:, axis]
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = ring + ((edge - ring[:, axis]) / step)[:, None] * (after - ring)
    cut[:, axis] = edge
    crosses = inside != np.roll(inside, -1)
    both = np.stack([ring, cut], axis=1)
    found: Float64Array = both[np.stack([inside, crosses], axis=1)]
    return found


def _dense(ring: Float64Array) -> Float64Array:
    """Return a closed ring (n, 2) with points at most `_STEP` degrees apart."""
    after = np.roll(ring, -1, axis=0)
    parts = np.maximum(1, np.ceil(np.abs(after - ring).max(axis=1) / _STEP)).astype(np.int64)
    number = np.repeat(np.arange(len(ring)), parts)
    share = (np.arange(len(number)) - np.repeat(np.cumsum(parts) - parts, parts)) / parts[number]
    found: Float64Array = ring[number] + share[:, None] * (after - ring)[number]
    return found


def coast_points(globe: Globe) -> Float64Array:
    """Return the coasts on paper, (n, 2), NaN between lines, without the cuts at the antimeridian and the pole."""
    lines: list[Float64Array] = []
    gap = np.full((1, 2), np.nan)
    for ring in coastlines():
        line = ring.astype(np.float64)
        cut = (np.abs(line[:-1, 0]) >= 180) & (np.abs(line[1:, 0]) >= 180)
        cut |= (line[:-1, 1] <= -90) | (line[1:, 1] <= -90)
        line = np.insert(line, np.flatnonzero(cut) + 1, np.nan, axis=0)
        lines += [_at_the_seam(line - (globe.central, 0)) if globe.central or globe.pole else line, gap]
    relative = np.concatenate(lines)
    south, north = globe.latitudes
    relative[(relative[:, 1] < south) | (relative[:, 1] > north)] = np.nan
    return globe.on_paper(relative)


def _at_the_seam(line: Float64Array) -> Float64Array:
    """Return a line with longitudes from -180 to 180, cut where it leaves at one side and comes back at the other."""
    wrapped = line.copy()
    wrapped[:, 0] = (line[:, 0] + 180) % 360 - 180
    jumps = np.flatnonzero(np.abs(np.diff(wrapped[:, 0])) > 180)
    for at in jumps[::-1]:
        here, there = wrapped[at], wrapped[at + 1]
        edge = 180.0 if here[0] > 0 else -180.0
        width = there[0] + 2 * edge - here[0]
        lat = here[1] + (there[1] - here[1]) * ((edge - here[0]) / width if width else 0.0)
        wrapped = np.insert(wrapped, at + 1, [[edge, lat], [np.nan, np.nan], [-edge, lat]], axis=0)
    return wrapped


def draw_globe(axes: Any, globe: Globe, *, hatched: bool = False, short: bool = False) -> None:
    """Draw land, coasts, and longitudes and latitudes on the axes of a map.

    Args:
        axes: of matplotlib.
        globe: the map.
        hatched: whether what has no data is hatched.
        short: whether there is little room for names.
    """
    draw_land(axes, globe, _HATCHED if hatched else {"facecolor": "white"})
    width = 0.6 * float(matplotlib.rcParams["axes.linewidth"])
    halo = [withStroke(linewidth=3.2 * width, foreground="white", alpha=0.8), Normal()]  # seen over any colour
    axes.plot(*coast_points(globe).T, color=COAST, linewidth=width, path_effects=halo, zorder=2.5)
    if globe.projection == "plain":
        _plain_axes(axes, globe, short)
    else:
        _round_axes(axes, globe)


def _plain_axes(axes: Any, globe: Globe, short: bool) -> None:
    left, step = globe.central - 180, 90 if short else 60
    marks = np.arange(step * np.ceil(left / step), left + 361, step)
    axes.set(xlim=(left, left + 360), ylim=(-90, 90), yticks=range(-90, 91, 30), aspect="equal")
    if globe.central:
        wrapped = (marks + 180) % 360 - 180
        axes.set_xticks(marks, [f"{degrees:g}".replace("-", "\N{MINUS SIGN}") for degrees in wrapped])
    else:
        axes.set_xticks(marks)
    east, north = ("\N{DEGREE SIGN}E", "\N{DEGREE SIGN}N") if short else ("degrees east", "degrees north")
    axes.set(xlabel=f"longitude ({east})", ylabel=f"latitude ({north})")


def _east(lon: float) -> str:
    """Return a longitude as text: 60°W."""
    lon = (lon + 180) % 360 - 180
    side = "" if lon in (0, -180) else "E" if lon > 0 else "W"
    return f"{abs(lon):g}\N{DEGREE SIGN}{side}"


def _north(lat: float) -> str:
    return f"{abs(lat):g}\N{DEGREE SIGN}{'N' if lat > 0 else 'S' if lat < 0 else ''}"


def _round_axes(axes: Any, globe: Globe) -> None:
    frame = globe.on_paper(globe.frame())
    axes.set_axis_off()
    axes.set_aspect("equal")
    rim = PathPatch(Outline(frame, closed=False), facecolor="none", edgecolor="0.2", linewidth=0.7, zorder=3)
    axes.add_patch(rim)
    low, high = frame.min(axis=0), frame.max(axis=0)
    margin = 0.01 * (high - low)
    axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    south, north = globe.latitudes
    thin = {"color": "0.4", "linewidth": 0.3, "alpha": 0.6, "zorder": 2}
    step = 30 if not globe.pole or globe.reach < 40 else 10  # degrees
    for lat in np.arange(-90 + step, 90, step):
        if south < lat < north:
            line = np.column_stack([np.linspace(-_EDGE, _EDGE, 361), np.full(361, lat)])
            axes.plot(*globe.on_paper(line).T, **thin)
    first = 60 * np.ceil((globe.central - 180) / 60)
    for lon in np.arange(first, globe.central + 180 + (0 if globe.pole else 1e-9), 60):
        line = np.column_stack([np.full(181, lon - globe.central), np.linspace(south, north, 181)])
        axes.plot(*globe.on_paper(line).T, **thin)
        _name_meridian(axes, globe, lon)
    _name_parallels(axes, globe, step)


def _name_meridian(axes: Any, globe: Globe, lon: float) -> None:
    """Write a longitude outside the rim of a polar map, else below the map."""
    if globe.pole:
        rim = globe.on_paper(np.array([[lon - globe.central, globe.latitudes[0 if globe.pole > 0 else 1]]]))[0]
        away = rim / np.hypot(*rim)
        sides = ("left" if away[0] > 0.1 else "right" if away[0] < -0.1 else "center",
                 "bottom" if away[1] > 0.5 else "top" if away[1] < -0.5 else "center")  # fmt: skip
        axes.annotate(_east(lon), rim, 3 * away, textcoords="offset points", ha=sides[0], va=sides[1], fontsize="small")
    elif abs(lon - globe.central) < 170:  # else it meets the corner
        within = globe.projection in ("mollweide", "hammer")  # their meridians meet at the poles
        foot = globe.on_paper(np.array([[lon - globe.central, 0.0 if within else -90.0]]))[0]
        axes.annotate(
            _east(lon), foot, (0, -3), textcoords="offset points", ha="center", va="top", zorder=4,
            fontsize="x-small" if within else "small",
            path_effects=[withStroke(linewidth=1.5, foreground="white")] if within else [],
        )  # fmt: skip


def _name_parallels(axes: Any, globe: Globe, step: int) -> None:
    south, north = globe.latitudes
    for lat in np.arange(-90 + step, 90, step):
        if not south < lat < north:
            continue
        at = globe.on_paper(np.array([[-_EDGE if not globe.pole else 30.0, float(lat)]]))[0]
        if globe.pole:
            axes.text(*at, _north(float(lat)), ha="center", va="center", fontsize="x-small", zorder=4,
                      path_effects=[withStroke(linewidth=1.5, foreground="white")])  # fmt: skip
        else:
            axes.annotate(
                _north(float(lat)), at, (-3, 0), textcoords="offset points", ha="right", va="center", fontsize="small"
            )


def map_key(*, hatched: bool = False) -> list[Patch]:
    """Return the entries of a legend that tell land from cells without data."""
    line: dict[str, Any] = {"edgecolor": "0.5", "linewidth": 0.4}
    sea: dict[str, Any] = {**line, **(_HATCHED if hatched else {"facecolor": "white"})}
    return [Patch(facecolor=LAND, label="land", **line), Patch(label="no data", **sea)]
