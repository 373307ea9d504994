"""Options of the calibration of latents of masked cutouts, and of those who read what it gives."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.declare import at_least, option, within
from nenya.options.sections import Options


@dataclass
class AnalysisOptions(Options):
    """Options shared by all commands on latents."""

    data: Any = option(None, "latents files: a path, a folder, a glob, a list")
    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


@dataclass
class LeastCosineOptions(AnalysisOptions):
    """Options of commands that can leave out latents of masked cutouts."""

    least_cosine: float | None = option(
        None,
        "leave out rows whose cosine with the latent of the clear cutout may be below this (their cosine_low)",
        within(-1, 1),
    )


@dataclass
class CalibrateOptions(Options):
    """Options of the calibration; `out` is its file, by default beside the weights."""

    uses: ClassVar[tuple[str, ...]] = (
        *("model", "preprocess", "loader", "archive", "trainer"),
        *("data", "out", "seed", "clobber", "sha256"),
    )

    ckpt: str | None = option(None, "weights to calibrate; default model.weights")
    cloud_masks: Any = option(
        None, "cutout files with masks to put on clear cutouts; default: masks of data=, else generated masks"
    )
    cutouts: int = option(1024, "largest number of clear cutouts", at_least(60))
    masks: int = option(4, "masks laid over each", at_least(1))
    most: float = option(0.6, "largest masked share of generated masks", within(0.01, 0.95))
