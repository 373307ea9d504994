"""Extraction of a batch of files: the inputs, the outputs, and the closing summary."""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nenya.data.cutouts import inspect_cutouts, partition_names
from nenya.errors import Interrupted, NenyaError, OptionError
from nenya.extraction.job import Origin, extract_file, identity, latent_dim, plan_job, scratch_bytes
from nenya.extraction.ranks import Follower, Leader
from nenya.extraction.shard import find_shard, share
from nenya.extraction.staging import Item, Skip, Staging, check_places, reworded, settle
from nenya.models.contrastive import load_model
from nenya.options.commands import ExtractOptions
from nenya.runtime.process import is_main_process
from nenya.runtime.signals import Termination
from nenya.runtime.trainer import check_trainer, make_logger
from nenya.storage.paths import HDF5_SUFFIXES, Source, find_sources, is_s3, is_several, local_path, scratch_folder
from nenya.storage.s3.service import join_url
from nenya.storage.texts import lines_of

log = logging.getLogger(__name__)


def run(options: ExtractOptions) -> int:
    """Extract the latents of all files of `options.data`.

    Args:
        options: of `scripts/extract.py`.

    Returns:
        0 if all is done, 1 if some of several files failed.

    Raises:
        NenyaError: Bad input, options, weights or output; with several files only errors that concern all of them.
    """
    if not is_main_process():
        return follow(options)
    shared = options.shard is not None or is_several(options.data)
    shard = find_shard(options.shard, options.data) if shared else (0, 1)
    return extract_share(options, options.data, options.out, shard)[0]


def extract_share(
    options: ExtractOptions, data: Any, out: str | None, shard: tuple[int, int]
) -> tuple[int, Sequence[Item]]:
    """Extract this worker's share of the files; return the exit code and the outcome of each file."""
    sources = find_sources(data)
    outputs = output_places(sources, out, debug=options.debug)
    items = [Item(Source.of(source), Source.of(output)) for source, output in zip(sources, outputs, strict=True)]
    if shard[1] > 1:
        place = {item.place: item for item in items}
        items = [place[name] for name in share(list(place), *shard)]
        log.info("shard %d/%d: %d of %d files", *shard, len(items), len(place))
    return (_run_items(options, items) if items else 0), items


def _run_items(options: ExtractOptions, items: Sequence[Item]) -> int:
    """Extract files to the given places; see `run`."""
    with Termination():
        return _extract_items(options, items)


def _extract_items(options: ExtractOptions, items: Sequence[Item]) -> int:
    places = [place for item in items for place in (item.source, item.output)]
    shared = check_trainer(options.trainer) > 1 or any(place.path is None for place in places)
    if len(items) == 1 and items[0].source.path is not None:  # before the slow loading of weights
        inspect_cutouts(items[0].source.path, partition_names(options), allow_external=options.loader.allow_external)
    check_places([item.output for item in items], write=True)
    check_places([item.source for item in items], write=False)
    checkpoint, module = load_model(options, options.ckpt)
    scratch = scratch_folder(options.loader.cache_dir) if shared else None
    with (
        Staging(options, items, identity(options, checkpoint), scratch) as staging,
        Leader(staging.folder) if shared else contextlib.nullcontext() as leader,
        _logging(options) as logger,
    ):
        for index, item in enumerate(items):
            ready = None
            try:
                staged = staging.get(index)
                if isinstance(staged, Skip):
                    settle(item, "skipped", staged.reason)
                    continue
                ready = staged
                if ready.made:
                    staging.finish(index, ready, "uploaded latents that an earlier run had extracted")
                    continue
                job = plan_job(options, ready.origin, ready.path, ready.output, module.net)
                needed = scratch_bytes(job, latent_dim(options, module.net), options.preprocess.masked)
                staging.hold(ready, needed, item.place)
                staging.ahead(index + 1)
                tell = None if leader is None else partial(leader.tell, index, [ready.path, ready.output, item.place])
                note = extract_file(options, job, module, checkpoint, started=tell, logger=logger)
                if note is None:
                    staging.release(item, ready)
                    settle(item, "skipped", "written by another run in the meantime")
                else:
                    staging.finish(index, ready, note)
            except Exception as error:  # one failed file does not stop the others
                if ready is not None:
                    staging.release(item, ready)
                if len(items) == 1 or isinstance(error, Interrupted) or _others_wait(leader, index):
                    raise reworded(error, ready, item) from error
                settle(item, "failed", str(reworded(error, ready, item)))
            finally:
                if leader is not None and leader.told != index:
                    leader.tell(index, None)
        if leader is not None:
            leader.end()
    return _close(items)


@contextlib.contextmanager
def _logging(options: ExtractOptions) -> Iterator[Any]:
    """Yield the logger of a batch, or None if none is requested."""
    logger = make_logger(options, Path("outputs"), time.strftime("extract_%Y-%m-%d_%H-%M-%S"))
    done = False
    try:
        yield logger
        done = True
    finally:
        if logger is not None:
            logger.experiment.finish(exit_code=0 if done else 1)


def _others_wait(leader: Leader | None, index: int) -> bool:
    """Return whether other processes work on this file and would wait for this one forever."""
    return leader is not None and leader.told == index and torch.distributed.is_initialized()


def follow(options: ExtractOptions) -> int:
    """Extract the files that the first process of a batch announces."""
    check_trainer(options.trainer)
    checkpoint, module = load_model(options, options.ckpt)
    follower = Follower(scratch_folder(options.loader.cache_dir))
    with Termination():
        for number in itertools.count():
            try:
                told = follower.hear(number)
            except EOFError:
                break
            if told is not None:
                path, output, place = told
                job = plan_job(options, Origin(place), Path(path), Path(output), module.net)
                extract_file(options, job, module, checkpoint)
    return 0


def _close(items: Sequence[Item]) -> int:
    """Log the outcome of each file, and return the exit code."""
    counts = {fate: sum(item.fate == fate for item in items) for fate in ("done", "skipped", "failed")}
    if len(items) == 1:
        if counts["failed"]:
            raise NenyaError(items[0].note)
        return 0
    lines = [f"  {item.fate:8s} {item.line}" for item in items]
    said = ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    more = "; fix the failed files, then run the same command again" if counts["failed"] else ""
    log.info("%d files: %s%s\n%s", len(items), said, more, lines_of(lines))
    return 1 if counts["failed"] else 0


def output_places(sources: Sequence[Path | str], out: str | None, *, debug: bool = False) -> list[Path | str]:
    """Return the latents file of each cutout file: `<stem>_latents.h5` beside it or in the folder `out`.

    Args:
        sources: paths and s3:// addresses.
        out: folder, file, or s3:// prefix or address.
        debug: whether only two batches are extracted; the output then has another name than a complete file.

    Raises:
        OptionError: Two files would have one output, or the output is a cutout file itself.
    """
    if out and out.endswith(HDF5_SUFFIXES):
        place = out if is_s3(out) else local_path(out)
        if len(sources) > 1:
            raise OptionError(f"out={out} is one file, but data= means {len(sources)}: give a folder")
        if str(place) == str(sources[0]) or _same_file(place, sources[0]):
            raise OptionError(f"out={out} is the cutout file itself: give another file or a folder with out=")
        stem, _, suffix = str(place).rpartition(".")
        named = f"{stem}_debug.{suffix}" if debug else str(place)
        return [named if is_s3(named) else Path(named)]
    suffix = "_latents_debug.h5" if debug else "_latents.h5"
    outputs = [_beside(source, out, suffix) for source in sources]
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            first = sources[outputs.index(output)]
            raise OptionError(f"{first} and {sources[i]} would both be written to {output}: extract them separately")
    return outputs


def _same_file(place: Path | str, source: Path | str) -> bool:
    return isinstance(place, Path) and isinstance(source, Path) and place.resolve() == source.resolve()


def _beside(source: Path | str, out: str | None, suffix: str) -> Path | str:
    name = Path(str(source)).stem + suffix
    if out:
        return join_url(out, name) if is_s3(out) else local_path(out) / name
    return source.rsplit("/", 1)[0] + "/" + name if isinstance(source, str) else source.parent / name
