"""Training: from cutout files to a run folder with checkpoints and learning curves."""

import datetime
import itertools
import logging
import os
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import CheckpointError, InputFileError, Interrupted, NenyaError, OptionError, OutputError
from nenya.options.commands import TrainOptions
from nenya.options.declare import for_records
from nenya.options.flat import flat_name, flat_view
from nenya.options.sections import BANKS, Options
from nenya.storage.disk import atomic_path, folder_bytes
from nenya.storage.names import remove
from nenya.storage.paths import is_address, is_s3
from nenya.storage.s3.service import store
from nenya.storage.small_files import read_yaml_file, refuse_link, refuse_links, unfit
from nenya.storage.texts import counted

if TYPE_CHECKING:
    from nenya.data.cutouts import CutoutFile
    from nenya.models.contrastive import ContrastiveModule

log = logging.getLogger(__name__)

_OUTPUTS = Path("outputs")
_DEBUG_SUFFIX = "_debug"
_RUN_ENTRIES = ("config.yaml", "checkpoints", "last.pth", "learning_curve", "wandb")
_EPOCH_FILE = re.compile(r"ckpt_epoch_\d+\.pth")
_LISTED = ("rows", "rows_sha256", "tags", "tags_sha256")  # recorded with the weights
_COPIES = 7  # copies of the weights: last, best and one being written, each with momentum, and last.pth
_DEBUG = {"limit_train_batches": 2, "limit_val_batches": 2, "max_epochs": 1}


def run(options: TrainOptions, *, aside: bool = False) -> int:
    """Train a model on the files of `options.data`, or resume a run.

    Args:
        options: of `scripts/train.py`; those of the run itself where `options.resume` is set.
        aside: move an earlier run in the folder aside, see `set_aside`, instead of refusing.

    Returns:
        0.

    Raises:
        NenyaError: Bad input, options, weights or output; a non-finite loss.
        Interrupted: A signal was received; the state is saved.
    """
    from nenya.data.chosen_rows import chosen_rows
    from nenya.data.cloudy_views import cloudy_views
    from nenya.data.datamodule import ViewsDataModule, inspect_all, view_sampler
    from nenya.data.learnable import check_learnable
    from nenya.models.checkpoint import load_weights
    from nenya.models.clouds import with_mask_channel
    from nenya.models.contrastive import ContrastiveModule, make_net, read_weights
    from nenya.models.resnet import check_encoder
    from nenya.models.weights.named import find_weights
    from nenya.runtime.processor import settle
    from nenya.runtime.trainer import check_trainer
    from nenya.storage.paths import DEFAULT_CACHE, fetch, find_sources, local_path

    options, chosen_line = settle(options)
    loader = options.loader
    keys = tuple(dict.fromkeys((loader.train_key, loader.valid_key)))
    sources = find_sources(options.data)
    needed_key = None if options.rows or options.tags else loader.train_key
    files = inspect_all(fetch(sources, loader.cache_dir), keys, needed_key, allow_external=loader.allow_external)
    chosen, note = chosen_rows(options, files)
    check_data(options, files)
    net = make_net(options)
    check_encoder(net, next(iter(files[0].partitions.values())).height)
    if options.init_from and not options.resume:
        named = find_weights(options.init_from, options.sha256, loader.cache_dir)
        weights = read_weights(named, loader.cache_dir)
        options.sha256 = weights.sha256
        load_weights(net, with_mask_channel(weights) if options.model.mask_channel else weights)
    if options.debug:
        for key, value in _DEBUG.items():
            setattr(options.trainer, key, value)
    check_trainer(options.trainer)
    check_learnable(options, files, chosen)
    guide = bool(options.init_from) or options.debug
    clouds = cloudy_views(options, files, view_sampler(options.augment), guide=guide)
    module = ContrastiveModule(options, net)
    data = ViewsDataModule(options, files, local_path(loader.cache_dir or DEFAULT_CACHE), chosen, clouds)
    needed = _COPIES * sum(tensor.nbytes for tensor in module.state_dict().values()) + 2**20
    folder = run_folder(options, sources, needed, aside=aside)
    if note:
        log.warning("%s", note)
    if chosen_line:
        log.info("%s", chosen_line)
    fit(options, module, data, folder)
    return 0


def main(
    opt_path: "str | os.PathLike[str]",
    debug: bool = False,
    load_epoch: "int | str | os.PathLike[str] | None" = None,
    *,
    save_file: "str | os.PathLike[str] | None" = None,
    clobber: bool = False,
    resume: bool = False,
) -> Path:
    """Train a model with the options of a user's JSON file.

    The training data are `<data_folder>/<images_file>`. The run folder is `<s3_outdir>/<model_folder>`, or
    `<model_folder>` below the working folder if `s3_outdir` is empty or an s3:// address. In the latter case the
    weights are uploaded to `<s3_outdir>/<model_folder>/last.pth` at the end, where the extraction finds them. S3 is
    not asked before; if it refuses the weights, an error is logged and they stay in the run folder. Beside the files
    of any run, the folder gets `ckpt_epoch_<n>.pth` every `save_freq` epochs and the options under the name of
    `opt_path`, and `last.pth` holds the optimizer too. An earlier run there is set aside: its files move into a folder
    beside it that bears their date.

    Args:
        opt_path: the JSON option file, a path or an s3:// address.
        debug: two batches only, into `<model_folder>_debug`, without upload to S3.
        load_epoch: resume from `ckpt_epoch_<load_epoch>.pth` of the run folder; the path of another file for the
            weights counts as `save_file`, which had this place in older scripts.
        save_file: another file for the weights.
        clobber: overwrite an existing run instead of setting it aside.
        resume: resume the existing run.

    Returns:
        The run folder.

    Raises:
        NenyaError: Bad input or options; a non-finite loss.
        Interrupted: A signal was received; the state is saved.
    """
    from nenya.io import Params, run_place, weights_place

    if isinstance(load_epoch, str | os.PathLike):
        load_epoch, save_file = None, load_epoch
    opt = Params(opt_path)
    remote = is_s3(weights_place(opt))
    folder = run_place(opt)
    folder = folder.with_name(folder.name + _DEBUG_SUFFIX) if debug else folder
    options = _options_of_main(opt, str(opt_path), folder, debug=debug, clobber=clobber or debug)
    if resume or load_epoch is not None:
        options.resume = str(folder)
        if load_epoch is not None:
            _resume_at(options, folder, load_epoch)
        options.resume = str(find_run(options))
    run(options, aside=not clobber and not debug and not options.resume)
    opt.save(folder / os.path.basename(opt_path))
    if save_file is not None:
        with atomic_path(Path(save_file)) as temporary:
            shutil.copyfile(folder / "last.pth", temporary)
    if remote and not debug:
        _upload(folder / "last.pth", weights_place(opt))
    return folder


def _options_of_main(opt: Any, opt_path: str, folder: Path, *, debug: bool, clobber: bool) -> TrainOptions:
    """Return the options of a training by an option file."""
    from nenya.io import as_options
    from nenya.storage.paths import HDF5_SUFFIXES
    from nenya.storage.s3.service import join_url

    images = opt.images_file
    if not images and (opt.data_name or opt.data_folder.endswith(HDF5_SUFFIXES)):
        images = opt.data_folder  # the option files of the first years name a folder of one file, or the file
    elif not images:
        raise OptionError(f"{opt_path}: images_file is required: the cutout file, in data_folder")
    elif not is_s3(images):
        images = join_url(opt.data_folder, images) if is_s3(opt.data_folder) else str(Path(opt.data_folder) / images)
    options = replace(as_options(TrainOptions, opt), data=images, out=str(folder), clobber=clobber, debug=debug)
    options.checkpoint.each = True
    return options


def _resume_at(options: TrainOptions, folder: Path, epoch: int) -> None:
    """Prepare the run folder for resuming from `ckpt_epoch_<epoch>.pth`."""
    from nenya.data.datamodule import inspect_all
    from nenya.models.epoch_files import resume_point
    from nenya.storage.paths import fetch, find_sources

    sources = find_sources(options.data)
    key = options.loader.train_key
    files = inspect_all(
        fetch(sources, options.loader.cache_dir), (key,), key, allow_external=options.loader.allow_external
    )
    resume_point(options, folder, epoch, sum(file.partitions[key].rows for file in files))
    _write_config(options, sources, folder)


def set_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run into a folder beside it that bears their date; other files stay.

    Returns:
        The new folder; None if there was no run.

    Raises:
        OutputError: They cannot be moved.
    """
    found = [path for path in folder.iterdir() if _is_of_run(path.name)] if folder.is_dir() else []
    found += [path for path in folder.glob("*.json") if found and path.is_file()]
    if not found:
        return None
    newest = datetime.datetime.fromtimestamp(max(path.stat().st_mtime for path in found))
    name = f"{folder.resolve().name}_{newest:%Y-%m-%d_%H-%M-%S}"
    aside = next(place for n in itertools.count(1) if not (place := _beside(folder, name, n)).exists())
    try:
        aside.mkdir()
        for path in found:
            path.rename(aside / path.name)
    except OSError as error:
        raise OutputError(f"{folder}: the earlier run cannot be moved to {aside} ({error.strerror})") from error
    log.warning("%s: the earlier run was moved to %s", folder, aside)
    return aside


def _beside(folder: Path, name: str, number: int) -> Path:
    return folder.resolve().parent / (name if number == 1 else f"{name}_{number}")


def _upload(path: Path, url: str) -> None:
    """Upload weights; where that fails, say where they are kept."""
    try:
        store().upload(path, url)
    except NenyaError as error:
        log.error("%s; the weights are kept in %s: aws s3 cp %s %s uploads them", error, path, path, url)
        return
    log.info("%s: weights uploaded to %s", path, url)


def check_data(options: Options, files: "list[CutoutFile]") -> None:
    """Check that the files suit the network, the augmentation and the loss.

    Raises:
        NenyaError: The cutouts are too small, the crop is too large, or labels are missing.
    """
    from nenya.data.datamodule import read_labels, view_sampler
    from nenya.data.extra_views import ExtraViews
    from nenya.models.resnet import check_image_size
    from nenya.models.sizes import check_side

    first = next(iter(files[0].partitions.values()))
    try:
        check_image_size(first.height, first.width)
    except InputFileError as error:
        raise InputFileError(f"{files[0].path}: {error}") from error
    sampler = view_sampler(options.augment)
    sampler.check(first.height)
    ExtraViews(options.augment).check(sampler.output_size(first.height))
    check_side(options.model, first.height, files[0].path)
    if options.loss.ssl_method == "SupCon" and not getattr(options, "tags", None):
        for file in files:
            for partition in file.partitions:
                read_labels(file, partition, options.loader.labels)


def run_folder(options: TrainOptions, files: "list[Path | str]", needed: int, *, aside: bool = False) -> Path:
    """Make the run folder: `out`, or `outputs/<model>/<date-time>/`, with the options in `config.yaml`.

    With `resume` it is the folder of that run. Processes that Lightning starts beside this one use the same folder.

    Args:
        options: of the run.
        files: the cutout files, paths and s3:// addresses.
        needed: bytes that the run will write.
        aside: move an earlier run aside instead of refusing; other files in the folder stay.

    Raises:
        OutputError: The folder is not empty, cannot be written, or has too little space.
        OptionError: Several processes were started from outside, and `out` is not given.
    """
    from nenya.runtime.process import is_main_process
    from nenya.storage.disk import check_room

    if "NENYA_RUN_FOLDER" in os.environ and not is_main_process():
        return Path(os.environ["NENYA_RUN_FOLDER"])
    folder = Path(options.resume) if options.resume else _new_name(options)
    if not is_main_process():
        return folder
    if aside and (not folder.exists() or folder.is_dir()):
        set_aside(folder)
    elif options.resume:
        _refuse_links(folder)
    else:
        _clear(folder, clobber=options.clobber)
    check_room(folder, needed - (folder_bytes(folder) if options.resume else 0), "a run")
    _write_config(options, files, folder)
    os.environ["NENYA_RUN_FOLDER"] = str(folder.absolute())
    return folder


def _new_name(options: TrainOptions) -> Path:
    """Return the path of a new run folder."""
    from nenya.runtime.process import from_environment
    from nenya.storage.paths import local_path

    if options.out:
        return local_path(options.out)
    if from_environment("WORLD_SIZE", 1) > 1 and "NENYA_RUN_FOLDER" not in os.environ:
        raise OptionError(
            "out= is required when several processes are started from outside, because they share the run folder"
        )
    name = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (_DEBUG_SUFFIX if options.debug else "")
    folder = _OUTPUTS / options.model.name / name
    return folder.with_name(f"{folder.name}_{os.getpid()}") if folder.exists() else folder


def _refuse_links(folder: Path) -> None:
    """Check that a run that somebody handed over leads nowhere: training writes and removes files in it.

    Raises:
        OutputError: A link is where it would.
    """
    for name in _RUN_ENTRIES:
        refuse_link(folder / name)
    for name in ("checkpoints", "learning_curve"):  # in wandb's own folder are links of its own
        refuse_links(folder / name)


def _clear(folder: Path, *, clobber: bool) -> None:
    """Remove an earlier run from its folder, with `clobber` and if nothing else is in it."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} exists but is not a folder: choose another with out=")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    found = {name for name in found if not name.endswith(".json")}  # option files stay
    if strangers := {name for name in found if not _is_of_run(name)}:
        others = ", ".join(sorted(strangers)[:3])
        raise OutputError(
            f"{folder} holds files that are not part of a run ({others}): choose another folder with out="
        )
    if found and not clobber:
        raise OutputError(f"{folder} is not empty: clobber=true overwrites the run, resume={folder} continues it")
    for name in found:
        remove(folder / name)


def _is_of_run(name: str) -> bool:
    return name in _RUN_ENTRIES or _EPOCH_FILE.fullmatch(name) is not None


def _write_config(options: TrainOptions, files: "list[Path | str]", folder: Path) -> None:
    """Write the options with absolute paths, so that the run can be resumed from any folder."""
    from omegaconf import OmegaConf

    from nenya.storage.paths import local_path

    if options.logger.name == "wandb" and options.logger.id is None:
        options.logger.id = secrets.token_hex(4)
    values = for_records(options)
    places = [file if isinstance(file, str) else str(file.absolute()) for file in files]
    values.update(data=places, resume=None, clobber=False)
    paths = [(values, "init_from"), (values, "rows"), (values, "tags"), (values["loader"], "cache_dir")]
    if options.augment.cloud_masks not in BANKS:
        paths.append((values["augment"], "cloud_masks"))
    for section, key in paths:
        if section[key] and not is_address(section[key]):
            section[key] = str(local_path(section[key]).absolute())
    with atomic_path(folder / "config.yaml") as temporary:
        OmegaConf.save(OmegaConf.create(values), temporary)


def find_run(options: TrainOptions) -> Path:
    """Return the run folder that `resume` names: a path, or 'last' for the newest run of this model.

    Raises:
        CheckpointError: There is no such run, or it has no checkpoint yet.
    """
    from nenya.storage.paths import local_path

    if options.resume == "last":
        root = _OUTPUTS / options.model.name
        found = [path for path in root.glob("*/checkpoints/last.ckpt") if _DEBUG_SUFFIX not in path.parents[1].name]
        runs = sorted(found, key=lambda path: path.stat().st_mtime)
        if not runs:
            raise CheckpointError(f"resume=last: no run of model {options.model.name} in {root}; give its folder")
        log.info("resume=last: %s", runs[-1].parents[1])
        return runs[-1].parents[1]
    folder = local_path(str(options.resume))
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"resume={folder}: expected a run folder, got one without config.yaml")
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        raise CheckpointError(f"resume={folder}: no checkpoints/last.ckpt yet: start the run again without resume=")
    return folder


def read_run_config(folder: Path) -> dict[str, Any]:
    """Return the options of a run, as nested plain values.

    Raises:
        CheckpointError: `config.yaml` is not a small file of plain values.
    """
    try:
        values = read_yaml_file(folder / "config.yaml")
    except NenyaError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.yaml: cannot be read ({unfit(error)}); copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder}/config.yaml: expected the options of a run, got another YAML file")
    return {str(key): value for key, value in values.items()}


def fit(options: TrainOptions, module: "ContrastiveModule", data: Any, folder: Path) -> None:
    """Run Lightning's fit loop and write `last.pth`.

    Args:
        options: of the run.
        module: network, loss and schedule.
        data: the datamodule.
        folder: the run folder.
    """
    from nenya.models.callbacks import AtomicCheckpointIO, LastCheckpoint, LearningCurve, remove_unfinished
    from nenya.models.checkpoint import save_pth
    from nenya.models.epoch_files import EpochFiles
    from nenya.models.objectives.methods import described
    from nenya.models.pickled import check_sizes
    from nenya.models.progress import CollapseWarning, TrainingBar
    from nenya.runtime.allocator import keep_freed_memory
    from nenya.runtime.lean import load_compiler
    from nenya.runtime.lightning import ModelCheckpoint
    from nenya.runtime.process import is_main_process
    from nenya.runtime.trainer import ledger_of, make_logger, make_trainer

    load_compiler()
    keep_freed_memory()
    last = folder / "checkpoints" / "last.ckpt"
    settings = options.trainer if data.has_validation else replace(options.trainer, limit_val_batches=0)
    best = ModelCheckpoint(
        last.parent,
        filename="best",
        monitor="valid/loss" if settings.limit_val_batches else "train/epoch_loss",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    curve = LearningCurve(folder / "learning_curve", flat_name(options))
    saving = options.checkpoint
    if is_main_process():
        remove_unfinished(last.parent)
    logger = make_logger(options, folder, folder.name)
    each = [EpochFiles(folder, saving.save_freq)] if saving.each else []
    trainer = make_trainer(
        settings,
        callbacks=[
            *(curve, CollapseWarning(), *([TrainingBar()] if options.trainer.enable_progress_bar is not False else [])),
            *(*each, best, LastCheckpoint(last, saving.save_freq, saving.every_minutes, curve)),
        ],
        plugins=[AtomicCheckpointIO()],
        logger=logger or False,
        default_root_dir=folder,
    )
    _check_batches(options, trainer.world_size)
    if options.resume:
        check_sizes(last)
    done = False
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if options.resume else None, weights_only=True)
        done = True
    except SystemExit as error:  # Lightning's reaction to a signal before the first batch
        raise Interrupted("stopped before the first batch; nothing is lost: run the same command again") from error
    finally:
        if logger is not None and trainer.is_global_zero:
            logger.experiment.finish(exit_code=0 if done else 1)
    if trainer.is_global_zero:
        state = trainer.optimizers[0].state_dict() if saving.each else None
        listed = {n: getattr(options, n) for n in _LISTED if getattr(options, n)}
        save_pth(
            folder / "last.pth",
            module.extracted,
            options={**flat_view(options), "model_version": options.model.name, **described(options), **listed},
            epoch=trainer.current_epoch,
            optimizer_state=state,
        )
        score = best.best_model_score
        log.info(
            "%s: %s%s\n%s\nweights: %s\nnext: nenya extract data=CUTOUTS ckpt=%s",
            folder,
            counted(trainer.current_epoch, "epoch"),
            "" if score is None else f", best {best.monitor} {float(score):.4g}",
            ledger_of(trainer).summary(),
            folder / "last.pth",
            folder / "last.pth",
        )


def _check_batches(options: Options, world: int) -> None:
    """Refuse batches with fewer cutouts than processes."""
    for name in ("batch_size_train", "batch_size_valid"):
        size = getattr(options.loader, name)
        if size < world:
            raise OptionError(
                f"loader.{name}={size}: expected at least {world}, one cutout for each of the {world} processes"
            )
