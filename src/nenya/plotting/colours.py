"""Colour maps by name, and how values and counts become colours."""

import functools
import logging
from importlib.resources import as_file, files
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize

from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.floating]

ANOMALIES = "balance"
COUNTS, VALUES = "cividis", "viridis"  # suitable for colour-blind readers
DIVERGING = frozenset(
    ("balance", "delta", "curl", "diff", "tarn", "topo", "berlin", "managua", "vanimo", "RdYlBu", "RdBu", "RdGy",
     "PuOr", "BrBG", "PRGn", "PiYG", "coolwarm", "bwr", "seismic", "Spectral", "RdYlGn")
)  # fmt: skip
"""Colour maps whose middle is a neutral value."""

SAFE = (
    *("algae", "amp", "deep", "dense", "haline", "ice", "matter", "rain", "solar", "speed", "tempo", "thermal"),
    *("turbid", "balance", "delta", "diff", "tarn"),
)
"""cmocean's colour maps that are even, and keep their order for colour-blind readers; its others are known as well."""

CATEGORIES = (
    *("#0072b2", "#e69f00", "#582707", "#25a290", "#35f2c8", "#8a1c57", "#a26e06", "#93a669", "#70b5ff", "#271dad"),
    *("#88493a", "#74cdd5", "#20f480", "#189bb9", "#0a7e82", "#268bfe", "#df0267", "#08c9a2", "#112dfe", "#5d2f33"),
)
"""Colours of categories, each as far as can be from those before it for any eye; the first eight differ in grey too."""
REST = "#b8b8b8"  # rows without a category, and the rarest ones together

_SAMPLES = 256
_UNEVEN = 2.0  # units of CIE lightness by which a colour map may turn back


@functools.cache
def _cmocean() -> dict[str, npt.NDArray[np.float64]]:
    with as_file(files("nenya") / "data_files" / "colour_maps.npz") as path, np.load(path, allow_pickle=False) as kept:
        return {name: kept[name] / 255 for name in kept.files}


def colour_map(name: str) -> Colormap:
    """Return a colour map of cmocean or matplotlib; `_r` at the end of a name reverses it.

    Args:
        name: such as `thermal`, `cmo.thermal`, `viridis_r`.

    Raises:
        OptionError: There is none of this name.
    """
    plain = name.removeprefix("cmo.").removesuffix("_r")
    if plain in _cmocean():
        found = ListedColormap(_cmocean()[plain], name=plain)
        return found.reversed() if name.endswith("_r") else found
    if name in matplotlib.colormaps:
        return matplotlib.colormaps[name]
    known = [*_cmocean(), *matplotlib.colormaps]
    raise OptionError(
        f"cmap={name}: unknown colour map{suggest(name, known)}; expected one of cmocean's, such as thermal, deep "
        "and balance, or of matplotlib's, such as viridis"
    )


def lightness(colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the CIE 1976 lightness L*, 0 to 100, of sRGB colours (n, 3) from 0 to 1: (n,)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    found: npt.NDArray[np.float64] = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    return found


def check_colour_map(name: str) -> None:
    """Refuse an unknown colour map; warn if its lightness goes up and down: it shows edges that do not exist.

    Raises:
        OptionError: There is none of this name.
    """
    light = lightness(colour_map(name)(np.linspace(0, 1, _SAMPLES))[:, :3])
    sides = np.split(light, [int(np.argmax(light)) if is_diverging(name) else 0])
    turns = max(min(_fall(side), _fall(-side)) for side in sides)
    if turns > _UNEVEN:
        log.warning(
            "cmap=%s: its lightness goes up and down, so it shows edges that the data do not have, and cannot be read "
            "in grey; %s, %s and %s are even", name, VALUES, "thermal", ANOMALIES,
        )  # fmt: skip


def _fall(values: npt.NDArray[np.float64]) -> float:
    """Return the largest fall below an earlier value."""
    return float(np.max(np.maximum.accumulate(values) - values, initial=0.0))


def is_diverging(name: str) -> bool:
    """Return whether the middle of a colour map is a neutral value."""
    return name.removeprefix("cmo.").removesuffix("_r") in DIVERGING


def colours_of(
    values: FloatArray,
    *,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    log: bool | None = None,
    usual: str = VALUES,
    share: float = 0.98,
) -> tuple[Colormap, Normalize]:
    """Return the colour map of values and how they become colours; 0 is in the middle of a diverging map.

    Args:
        values: of any shape; those that are not finite have no colour.
        cmap: name of the map; by default diverging for values of both signs, else sequential.
        limits: values at the ends; by default the central `share` of the values, symmetric in a diverging map.
        log: whether colours go by the logarithm.
        usual: name of the map of values of one sign.
        share: of the values within the limits.

    Raises:
        OptionError: The map is unknown, or there is no logarithm of a value.
    """
    finite = values[np.isfinite(values)]
    if log:
        return _logarithmic(finite, cmap or VALUES, limits)
    edges = (0.5 * (1 - share), 0.5 * (1 + share))
    low, high = limits or (float(v) for v in (np.quantile(finite, edges) if finite.size else (0.0, 1.0)))
    name = cmap or (ANOMALIES if low < 0 < high else usual)
    found = colour_map(name)
    if is_diverging(name) and low < 0 < high:
        reach = max(-low, high)
        if limits is None:
            low, high = -reach, reach
        elif low != -high:  # evenly scaled, with 0 at the neutral colour
            found = ListedColormap(found(np.linspace(low / reach, high / reach, _SAMPLES) / 2 + 0.5), name=found.name)
    return found, Normalize(low, high if high > low else low + 1)


def _logarithmic(finite: FloatArray, name: str, limits: tuple[float, float] | None) -> tuple[Colormap, Normalize]:
    check_positive(finite, limits)
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (1.0, 10.0))
    return colour_map(name), LogNorm(low, high if high > low else 10 * low)


def check_positive(values: FloatArray, limits: tuple[float, float] | None) -> None:
    """Refuse a logarithmic scale of values, or between limits, that are not above 0.

    Raises:
        OptionError: One is not.
    """
    if limits is not None and limits[0] <= 0:
        raise OptionError(f"log=true: expected limits above 0, got {limits[0]:g} and {limits[1]:g}")
    below = int((values <= 0).sum())
    if below:
        raise OptionError(
            f"log=true: {below:,} of {values.size:,} values are not above 0, the smallest is {values.min():.4g}; leave "
            "log out"
        )


def count_colours(
    counts: npt.NDArray[np.int64],
    *,
    cmap: str | None = None,
    limits: tuple[float, float] | None = None,
    log: bool | None = None,
) -> tuple[Colormap, Normalize]:
    """Return the colour map of counts and how they become colours: by their logarithm, unless `log` is false."""
    top = max(2, int(counts.max(initial=0)))
    low, high = limits or ((0.0, float(top)) if log is False else (1.0, float(top)))
    if log is False:
        return colour_map(cmap or COUNTS), Normalize(low, high)
    check_positive(np.ones(0), limits)
    return colour_map(cmap or COUNTS), LogNorm(low, high)


def ends_of(values: FloatArray, norm: Any) -> str:
    """Return which ends of a colour bar are arrows, as matplotlib's `extend`: those beyond which there are values."""
    finite = values[np.isfinite(values)]
    tolerance = 1e-9 * (norm.vmax - norm.vmin)
    below = bool((finite < norm.vmin - tolerance).any())
    above = bool((finite > norm.vmax + tolerance).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]


def some_finite(values: FloatArray, what: str) -> None:
    """Refuse values if none is finite.

    Raises:
        InputFileError: None is.
    """
    if not np.isfinite(values).any():
        raise InputFileError(
            f"expected values of {what or 'the metric'}, got none that is finite in {len(values):,} rows"
        )
