"""Options of the commands that explore latents; declared as those of `nenya.options` are."""

from dataclasses import dataclass
from typing import Any

from nenya.options import Options, above, at_least, one_of, option


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share: `data` names latents files."""

    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


@dataclass
class IndexOptions(AnalysisOptions):
    """Options of the index of an archive."""

    add: bool = option(False, "there must be an index already; the word `add` does the same")
    of_sensor: str | None = option(None, "value of the column sensor for these files, where the table has none")
    kind: str = option("auto", "auto: by the number of rows", one_of("auto", "IVF_FLAT", "IVF_RQ"))
    index_from: int = option(100_000, "archives of fewer rows are searched exactly, without an index", at_least(0))


@dataclass
class SearchOptions(AnalysisOptions):
    """Options of similarity search; `data` (with `table`) or `index` is searched."""

    index: str | None = option(None, "an index made by nenya index; otherwise data= is searched, exactly")
    like: Any = option(None, "examples: row numbers, uid:<UID>, <cutout file>:<train or valid>:<row>; one or a list")
    unlike: Any = option(None, "examples of what is not wanted, likewise")
    image: Any = option(None, "examples: .npy, .npz, or <cutout file>.h5:<partition>:<row>, through the model")
    ckpt: str | None = option(None, "weights for image=; default model.weights")
    k: int = option(10, "how many are wanted", at_least(1))
    region: Any = option(None, "names of nenya.defs.REGIONS")
    lon: Any = option(None, "[west,east] in degrees; west > east goes across the dateline")
    lat: Any = option(None, "[south,north] in degrees")
    dates: Any = option(None, "[first,last] day, both included")
    season: Any = option(None, "DJF, MAM, JJA, SON; one or a list")
    DT: Any = option(None, "a name of nenya.defs.DT_INTERVALS, or [least,greatest] T90 - T10 in K")
    clear: Any = option(None, "[least,greatest] clear_fraction")
    of_sensor: Any = option(None, "values of the column sensor")
    where: str | None = option(None, 'a condition in SQL on the table\'s columns, such as "LL < -500 AND lat > 0"')
    exact: bool = option(False, "look at every row")
    distinct: bool = option(False, "none of the same granule (column filename) as an example or a closer one")
    apart_km: float | None = option(
        None, "none within so many km (and apart_hours) of an example or a closer one", above(0)
    )
    apart_hours: float | None = option(None, "see apart_km; one of both alone counts alone", above(0))
    images: Any = option(None, "cutout files, for a picture of the examples and the closest")
    figure: str | None = option(None, "the picture; default beside out=, or outputs/search/closest.png")
    device: str = option("cpu", "where exact search is computed", one_of("cpu", "cuda"))
