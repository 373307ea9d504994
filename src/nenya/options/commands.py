"""Options of each command: its own, and the sections that mean something to it."""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.declare import Check, above, at_least, is_number, one_of, option
from nenya.options.sections import Options


@dataclass
class TrainOptions(Options):
    """Options of training."""

    init_from: str | None = option(None, "weights to start from")
    resume: str | None = option(None, "a run folder to go on with, or 'last'")


@dataclass
class ExtractOptions(Options):
    """Options of extraction."""

    uses: ClassVar = (
        *("model", "preprocess", "loader", "archive", "trainer", "logger"),
        *("data", "out", "seed", "clobber", "debug"),
    )

    ckpt: str | None = option(None, "weights to use; default model.weights")
    shard: str | None = option(
        None, "i/n: this worker's share of the files; default from a SLURM array or a Job's index"
    )


@dataclass
class VerifyOptions(Options):
    """Options of the verification of latents files."""

    uses: ClassVar = ("loader", "data")
    positional: ClassVar = "data"

    source: Any = option(None, "cutout files that the latents are of: a folder, a glob, a list")
    provenance: bool = option(True, "files must say how they were made; those of the first nenya do not")


def _is_band(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value) and 2 <= value[0] < value[1]


@dataclass
class GenerateOptions(Options):
    """Options of generated data sets."""

    uses: ClassVar = ("out", "seed", "clobber", "debug")
    instead: ClassVar = {"data": "generate makes its own data; out= says where they go"}

    kind: str = option("ocean", "what is generated", one_of("ocean", "white", "power2", "power4"))
    size: int = option(64, "side in pixels of a cutout", at_least(8))
    n_train: int | None = option(None, "cutouts in `train`; default 150000, of an ocean 1500", at_least(1))
    n_valid: int | None = option(None, "cutouts in `valid`; default 50000, of an ocean 500", at_least(1))
    clouds: float = option(
        0.05, "greatest cloudy share of a cutout (ocean)", ("a share from 0 to below 1", lambda value: 0 <= value < 1)
    )
    masked: bool = option(False, "cloudy pixels are NaN; otherwise only the mask beside the cutouts tells of them")
    device: str = option("cpu", "where an ocean is simulated", one_of("cpu", "cuda"))


@dataclass
class SpectraOptions(Options):
    """Options of power spectra and slopes."""

    uses: ClassVar = ("loader", "data", "out", "clobber")
    positional: ClassVar = "data"

    band: Any = option(
        [4, 40],
        "wavelengths in pixels that the slope is fitted over",
        ("two numbers [least, most], from 2 on", _is_band),
    )
    detrend: str = option(
        "plane",
        "what is removed beside the mean: a plane, a line of its own from each column and row, nothing",
        one_of("plane", "lines", "none"),
    )
    window: str = option("hann", "window in both directions", one_of("hann", "none"))
    average: str = option(
        "mean",
        "over the waves of a bin: mean of P (published), or of log P (unbent by the bins)",
        one_of("mean", "log"),
    )
    pixel_km: float | None = option(None, "size of a pixel in km, for the figure's axis", above(0))
    table: str | None = option(None, "table of the cutouts; a copy with the columns alpha, alpha_err is written")


@dataclass
class InspectOptions(Options):
    """Options of the inspection of files."""

    uses: ClassVar = ("loader", "data", "out")
    positional: ClassVar = "data"

    rows: int | None = option(None, "rows of a data set that are read at most; default all", at_least(1))
    sheet: bool = option(True, "draw a contact sheet of cutouts")


@dataclass
class RepackOptions(Options):
    """Options of the repacking of cutout files."""

    uses: ClassVar = ("loader", "data", "out", "clobber")
    positional: ClassVar = "data"

    codec: str = option("gzip", "gzip, lzf (both with shuffle where it helps) or none", one_of("gzip", "lzf", "none"))


@dataclass
class ExportOptions(Options):
    """Options of the export of weights."""

    uses: ClassVar = ("model", "loader", "out", "clobber")

    ckpt: str | None = option(None, "weights to export; default model.weights")


def _numbers(*, whole: bool, low: float) -> Check:
    """Return the check of a pair of numbers, each at least `low`, or of nothing at all."""

    def check(value: Any) -> bool:
        kinds: tuple[type, ...] = (int,) if whole else (int, float)
        return isinstance(value, list) and len(value) == 2 and all(type(v) in kinds and v >= low for v in value)

    return check


def _is_bounds(value: Any) -> bool:
    return _numbers(whole=False, low=-math.inf)(value) and value[0] < value[1]


_SIDES = ("two whole numbers of at least 1, such as [3,1], or null", _numbers(whole=True, low=1))


@dataclass
class PrepareOptions(Options):
    """Options of the preparation of cutouts; those of a recipe bear the names that its users know."""

    uses: ClassVar = ("loader", "data", "out", "seed", "clobber")

    recipe: str = option("grid", "name of the recipe: a file in configs/sensor")
    quantity: str = option(
        "any", "what the field is; a temperature is brought to degrees Celsius", one_of("any", "temperature", "height")
    )
    field_size: int = option(64, "side in pixels of a cutout of the field", at_least(2))
    sub_grid_step: int = option(1, "cutouts lie field_size / sub_grid_step pixels apart", at_least(1))
    step: int | None = option(None, "pixels between cutouts; default by sub_grid_step", at_least(1))
    clear_threshold: float = option(
        95.0,
        "least share in % of clear pixels",
        ("a percentage: 0, or above 1 to 100", lambda v: v == 0 or 1 < v <= 100),
    )
    quality_thresh: int | None = option(None, "worst quality that is kept, in the file's own numbers")
    best_quality: str = option(
        "auto", "whether high or low numbers of the quality are good", one_of("auto", "high", "low")
    )
    nadir_offset: int | None = option(None, "columns that are used on either side of nadir", at_least(1))
    temp_bounds: Any = option(
        None,
        "least and largest value that is kept, in degrees Celsius for temperatures",
        ("two numbers [least, largest], or null", _is_bounds),
    )
    land: float | None = option(None, "value that stands for land, where a field has no other mark of it")
    inpaint: str = option(
        "fast",
        "how masked pixels are filled: not at all, by one fast solution a field, by scikit-image's",
        one_of("none", "fast", "biharmonic"),
    )
    fixed_km: float | None = option(
        None, "side in km of a cutout, which is then resized to field_size pixels", above(0)
    )
    noise: float = option(0.0, "standard deviation of white noise that is added, in units of the field", at_least(0))
    median: Any = option(None, "rows and columns of a median filter", _SIDES)
    downscale: Any = option(None, "rows and columns that are averaged to one pixel", _SIDES)
    demean: bool = option(True, "remove the mean of each cutout")
    variable: str | None = option(None, "name of the variable; default: found by its CF attributes")
    mask: str | None = option(None, "name of a land-sea mask or of flags; default: found by its CF attributes")
    quality: str | None = option(None, "name of the quality variable; default: quality_level, qual_sst ...")
    time: str | None = option(None, "name of the time variable, or the date itself: 2015-01-16T12:00")
    lat: str | None = option(None, "name of the latitude")
    lon: str | None = option(None, "name of the longitude")
    coords: str | None = option(None, "a further file with the coordinates and masks that the data files lack")
    units: str | None = option(None, "units of the variable, where the file has none or wrong ones")
    level: int = option(0, "number of the vertical level", at_least(0))
    at: str | None = option(None, "table with lat, lon and datetime: cutouts are centred there instead of on a grid")
    max_km: float = option(10.0, "largest distance in km of a place of at= from the nearest pixel", above(0))
    max_hours: float = option(12.0, "largest difference in hours of a time of at= from the field's", at_least(0))
    matches: str = option(
        "nearest", "of several fields for a place of at=: the nearest in time, or all", one_of("nearest", "all")
    )
    valid_fraction: float = option(
        0.25,
        "share of the granules whose cutouts are the validation set",
        ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    )
    workers: int | None = option(None, "processes; default: one a core, at most one a granule", at_least(1))
    dask: str | None = option(None, "address of a Dask scheduler that does the work instead: tcp://host:8786")


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share."""

    data: Any = option(None, "latents files: a path, a folder, a glob, a list")
    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and value[0] < value[1]
        and value[2] < value[3]
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


@dataclass
class StatisticsOptions(AnalysisOptions):
    """Options of the statistics of a selection; `table` or `archive` is the whole."""

    uses: ClassVar = ("loader", "data", "out", "clobber")

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, where it has several")
    where: str | None = option(None, "a condition in SQL on the columns, such as DT > 2 and lat < 0")
    box: Any = option(None, "box of the UMAP", ("four numbers [x0, x1, y0, y1], x0 < x1, y0 < y1", _is_box))
    cluster: int | None = option(None, "number of a group")
    rows: str | None = option(None, "table of chosen rows, such as a search's result")
    metrics: Any = option(["DT", "alpha"], "columns that get a histogram", ("a list of columns", _is_names))
    degrees: float = option(2.0, "side in degrees of the map's cells", one_of(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0))
    picture: str = option(".png", "format of the figure", one_of(".png", ".pdf", ".svg"))


@dataclass
class ClustersOptions(AnalysisOptions):
    """Options of groups of latents."""

    uses: ClassVar = ("loader", "data", "out", "seed", "clobber")
    positional: ClassVar = "data"

    method: str = option("kmeans", "mini-batch k-means, or HDBSCAN on a sample", one_of("kmeans", "hdbscan"))
    k: int | None = option(None, "number of groups (kmeans)", at_least(1))
    passes: int = option(2, "times that k-means goes through all rows", at_least(1))
    sample: int | None = option(
        None,
        "rows of the sample; default 20000 (kmeans), 10000 (hdbscan, whose time grows with the square)",
        at_least(2),
    )
    components: int = option(16, "principal components that HDBSCAN sees", at_least(1))
    min_size: int | None = option(None, "least rows of a group in HDBSCAN's sample; default a hundredth", at_least(2))
    members: int = option(9, "closest cutouts that a group's figure shows, its medoid included", at_least(1))
    images: Any = option(None, "cutout files, for a figure of each group")


@dataclass
class FiguresOptions(AnalysisOptions):
    """Options of figures of a table and its cutouts."""

    uses: ClassVar = ("loader", "out", "clobber")
    instead: ClassVar = {"data": "table= or archive= names the rows, images= the cutouts"}

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, where it has several")
    kind: str = option("umap", "what is drawn", one_of("umap", "metric", "map", "gallery", "eigen"))
    metric: str | None = option(None, "column that is averaged over cells (kind=metric, kind=map)")
    where: str | None = option(None, "a condition in SQL on the columns, such as DT > 2 and lat < 0")
    images: Any = option(None, "cutout files (kind=gallery, kind=eigen); default those of archive=")
    cells: int | None = option(
        None, "cells along each coordinate; default 200, by the number of rows (metric), 12 (gallery)", at_least(1)
    )
    least: int | None = option(
        None, "cells with fewer cutouts stay empty in a mean; default 5, or what a cell has at most", at_least(1)
    )
    degrees: float | None = option(
        None,
        "side in degrees of a map's cells; default 2, or by the number of rows (metric)",
        one_of(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
    )
    scale: str = option(
        "shared", "colours of a gallery: one range for all cutouts in K, or each its own", one_of("shared", "own")
    )
    components: int = option(16, "eigen-images", at_least(1))
    title: str | None = option(None, "title of the figure")


@dataclass
class IndexOptions(AnalysisOptions):
    """Options of the index of an archive."""

    uses: ClassVar = ("loader", "data", "out", "seed", "clobber")
    words: ClassVar = {"add": "add=true"}

    add: bool = option(False, "there must be an index already; the word `add` does the same")
    of_sensor: str | None = option(None, "value of the column sensor for these files, where the table has none")
    kind: str = option("auto", "auto: by the number of rows", one_of("auto", "IVF_FLAT", "IVF_RQ"))
    index_from: int = option(100_000, "archives of fewer rows are searched exactly, without an index", at_least(0))


@dataclass
class SearchOptions(AnalysisOptions):
    """Options of similarity search; `data` (with `table`), `index` or `archive` is searched."""

    uses: ClassVar = ("model", "preprocess", "loader", "data", "out", "clobber")

    index: str | None = option(None, "an index made by nenya index; otherwise data= is searched, exactly")
    archive_dir: str | None = option(None, "an archive of nenya update")
    version: str | None = option(None, "model version of the archive, where it has several")
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


@dataclass
class MetricsOptions(AnalysisOptions):
    """Options of the numbers on latents."""

    uses: ClassVar = ("model", "preprocess", "augment", "loader", "data", "out", "seed", "clobber")
    positional: ClassVar = "data"

    images: Any = option(None, "cutout files of the latents, for invariance and eigen-images: a folder, glob or list")
    ckpt: str | None = option(None, "weights that the latents were made with; default model.weights")
    sample: int = option(5000, "latents that uniformity and neighbours are taken of", at_least(2))
    neighbours: int = option(10, "nearest latents of each that are compared with it", at_least(1))
    cutouts: int = option(512, "cutouts that the invariance is measured on", at_least(2))
    modes: int = option(4, "principal components that images are shown of", at_least(0))
    steps: int = option(100, "steps of the optimisation of their images; 0: none are made", at_least(0))
    coefficients: bool = option(True, "write the coefficients of all latents beside the components")


@dataclass
class EmbedOptions(AnalysisOptions):
    """Options of maps."""

    uses: ClassVar = ("loader", "data", "out", "seed", "clobber", "debug")
    positional: ClassVar = "data"

    projector: str | None = option(None, "a projector that was fitted before; default: one is fitted")
    umap_savefile: str | None = option(None, "where the fitted projector goes; default <name of out>_UMAP.h5 beside it")
    ntrain: int = option(200_000, "rows that a map is fitted on at most", at_least(4))
    n_neighbors: int = option(15, "how many neighbours say what is near", at_least(2))
    min_dist: float = option(0.1, "how close points of the map may lie", at_least(0))
    metric: str = option("euclidean", "what distance is", one_of("euclidean", "cosine"))
    approximate: bool = option(False, "place rows by an approximate search, which is faster")
    DT_cut: str | None = option(None, "rows of one interval of T90 - T10: DT0, DT1, DT15, DT2, DT4, DT5, DT10, all")
    alpha_cut: str | None = option(None, "rows of one interval of the spectral slope: a0, a1, a15, a2, a25, a3, a4")


@dataclass
class MigrateOptions(Options):
    """Options of the check of a folder of the first nenya; `out` is the report as .json or .csv."""

    uses: ClassVar = ("out", "clobber")
    positional: ClassVar = "folder"

    folder: str | None = option(None, "the folder, with everything below it; it is only read")


@dataclass
class PortalOptions(AnalysisOptions):
    """Options of the portal."""

    uses: ClassVar = ("model", "preprocess", "loader", "trainer", "data", "seed", "clobber")

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, where it has several")
    latents: Any = option(None, "latents files of the table's cutouts; the same as data")
    images: Any = option(None, "cutout files of the table's rows: for pictures")
    ckpt: str | None = option(None, "the weights that the latents were made with: for new images")
    projector: str | None = option(None, "the projector that made US0 and US1: places new images on the UMAP")
    address: str = option("127.0.0.1", "where the server listens; another one needs a token, which is made and printed")
    port: int = option(5006, "port of the server; 0 for any that is free", at_least(0))
    token: str | None = option(None, "what browsers must know; default: none on 127.0.0.1, else a new one")
    origins: Any = option(None, "further host:port names that the page is opened by, such as of a proxy")
    limit_mb: int = option(20, "largest upload, MB", at_least(1))
    upload: str = option(
        "auto",
        "whose images are taken; auto: everyone's where the system can lock up what reads them, else local",
        one_of("auto", "local", "any", "none"),
    )
    export: str | None = option(None, "write a folder that shows the essentials without a server, and end")
    sample: int = option(20_000, "rows that the exported page can select among", at_least(100))


_RESERVED = ("cutouts", "objects", "uploads", "lock")
_PLAIN_NAME = (
    "letters, digits, '.', '_', '-'; not cutouts, objects, uploads or lock",
    lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]*", value) is not None and value not in _RESERVED,
)


@dataclass
class UpdateOptions(PrepareOptions):
    """Options of updates of an archive; those that decide what the numbers are hold from the first call on."""

    uses: ClassVar = ("model", "preprocess", "loader", "trainer", "seed")
    instead: ClassVar = {
        **dict.fromkeys(("clobber", "debug"), "nothing in an archive is replaced; another version= begins beside it"),
        **dict.fromkeys(("data", "out"), "new= names new files, archive= says where all goes"),
    }

    archive_dir: str | None = option(None, "the archive, a folder or an s3:// address")
    new: Any = option(None, "new granules or cutout files: a path, a folder, a glob, s3://, a list")
    version: str | None = option(
        None, "name of the model version; default that of model=, or all that the archive has", _PLAIN_NAME
    )
    ckpt: str | None = option(None, "weights of a new version; default model.weights")
    table: str | None = option(None, "table of new cutout files (by pp_file); default the .parquet beside each")
    projector: str | None = option(None, "a map that was fitted before; default: fitted on the first files")
    ntrain: int = option(200_000, "rows that a map is fitted on at most", at_least(4))
    n_neighbors: int = option(15, "how many neighbours say what is near in the map", at_least(2))
    min_dist: float = option(0.1, "how close points of the map may lie", at_least(0))
    metric: str = option("euclidean", "what distance is in the map", one_of("euclidean", "cosine"))
    k: int = option(20, "groups, whose centres are learnt from the first files", at_least(1))
    passes: int = option(2, "times that k-means goes through the first files", at_least(1))
    sample: int = option(20_000, "rows that k-means starts from", at_least(2))
    kind: str = option("auto", "vector index; auto: by the number of rows", one_of("auto", "IVF_FLAT", "IVF_RQ"))
    index_from: int = option(100_000, "archives of fewer rows are searched exactly, without an index", at_least(0))
    granules_per_file: int = option(100, "granules whose cutouts make one file, at most", at_least(1))
    given: Any = option(None, "names of the options that were given; the command line sets it")


@dataclass
class StatusOptions(Options):
    """Options of the status of an archive."""

    uses: ClassVar = ("loader",)
    positional: ClassVar = "archive_dir"

    archive_dir: str | None = option(None, "the archive, a folder or an s3:// address")
    version: str | None = option(None, "one model version; default all")
    check: bool = option(False, "read every file and compare its hash")
    json: bool = option(False, "write JSON to the standard output")
