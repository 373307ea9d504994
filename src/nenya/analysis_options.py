"""Options of the commands that explore latents; declared as those of `nenya.options` are."""

from dataclasses import dataclass
from typing import Any

from nenya.options import Options, at_least, option


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share: `data` names latents files."""

    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


@dataclass
class MetricsOptions(AnalysisOptions):
    """Options of the numbers on latents."""

    images: Any = option(None, "cutout files of the latents, for invariance and eigen-images: a folder, glob or list")
    ckpt: str | None = option(None, "weights that the latents were made with; default model.weights")
    sample: int = option(5000, "latents that uniformity and neighbours are taken of", at_least(2))
    neighbours: int = option(10, "nearest latents of each that are compared with it", at_least(1))
    cutouts: int = option(512, "cutouts that the invariance is measured on", at_least(2))
    modes: int = option(4, "principal components that images are shown of", at_least(0))
    steps: int = option(100, "steps of the optimisation of their images; 0: none are made", at_least(0))
    coefficients: bool = option(True, "write the coefficients of all latents beside the components")
