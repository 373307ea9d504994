"""Options of each command: its own, and the shared sections that it uses."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.calibration import AnalysisOptions, LeastCosineOptions
from nenya.options.declare import SHA256, above, at_least, one_of, option, within
from nenya.options.figures import (
    DRAWN_ONLY_WITH,
    WITH_IMAGES,
    CutoutPictureOptions,
    DrawnOptions,
    PictureOptions,
    is_box,
)
from nenya.options.masks import MaskOptions, is_bounds, numbers
from nenya.options.sections import Options
from nenya.options.shards import DaskOptions, ShardOptions, ShareOptions
from nenya.options.tags import TagsOptions


@dataclass
class TrainOptions(TagsOptions):
    """Options of training."""

    only_with: ClassVar = {"sha256": "init_from", "tags_sha256": "tags"}
    trains: ClassVar[bool] = True

    init_from: str | None = option(None, "weights to start from")
    rows: str | None = option(
        None,
        "row list of nenya split or prune: the cutouts to train and validate on; default the partitions",
    )
    rows_sha256: str | None = option(None, "sha256 expected of the file of rows=; recorded in config.yaml", SHA256)
    tags_sha256: str | None = option(None, "sha256 expected of the file of tags=; recorded in config.yaml", SHA256)
    resume: str | None = option(None, "a run folder to resume, or 'last'")
    processor: str | None = option(
        None, "processor for which trainer.precision=auto or model.layout=auto was chosen; recorded in config.yaml"
    )


@dataclass
class ExtractOptions(ShareOptions):
    """Options of extraction."""

    uses: ClassVar[tuple[str, ...]] = (
        *("model", "preprocess", "loader", "archive", "trainer", "logger"),
        *("data", "out", "seed", "clobber", "debug", "sha256"),
    )

    ckpt: str | None = option(None, "weights to use; default model.weights")
    calibration: str | None = option(
        None, "calibration of these weights, for the cosine of masked cutouts; default the one beside them"
    )


@dataclass
class VerifyOptions(Options):
    """Options of the verification of latents files."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data")

    source: Any = option(None, "cutout files of the latents: a folder, a glob, a list")
    provenance: bool = option(True, "require provenance in the files; those of the original nenya have none")


@dataclass
class GenerateOptions(Options):
    """Options of generated data sets."""

    uses: ClassVar[tuple[str, ...]] = ("out", "seed", "clobber", "debug")
    instead: ClassVar = {"data": "generate creates its own data; out= is the output"}

    kind: str = option("ocean", "kind of data", one_of("ocean", "white", "power2", "power4"))
    size: int = option(64, "side in pixels of a cutout", at_least(8))
    n_train: int | None = option(None, "cutouts in `train`; default 150000, of an ocean 1500", at_least(1))
    n_valid: int | None = option(None, "cutouts in `valid`; default 50000, of an ocean 500", at_least(1))
    clouds: float = option(
        0.05,
        "largest cloudy fraction of a cutout (ocean)",
        ("a fraction from 0 to below 1", lambda value: 0 <= value < 1),
    )
    masked: bool = option(False, "set cloudy pixels to NaN; otherwise only the mask marks them")
    device: str = option("cpu", "device of the ocean simulation", one_of("cpu", "cuda"))


@dataclass
class InspectOptions(Options):
    """Options of the inspection of files."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out")

    rows: int | None = option(None, "largest number of rows read per data set; default all", at_least(1))
    sheet: bool = option(True, "draw a contact sheet of cutouts")
    recipe: str | None = option(None, "for a file of fields: a recipe, or your own .yaml; default: the one that fits")


@dataclass
class RepackOptions(Options):
    """Options of the repacking of cutout files."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "clobber")

    codec: str = option("gzip", "gzip, lzf (both with shuffle where it helps) or none", one_of("gzip", "lzf", "none"))
    force: bool = option(False, "also write a file that reads slower than its source")
    axes: str | None = option(
        None,
        "order of the stored dimensions (n cutouts, h rows, w columns), such as hwn of MATLAB, written as nhw",
        one_of("nhw", "nwh", "hwn", "whn", "hnw", "wnh"),
    )


_SIDES = ("two integers of at least 1, such as [3,1], or null", numbers(whole=True, low=1))


@dataclass
class PrepareOptions(MaskOptions, DaskOptions):
    """Options of the preparation of cutouts; those of a recipe keep the names that users know."""

    uses: ClassVar[tuple[str, ...]] = ("loader.cache_dir", "loader.allow_external", "data", "out", "seed", "clobber")

    recipe: str = option("grid", "name of the recipe: a file in configs/sensor")
    quantity: str = option(
        "any", "kind of field; temperatures are converted to degrees Celsius", one_of("any", "temperature", "height")
    )
    field_size: int = option(64, "side in pixels of a cutout of the field", at_least(2))
    sub_grid_step: int = option(1, "distance between cutouts is field_size / sub_grid_step pixels", at_least(1))
    step: int | None = option(None, "pixels between cutouts; default from sub_grid_step", at_least(1))
    clear_threshold: float = option(
        95.0,
        "smallest percentage of clear pixels",
        ("a percentage: 0, or above 1 to 100", lambda v: v == 0 or 1 < v <= 100),
    )
    quality_thresh: int | None = option(None, "worst quality level that is kept, as numbered in the file")
    best_quality: str = option("auto", "whether high or low quality levels are good", one_of("auto", "high", "low"))
    nadir_offset: int | None = option(None, "columns used on either side of nadir", at_least(1))
    temp_bounds: Any = option(
        None,
        "smallest and largest value that is kept, in degrees Celsius for temperatures",
        ("two numbers [min, max], or null", is_bounds),
    )
    land: float | None = option(None, "value that marks land, if the field has no land mask")
    inpaint: str = option(
        "fast",
        "inpainting of masked pixels: none (they stay NaN), one fast solution per field, or scikit-image's biharmonic",
        one_of("none", "fast", "biharmonic"),
    )
    fixed_km: float | None = option(None, "side in km of a cutout, resized to field_size pixels", above(0))
    noise: float = option(0.0, "standard deviation of added white noise, in units of the field", at_least(0))
    median: Any = option(None, "rows and columns of a median filter", _SIDES)
    downscale: Any = option(None, "rows and columns averaged to one pixel", _SIDES)
    demean: bool = option(True, "remove the mean of each cutout")
    variable: str | None = option(None, "name of the variable; default: from its CF attributes")
    mask: str | None = option(None, "name of a land-sea mask or flags, or none; default: from its CF attributes")
    quality: str | None = option(
        None, "name of the quality variable, or none for all pixels; default: quality_level, qual_sst ..."
    )
    time: str | None = option(None, "name of the time variable, or a date: 2015-01-16T12:00")
    lat: str | None = option(None, "name of the latitude")
    lon: str | None = option(None, "name of the longitude")
    coords: str | None = option(None, "file with the coordinates and masks missing from the data files")
    units: str | None = option(None, "units of the variable, if missing or wrong in the file")
    level: int | None = option(
        None, "index of the vertical level; default: the one nearest to the surface", at_least(0)
    )
    at: str | None = option(None, "table with lat, lon and datetime of cutout centres, instead of a grid")
    max_km: float = option(10.0, "largest distance in km of a row of at= from the nearest pixel", above(0))
    max_hours: float = option(12.0, "largest difference in hours of a row of at= from the field", at_least(0))
    matches: str = option(
        "nearest", "for several fields at a row of at=: the nearest in time, or all", one_of("nearest", "all")
    )
    valid_fraction: float = option(
        0.25,
        "fraction of the granules for the validation set",
        ("a number from 0 to 1", lambda v: 0 <= v <= 1),
    )
    workers: int | None = option(None, "processes; default: one per core, at most one per granule", at_least(1))


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


@dataclass
class StatisticsOptions(LeastCosineOptions, PictureOptions, TagsOptions):
    """Options of the statistics of a selection from `table` or `archive`."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "clobber")
    positional: ClassVar = "table"
    only_with: ClassVar = {"version": "archive_dir"}

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, if it has several")
    where: str | None = option(None, "an SQL condition on the columns, such as DT > 2 and lat < 0")
    box: Any = option(None, "box of the UMAP", ("four numbers [x0, x1, y0, y1], x0 < x1, y0 < y1", is_box))
    cluster: int | None = option(None, "number of a cluster")
    rows: str | None = option(None, "table of selected rows, such as the result of a search")
    metrics: Any = option(["DT", "alpha"], "columns for histograms", ("a list of columns", _is_names))
    degrees: float = option(2.0, "side in degrees of the map cells", one_of(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0))
    picture: str = option(".png", "format of the figure; format= takes several", one_of(".png", ".pdf", ".svg"))


@dataclass
class ClustersOptions(LeastCosineOptions, CutoutPictureOptions):
    """Options of clusters of latents."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "seed", "clobber")
    only_with: ClassVar = {
        **dict.fromkeys(("k", "passes"), "method=kmeans"),
        **dict.fromkeys(("components", "min_size"), "method=hdbscan"),
        **WITH_IMAGES,
    }

    method: str = option("kmeans", "mini-batch k-means, or HDBSCAN on a sample", one_of("kmeans", "hdbscan"))
    k: int | None = option(None, "number of clusters (kmeans)", at_least(1))
    passes: int = option(2, "passes of k-means over all rows", at_least(1))
    sample: int | None = option(
        None,
        "rows of the sample; default 20000 (kmeans), 10000 (hdbscan: its time grows quadratically)",
        at_least(2),
    )
    components: int = option(16, "principal components used by HDBSCAN", at_least(1))
    min_size: int | None = option(
        None, "smallest cluster in HDBSCAN's sample, rows; default a hundredth of the sample", at_least(2)
    )
    members: int = option(9, "closest cutouts in a cluster's figure, including its medoid", at_least(1))
    images: Any = option(None, "cutout files, for a figure of each cluster")


@dataclass
class FiguresOptions(DrawnOptions, AnalysisOptions, TagsOptions):
    """Options of figures of a table and its cutouts."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "out", "clobber")
    positional: ClassVar = "table"
    instead: ClassVar = {"data": "use table= or archive= for the rows, images= for the cutouts"}
    only_with: ClassVar = {
        **{"version": "archive_dir", "degrees": "kind=map", "scale": "kind=gallery", "components": "kind=eigen"},
        **{"metric": "kind=metric|map", "least": "kind=metric|map", "cells": "kind=umap|metric|gallery"},
        "where": "kind=umap|metric|map|gallery",
        **DRAWN_ONLY_WITH,
    }

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, if it has several")
    kind: str = option("umap", "kind of figure", one_of("umap", "metric", "map", "gallery", "eigen"))
    metric: str | None = option(None, "column to average over cells, or of categories (kind=metric, kind=map)")
    where: str | None = option(None, "an SQL condition on the columns, such as DT > 2 and lat < 0")
    images: Any = option(None, "cutout files (kind=gallery, kind=eigen); default those of archive=")
    cells: int | None = option(
        None, "cells along each coordinate; default 200, from the number of rows (metric), 12 (gallery)", at_least(1)
    )
    least: int | None = option(
        None, "smallest number of cutouts in a cell of a mean; default 5, or the largest count of a cell", at_least(1)
    )
    degrees: float | None = option(
        None,
        "side in degrees of the map cells; default 2, or from the number of rows (metric)",
        one_of(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
    )
    scale: str = option(
        "shared", "colour scale of a gallery: one range in K for all cutouts, or one for each", one_of("shared", "own")
    )
    components: int = option(16, "number of eigen-images", at_least(1))
    title: str | None = option(None, "title of the figure")


@dataclass
class IndexOptions(AnalysisOptions, ShardOptions):
    """Options of the index of an archive."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "seed", "clobber")
    words: ClassVar = {"add": "add=true"}

    add: bool = option(False, "add to an existing index; the word `add` does the same")
    of_sensor: str | None = option(None, "value of the column sensor for these files, if the table has no such column")
    kind: str = option(
        "auto", "type of the vector index; auto: from the number of rows", one_of("auto", "IVF_FLAT", "IVF_RQ")
    )
    index_from: int = option(
        100_000, "smaller numbers of rows are searched exactly, without a vector index", at_least(0)
    )
    shard: str | None = option(
        None,
        "i/n: the share of worker i, from 0, of n with the same command; then shard=merge makes the index: the rows of "
        "one process in its order, but not the same bits, as LanceDB trains and names an index differently each time",
    )


@dataclass
class SearchOptions(LeastCosineOptions, CutoutPictureOptions, TagsOptions):
    """Options of similarity search in `data` (with `table`), `index` or `archive`."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "data", "out", "clobber", "sha256")
    only_with: ClassVar = {
        **{"version": "archive_dir", "table": "data", "figure": "images", "ckpt": "image", "sha256": "image"},
        **WITH_IMAGES,
    }

    index: str | None = option(None, "an index of nenya index; otherwise data= is searched exactly")
    archive_dir: str | None = option(None, "an archive of nenya update")
    version: str | None = option(None, "model version of the archive, if it has several")
    like: Any = option(
        None, "examples: rows of the table, uid:<UID>, train:<row>, <cutout file>:<train or valid>:<row>; one or a list"
    )
    unlike: Any = option(None, "negative examples, likewise")
    image: Any = option(None, "examples: .npy, .npz, or <cutout file>.h5:<partition>:<row>, encoded by the model")
    ckpt: str | None = option(None, "weights for image=; default model.weights")
    k: int = option(10, "number of results", at_least(1))
    region: Any = option(None, "names of nenya.defs.REGIONS")
    lon: Any = option(None, "[west,east] in degrees; west > east crosses the dateline")
    lat: Any = option(None, "[south,north] in degrees")
    dates: Any = option(None, "[first,last] day, inclusive")
    season: Any = option(None, "DJF, MAM, JJA, SON; one or a list")
    DT: Any = option(None, "a name of nenya.defs.DT_INTERVALS, or [min,max] of T90 - T10 in K")
    clear: Any = option(None, "[min,max] of clear_fraction")
    of_sensor: Any = option(None, "values of the column sensor")
    where: str | None = option(None, 'an SQL condition on the columns of the table, such as "LL < -500 AND lat > 0"')
    exact: bool = option(False, "compare with every row, without the vector index")
    distinct: bool = option(
        False, "skip results of the same granule (a time of a file) as an example or a closer result"
    )
    apart_km: float | None = option(
        None, "skip results within this distance in km (and apart_hours) of an example or a closer result", above(0)
    )
    apart_hours: float | None = option(None, "as apart_km, in hours; each may be used alone", above(0))
    images: Any = option(None, "cutout files, for a figure of the examples and the results")
    figure: str | None = option(None, "the figure; default beside out=, or outputs/search/closest.png")
    device: str = option("cpu", "device of the exact search", one_of("cpu", "cuda"))


@dataclass
class MetricsOptions(LeastCosineOptions, ShardOptions):
    """Options of the metrics of latents."""

    uses: ClassVar[tuple[str, ...]] = (
        *("model", "preprocess", "augment", "loader"),
        *("data", "out", "seed", "clobber", "sha256"),
    )

    images: Any = option(None, "cutout files of the latents, for invariance and eigen-images: a folder, glob or list")
    ckpt: str | None = option(None, "weights of the latents; default model.weights")
    sample: int = option(5000, "sample of latents for uniformity and neighbours", at_least(2))
    neighbours: int = option(10, "nearest latents compared with each", at_least(1))
    cutouts: int = option(512, "cutouts for the invariance", at_least(2))
    modes: int = option(4, "principal components shown as images", at_least(0))
    steps: int = option(100, "optimisation steps of their images; 0: no images", at_least(0))
    coefficients: bool = option(True, "also write the coefficients of all latents")


@dataclass
class EmbedOptions(LeastCosineOptions, ShardOptions):
    """Options of UMAP embeddings."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "seed", "clobber", "debug")
    not_with: ClassVar = dict.fromkeys(("ntrain", "n_neighbors", "min_dist", "metric", "umap_savefile"), "projector")

    projector: str | None = option(None, "an existing projector; default: fit a new one")
    calibration: str | None = option(None, "calibration of the latents, for error bars of masked cutouts (umap_spread)")
    umap_savefile: str | None = option(None, "output for the fitted projector; default <name of out>_UMAP.h5 beside it")
    ntrain: int = option(200_000, "largest number of rows for fitting the UMAP", at_least(4))
    n_neighbors: int = option(15, "number of neighbours of the UMAP", at_least(2))
    min_dist: float = option(0.1, "smallest distance between points of the UMAP", at_least(0))
    metric: str = option("euclidean", "distance of latents", one_of("euclidean", "cosine"))
    approximate: bool = option(False, "search neighbours in the nearest lists of rows only: much faster")
    DT_cut: str | None = option(None, "rows in one interval of T90 - T10: DT0, DT1, DT15, DT2, DT4, DT5, DT10, all")
    alpha_cut: str | None = option(None, "rows in one interval of the spectral slope: a0, a1, a15, a2, a25, a3, a4")


@dataclass
class MigrateOptions(Options):
    """Options of the check of a folder of the original nenya; `out` is the report as .json or .csv."""

    uses: ClassVar[tuple[str, ...]] = ("out", "clobber")
    positional: ClassVar = "folder"

    folder: str | None = option(None, "the folder, including its subfolders; it is only read")


@dataclass
class PortalOptions(LeastCosineOptions, TagsOptions):
    """Options of the portal."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "trainer", "data", "seed", "clobber", "sha256")
    positional: ClassVar = "table"
    only_with: ClassVar = {"version": "archive_dir", "sample": "export", "page_mb": "export", "sha256": "ckpt"}

    archive_dir: str | None = option(None, "an archive of nenya update, instead of table=")
    version: str | None = option(None, "model version of the archive, if it has several")
    latents: Any = option(None, "latents files of the table's cutouts; the same as data")
    images: Any = option(None, "cutout files of the table's rows, for images")
    ckpt: str | None = option(None, "weights of the latents, for new images")
    projector: str | None = option(None, "projector of US0 and US1, for placing new images on the UMAP")
    address: str = option(
        "127.0.0.1", "address on which the server listens; any other one needs a token, which is generated and printed"
    )
    port: int = option(5006, "port of the server; 0 for any free one", within(0, 65535))
    token: str | None = option(None, "access token for browsers; default: none on 127.0.0.1, else a new one")
    origins: Any = option(None, "further host:port names of the page, such as those of a proxy")
    limit_mb: int = option(20, "largest upload, MB", at_least(1))
    upload: str = option(
        "auto",
        "who may upload images; auto: anyone if uploads can be read in a sandbox, else local",
        one_of("auto", "local", "any", "none"),
    )
    export: str | None = option(None, "write a static page to this folder, for use without a server, and exit")
    sample: int = option(20_000, "rows in the exported page", within(100, 200_000))
    page_mb: int = option(200, "largest exported page, thumbnails included, MB", at_least(1))
    views: bool | None = option(None, "whether visitors save named views beside the table; default: on 127.0.0.1 only")


_RESERVED = ("cutouts", "objects", "uploads", "lock")
_PLAIN_NAME = (
    "letters, digits, '.', '_', '-'; not cutouts, objects, uploads or lock",
    lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]*", value) is not None and value not in _RESERVED,
)


@dataclass
class UpdateOptions(PrepareOptions, ShareOptions):
    """Options of updates of an archive; those that affect the results are fixed by the first call."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "trainer", "seed", "sha256")
    positional: ClassVar = "archive_dir"
    instead: ClassVar = {
        **dict.fromkeys(
            ("clobber", "debug"), "nothing in an archive is overwritten; use another version= for a new start"
        ),
        **dict.fromkeys(("data", "out"), "use new= for new files, archive= for the archive"),
    }
    only_with: ClassVar = {"sha256": "ckpt"}

    archive_dir: str | None = option(None, "the archive, a folder or an s3:// address")
    new: Any = option(None, "new granules or cutout files: a path, a folder, a glob, s3://, a list")
    version: str | None = option(
        None, "name of the model version; default that of model=, or all in the archive", _PLAIN_NAME
    )
    ckpt: str | None = option(None, "weights of a new version; default model.weights")
    table: str | None = option(None, "table of new cutout files (by pp_file); default the .parquet beside each file")
    calibration: str | None = option(
        None, "calibration of the weights of a new version; default the one beside them, with preprocess.masked"
    )
    projector: str | None = option(None, "an existing projector; default: fitted on the first files")
    ntrain: int = option(200_000, "largest number of rows for fitting the UMAP", at_least(4))
    n_neighbors: int = option(15, "number of neighbours of the UMAP", at_least(2))
    min_dist: float = option(0.1, "smallest distance between points of the UMAP", at_least(0))
    metric: str = option("euclidean", "distance of latents for the UMAP", one_of("euclidean", "cosine"))
    k: int = option(20, "number of clusters; their centres are fitted on the first files", at_least(1))
    passes: int = option(2, "passes of k-means over the first files", at_least(1))
    sample: int = option(20_000, "rows from which k-means starts", at_least(2))
    kind: str = option(
        "auto",
        "type of the vector index; auto: from the number of rows",
        one_of("auto", "IVF_FLAT", "IVF_RQ"),
    )
    index_from: int = option(
        100_000, "smaller numbers of rows are searched exactly, without a vector index", at_least(0)
    )
    granules_per_file: int = option(100, "largest number of granules per cutout file", at_least(1))
    given: Any = option(None, "names of the options given; set by the command line")


@dataclass
class StatusOptions(Options):
    """Options of the status of an archive."""

    uses: ClassVar[tuple[str, ...]] = ("loader",)
    positional: ClassVar = "archive_dir"

    archive_dir: str | None = option(None, "the archive, a folder or an s3:// address")
    version: str | None = option(None, "one model version; default all")
    check: bool = option(False, "read every file and compare its hash")
    json: bool = option(False, "write JSON to the standard output")
