"""One cutout file to one latents file."""

import datetime
import json
import logging
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nenya
from nenya.data.blocks import BlocksDataModule, cut_blocks
from nenya.data.cutouts import CutoutFile, inspect_cutouts, partition_names
from nenya.data.learnable import MEAN_LIMIT, largest_mean
from nenya.data.masks import Measure
from nenya.errors import InputFileError, Interrupted, LockLostError, NenyaError, OutputError
from nenya.extraction.clearness import calibration_words, clearness_of, columns_of, masked_identity
from nenya.extraction.half import agreement, trainer_options
from nenya.extraction.journal import BlockStore, Work, begin, cpu_threads, describe_status, partial_folder
from nenya.extraction.writer import LatentsWriter
from nenya.latents.clear import CLEAR_COLUMNS
from nenya.models.checkpoint import Checkpoint
from nenya.models.contrastive import ContrastiveModule
from nenya.models.inference import backend_of, choose_backend, count_multiply_adds
from nenya.models.resnet import ContrastiveNet, check_image_size
from nenya.models.sizes import check_side
from nenya.options.declare import for_records
from nenya.options.sections import Options
from nenya.runtime.allocator import keep_freed_memory
from nenya.runtime.lightning import pl
from nenya.runtime.process import RowProgress, git_commit, is_main_process
from nenya.runtime.trainer import ledger_of, make_trainer
from nenya.storage.disk import check_room, folder_bytes, sha256_file, sweep
from nenya.storage.lock import OutputLock
from nenya.storage.small_files import refuse_links
from nenya.storage.texts import counted

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

DEBUG_BATCHES = 2

_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Origin:
    """Where the cutouts of a file come from.

    Attributes:
        place: path or s3:// address known to the user.
        sha256: of its bytes, if already known.
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
        rows: partition -> number of rows to extract.
        output: the latents file.
        origin: where the file comes from.
    """

    file: CutoutFile
    rows: dict[str, int]
    output: Path
    origin: Origin


def refuse_existing(output: Path, *, clobber: bool) -> None:
    """Raise OutputError if the output exists and must not, or cannot, be overwritten."""
    sweep(output.parent)
    if output.is_dir():
        raise OutputError(f"{output} is a folder, expected a file name: choose another with out=")
    if output.exists() and not clobber:
        raise OutputError(f"{output} exists: clobber=true overwrites it, out= writes the latents elsewhere")


def check_sizes(options: Options, file: CutoutFile) -> None:
    """Check that the network accepts the cutouts of a file; warn if it was trained on another size.

    Raises:
        InputFileError: They are too small for the network, or of a size that the version does not take.
    """
    for name, info in file.partitions.items():
        try:
            check_image_size(info.height, info.width)
        except NenyaError as error:
            raise InputFileError(f"{file.path}: '{name}': {error}") from error
    check_side(options.model, next(iter(file.partitions.values())).height, file.path)


def row_limits(options: Options, names: "Any") -> dict[str, int]:
    """Return the largest number of rows of each partition: two batches in a debug run."""
    return {name: DEBUG_BATCHES * options.loader.batch_size_valid for name in names} if options.debug else {}


def latent_dim(options: Options, net: ContrastiveNet) -> int:
    """Return the length D of a latent."""
    return int(net.feat_dim if options.model.latent == "projection" else net.encoder.out_features)


def plan_job(options: Options, origin: Origin, path: Path, output: Path, net: ContrastiveNet) -> Job:
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
    job = Job(file, rows, output, origin)
    if is_main_process():
        held = folder_bytes(partial_folder(output))
        check_room(
            output.parent,
            scratch_bytes(job, latent_dim(options, net), options.preprocess.masked) - held,
            "the latents file",
        )
    warn_of_means(options, file)
    return job


def scratch_bytes(job: Job, dim: int, masked: str) -> int:
    """Return the bytes that the latents and columns need while they are written: raw rows and the final file."""
    columns = 0 if masked == "nan" else len(CLEAR_COLUMNS)
    return 2 * 4 * (dim + columns) * sum(job.rows.values()) + 2**20


def warn_of_means(options: Options, file: CutoutFile) -> None:
    """Warn if cutouts have a mean that the network would see."""
    if options.preprocess.file == "demean" or options.model.mask_channel:  # the network removes it
        return
    for name in file.partitions:
        largest = largest_mean(file, name, masked=options.preprocess.masked)
        if largest > MEAN_LIMIT:
            log.warning(
                "%s: cutouts of '%s' have means up to %.3g, so their latents differ from those of single images: "
                "the mean of a single image is removed (preprocess.file=demean removes it here too)",
                file.path,
                name,
                largest,
            )


def extract_file(
    options: Options,
    job: Job,
    module: ContrastiveModule,
    checkpoint: Checkpoint,
    started: Callable[[], None] | None = None,
    logger: "WandbLogger | None" = None,
) -> str | None:
    """Extract one file, or the rest of it; the output appears only when it is complete.

    If the work ends early, finished blocks are kept in `<output>.partial/`, and the next call resumes there.

    Args:
        options: of the run.
        job: the file.
        module: the network.
        checkpoint: the source of its weights.
        started: called in the first process when the others can join.
        logger: receives counts and the seconds of each stage.

    Returns:
        A summary of the output in one line; None if another run has written it in the meantime.

    Raises:
        NenyaError: The input changed or cannot be read; the output cannot be written, is being written by another
            run, or was begun with different weights, options or input.
        Interrupted: A signal was received (SIGINT, SIGTERM).
    """
    clearness = clearness_of(options, checkpoint)
    if clearness is not None:
        clearness.check_side(job.file.path, next(iter(job.file.partitions.values())).height)
    store = BlockStore(job.output, job.rows, latent_dim(options, module.net), columns=columns_of(clearness))
    writer = LatentsWriter(store)
    settings = trainer_options(options, module.net)
    trainer = make_trainer(settings, callbacks=[writer], logger=logger or False, enable_checkpointing=False)
    keep_freed_memory()
    measure = None if clearness is None else clearness.measure
    if not is_main_process():
        _extract(job, module, trainer, writer, Work.read(store), measure)
        return ""
    start = time.monotonic()
    with OutputLock(refuse_links(store.partial) / "lock", str(job.output)) as lock:
        if job.output.exists() and not options.clobber:
            return None
        store.check = lock.check
        store.revoke()
        wanted = _wanted_manifest(options, job, checkpoint, trainer, module.net)
        work = begin(store, wanted, job.file, clobber=options.clobber)
        if work.done:
            log.info("%s: %s", Path(job.origin.place).name, _done_before(job, work))
        try:
            if work.fresh:
                store.start(wanted)
            work.write(store)
            if started is not None:
                started()
            with ThreadPoolExecutor(1, "sha256") as pool, _set_at_error(threading.Event()) as cancelled:
                sha256 = pool.submit(_sha256, job, store, work, cancelled)
                writer.attributes = lambda: {
                    **identity(options, checkpoint),
                    **_environment(options, checkpoint, trainer.strategy.root_device, work),
                    "options": json.dumps({**for_records(options), "data": job.origin.place}),
                    **_describe_source(job, wanted["source"], sha256),
                    "rows": json.dumps(job.rows),
                    **calibration_words(clearness),
                    **agreement(options, module, job.file, store, work.batch_size),
                }
                _extract(job, module, trainer, writer, work, measure)
        except _ChangedError:
            lock.check()
            shutil.rmtree(store.partial, ignore_errors=True)
            raise
        except LockLostError:  # the folder belongs to another run
            raise
        except NenyaError as error:
            raise type(error)(f"{error}; {store.kept(clobber=options.clobber)}") from error
        except BaseException:
            store.kept()
            raise
    ledger, seconds = ledger_of(trainer), time.monotonic() - start
    log.info("%s: %s", Path(job.origin.place).name, ledger.summary())
    if logger is not None:
        counts = {"rows": sum(job.rows.values()), "nonfinite_rows": sum(writer.nonfinite.values()), "seconds": seconds}
        logger.log_metrics({**counts, **{f"ledger/{stage}": spent for stage, spent in ledger.seconds().items()}})
    return _summary(job, writer, work, seconds, why_no_latent(options.preprocess.masked))


def _done_before(job: Job, work: Work) -> str:
    blocks, total = cut_blocks(job.file, work.block_size, job.rows), sum(job.rows.values())
    rows = sum(len(block) for block in blocks if block.number in work.done)
    return f"resuming an earlier run with {rows} of {total} rows; its batch and block sizes are kept"


def _extract(
    job: Job,
    module: ContrastiveModule,
    trainer: "pl.Trainer",
    writer: LatentsWriter,
    work: Work,
    measure: Measure | None,
) -> None:
    """Extract the remaining blocks, each process its share."""
    blocks = cut_blocks(job.file, work.block_size, job.rows)
    left = [block for block in blocks if block.number not in work.done]
    writer.blocks, writer.threads = blocks, work.threads
    module.batch_shape, module.backend = work.batch_size, work.backend
    total = sum(map(len, blocks))
    name = Path(job.origin.place).name
    loader, masked = module.options.loader, module.options.preprocess.masked
    data = BlocksDataModule(job.file, left, loader.num_workers, masked, measure)
    predict(trainer, module, data, name=name, rows=total, before=total - sum(map(len, left)))


def predict(
    trainer: "pl.Trainer", module: ContrastiveModule, data: Any, *, name: str, rows: int, before: int = 0
) -> None:
    """Run Lightning's predict loop with progress.

    Args:
        trainer: with the callback that takes the latents.
        module: the network.
        data: a datamodule of blocks, or a loader of them.
        name: label of the progress bar.
        rows: total number of rows, 0 if unknown.
        before: rows that were done before.

    Raises:
        Interrupted: A signal was received (SIGINT, SIGTERM).
    """
    world = max(1, trainer.world_size)
    with RowProgress(name, rows, before=before, visible=is_main_process()) as progress:

        def count(done: int) -> None:
            progress.advance(done * world)  # the others are about as far
            if trainer.received_sigterm:
                raise Interrupted(_INTERRUPTED)

        module.on_rows = count
        try:
            trainer.predict(module, data, return_predictions=False)
        except SystemExit as error:  # so Lightning ends the process after Ctrl-C
            raise Interrupted(_INTERRUPTED) from error
        except RuntimeError as error:
            if world > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise Interrupted(
                    f"{name}: another process of this run has ended; run the same command again"
                ) from error
            raise
        finally:
            module.on_rows = None


def _wanted_manifest(
    options: Options, job: Job, checkpoint: Checkpoint, trainer: "pl.Trainer", net: ContrastiveNet
) -> dict[str, Any]:
    """Return everything that the bits of the latents depend on."""
    return {
        **identity(options, checkpoint),
        "rows": job.rows,
        "dim": latent_dim(options, net),
        **({"columns": list(columns)} if (columns := columns_of(clearness_of(options, checkpoint))) else {}),
        "device": trainer.strategy.root_device.type,
        "backend": backend_for(options, net, job.file, job.rows, trainer),
        "torch_version": str(torch.__version__),
        "threads": cpu_threads(trainer.num_devices, torch.get_num_threads()),
        "batch_size": min(options.loader.batch_size_valid, max(job.rows.values())),
        "block_size": options.loader.block_size,
        "source": {"sha256": job.origin.sha256, **describe_status(job.file.path)},
    }


def backend_for(
    options: Options, net: ContrastiveNet, file: CutoutFile, rows: Mapping[str, int], trainer: "pl.Trainer"
) -> str:
    """Return the backend for extracting rows of a file's partitions."""
    sizes = file.partitions
    work = sum(n * count_multiply_adds(net, sizes[name].height, sizes[name].width) for name, n in rows.items())
    device, precision = trainer.strategy.root_device.type, options.trainer.precision
    chosen = choose_backend(options.model.backend, device, precision, work, may_compile=not options.debug)
    return backend_of(net, chosen)


@contextmanager
def _set_at_error(event: threading.Event) -> Iterator[threading.Event]:
    """Set an event when the enclosed work fails, so that its helper threads stop."""
    try:
        yield event
    except BaseException:
        event.set()
        raise


def _sha256(job: Job, store: BlockStore, work: Work, cancelled: threading.Event) -> str:
    """Return the hash of the source, and store it for a later resume."""
    known = work.sha256 or job.origin.sha256
    return known or store.note_sha256(sha256_file(job.file.path, cancelled))


def _summary(job: Job, writer: LatentsWriter, work: Work, seconds: float, why: str) -> str:
    rows = ", ".join(f"{name} {count}" for name, count in job.rows.items())
    total, bad = sum(job.rows.values()), sum(writer.nonfinite.values())
    before = sum(len(block) for block in writer.blocks if block.number in work.done)
    return (
        f"{rows} rows of {writer.store.dim} dimensions in {seconds:.1f} s ({(total - before) / seconds:.1f} rows/s)"
        + (f", {before} of them from an earlier run" if before else "")
        + (f"; {counted(bad, 'row is', 'rows are')} NaN because {why}" if bad else "")
    )


def why_no_latent(masked: str) -> str:
    """Return why cutouts have no latent, as text."""
    return "their cutouts have " + ("non-finite pixels" if masked == "nan" else "no clear pixel, or an infinite one")


class _ChangedError(InputFileError):
    """The source changed while it was read, so no finished row can be trusted."""


def _describe_source(job: Job, before: Mapping[str, Any], sha256: "Future[str]") -> dict[str, Any]:
    """Return name, size and sha256 of the source, which must not have changed since `before`."""
    path, origin = job.file.path, job.origin
    described = {"source": Path(origin.place).name, "source_size": before["size"], "source_sha256": sha256.result()}
    described["image_size"] = next(iter(job.file.partitions.values())).height
    after = describe_status(path)
    if after["size"] != before["size"] or after["status"] != before["status"]:
        raise _ChangedError(f"{path}: the file changed while it was read; no rows were kept, run the command again")
    return {**described, **({"source_etag": origin.etag} if origin.etag else {})}


def identity(options: Options, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the attributes that determine the latents of a source up to rounding."""
    return {
        "checkpoint_sha256": checkpoint.sha256,
        "preprocessing": options.preprocess.file,
        "latent": options.model.latent,
        **masked_identity(options, checkpoint),
        "precision": options.trainer.precision,
        "partitions": ",".join(partition_names(options)),
    }


def _environment(options: Options, checkpoint: Checkpoint, device: torch.device, work: Work) -> dict[str, Any]:
    """Return the attributes on the software and hardware that made the latents."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "model_version": options.model.name,
        "ssl_model": options.model.ssl_model,
        **({"extracted": str(kept)} if (kept := checkpoint.options.get("extracted")) else {}),
        "checkpoint": checkpoint.path.name,
        **checkpoint.origin,
        "device": f"{device.type}: {name}",
        "backend": work.backend,
        "batch_size": work.batch_size,
        "torch_version": str(torch.__version__),
        "threads": work.threads,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
