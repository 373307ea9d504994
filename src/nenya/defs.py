"""Intervals and regions shared by analyses: temperature differences, spectral slopes, parts of the ocean."""

import math
from dataclasses import dataclass

EARTH_KM = 6371.0
"""Mean radius of the Earth, km."""


@dataclass(frozen=True)
class Interval:
    """Values from `low` up to, but not including, `high`.

    Attributes:
        low: in the unit of the quantity; -inf where there is no lower end.
        high: in the same unit; inf where there is no upper end.
    """

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value < self.high


@dataclass(frozen=True)
class Region:
    """A part of the ocean between two meridians and two parallels.

    Attributes:
        lon: western and eastern end, degrees east.
        lat: southern and northern end, degrees north.
    """

    lon: tuple[float, float]
    lat: tuple[float, float]


def _upward(centre: float, half: float) -> Interval:
    return Interval(centre, math.inf) if half < 0 else Interval(centre - half, centre + half)


def _downward(centre: float, half: float) -> Interval:
    return Interval(-math.inf, centre) if half < 0 else Interval(centre - half, centre + half)


umap_DT: dict[str, tuple[float, float] | None] = {
    "DT0": (0.25, 0.25),
    "DT1": (0.75, 0.25),
    "DT15": (1.25, 0.25),
    "DT2": (2.0, 0.5),
    "DT4": (3.25, 0.75),
    "DT5": (4.0, -1),
    "DT10": (1.0, 0.05),
    "all": None,
}
"""Temperature differences by centre and half width, K; a negative half width means 'and above'."""

DT_INTERVALS: dict[str, Interval] = {
    name: Interval(-math.inf, math.inf) if ends is None else _upward(*ends) for name, ends in umap_DT.items()
}
"""Temperature differences T90 - T10, K, by the names that users know; they overlap."""

DT_BINS = ("DT0", "DT1", "DT15", "DT2", "DT4", "DT5")
"""The intervals that a UMAP is fitted for: without gaps or overlaps from 0 K on."""

umap_alpha: dict[str, tuple[float, float]] = {
    "a0": (-0.25, 0.25),
    "a1": (-0.75, 0.25),
    "a15": (-1.25, 0.25),
    "a2": (-1.75, 0.25),
    "a25": (-2.25, 0.25),
    "a3": (-2.75, 0.25),
    "a4": (-3.0, -1),
}
"""Spectral slopes by centre and half width; a negative half width means 'and below'."""

SLOPE_INTERVALS: dict[str, Interval] = {name: _downward(*ends) for name, ends in umap_alpha.items()}
"""Exponents of the power spectrum against wavenumber, by the names that users know."""

SEASONS: dict[str, tuple[int, int, int]] = {
    "DJF": (12, 1, 2),
    "MAM": (3, 4, 5),
    "JJA": (6, 7, 8),
    "SON": (9, 10, 11),
}
"""Months of each season, named by their first letters."""

REGIONS: dict[str, Region] = {
    "coastalcali": Region((-128, -118), (32, 40)),
    "eqpacific": Region((-140, -90), (-5, 5)),
    "eqindian": Region((60, 90), (-5, 5)),
    "baybengal": Region((79, 95), (16, 23)),
    "gulfstream": Region((-70, -40), (40, 50)),
    "med": Region((0, 20), (30, 45)),
    "south_atlantic": Region((-35, 10), (-30, -20)),
    "south_pacific": Region((-140, -90), (-30, -20)),
    "global": Region((-999, 999), (-999, 999)),
    "north": Region((-999, 999), (0, 999)),
}


geo_regions: dict[str, dict[str, list[float]]] = {
    name: {"lons": list(region.lon), "lats": list(region.lat)} for name, region in REGIONS.items()
}
"""The same regions, as users' scripts read them."""


def dt_bin(dt: float) -> str:
    """Return the name of the bin of `DT_BINS` that a temperature difference lies in.

    Args:
        dt: T90 - T10, K.

    Raises:
        ValueError: It is negative or NaN, and so in no bin.

    Examples:
        >>> dt_bin(0.7), dt_bin(1.7)
        ('DT1', 'DT2')
    """
    for name in DT_BINS:
        if dt in DT_INTERVALS[name]:
            return name
    raise ValueError(f"DT={dt} K is in no bin; expected a number from 0 K upwards")
