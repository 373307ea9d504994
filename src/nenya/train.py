"""Training: from cutout files to a run folder with checkpoints and learning curves."""

import datetime
import logging
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import CheckpointError, InputFileError, Interrupted, NenyaError, OptionError, OutputError
from nenya.options.commands import TrainOptions
from nenya.options.declare import to_dict
from nenya.options.flat import flat_name, flat_view
from nenya.options.sections import Options
from nenya.storage.disk import atomic_path, folder_bytes
from nenya.storage.names import refuse_link, refuse_links, remove
from nenya.storage.s3.service import is_s3, store
from nenya.storage.small_files import read_yaml_file, unfit

if TYPE_CHECKING:
    from nenya.data.cutouts import CutoutFile
    from nenya.models.contrastive import ContrastiveModule

log = logging.getLogger(__name__)

_OUTPUTS = Path("outputs")
_DEBUG_SUFFIX = "_debug"
_RUN_ENTRIES = ("config.yaml", "checkpoints", "last.pth", "learning_curve", "wandb")
_COPIES = 7  # copies of the weights: last, best and one being written, each with momentum, and last.pth
_DEBUG = {"limit_train_batches": 2, "limit_val_batches": 2, "max_epochs": 1}


def run(options: TrainOptions) -> int:
    """Train a model on the files of `options.data`, or resume a run.

    Args:
        options: of `scripts/train.py`; those of the run itself where `options.resume` is set.

    Returns:
        0.

    Raises:
        NenyaError: Bad input, options, weights or output; a non-finite loss.
        Interrupted: A signal came; the state is saved.
    """
    from nenya.data.datamodule import ViewsDataModule, inspect_all
    from nenya.models.checkpoint import load_checkpoint, load_weights
    from nenya.models.contrastive import ContrastiveModule, make_net
    from nenya.runtime.trainer import check_trainer
    from nenya.storage.paths import DEFAULT_CACHE, fetch, find_sources, local_path

    loader = options.loader
    keys = tuple(dict.fromkeys((loader.train_key, loader.valid_key)))
    sources = find_sources(options.data)
    files = inspect_all(fetch(sources, loader.cache_dir), keys, loader.train_key, allow_external=loader.allow_external)
    check_data(options, files)
    net = make_net(options)
    if options.init_from and not options.resume:
        load_weights(net, load_checkpoint(fetch(find_sources(options.init_from), loader.cache_dir)[0]))
    if options.debug:
        for key, value in _DEBUG.items():
            setattr(options.trainer, key, value)
    check_trainer(options.trainer)
    module = ContrastiveModule(options, net)
    data = ViewsDataModule(options, files, local_path(loader.cache_dir or DEFAULT_CACHE))
    needed = _COPIES * sum(p.nbytes for p in net.parameters()) + 2**20
    folder = run_folder(options, sources, needed)
    fit(options, module, data, folder)
    return 0


def main(
    opt_path: str,
    debug: bool = False,
    save_file: "str | os.PathLike[str] | None" = None,
    *,
    clobber: bool = False,
    resume: bool = False,
) -> Path:
    """Train a model with the options of a user's JSON file.

    The training data are `<data_folder>/<images_file>`. The run folder is `<s3_outdir>/<model_folder>`, or
    `<model_folder>` below the working folder if `s3_outdir` is empty or an s3:// address. In the latter case the
    weights are uploaded to `<s3_outdir>/<model_folder>/last.pth`, where the extraction finds them.

    Args:
        opt_path: the JSON option file, a path or an s3:// address.
        debug: two batches only, into `<model_folder>_debug`, without upload to S3.
        save_file: another file for the weights.
        clobber: overwrite an existing run.
        resume: resume the existing run.

    Returns:
        The run folder.

    Raises:
        NenyaError: Bad input or options; an existing run; a non-finite loss; weights that cannot be uploaded.
        Interrupted: A signal came; the state is saved.
    """
    from nenya.io import Params, as_options, under_outdir, weights_place
    from nenya.storage.s3.service import join_url

    opt = Params(opt_path)
    if not opt.images_file:
        raise OptionError(f"{opt_path}: images_file is required: the cutout file, in data_folder")
    remote = is_s3(opt.s3_outdir)
    folder = Path(opt.model_folder if remote else under_outdir(opt, opt.model_folder))
    folder = folder.with_name(folder.name + _DEBUG_SUFFIX) if debug else folder
    images = opt.images_file
    if not is_s3(images):
        images = join_url(opt.data_folder, images) if is_s3(opt.data_folder) else str(Path(opt.data_folder) / images)
    options = replace(as_options(TrainOptions, opt), data=images, out=str(folder), clobber=clobber, debug=debug)
    if resume:
        options.resume = str(folder)
        options.resume = str(find_run(options))
    if remote and not debug:
        store().check_bucket(opt.s3_outdir)
    run(options)
    if save_file is not None:
        with atomic_path(Path(save_file)) as temporary:
            shutil.copyfile(folder / "last.pth", temporary)
    if remote and not debug:
        _upload(folder / "last.pth", weights_place(opt))
    return folder


def _upload(path: Path, url: str) -> None:
    """Upload weights; an error states where they are kept."""
    try:
        store().upload(path, url)
    except NenyaError as error:
        raise type(error)(f"{error}; the weights are kept in {path}: aws s3 cp {path} {url} uploads them") from error
    log.info("%s: weights uploaded to %s", path, url)


def check_data(options: Options, files: "list[CutoutFile]") -> None:
    """Check that the files suit the network, the augmentation and the loss.

    Raises:
        NenyaError: The cutouts are too small, the crop is too large, or labels are missing.
    """
    from nenya.data.datamodule import read_labels, view_sampler
    from nenya.models.resnet import check_image_size

    first = next(iter(files[0].partitions.values()))
    try:
        check_image_size(first.height, first.width)
    except InputFileError as error:
        raise InputFileError(f"{files[0].path}: {error}") from error
    view_sampler(options.augment).check(first.height)
    wanted = options.model.image_size
    if wanted and wanted != first.height:
        log.warning(
            "%s: cutouts have %d pixels a side, but model %s is designed for %d",
            files[0].path,
            first.height,
            options.model.name,
            wanted,
        )
    if options.loss.ssl_method == "SupCon":
        for file in files:
            for partition in file.partitions:
                read_labels(file, partition, options.loader.labels)


def run_folder(options: TrainOptions, files: "list[Path | str]", needed: int) -> Path:
    """Make the run folder: `out`, or `outputs/<model>/<date-time>/`, with the options in `config.yaml`.

    With `resume` it is the folder of that run. Processes that Lightning starts beside this one use the same folder.

    Args:
        options: of the run.
        files: the cutout files, paths and s3:// addresses.
        needed: bytes that the run will write.

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
    if options.resume:
        _refuse_links(folder)
    else:
        _clear(folder, clobber=options.clobber)
    check_room(folder, needed - (folder_bytes(folder) if options.resume else 0), "a run")
    _write_config(options, files, folder)
    os.environ["NENYA_RUN_FOLDER"] = str(folder.absolute())
    return folder


def _new_name(options: TrainOptions) -> Path:
    """Return the path of a new run folder."""
    from nenya.storage.paths import local_path

    if options.out:
        return local_path(options.out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "NENYA_RUN_FOLDER" not in os.environ:
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
    if found - set(_RUN_ENTRIES):
        others = ", ".join(sorted(found - set(_RUN_ENTRIES))[:3])
        raise OutputError(
            f"{folder} holds files that are not part of a run ({others}): choose another folder with out="
        )
    if found and not clobber:
        raise OutputError(f"{folder} is not empty: clobber=true overwrites the run, resume={folder} continues it")
    for name in found:
        remove(folder / name)


def _write_config(options: TrainOptions, files: "list[Path | str]", folder: Path) -> None:
    """Write the options with absolute paths, so that the run can be resumed from any folder."""
    from omegaconf import OmegaConf

    from nenya.storage.paths import local_path

    if options.logger.name == "wandb" and options.logger.id is None:
        options.logger.id = secrets.token_hex(4)
    values = to_dict(options)
    places = [file if isinstance(file, str) else str(file.absolute()) for file in files]
    values.update(data=places, resume=None, clobber=False)
    for section, key in ((values, "init_from"), (values["loader"], "cache_dir")):
        if section[key] and not is_s3(section[key]):
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
    from lightning.pytorch.callbacks import ModelCheckpoint

    from nenya.models.callbacks import AtomicCheckpointIO, LastCheckpoint, LearningCurve, remove_unfinished
    from nenya.models.checkpoint import save_pth
    from nenya.models.pickled import check_sizes
    from nenya.runtime.ledger import ledger_of
    from nenya.runtime.process import is_main_process
    from nenya.runtime.trainer import make_logger, make_trainer

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
    trainer = make_trainer(
        settings,
        callbacks=[curve, best, LastCheckpoint(last, saving.save_freq, saving.every_minutes, curve)],
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
        save_pth(folder / "last.pth", module.net, options=flat_view(options), epoch=trainer.current_epoch)
        score = best.best_model_score
        log.info(
            "%s: %d epochs%s\n%s\nweights: %s\nnext: extract latents with the same model options and ckpt=%s",
            folder,
            trainer.current_epoch,
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
