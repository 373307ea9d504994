"""Options of the commands that choose the cutouts of a training."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.calibration import AnalysisOptions
from nenya.options.declare import above, at_least, is_number, option


def _is_values(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) or is_number(v) for v in value)


_FRACTION = ("a fraction above 0 and below 1", lambda value: 0 < value < 1)
_COSINE = ("a cosine above 0 and below 1", lambda value: 0 < value < 1)


@dataclass
class SplitOptions(AnalysisOptions):
    """Options of the division into training and validation."""

    uses: ClassVar[tuple[str, ...]] = ("loader.cache_dir", "loader.allow_external", "out", "seed", "clobber")
    positional: ClassVar = "table"
    instead: ClassVar = {"data": "use table= for the rows, latents= for their latents"}

    latents: Any = option(None, "latents files of the rows, for the cosine of nearest neighbours")
    by: str = option("granule", "units that stay on one side: granule, time, place, or the values of a column")
    valid_fraction: float = option(0.25, "fraction of validation rows, before the buffer", _FRACTION)
    block_days: float = option(30.0, "length of a block of by=time, days", above(0))
    block_km: float = option(500.0, "side of a block of by=place, km", above(1))
    valid: Any = option(
        None, "values of the column of by= for validation; default: drawn", ("a list of values", _is_values)
    )
    apart_km: float | None = option(
        None, "leave out training rows within this distance in km (and apart_days) of a validation row", above(0)
    )
    apart_days: float | None = option(None, "as apart_km, in days; each may be used alone", above(0))
    sample: int = option(2000, "validation rows whose nearest neighbour is searched", at_least(1))


@dataclass
class PruneOptions(AnalysisOptions):
    """Options of the choice of cutouts to train on."""

    uses: ClassVar[tuple[str, ...]] = ("loader.cache_dir", "loader.allow_external", "data", "out", "seed", "clobber")
    positional: ClassVar = "data"

    rows: str | None = option(None, "row list of nenya split; default: the partitions")
    cosine: float | None = option(
        0.98, "leave out a cutout if its latent has a larger cosine with that of a kept cutout; null: none", _COSINE
    )
    k: int | None = option(
        None, "number of patterns (k-means clusters) over which to balance; default: no balance", at_least(2)
    )
    keep: int | None = option(
        None, "number of cutouts to keep in the balance; default: no pattern has more than the median", at_least(1)
    )
    exact_to: int = option(
        100_000,
        "largest number of cutouts for a comparison of all pairs; above, only pairs with a common hash",
        at_least(0),
    )
