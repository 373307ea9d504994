"""Options of `nenya compare`."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.calibration import AnalysisOptions
from nenya.options.declare import at_least, one_of, option
from nenya.options.tags import TagsOptions


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))


@dataclass
class CompareOptions(AnalysisOptions, TagsOptions):
    """Options of the comparison of two sets of latents, or of several trainings."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "seed", "clobber")

    a: Any = option(None, "latents files of the first set; with archive= or data= an SQL condition")
    b: Any = option(None, "latents files of the second set, or its condition")
    a_table: str | None = option(None, "table of the cutouts of a")
    b_table: str | None = option(None, "table of the cutouts of b")
    a_images: Any = option(None, "cutout files of a, for galleries")
    b_images: Any = option(None, "cutout files of b")
    archive_dir: str | None = option(None, "an archive of nenya update; a and b are then conditions on its table")
    version: str | None = option(None, "model version of the archive, if it has several")
    by: Any = option([], "strata: region, season, DT, cell, or columns", ("a list of names", _is_names))
    block: str = option("granule", "rows that are not independent: granule, day, none, or a column")
    pair: str | None = option(None, "column of b_table with the UID of the row of a that a row of b matches")
    k: int = option(5, "neighbours of coverage and density", at_least(1))
    permutations: int = option(999, "permutations of blocks", at_least(19))
    sample: int = option(
        5000, "largest number of rows of a set; of more rows a sample of this size is drawn", at_least(10)
    )
    side: int = option(4, "cells along an edge of HEALPix's twelve base cells", one_of(1, 2, 4, 8, 16))
    shown: int = option(32, "cutouts in a gallery", at_least(1))
    seeds: Any = option(None, "latents of several trainings of one recipe: files or run folders")
