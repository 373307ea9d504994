"""Options in typed, checked sections.

Every option is declared once, here, with its type, default, meaning and check. The Hydra files in ``configs/``
set values; `build_options` turns a composed configuration into checked dataclasses.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from nenya.errors import OptionError
from nenya.options.declare import (
    SHA256,
    above,
    at_least,
    build,
    is_jitter,
    is_number,
    is_size,
    one_of,
    option,
    within,
)
from nenya.options.effects import check_effects
from nenya.options.objectives import LossOptions, check_objective
from nenya.options.own import is_dotted

ENCODERS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet18_scaled"),
    *("convnext_tiny", "convnext_small", "vit_tiny", "vit_small"),
)
"""Encoders by name; see `nenya.models.resnet` and `nenya.models.backbones`."""

OPTIMIZERS = ("SGD", "LARS", "AdamW")
_WITH_LARS = ("VICReg", "BarlowTwins", "BYOL")

TRAINING_ONLY = frozenset(
    [
        *(f"loader.{key}" for key in ("batch_size_train", "memory_limit_gb", "on_device", "labels")),
        *("trainer.max_epochs", "trainer.sync_batchnorm", "trainer.gradient_clip_val"),
        *("trainer.check_val_every_n_epoch", "trainer.limit_train_batches", "trainer.limit_val_batches"),
        *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "model.layout"),
    ]
)
"""Keys of sections that other commands use as well, without an effect outside a training."""

MASKED = ("nan", "fill", "mean", "mask")
"""What the network sees of masked pixels; see `nenya.data.masks`."""

BANKS = ("generated", "own")
"""Banks of clouds that are no files; see `nenya.data.cloudy_views`."""

BACKENDS = ("eager", "folded", "packed", "compiled")
"""Backends of the forward pass in extraction; see `nenya.models.inference`."""


def _are_sides(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value) and 0 < value[0] <= value[1]
    )


@dataclass
class ModelOptions:
    """The network and its place among the published versions."""

    name: str = option("custom", "name of the model version, also of its run folders")
    ssl_model: str = option(
        "resnet50",
        "encoder",
        (
            f"one of {', '.join(ENCODERS)}, or the dotted name of your own class",
            lambda v: v in ENCODERS or is_dotted(v),
        ),
    )
    feat_dim: int = option(256, "length of a latent vector", within(1, 65_536))
    nchannels: int = option(1, "channels of the first layer (3: sees one channel three times)", one_of(1, 3))
    width: int = option(
        64, "channels of the first stage, of a ViT those of a head; the published models have 64", within(1, 4_096)
    )
    mask_channel: bool = option(False, "the network sees the mask as a second channel (preprocess.masked=mask)")
    latent: str = option(
        "projection",
        "what a latent is: L2-normalised head output, or pooled encoder features",
        one_of("projection", "encoder"),
    )
    backend: str = option(
        "auto",
        "backend of the network: auto takes the fastest; compiled also compiles training",
        one_of("auto", *BACKENDS),
    )
    layout: str = option(
        "contiguous",
        "layout of images in memory in training on a CPU (a GPU has channels_last); auto: by the processor",
        one_of("contiguous", "channels_last", "auto"),
    )
    weights: str | None = option(None, "path of the published weights; $NAMES are taken from the environment")
    image_size: int | None = option(None, "side in pixels of the cutouts of this version")
    image_sizes: Any = option(
        None,
        "smallest and largest side in pixels of the cutouts that this version takes; others are refused",
        ("two integers [smallest, largest], or null", _are_sides),
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(is_dotted(name) for name in value)


@dataclass
class AugmentOptions:
    """Random views of a cutout for training."""

    recipe: str = option("v4", "order and kind of the steps", one_of("v4", "v3", "v2"))
    random_jitter: Any = option(
        [40, 5],
        "crop side and jitter limit in pixels (recipe v4)",
        ("two integers [crop, jitter], or 0", is_jitter),
    )
    flip: bool = option(True, "flip rows and columns, each with probability 0.5")
    rotate: bool = option(True, "rotate by an angle drawn from 0-360 degrees")
    demean: bool = option(True, "subtract the mean of each view")
    gauss_noise: float = option(0.0, "standard deviation in K of white noise added to a view", at_least(0))
    resampling: str = option(
        "two-step", "rotation and crop as two samplings, or as one", one_of("two-step", "composed")
    )
    extra: Any = option(
        [],
        "functions of yours, applied to the finished views in this order, such as [my_views.add_stripes]",
        ("a list of dotted names", _are_names),
    )
    padding: str = option("zeros", "padding beyond the cutout's edge in a rotation", one_of("zeros", "reflection"))
    clouds: bool = option(False, "mask parts of the views by clouds, different ones for the two views of a cutout")
    clouds_most: float = option(0.5, "largest share of a view that a cloud covers", within(0.01, 0.9))
    clouds_from: float = option(0.5, "share of the epochs without clouds, at the beginning", within(0, 0.99))
    cloud_masks: str = option(
        "generated", "shapes of the clouds: generated, own (masks of the training data), or the path of a cutout file"
    )


@dataclass
class PreprocessOptions:
    """Preprocessing of a cutout before the network in inference."""

    file: str = option("none", "cutouts of a file: unchanged, or mean removed", one_of("none", "demean"))
    image: str = option("demean", "a single image: unchanged, or mean removed", one_of("none", "demean"))
    masked: str = option(
        "nan",
        "masked pixels: no latent, a smooth filling, the mean of the clear ones, or filling and mask as two channels",
        one_of(*MASKED),
    )
    dt_crop: int = option(40, "side in pixels of the central square for DT", at_least(2))


@dataclass
class OptimOptions:
    """The optimizer and its learning-rate schedule."""

    learning_rate: float = option(0.05, "base learning rate", above(0))
    momentum: float = option(0.9, "momentum (SGD, LARS)", at_least(0))
    weight_decay: float = option(1e-4, "L2 penalty, of SGD on all parameters", at_least(0))
    trust: float = option(0.001, "trust coefficient (LARS)", above(0))
    micro_batch: int = option(
        0, "cutouts of a batch that the network sees at once, to save memory, same gradient; 0: all", at_least(0)
    )
    cosine: bool = option(True, "cosine decay over the epochs; otherwise steps at lr_decay_epochs")
    warm: bool = option(True, "linear warm-up over the first ten epochs")
    lr_decay_epochs: list[int] = option([700, 800, 900], "epochs after which the rate is multiplied")
    lr_decay_rate: float = option(0.1, "factor of a step; its cube times the base rate is the cosine's end", above(0))
    fused: bool | None = option(
        None, "one kernel updates all weights (SGD, AdamW); null: on a GPU, or as model.layout=auto chooses"
    )
    optimizer: str = option(
        "auto",
        "SGD; LARS or AdamW, which do not decay biases and norms; auto: LARS for VICReg, BarlowTwins, BYOL, else SGD",
        one_of("auto", *OPTIMIZERS),
    )


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
        "largest disk use in cache_dir of extraction from or to S3; default: 4/5 of the free space",
        ("a size such as 20GB, 500MB or a number of bytes", is_size),
    )
    memory_limit_gb: float | None = option(
        None, "data up to this size are unpacked into memory; default: half of the free memory", at_least(0)
    )
    on_device: str = option(
        "auto",
        "training data in device memory: auto (if they fit into half of the GPU's free memory), always, never",
        one_of("auto", "always", "never"),
    )
    train_key: str = option("train", "partition for training")
    valid_key: str = option("valid", "partition for validation")
    labels: str = option("labels", "SupCon labels are read from the data set <partition>_<this>")
    allow_external: bool = option(False, "follow HDF5 links out of the file's own folder")


def _is_access(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and all(isinstance(v, str) and v for v in value))


def _are_addresses(value: Any) -> bool:
    known = ("s3://", "https://", "http://")
    return isinstance(value, list) and all(isinstance(v, str) and v.startswith(known) for v in value)


@dataclass
class StorageOptions:
    """Access to data on S3 and on the web."""

    anonymous: Any = option(
        None,
        "read S3 buckets without an account: true, false, or a list of bucket names; default: if there are no "
        "credentials",
        ("true, false or a list of bucket names", _is_access),
    )
    requester_pays: bool = option(False, "pay for transfers from requester-pays S3 buckets")
    one_writer: bool = option(
        False,
        "write to an archive or an index on an S3 service without conditional writes (If-Match): no other machine "
        "writes to it meanwhile",
    )
    references: Any = option(
        [],
        "addresses that a file of references (kerchunk) may read besides its own folder, such as [s3://bucket/path/]",
        ("a list of addresses, s3://... or https://...", _are_addresses),
    )


@dataclass
class PublishedOptions:
    """Names and paths of the published versions."""

    sensor: str = option("", "MODIS, VIIRS, SWOT, LLC ...")
    model_root: str = option("", "folder below models/ and latents/")
    images_file: str = option("", "the cutout file that the version was trained on")
    tbl_file: str = option("", "table of the cutouts")
    orig_tbl_file: str = option("", "table before the latents' columns were added")
    nenya_tbl_file: str = option("", "table with the latents' columns")
    s3_outdir: str = option("", "location of models and latents")
    data_folder: str = option("./", "folder of the images file")
    trial: int = option(0, "number of the trial, part of the model name", at_least(0))
    note: str = option("", "remark")
    s3_bucket: str = option("", "bucket of the tables")
    local_outdir: str = option("", "prefix of models and latents")
    data_name: str = option("", "name of the data in the model name, in the option files of the first years")
    models_place: str = option("", "folder of the models, if not derived from the other options")
    latents_place: str = option("", "folder of the latents, if not derived from the other options")
    other: str = option("", "keys of an option file that have no effect, as JSON")


_BATCHES = (
    "a share from 0 to 1, or an integer number of batches",
    lambda value: is_number(value) and (0 <= value <= 1 or (value > 0 and type(value) is int)),
)


@dataclass
class TrainerOptions:
    """Options of Lightning's Trainer, passed on under the same names."""

    max_epochs: int = option(50, "epochs of training", at_least(1))
    accelerator: str = option("auto", "auto, cpu, gpu, mps ...")
    devices: Any = option("auto", "number of devices, list of indices, or auto")
    num_nodes: int = option(1, "machines", at_least(1))
    strategy: str = option("auto", "auto, ddp ...")
    precision: str = option(
        "32-true", "32-true, bf16-mixed, 16-mixed ...; auto: by the processor in training, 32-true in extraction"
    )
    sync_batchnorm: bool = option(False, "BatchNorm statistics over all GPUs")
    gradient_clip_val: float | None = option(None, "largest gradient norm")
    check_val_every_n_epoch: int = option(1, "epochs between validations", at_least(1))
    limit_train_batches: Any = option(1.0, "share or number of training batches an epoch", _BATCHES)
    limit_val_batches: Any = option(1.0, "share or number of validation batches", _BATCHES)
    log_every_n_steps: int = option(20, "steps between log entries", at_least(1))
    enable_progress_bar: bool | None = option(None, "progress of a training: a bar, or lines if there is no terminal")
    deterministic: bool = option(False, "deterministic algorithms only")


@dataclass
class CheckpointOptions:
    """Checkpoints of a training run."""

    save_freq: int = option(1, "epochs between checkpoints", at_least(1))
    every_minutes: float = option(10.0, "minutes between checkpoints within an epoch; 0: after each step", at_least(0))
    each: bool = option(False, "also keep ckpt_epoch_<n>.pth every save_freq epochs, with the optimizer")


@dataclass
class LoggerOptions:
    """Logging of a run in addition to its own folder."""

    name: str = option("none", "none or wandb", one_of("none", "wandb"))
    project: str = option("nenya", "wandb project")
    entity: str | None = option(None, "wandb entity")
    offline: bool | None = option(None, "wandb offline; default: if there is no key or no network")
    id: str | None = option(None, "wandb run; default a new one, the same one in a resumed run")


@dataclass
class Options:
    """Options shared by the commands; a command adds its own, and declares which of the shared ones it uses.

    Attributes:
        uses: names of the shared options and sections that the command uses, `section.key` for one key of a section;
            None for all.
        instead: a shared option that users may expect -> what to use instead.
        positional: the option that words without `=` set, the input of the command; of `data` there may be several.
        words: a word without `=` -> the override that it stands for.
        only_with: an option -> what it needs to have an effect; see `nenya.options.effects`.
        not_with: an option -> the option beside which it has none.
        trains: whether the command trains, so that `auto` is chosen by the processor.
    """

    trains: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...] | None] = None
    instead: ClassVar[Mapping[str, str]] = {}
    positional: ClassVar[str | None] = "data"
    words: ClassVar[Mapping[str, str]] = {}
    only_with: ClassVar[Mapping[str, str]] = {}
    not_with: ClassVar[Mapping[str, str]] = {}

    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    storage: StorageOptions = field(default_factory=StorageOptions)
    archive: PublishedOptions = field(default_factory=PublishedOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
    data: Any = option(None, "cutout files: a path, a glob, a list")
    out: str | None = option(None, "output")
    seed: int = option(1234, "random seed", at_least(0))
    clobber: bool = option(False, "overwrite existing outputs")
    sha256: str | None = option(None, "sha256 expected of the file of weights", SHA256)
    debug: bool = option(False, "two batches only")
    traceback: bool = option(False, "show tracebacks of errors")

    def __post_init__(self) -> None:
        """Take `auto` as float32 where nothing is trained, so that latents do not depend on the processor."""
        if not self.trains and self.trainer.precision == "auto":
            self.trainer = dataclasses.replace(self.trainer, precision="32-true")


def _check_clouds(augment: AugmentOptions, loss: LossOptions) -> None:
    """Refuse options of clouds where there are none."""
    if not augment.clouds and loss.clear_weight != LossOptions.clear_weight:
        raise OptionError(f"loss.clear_weight={loss.clear_weight}: has an effect only with augment.clouds=true")
    for name in ("clouds_most", "clouds_from", "cloud_masks"):
        value = getattr(augment, name)
        if not augment.clouds and value != getattr(AugmentOptions, name):
            raise OptionError(f"augment.{name}={value}: has an effect only with augment.clouds=true")


def taken(options_type: type[Options]) -> list[str]:
    """Return the names of the options and sections that a command takes, in the order of their declaration."""
    shared = {f.name for f in dataclasses.fields(Options)}
    named = _used(options_type)
    uses = shared if named is None else {*(name.partition(".")[0] for name in named), "traceback"}
    return [f.name for f in dataclasses.fields(options_type) if f.name in uses or f.name not in shared]


def _used(options_type: type[Options]) -> set[str] | None:
    """Return what a command declares that it uses; all that read files of cutouts or fields read storage."""
    uses = options_type.uses
    if uses is None:
        return None
    return {*uses, "storage"} if any(name.partition(".")[0] == "loader" for name in uses) else {*uses}


def keys_of(options_type: type[Options], section: str) -> list[str]:
    """Return the keys of a section that a command takes; none if this is not a section."""
    kind: Any = next(f.type for f in dataclasses.fields(options_type) if f.name == section)
    if not dataclasses.is_dataclass(kind):
        return []
    uses = _used(options_type)
    keys = [f.name for f in dataclasses.fields(kind)]
    if uses is None:
        return keys
    return [
        key
        for key in keys
        if f"{section}.{key}" in uses or (section in uses and f"{section}.{key}" not in TRAINING_ONLY)
    ]


def optimizer_of(options: "Options") -> str:
    """Return the optimizer of a training: as requested, or that of the method's paper where this is LARS."""
    if options.optim.optimizer != "auto":
        return options.optim.optimizer
    return "LARS" if options.loss.ssl_method in _WITH_LARS else "SGD"


def _check_optimizer(options: "Options") -> None:
    """Check that the options of the optimizer suit each other, the batches and the backend.

    Raises:
        OptionError: An option has no effect, or two exclude each other.
    """
    optim, found, batch = options.optim, optimizer_of(options), options.loader.batch_size_train
    usual = OptimOptions()
    for name, users in (("trust", ("LARS",)), ("momentum", ("SGD", "LARS"))):
        value = getattr(optim, name)
        if value != getattr(usual, name) and found not in users:
            raise OptionError(
                f"optim.{name}={value}: has an effect only with optim.optimizer={' or '.join(users)}, got {found}; "
                "leave it out"
            )
    if optim.fused and found == "LARS":
        raise OptionError("optim.fused=true: expected optim.optimizer=SGD or AdamW, got LARS; leave it out")
    if found == "LARS" and optim.momentum >= 1:
        raise OptionError(f"optim.momentum={optim.momentum}: expected below 1 with optim.optimizer=LARS")
    part = f"optim.micro_batch={optim.micro_batch}"
    if optim.micro_batch > batch:
        raise OptionError(f"{part}: expected at most loader.batch_size_train={batch}, or 0")
    if optim.micro_batch and options.model.backend == "compiled":
        raise OptionError(
            f"{part} computes parts of a batch again, which model.backend=compiled does not: leave one of them out"
        )


O = TypeVar("O", bound=Options)  # noqa: E741  # the type of the options of one command


def build_options(cls: type[O], values: Mapping[str, Any]) -> O:
    """Build the options of a command from a plain nested mapping.

    Args:
        cls: `TrainOptions`, `ExtractOptions` ...
        values: section -> key -> value, as composed by Hydra.

    Returns:
        The checked options.

    Raises:
        OptionError: A key does not exist or a value is invalid; the message says what was given and what is possible.
    """
    options = build(cls, values, "")
    check_effects(options, cls.only_with, cls.not_with)
    if "preprocess" not in taken(cls) and options.model.mask_channel:
        options.preprocess.masked = "mask"  # nothing else goes with this network
    _check_clouds(options.augment, options.loss)
    labels = options.loader.labels
    _check_optimizer(options)
    check_objective(options.loss, options.loader.batch_size_train, None if labels == LoaderOptions().labels else labels)
    jitter = options.augment.random_jitter
    if options.augment.recipe in ("v4", "v2") and jitter == 0:
        raise OptionError(
            f"augment.random_jitter=0: recipe {options.augment.recipe} expects two integers, such as [40,5]"
        )
    return options
