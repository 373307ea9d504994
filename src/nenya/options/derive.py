"""Options of `nenya derive`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.declare import at_least, is_number, option
from nenya.options.sections import Options

QUANTITIES = ("DT40", "slopes")
"""What can be added to a table: DT40 (K), and the slope `alpha` of the power spectrum with `alpha_err`."""


def _is_noise(value: Any) -> bool:
    return (is_number(value) and value >= 0) or isinstance(value, str)


def _is_filter(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 1 for v in value)


def _are_quantities(value: Any) -> bool:
    return isinstance(value, list) and all(v in QUANTITIES for v in value)


def _is_band(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value) and 2 <= value[0] < value[1]


@dataclass
class DeriveOptions(Options):
    """Options of cutouts made from cutouts."""

    uses: ClassVar = ("loader", "data", "out", "seed", "clobber")
    positional: ClassVar = "data"

    table: str | None = option(None, "table of the cutouts; default the .parquet beside the cutout file")
    crop: int | None = option(None, "side in pixels of the central square that is kept", at_least(4))
    coarsen: int = option(1, "pixels along each side of the blocks that are averaged", at_least(1))
    noise: Any = option(
        0.0,
        "standard deviation of white noise (K), or a recipe of nenya prepare, for the noise of this recipe: llc_144km",
        ("a number from 0, or the name of a recipe", _is_noise),
    )
    median: Any = option(None, "median filter, rows and columns", ("two integers of at least 1", _is_filter))
    resize: int | None = option(None, "side in pixels to which cutouts are resampled at the end", at_least(4))
    demean: bool | None = option(None, "remove the mean of each new cutout; default: if it was removed in the old ones")
    add: Any = option([], "columns of the table: DT40, slopes", ("a list of DT40, slopes", _are_quantities))
    band: Any = option(
        [4, 40], "wavelengths in pixels over which slopes are fitted", ("two numbers [min, max], at least 2", _is_band)
    )
