"""Options of figures: how all of them look, and those of the commands that draw from tables and cutouts."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.declare import above, is_number, one_of, option, within
from nenya.options.sections import Options

FORMATS = ("png", "pdf", "svg")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(v) for v in value)


def _is_size(value: Any) -> bool:
    return value in ("single", "double") or (_is_pair(value) and min(value) > 0)


def _is_formats(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return bool(names) and all(isinstance(name, str) and name.lstrip(".").lower() in FORMATS for name in names)


def _is_spread(value: Any) -> bool:
    return value in (None, "none") or (_is_pair(value) and 0 <= value[0] < value[1] <= 1)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(is_number(v) for v in value)


def _is_limits(value: Any) -> bool:
    return _is_pair(value) and value[0] < value[1]


def _is_names_of(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values())


@dataclass
class PictureOptions(Options):
    """Options of how figures look."""

    size: Any = option(
        None,
        "size of the figure: single (a column of 3.3 inches), double (6.9), or [width, height] in inches",
        ("single, double, or two numbers of inches [width, height]", _is_size),
    )
    font: str | None = option(None, "font family of the figure, one that is installed; default DejaVu Sans")
    font_size: float | None = option(
        None, "points of the labels; default 10, or 8 in a figure of at most two columns", within(3, 40)
    )
    dpi: float = option(200.0, "dots per inch of .png, and of pictures within .pdf and .svg", within(20, 2400))
    format: Any = option(
        None,
        "format of the figure, or several: [png,pdf,svg]; default that of out=, else png",
        ("one or several of png, pdf, svg", _is_formats),
    )


@dataclass
class CutoutPictureOptions(PictureOptions):
    """Options of how figures of cutouts look."""

    pixel_km: float | None = option(None, "side of a pixel in km, for a scale bar on cutouts", above(0))


WITH_IMAGES = dict.fromkeys(("size", "font", "font_size", "dpi", "format", "pixel_km"), "images")
"""Options of `CutoutPictureOptions` -> what they need to have an effect, where images= draws."""


def _is_band(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value) and 2 <= value[0] < value[1]


def is_box(value: Any) -> bool:
    """Return whether a value is a box of the UMAP: [x0, x1, y0, y1], x0 < x1, y0 < y1."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and value[0] < value[1]
        and value[2] < value[3]
    )


DRAWN_ONLY_WITH = {
    **{"projection": "kind=map", "central_longitude": "kind=map", "box": "kind=umap|metric|gallery"},
    **{"log": "kind=umap|metric|map", "categories": "metric", "names": "metric", "pixel_km": "kind=gallery"},
}
"""Options of `DrawnOptions` -> the options that they need to have an effect."""


@dataclass
class DrawnOptions(CutoutPictureOptions):
    """Options of what figures of a table and its cutouts show."""

    out: Any = option(None, "output: a picture, a list of them, or a folder")
    categories: bool | None = option(
        None, "whether metric= has categories; default: texts, and integers with at most 20 values"
    )
    names: Any = option(
        None, "names of categories, such as {0: quiet, 3: fronts}", ("a mapping of values to names", _is_names_of)
    )
    cmap: str | None = option(
        None, "colour map: one of cmocean (thermal, haline, deep, balance ...) or matplotlib; _r reverses it"
    )
    limits: Any = option(
        None, "values at the ends of the colours", ("two numbers [low, high], the smaller one first", _is_limits)
    )
    log: bool | None = option(None, "colours by the logarithm; default for counts only")
    box: Any = option(
        None,
        "part of the UMAP that is drawn; default the central 99 % of each coordinate",
        ("four numbers [x0, x1, y0, y1], x0 < x1, y0 < y1", is_box),
    )
    projection: str = option(
        "plain",
        "projection of a map: plain longitudes and latitudes; of equal area (all but robinson); or around a pole",
        one_of("plain", "equal_earth", "mollweide", "hammer", "robinson", "north", "south"),
    )
    central_longitude: float = option(0.0, "longitude in the middle of a map, degrees east", within(-360, 360))


@dataclass
class SpectraOptions(PictureOptions):
    """Options of power spectra and slopes."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "clobber")

    band: Any = option(
        [4, 40],
        "wavelengths in pixels over which the slope is fitted",
        ("two numbers [min, max], at least 2", _is_band),
    )
    detrend: str = option(
        "plane",
        "trend removed in addition to the mean: a plane, a line from each column and row, or none",
        one_of("plane", "lines", "none"),
    )
    window: str = option("hann", "window in both directions", one_of("hann", "none"))
    average: str = option(
        "mean",
        "average over the waves of a bin: mean of P (published), or of log P (unbiased by wide bins)",
        one_of("mean", "log"),
    )
    pixel_km: float | None = option(
        None, "pixel size in km, for the axes of the figure, in km and in units of a spectral density", above(0)
    )
    unit: str = option("K", "unit of the pixels, for the axes of the figure")
    spread: Any = option(
        [0.1, 0.9],
        "shares of the cutouts below and above the shaded band of the figure, or none",
        ("two fractions [low, high] from 0 to 1, or none", _is_spread),
    )
    reference_slopes: Any = option(
        [-2, -3],
        "exponents of the wavenumber of the power laws drawn for comparison, or []",
        ("a list of numbers", _are_numbers),
    )
    table: str | None = option(None, "table of the cutouts; written as a copy with the columns alpha and alpha_err")
