"""One cutout file to one latents file."""

import datetime
import json
import logging
import os
import platform
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import nenya
from nenya.data.blocks import Block, BlocksDataModule, cut_blocks
from nenya.data.cutouts import PARTITIONS, CutoutFile, inspect_cutouts, nonfinite_rows
from nenya.errors import InputFileError, Interrupted, NenyaError, OutputError
from nenya.extraction.progress import RowProgress
from nenya.extraction.writer import LatentsTarget, LatentsWriter
from nenya.models.checkpoint import Checkpoint
from nenya.models.contrastive import ContrastiveModule
from nenya.models.resnet import ContrastiveNet, check_image_size
from nenya.options import Options, to_dict
from nenya.runtime import check_room, git_commit, is_main_process, make_trainer
from nenya.storage import sha256_file

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

DEBUG_BATCHES = 2

_MEAN_ROWS = 256
_MEAN_LIMIT = 1e-2  # K: far above rounding, far below what changes a latent visibly
_INTERRUPTED = "interrupted; of this file no latents were written: run the same command again"


@dataclass(frozen=True)
class Source:
    """Where the cutouts of a file come from.

    Attributes:
        place: path or s3:// address that the user knows.
        sha256: of its bytes, if it is known already.
        etag: of the S3 object.
    """

    place: str
    sha256: str | None = None
    etag: str = ""


@dataclass(frozen=True)
class Job:
    """One file to extract.

    Attributes:
        file: the cutout file, checked.
        blocks: how it is read.
        rows: partition -> number of rows to extract.
        output: the latents file.
        source: where the file comes from.
    """

    file: CutoutFile
    blocks: list[Block]
    rows: dict[str, int]
    output: Path
    source: Source


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


def check_sizes(options: Options, file: CutoutFile) -> None:
    """Check that the network takes the cutouts of a file; say so if it was made for others.

    Raises:
        InputFileError: They are too small for the network.
    """
    for name, info in file.partitions.items():
        try:
            check_image_size(info.height, info.width)
        except NenyaError as error:
            raise InputFileError(f"{file.path}: '{name}': {error}") from error
    size, wanted = next(iter(file.partitions.values())).height, options.model.image_size
    if wanted and size != wanted:
        log.warning("%s: cutouts of %d pixels; model %s was made for %d", file.path, size, options.model.name, wanted)


def row_limits(options: Options, names: "Any") -> dict[str, int]:
    """Return after how many rows each of the partitions ends: two batches in a debug run."""
    return {name: DEBUG_BATCHES * options.loader.batch_size_valid for name in names} if options.debug else {}


def latent_dim(options: Options, net: ContrastiveNet) -> int:
    """Return the length D of a latent."""
    return int(net.feat_dim if options.model.latent == "projection" else net.encoder.out_features)


def plan_job(options: Options, source: Source, path: Path, output: Path, net: ContrastiveNet) -> Job:
    """Check input and output of one file before any work.

    Raises:
        InputFileError: The file cannot be used, or its cutouts are too small for the network.
        OutputError: The output cannot be written, or has too little room.
    """
    refuse_existing(output, clobber=options.clobber)
    file = inspect_cutouts(path, partition_names(options), allow_external=options.loader.allow_external)
    check_sizes(options, file)
    limits = row_limits(options, file.partitions)
    rows = {name: min(info.rows, limits.get(name, info.rows)) for name, info in file.partitions.items()}
    job = Job(file, cut_blocks(file, options.loader.block_size, limits), rows, output, source)
    if is_main_process():
        check_room(output.parent, scratch_bytes(job, latent_dim(options, net)), "the latents file")
    warn_of_means(options, file)
    return job


def scratch_bytes(job: Job, dim: int) -> int:
    """Return the bytes that the latents take while they are written: raw rows and the file made of them."""
    return 2 * 4 * dim * sum(job.rows.values()) + 2**20


def warn_of_means(options: Options, file: CutoutFile) -> None:
    """Say so if cutouts have a mean that the network would see."""
    if options.preprocess.file == "demean":
        return
    for name, info in file.partitions.items():
        with file.reader(name) as reader:
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
    module.batch_shape = min(options.loader.batch_size_valid, max(job.rows.values()))
    with ThreadPoolExecutor(1, "sha256") as pool:
        sha256 = pool.submit(_sha256, job) if is_main_process() else None
        target = LatentsTarget(job.output, job.rows, latent_dim(options, module.net))
        writer = LatentsWriter(target)
        trainer = make_trainer(
            options.trainer, callbacks=[writer], logger=False, enable_checkpointing=False, barebones=False
        )
        device = trainer.strategy.root_device
        target.attributes = lambda: {
            **identity(options, checkpoint),
            **_environment(options, checkpoint, device, module.batch_shape or 0),
            "options": json.dumps({**to_dict(options), "data": job.source.place}),
            **(_describe_source(job, before, sha256) if sha256 else {}),
            "rows": json.dumps(job.rows),
        }
        data = BlocksDataModule(job.file, job.blocks, options.loader.num_workers)
        predict(trainer, module, data, name=Path(job.source.place).name, rows=sum(job.rows.values()))
    return _summary(job, writer, time.monotonic() - start, target.dim)


def predict(trainer: "Trainer", module: ContrastiveModule, data: Any, *, name: str, rows: int) -> None:
    """Run Lightning's predict loop with progress.

    Args:
        trainer: with the callback that takes the latents.
        module: the network.
        data: a datamodule of blocks, or a loader of them.
        name: what is worked on, to be shown.
        rows: how many there are, 0 if that is not known.

    Raises:
        Interrupted: A signal came (SIGINT, SIGTERM).
    """
    share = rows // max(1, trainer.world_size)
    with RowProgress(name, share, visible=is_main_process()) as progress:

        def count(done: int) -> None:
            progress.advance(done)
            if trainer.received_sigterm:
                raise Interrupted(_INTERRUPTED)

        module.on_rows = count
        try:
            trainer.predict(module, data, return_predictions=False)
        except SystemExit as error:  # so Lightning ends the process after Ctrl-C
            raise Interrupted(_INTERRUPTED) from error
        finally:
            module.on_rows = None


def _sha256(job: Job) -> str:
    return job.source.sha256 or sha256_file(job.file.path)


def _summary(job: Job, writer: LatentsWriter, seconds: float, dim: int) -> str:
    rows = ", ".join(f"{name} {count}" for name, count in job.rows.items())
    total, bad = sum(job.rows.values()), sum(writer.nonfinite.values())
    return f"{rows} rows of {dim} numbers in {seconds:.1f} s ({total / seconds:.1f} rows/s)" + (
        f"; {bad} rows are NaN, as their cutouts have non-finite pixels" if bad else ""
    )


def _describe_source(job: Job, before: os.stat_result, sha256: "Future[str]") -> dict[str, Any]:
    """Return name, size and sha256 of the source, which must not have changed since `before`."""
    path, source = job.file.path, job.source
    described = {"source": Path(source.place).name, "source_size": before.st_size, "source_sha256": sha256.result()}
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise InputFileError(f"{path}: the file changed while it was read; run the command again")
    return {**described, **({"source_etag": source.etag} if source.etag else {})}


def identity(options: Options, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the attributes that say which numbers latents of a source are, beyond rounding."""
    return {
        "checkpoint_sha256": checkpoint.sha256,
        "preprocessing": options.preprocess.file,
        "latent": options.model.latent,
        "precision": options.trainer.precision,
        "partitions": ",".join(partition_names(options)),
    }


def _environment(options: Options, checkpoint: Checkpoint, device: torch.device, batch_shape: int) -> dict[str, Any]:
    """Return the attributes that say by what and where latents were made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "model_version": options.model.name,
        "checkpoint": checkpoint.path.name,
        "device": f"{device.type}: {name}",
        "backend": "eager",
        "batch_size": batch_shape,
        "torch_version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
