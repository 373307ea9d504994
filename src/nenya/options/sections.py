"""Options: typed, checked sections, and the flat view on them that users' scripts and JSON files know.

Every option is declared once, here, with its type, default, meaning and check. The Hydra files in ``configs/``
set values; `build_options` turns a composed configuration into checked dataclasses.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nenya.errors import OptionError

T = TypeVar("T")
Check = Callable[[Any], bool]


def one_of(*choices: str | float) -> tuple[str, Check]:
    """Return the text and the check of a choice."""
    return "one of " + ", ".join(map(str, choices)), lambda value: value in choices


def at_least(low: float) -> tuple[str, Check]:
    """Return the text and the check of a finite number of at least `low`."""
    return f"a number of at least {low:g}", lambda value: math.isfinite(value) and value >= low


def above(low: float) -> tuple[str, Check]:
    """Return the text and the check of a finite number above `low`."""
    return f"a number above {low:g}", lambda value: math.isfinite(value) and value > low


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(value: Any) -> int:
    """Return the bytes that a size such as `500MB`, `1.5GB` or a number of bytes means.

    Raises:
        ValueError: It is no size, or not above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?B?)", str(value).strip().upper().replace("E+", "E"), re.I)
    unit = match[2].replace("I", "") if match else ""
    size = float(match[1]) * _UNITS[unit if unit.endswith("B") or not unit else unit + "B"] if match else 0.0
    if not size >= 1:
        raise ValueError(f"{value} is no size")
    return int(size)


def _is_size(value: Any) -> bool:
    try:
        return parse_size(value) > 0
    except ValueError:
        return False


def option(default: Any, doc: str, check: tuple[str, Check] | None = None) -> Any:
    """Declare an option: default, meaning and (text, check) of what is possible."""
    metadata = {"doc": doc, "check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _is_jitter(value: Any) -> bool:
    return value == 0 or (isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 0 for v in value))


BACKENDS = ("eager", "folded", "packed", "compiled")
"""What computes a forward pass in extraction; see `nenya.models.inference`."""


@dataclass
class ModelOptions:
    """The network and its place among the published versions."""

    name: str = option("custom", "name of the model version; run folders bear it")
    ssl_model: str = option("resnet50", "encoder depth", one_of("resnet18", "resnet34", "resnet50", "resnet101"))
    feat_dim: int = option(256, "length of a latent vector", at_least(1))
    nchannels: int = option(1, "channels of the first layer (3: sees one channel three times)", one_of(1, 3))
    width: int = option(64, "channels of the first stage; the published models have 64", at_least(1))
    latent: str = option(
        "projection",
        "what a latent is: L2-normalised head output, or pooled encoder features",
        one_of("projection", "encoder"),
    )
    backend: str = option(
        "auto",
        "what computes: auto takes the fastest for the work; compiled compiles training too",
        one_of("auto", *BACKENDS),
    )
    weights: str | None = option(None, "where the published weights are; $NAMES are taken from the environment")
    image_size: int | None = option(None, "side in pixels of the cutouts that this version was made for")


@dataclass
class LossOptions:
    """The contrastive loss."""

    ssl_method: str = option("SimCLR", "SimCLR (no labels) or SupCon (labels)", one_of("SimCLR", "SupCon"))
    temp: float = option(0.07, "temperature", above(0))
    contrast_mode: str = option("all", "anchors: all views or the first one", one_of("all", "one"))


@dataclass
class AugmentOptions:
    """Random views of a cutout for training."""

    recipe: str = option("v4", "order and kind of the steps", one_of("v4", "v3", "v2"))
    random_jitter: Any = option(
        [40, 5],
        "crop side and jitter limit in pixels (recipe v4)",
        ("two whole numbers [crop, jitter], or 0", _is_jitter),
    )
    flip: bool = option(True, "flip rows and columns, each with probability 0.5")
    rotate: bool = option(True, "rotate by an angle drawn from 0-360 degrees")
    demean: bool = option(True, "subtract the mean of each view")
    gauss_noise: float = option(0.0, "standard deviation in K of white noise added to a view", at_least(0))
    resampling: str = option(
        "two-step", "rotation and crop as two samplings, or as one", one_of("two-step", "composed")
    )
    padding: str = option("zeros", "what a rotation shows beyond the cutout's edge", one_of("zeros", "reflection"))


@dataclass
class PreprocessOptions:
    """What is done to a cutout before the network sees it in inference."""

    file: str = option("none", "cutouts of a file: as they are, or mean removed", one_of("none", "demean"))
    image: str = option("demean", "a single image: as it is, or mean removed", one_of("none", "demean"))
    dt_crop: int = option(40, "side in pixels of the central square that DT is taken from", at_least(2))


@dataclass
class OptimOptions:
    """SGD and its learning-rate schedule."""

    learning_rate: float = option(0.05, "base learning rate", above(0))
    momentum: float = option(0.9, "SGD momentum", at_least(0))
    weight_decay: float = option(1e-4, "L2 penalty on all parameters", at_least(0))
    cosine: bool = option(True, "cosine decay over the epochs; otherwise steps at lr_decay_epochs")
    warm: bool = option(True, "linear warm-up over the first ten epochs")
    lr_decay_epochs: list[int] = option([700, 800, 900], "epochs after which the rate is multiplied")
    lr_decay_rate: float = option(0.1, "factor of a step; its cube times the base rate is the cosine's end", above(0))


@dataclass
class LoaderOptions:
    """Reading of cutouts."""

    batch_size_train: int = option(64, "cutouts a training step, over all devices", at_least(1))
    batch_size_valid: int = option(32, "cutouts a forward pass in validation and extraction", at_least(1))
    block_size: int = option(1024, "cutouts read at once in extraction, at least", at_least(1))
    num_workers: int = option(0, "loader processes; with 0, extraction reads ahead in a thread", at_least(0))
    cache_dir: str | None = option(None, "folder of unpacked and downloaded copies; default outputs/cache")
    cache_limit: Any = option(
        None,
        "the most that extraction from or to S3 keeps in cache_dir at a time; default: 4/5 of what is free there",
        ("a size such as 20GB, 500MB or a number of bytes", _is_size),
    )
    memory_limit_gb: float | None = option(
        None, "data up to this size are unpacked into memory; default: half of what is free", at_least(0)
    )
    on_device: str = option(
        "auto",
        "training data on the device itself: where they fit into half of a GPU's free memory, always, never",
        one_of("auto", "always", "never"),
    )
    train_key: str = option("train", "partition that is trained on")
    valid_key: str = option("valid", "partition that is validated on")
    labels: str = option("labels", "SupCon labels are read from the data set <partition>_<this>")
    allow_external: bool = option(False, "read HDF5 links that lead out of the file's own folder")


@dataclass
class ArchiveOptions:
    """Names and places that the published versions' users know."""

    sensor: str = option("", "MODIS, VIIRS, SWOT, LLC ...")
    model_root: str = option("", "folder below models/ and latents/")
    images_file: str = option("", "the cutout file that the version was trained on")
    tbl_file: str = option("", "table of the cutouts")
    orig_tbl_file: str = option("", "table before the latents' columns were added")
    nenya_tbl_file: str = option("", "table with the latents' columns")
    s3_outdir: str = option("", "where models and latents are kept")
    data_folder: str = option("./", "where the images file is")
    trial: int = option(0, "number of the trial, a part of the model's name", at_least(0))
    note: str = option("", "remark")


@dataclass
class TrainerOptions:
    """Lightning's own: passed to its Trainer under the same names."""

    max_epochs: int = option(50, "epochs of training", at_least(1))
    accelerator: str = option("auto", "auto, cpu, gpu, mps ...")
    devices: Any = option("auto", "number of devices, list of indices, or auto")
    num_nodes: int = option(1, "machines", at_least(1))
    strategy: str = option("auto", "auto, ddp ...")
    precision: str = option("32-true", "32-true, bf16-mixed, 16-mixed ...")
    sync_batchnorm: bool = option(False, "BatchNorm statistics over all GPUs")
    gradient_clip_val: float | None = option(None, "largest gradient norm")
    check_val_every_n_epoch: int = option(1, "epochs between validations", at_least(1))
    limit_train_batches: Any = option(1.0, "share or number of training batches an epoch")
    limit_val_batches: Any = option(1.0, "share or number of validation batches")
    log_every_n_steps: int = option(20, "steps between log entries", at_least(1))
    enable_progress_bar: bool | None = option(None, "progress bar; default: where the output is a terminal")
    deterministic: bool = option(False, "deterministic algorithms only")


@dataclass
class CheckpointOptions:
    """What a training run keeps."""

    save_freq: int = option(1, "epochs between checkpoints", at_least(1))
    every_minutes: float = option(10.0, "minutes between checkpoints within an epoch; 0: after each step", at_least(0))


@dataclass
class LoggerOptions:
    """Where a run is logged beside its own folder."""

    name: str = option("none", "none or wandb", one_of("none", "wandb"))
    project: str = option("nenya", "wandb project")
    entity: str | None = option(None, "wandb entity")
    offline: bool | None = option(None, "wandb offline; default: when there is no key or no network")
    id: str | None = option(None, "wandb run; a new one by default, the same one in a resume")


@dataclass
class Options:
    """All options of a command."""

    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    archive: ArchiveOptions = field(default_factory=ArchiveOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
    data: Any = option(None, "cutout files: a path, a glob, a list")
    out: str | None = option(None, "where the result goes")
    seed: int = option(1234, "seed of everything random", at_least(0))
    clobber: bool = option(False, "replace what exists")
    debug: bool = option(False, "two batches only")
    traceback: bool = option(False, "show tracebacks of errors")


@dataclass
class TrainOptions(Options):
    """Options of training."""

    init_from: str | None = option(None, "weights to start from")
    resume: str | None = option(None, "a run folder to go on with, or 'last'")


@dataclass
class ExtractOptions(Options):
    """Options of extraction."""

    ckpt: str | None = option(None, "weights to use; default model.weights")
    shard: str | None = option(
        None, "i/n: this worker's share of the files; default from a SLURM array or a Job's index"
    )


@dataclass
class VerifyOptions(Options):
    """Options of the verification of latents files."""

    source: Any = option(None, "cutout files that the latents are of: a folder, a glob, a list")
    provenance: bool = option(True, "files must say how they were made; those of the first nenya do not")


def _is_band(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(_is_number(v) for v in value) and 2 <= value[0] < value[1]
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class GenerateOptions(Options):
    """Options of generated data sets."""

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

    rows: int | None = option(None, "rows of a data set that are read at most; default all", at_least(1))
    sheet: bool = option(True, "draw a contact sheet of cutouts")


@dataclass
class RepackOptions(Options):
    """Options of the repacking of cutout files."""

    codec: str = option("gzip", "gzip, lzf (both with shuffle where it helps) or none", one_of("gzip", "lzf", "none"))


@dataclass
class ExportOptions(Options):
    """Options of the export of weights."""

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


def suggest(name: str, known: list[str]) -> str:
    """Return '; did you mean X?' for the nearest of the known names, else an empty text."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_keys(values: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise OptionError for the first key that is not among the known ones."""
    for key in values:
        if key not in known:
            raise OptionError(
                f"unknown option {where}{key}{suggest(key, known)} (possible: {', '.join(sorted(known))})"
            )


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list of whole numbers",
}


def _convert(value: Any, annotation: Any, name: str) -> Any:
    """Convert a plain value to the annotated type, or raise OptionError."""
    if annotation is Any:
        return value
    kinds = [k for k in getattr(annotation, "__args__", (annotation,)) if k is not type(None)]
    if getattr(annotation, "__origin__", None) is list:
        kinds = [list]
    elif value is None:
        if annotation not in kinds:
            return None
        raise OptionError(f"{name} is empty: wanted {_WORDS[annotation]}")
    kind = kinds[0]
    if kind is list:
        return _int_list(value, name)
    good = {
        bool: isinstance(value, bool),
        int: type(value) is int or (isinstance(value, float) and value.is_integer()),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str | int | float) and not isinstance(value, bool),
    }[kind]
    if not good:
        raise OptionError(f"{name}={value}: wanted {_WORDS[kind]}")
    return kind(value)


def _int_list(value: Any, name: str) -> list[int]:
    """Return a list of whole numbers from a list or from a text such as '700, 800, 900'."""
    items = value.strip("[] ").split(",") if isinstance(value, str) else value
    if isinstance(items, int):
        items = [items]
    try:
        return [int(v) for v in items if str(v).strip()]
    except (TypeError, ValueError):
        raise OptionError(f"{name}={value}: wanted {_WORDS[list]}") from None


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Build and check one section (or the whole) from plain values."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(values, list(fields), prefix)
    built: dict[str, Any] = {}
    for key, value in values.items():
        declared, name = fields[key], prefix + key
        if dataclasses.is_dataclass(declared.type):
            if not isinstance(value, Mapping):
                raise OptionError(f"{name}={value}: wanted a section with keys, such as {name}.key=value")
            built[key] = _build(declared.type, value, name + ".")  # type: ignore[arg-type]
            continue
        if key == "random_jitter" and isinstance(value, str):
            value = _int_list(value, name)
        built[key] = _convert(value, declared.type, name)
        check = declared.metadata.get("check")
        if check and built[key] is not None and not _holds(check[1], built[key]):
            raise OptionError(f"{name}={value}: wanted {check[0]} ({declared.metadata['doc']})")
    return cls(**built)


def _holds(check: Check, value: Any) -> bool:
    """Return whether a value passes; one that is beyond all numbers, or of another kind, does not."""
    try:
        return check(value)
    except (OverflowError, TypeError):
        return False


O = TypeVar("O", bound=Options)  # noqa: E741  # the type of the options of one command


def build_options(cls: type[O], values: Mapping[str, Any]) -> O:
    """Build the options of a command from a plain nested mapping.

    Args:
        cls: `TrainOptions`, `ExtractOptions` ...
        values: section -> key -> value, as composed by Hydra.

    Returns:
        The checked options.

    Raises:
        OptionError: A key does not exist or a value is not possible; says what was given and what is possible.
    """
    options = _build(cls, values, "")
    jitter = options.augment.random_jitter
    if options.augment.recipe in ("v4", "v2") and jitter == 0:
        raise OptionError(
            f"augment.random_jitter=0: recipe {options.augment.recipe} wants two whole numbers, such as [40,5]"
        )
    return options


def to_dict(options: Any) -> dict[str, Any]:
    """Return options (or a section) as plain nested dicts."""
    return dataclasses.asdict(options)


# The users' flat names, and where each lives.
FLAT: dict[str, tuple[str, str]] = {
    **{f.name: ("loss", f.name) for f in dataclasses.fields(LossOptions)},
    **{f.name: ("model", f.name) for f in dataclasses.fields(ModelOptions) if f.name not in ("name", "backend")},
    **{f.name: ("augment", f.name) for f in dataclasses.fields(AugmentOptions) if f.name != "recipe"},
    **{f.name: ("optim", f.name) for f in dataclasses.fields(OptimOptions)},
    **{f.name: ("archive", f.name) for f in dataclasses.fields(ArchiveOptions)},
    **{
        name: ("loader", name)
        for name in ("batch_size_train", "batch_size_valid", "num_workers", "train_key", "valid_key")
    },
    "augment": ("augment", "recipe"),
    "random_cropjitter": ("augment", "random_jitter"),
    "dt_crop": ("preprocess", "dt_crop"),
    "epochs": ("trainer", "max_epochs"),
    "syncBN": ("trainer", "sync_batchnorm"),
    "valid_freq": ("trainer", "check_val_every_n_epoch"),
    "save_freq": ("checkpoint", "save_freq"),
}

# Keys of old option files that mean nothing here any more, and why.
IGNORED: dict[str, str] = {
    "cuda_use": "the accelerator is chosen by trainer.accelerator",
    "n_cuda": "the devices are chosen by trainer.devices",
    "print_freq": "see trainer.log_every_n_steps",
    "nenya_data": "every file is read the same way",
    "modis_data": "every file is read the same way",
    "llc_data": "every file is read the same way",
    "dataset": "every file is read the same way",
    "eval_root": "extraction is given its files",
    "eval_dataset": "extraction is given its files",
    "size": "the size is the file's",
    "mean": "cutouts are not standardised",
    "std": "cutouts are not standardised",
    "tb_freq": "see logger",
    "model_name": "derived from the other options",
    "model_folder": "derived from the other options",
    "latents_folder": "derived from the other options",
    "warmup_from": "derived from the other options",
    "warmup_to": "derived from the other options",
    "warm_epochs": "derived from the other options",
    "warmup_epochs": "derived from the other options",
}


def from_flat(values: Mapping[str, Any], name: str = "custom") -> dict[str, dict[str, Any]]:
    """Return the sections that the users' flat names (a JSON option file) stand for.

    Args:
        values: flat option names and values; without `nchannels` the network has three channels.
        name: name of the model version.

    Returns:
        section -> key -> value, ready for `build_options`.

    Raises:
        OptionError: A key is unknown, or both names of the jitter are there with different values.
    """
    check_keys(values, [*FLAT, *IGNORED], "")
    old, new = values.get("random_jitter"), values.get("random_cropjitter")
    if old is not None and new is not None and old != new:
        raise OptionError(f"random_jitter={old} and random_cropjitter={new} are the same option: give one of them")
    sections: dict[str, dict[str, Any]] = {"model": {"name": name, "nchannels": 3}}
    for key, value in values.items():
        if key in IGNORED or (key in ("random_jitter", "random_cropjitter") and value is None):
            continue
        section, inner = FLAT[key]
        sections.setdefault(section, {})[inner] = value
    return sections


def flat_name(options: Options) -> str:
    """Return the users' derived `model_name`, such as `SimCLR_resnet50_lr_0.05_..._trial_5_cosine_warm`."""
    o = options
    name = (
        f"{o.loss.ssl_method}_{o.model.ssl_model}_lr_{o.optim.learning_rate}_decay_{o.optim.weight_decay}"
        f"_bsz_{o.loader.batch_size_train}_temp_{o.loss.temp}_trial_{o.archive.trial}"
    )
    name += "_cosine" if o.optim.cosine else ""
    return name + ("_warm" if warm_up(o) else "")


def warm_up(options: Options) -> bool:
    """Return whether training warms up: as asked, and always for batches over 256."""
    return options.optim.warm or options.loader.batch_size_train > 256


def flat_view(options: Options) -> dict[str, Any]:
    """Return the users' flat names with their values, as plain types: the `opt` of a checkpoint or JSON file."""
    flat = {name: getattr(getattr(options, section), key) for name, (section, key) in FLAT.items()}
    flat["model_name"] = flat_name(options)
    for kind in ("models", "latents"):
        flat[f"{kind.removesuffix('s') if kind == 'models' else kind}_folder"] = str(
            Path(kind) / options.archive.model_root / flat["model_name"]
        )
    return flat
