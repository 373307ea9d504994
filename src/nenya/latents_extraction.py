"""Extraction: from cutout files and weights to latents files."""

import datetime
import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nenya
from nenya.data.blocks import Block, BlocksDataModule, cut_blocks
from nenya.data.cutouts import PARTITIONS, CutoutFile, CutoutReader, inspect_cutouts, nonfinite_rows
from nenya.data.files import find_files, local_path
from nenya.errors import InputFileError, Interrupted, NenyaError, OptionError, OutputError
from nenya.extraction.progress import RowProgress
from nenya.extraction.writer import LatentsTarget, LatentsWriter
from nenya.models.checkpoint import Checkpoint, load_checkpoint, load_weights
from nenya.models.contrastive import ContrastiveModule
from nenya.models.resnet import ContrastiveNet, check_image_size
from nenya.options import ExtractOptions, Options, to_dict
from nenya.runtime import check_room, check_trainer, git_commit, is_main_process, make_trainer
from nenya.storage import sha256_file

log = logging.getLogger(__name__)

_MEAN_ROWS = 256
_MEAN_LIMIT = 1e-2  # K: far above rounding, far below what changes a latent visibly
_DEBUG_BATCHES = 2
_INTERRUPTED = "interrupted; of this file no latents were written: run the same command again"


@dataclass(frozen=True)
class Job:
    """One file to extract.

    Attributes:
        file: the cutout file, checked.
        blocks: how it is read.
        rows: partition -> number of rows to extract.
        output: the latents file.
    """

    file: CutoutFile
    blocks: list[Block]
    rows: dict[str, int]
    output: Path


def run(options: ExtractOptions) -> int:
    """Extract the latents of all files of `options.data`.

    Args:
        options: of `scripts/extract.py`.

    Returns:
        0 if all is done, 1 if some of several files failed.

    Raises:
        NenyaError: Bad input, options, weights or output; with several files only what concerns all of them.
    """
    paths = find_files(options.data)
    outputs = output_paths(paths, options.out, debug=options.debug)
    check_trainer(options.trainer)
    alone = len(paths) == 1
    if alone:
        refuse_existing(outputs[0], clobber=options.clobber)
        inspect_cutouts(paths[0], partition_names(options))
    checkpoint, module = load_model(options, options.ckpt)
    fates = []
    for path, output in zip(paths, outputs, strict=True):
        planned = False
        try:
            if not alone and output.exists() and not options.clobber:
                fates.append((path, f"skipped: {output} exists (clobber=true replaces it)", True))
                continue
            job, planned = plan_job(options, path, output, module.net), True
            fates.append((path, extract_file(options, job, module, checkpoint), True))
        except NenyaError as error:
            # Other processes may not have met the error, and would wait for this one for ever.
            if alone or isinstance(error, Interrupted) or (planned and torch.distributed.is_initialized()):
                raise
            fates.append((path, f"failed: {error}", False))
            if is_main_process():
                log.error("%s", fates[-1][1])
    if not alone:
        log.info("\n".join(f"{path.name}: {fate}" for path, fate, _ in fates))
    return 0 if all(good for _, _, good in fates) else 1


def output_paths(paths: Sequence[Path], out: str | None, *, debug: bool = False) -> list[Path]:
    """Return the latents file of each cutout file: `<stem>_latents.h5` beside it or in the folder `out`.

    Raises:
        OptionError: Two files would have one output, or the output is a cutout file itself.
    """
    suffix = "_latents_debug.h5" if debug else "_latents.h5"
    folder = local_path(out) if out else None
    if folder is not None and folder.suffix in (".h5", ".hdf5"):
        if len(paths) > 1:
            raise OptionError(f"out={out} is one file and data= are {len(paths)}: give a folder")
        if folder.resolve() == paths[0].resolve():
            raise OptionError(f"out={out} is the cutout file itself: give another file or a folder with out=")
        # Two batches never stand under the name of a whole file.
        return [folder.with_stem(folder.stem + "_debug") if debug else folder]
    outputs = [(folder or path.parent) / (path.stem + suffix) for path in paths]
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            first = paths[outputs.index(output)]
            raise OptionError(f"{first} and {paths[i]} would both be written to {output}: extract them apart")
    return outputs


def refuse_existing(output: Path, *, clobber: bool) -> None:
    """Raise OutputError if the output is there already and may not be, or cannot be, replaced."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder, a file of this name is to be written: choose another with out=")
    if output.exists() and not clobber:
        raise OutputError(f"{output} exists: clobber=true replaces it, out= puts the latents elsewhere")


def partition_names(options: Options) -> tuple[str, ...]:
    """Return the partitions to extract, as far as a file has them.

    They are `train` and `valid`, also for the versions that trained and validated on one of them; where
    `loader.train_key` or `valid_key` name other data sets, these.
    """
    keys = {options.loader.train_key, options.loader.valid_key}
    return tuple(sorted(keys)) if keys - set(PARTITIONS) else PARTITIONS


def weights_path(options: Options, ckpt: str | None) -> Path:
    """Return the path of the weights: `ckpt`, or `model.weights`.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
    """
    if ckpt:
        return local_path(ckpt)
    if not options.model.weights:
        raise OptionError(f"ckpt= is needed: model {options.model.name} has no published weights")
    try:
        return local_path(options.model.weights)
    except OptionError as error:
        raise OptionError(f"weights of model {options.model.name}: {error}, or name the weights with ckpt=") from error


def load_model(options: Options, ckpt: str | None) -> tuple[Checkpoint, ContrastiveModule]:
    """Return the checkpoint of `ckpt`, or of `model.weights`, and the network with its weights.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
        CheckpointError: The file is missing, damaged, refused, or of another architecture.
    """
    checkpoint = load_checkpoint(weights_path(options, ckpt))
    model = options.model
    net = ContrastiveNet(model.ssl_model, model.feat_dim, model.nchannels, model.width)
    load_weights(net, checkpoint)
    return checkpoint, ContrastiveModule(options, net)


def plan_job(options: Options, path: Path, output: Path, net: ContrastiveNet) -> Job:
    """Check input and output of one file before any work.

    Raises:
        InputFileError: The file cannot be used, or its cutouts are too small for the network.
        OutputError: The output cannot be written, or has too little room.
    """
    refuse_existing(output, clobber=options.clobber)
    file = inspect_cutouts(path, partition_names(options))
    for name, info in file.partitions.items():
        try:
            check_image_size(info.height, info.width)
        except NenyaError as error:
            raise InputFileError(f"{path}: '{name}': {error}") from error
    size, wanted = next(iter(file.partitions.values())).height, options.model.image_size
    if wanted and size != wanted:
        log.warning("%s: cutouts of %d pixels; model %s was made for %d", path, size, options.model.name, wanted)
    batch = options.loader.batch_size_valid
    limits = {name: _DEBUG_BATCHES * batch for name in file.partitions} if options.debug else {}
    rows = {name: min(info.rows, limits.get(name, info.rows)) for name, info in file.partitions.items()}
    dim = net.feat_dim if options.model.latent == "projection" else net.encoder.out_features
    if is_main_process():
        check_room(output.parent, 2 * 4 * int(dim) * sum(rows.values()) + 2**20, "the latents file")
    _warn_of_means(options, file)
    return Job(file, cut_blocks(file, options.loader.block_size, limits), rows, output)


def _warn_of_means(options: Options, file: CutoutFile) -> None:
    """Say so if cutouts have a mean that the network would see."""
    if options.preprocess.file == "demean":
        return
    for name, info in file.partitions.items():
        with CutoutReader(file.path, name) as reader:
            first = reader.read(0, min(_MEAN_ROWS, info.rows))
        largest = float(np.abs(first[~nonfinite_rows(first)].mean(axis=(1, 2, 3))).max(initial=0.0))
        if largest > _MEAN_LIMIT:
            log.warning(
                "%s: cutouts of '%s' have means up to %.3g: the latents then differ from those of single images, "
                "whose mean is removed (preprocess.file=demean removes it here too)",
                file.path,
                name,
                largest,
            )


def extract_file(options: Options, job: Job, module: ContrastiveModule, checkpoint: Checkpoint) -> str:
    """Extract one file; the output appears only when it is whole.

    Returns:
        A line that says what was written.

    Raises:
        NenyaError: The input changed or cannot be read, or the output cannot be written.
        Interrupted: A signal came (SIGINT, SIGTERM).
    """
    start, before = time.monotonic(), job.file.path.stat()
    dim = module.net.feat_dim if options.model.latent == "projection" else int(module.net.encoder.out_features)
    module.batch_shape = min(options.loader.batch_size_valid, max(job.rows.values()))
    with ThreadPoolExecutor(1, "sha256") as pool:
        main = is_main_process()
        sha256 = pool.submit(sha256_file, job.file.path) if main else None
        target = LatentsTarget(job.output, job.rows, dim)
        writer = LatentsWriter(target)
        trainer = make_trainer(
            options.trainer, callbacks=[writer], logger=False, enable_checkpointing=False, barebones=False
        )
        device = trainer.strategy.root_device
        target.attributes = lambda: {
            **_provenance(options, checkpoint, device, module.batch_shape or 0),
            "options": json.dumps({**to_dict(options), "data": str(job.file.path)}),
            **(_describe_source(job.file.path, before, sha256) if sha256 else {}),
            "rows": json.dumps(job.rows),
        }
        total = sum(job.rows.values()) // max(1, trainer.world_size)
        with RowProgress(job.file.path.name, total, visible=main) as progress:

            def count(rows: int) -> None:
                progress.advance(rows)
                if trainer.received_sigterm:
                    raise Interrupted(_INTERRUPTED)

            module.on_rows = count
            data = BlocksDataModule(job.file, job.blocks, options.loader.num_workers)
            try:
                trainer.predict(module, datamodule=data, return_predictions=False)
            except SystemExit as error:  # so Lightning ends the process after Ctrl-C
                raise Interrupted(_INTERRUPTED) from error
    return _summary(job, writer, time.monotonic() - start, dim)


def _summary(job: Job, writer: LatentsWriter, seconds: float, dim: int) -> str:
    rows = ", ".join(f"{name} {count}" for name, count in job.rows.items())
    total, bad = sum(job.rows.values()), sum(writer.nonfinite.values())
    line = f"{job.output}: {rows} rows of {dim} numbers in {seconds:.1f} s ({total / seconds:.1f} rows/s)" + (
        f"; {bad} rows are NaN, as their cutouts have non-finite pixels" if bad else ""
    )
    log.info("%s", line)
    return line


def _describe_source(path: Path, before: os.stat_result, sha256: "Future[str]") -> dict[str, Any]:
    """Return name, size and sha256 of the source, which must not have changed since `before`."""
    described = {"source": path.name, "source_size": before.st_size, "source_sha256": sha256.result()}
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise InputFileError(f"{path}: the file changed while it was read; run the command again")
    return described


def _provenance(options: Options, checkpoint: Checkpoint, device: torch.device, batch_shape: int) -> dict[str, Any]:
    """Return the attributes that say how latents were made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "model_version": options.model.name,
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": checkpoint.sha256,
        "preprocessing": options.preprocess.file,
        "latent": options.model.latent,
        "precision": options.trainer.precision,
        "device": f"{device.type}: {name}",
        "backend": "eager",
        "batch_size": batch_shape,
        "torch_version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
