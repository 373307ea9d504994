"""Options of `nenya probe`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.calibration import AnalysisOptions
from nenya.options.declare import at_least, option


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(one) is str for one in value)


def _are_columns(value: Any) -> bool:
    return type(value) is str or _are_texts(value)


@dataclass
class ProbeOptions(AnalysisOptions):
    """Options of the probes of latents of one or several models."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "out", "seed", "clobber")
    positional: ClassVar = "latents"
    instead: ClassVar = {"data": "use latents= for the latents, one entry for each model"}
    only_with: ClassVar = {"version": "archive_dir", "ckpt": "images"}

    latents: Any = option(
        None, "latents, one entry for each model: a file, folder or glob of all its files, or a list of these"
    )
    archive_dir: str | None = option(None, "an archive of nenya update: its table, and its latents as a model")
    version: str | None = option(None, "model version of the archive, if it has several")
    names: Any = option(None, "names of the models, in the order of latents=", ("a list of names", _are_texts))
    columns: Any = option(
        None,
        "columns to predict; default: all but keys",
        ("a list of columns", _are_columns),
    )
    by: str | None = option(
        None,
        "rows that are predicted together: granule, time, place, partition (train to valid), rows, or a column; "
        "default: the first of granule, time, place that the table has",
    )
    folds: int = option(5, "parts that are predicted in turn from the others", at_least(3))
    k: int = option(10, "nearest rows", at_least(1))
    sample: int = option(10_000, "largest number of rows that are probed, drawn at random", at_least(50))
    shuffles: int = option(3, "times that a column is shuffled, for the value by chance", at_least(1))
    images: Any = option(None, "cutout files, for references without training")
    ckpt: str | None = option(
        None, "weights that define the kind of the untrained network; default: from the latents files"
    )
