"""Extraction: from cutout files and weights to latents, in files and in memory.

Letters in shapes: N cutouts, B of them in a batch, C channels, H x W pixels, D the length of a latent.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nenya.data.blocks import BlocksDataModule, cut_blocks
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.errors import FilesFailed, InputFileError, Interrupted, NenyaError, OptionError
from nenya.extraction.job import (
    DEBUG_BATCHES,
    Source,
    check_sizes,
    extract_file,
    identity,
    latent_dim,
    partition_names,
    plan_job,
    predict,
    row_limits,
    scratch_bytes,
    warn_of_means,
)
from nenya.extraction.ranks import Follower, Leader
from nenya.extraction.shard import find_shard, share
from nenya.extraction.staging import Item, Skip, Staging, Termination, check_places, reworded, settle
from nenya.io import Params, as_options, under_outdir, weights_place
from nenya.models.contrastive import ContrastiveModule
from nenya.models.inference import choose_backend
from nenya.models.weights import load_model
from nenya.options.sections import ExtractOptions
from nenya.runtime.trainer import check_trainer, is_main_process, make_logger, make_trainer
from nenya.storage.paths import HDF5_SUFFIXES, find_sources, local_path, scratch_folder, temporary_copy
from nenya.storage.s3.service import is_s3, join_url
from nenya.storage.texts import lines_of

log = logging.getLogger(__name__)

ImageAndMetadata = tuple[NDArray[np.float32], Any]


def run(options: ExtractOptions) -> int:
    """Extract the latents of all files of `options.data`.

    Args:
        options: of `scripts/extract.py`.

    Returns:
        0 if all is done, 1 if some of several files failed.

    Raises:
        NenyaError: Bad input, options, weights or output; with several files only what concerns all of them.
    """
    if not is_main_process():
        return _follow(options)
    return _run_share(options, options.data, options.out, find_shard(options.shard, options.data))[0]


def _run_share(
    options: ExtractOptions, data: Any, out: str | None, shard: tuple[int, int]
) -> tuple[int, Sequence[Item]]:
    """Extract this worker's share of the files; returns the exit code and what became of each."""
    sources = find_sources(data)
    outputs = output_places(sources, out, debug=options.debug)
    items = [Item(*pair) for pair in zip(sources, outputs, strict=True)]
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
    places = [str(place) for item in items for place in (item.source, item.output)]
    shared = check_trainer(options.trainer) > 1 or any(map(is_s3, places))
    if len(items) == 1 and isinstance(items[0].source, Path):  # before the seconds that weights take
        inspect_cutouts(items[0].source, partition_names(options), allow_external=options.loader.allow_external)
    check_places(places)
    checkpoint, module = load_model(options, options.ckpt)
    scratch = scratch_folder(options.loader.cache_dir) if shared else None
    with (
        Staging(options, items, identity(options, checkpoint), scratch) as staging,
        Leader(staging.folder if shared else None) as leader,
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
                    staging.finish(index, ready, "made by an earlier run, which could not send them")
                    continue
                job = plan_job(options, ready.source, ready.path, ready.output, module.net)
                staging.hold(ready, scratch_bytes(job, latent_dim(options, module.net)), item.place)
                staging.ahead(index + 1)
                tell = partial(leader.tell, index, [ready.path, ready.output, item.place])
                note = extract_file(options, job, module, checkpoint, started=tell, logger=logger)
                if note is None:
                    staging.release(item, ready)
                    settle(item, "skipped", "written by another run meanwhile")
                else:
                    staging.finish(index, ready, note)
            except Exception as error:  # of one file, which does not stop the others
                if ready is not None:
                    staging.release(item, ready)
                if len(items) == 1 or isinstance(error, Interrupted) or _others_wait(leader, index):
                    raise reworded(error, ready, item) from error
                settle(item, "failed", str(reworded(error, ready, item)))
            finally:
                if leader.told != index:
                    leader.tell(index, None)
        leader.end()
    return _close(items)


@contextlib.contextmanager
def _logging(options: ExtractOptions) -> Iterator[Any]:
    """Give the logger of a batch, None if none is asked for."""
    logger = make_logger(options, Path("outputs"), time.strftime("extract_%Y-%m-%d_%H-%M-%S"))
    done = False
    try:
        yield logger
        done = True
    finally:
        if logger is not None:
            logger.experiment.finish(exit_code=0 if done else 1)


def _others_wait(leader: Leader, index: int) -> bool:
    """Return whether other processes work on this file, and would wait for this one for ever."""
    return leader.told == index and torch.distributed.is_initialized()


def _follow(options: ExtractOptions) -> int:
    """Extract, beside the first process of a batch, what that one says."""
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
                job = plan_job(options, Source(place), Path(path), Path(output), module.net)
                extract_file(options, job, module, checkpoint)
    return 0


def _close(items: Sequence[Item]) -> int:
    """Log each file's fate, and return the exit code."""
    counts = {fate: sum(item.fate == fate for item in items) for fate in ("done", "skipped", "failed")}
    if len(items) == 1:
        if counts["failed"]:
            raise NenyaError(items[0].note)
        return 0
    lines = [f"  {item.fate:8s} {item.line}" for item in items]
    said = ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    more = "; when what failed is mended, the same command does the rest" if counts["failed"] else ""
    log.info("%d files: %s%s\n%s", len(items), said, more, lines_of(lines))
    return 1 if counts["failed"] else 0


def output_places(sources: Sequence[Path | str], out: str | None, *, debug: bool = False) -> list[Path | str]:
    """Return the latents file of each cutout file: `<stem>_latents.h5` beside it or in the folder `out`.

    Args:
        sources: paths and s3:// addresses.
        out: folder, file, or s3:// prefix or address.
        debug: whether these are latents of two batches, which never stand under the name of a whole file.

    Raises:
        OptionError: Two files would have one output, or the output is a cutout file itself.
    """
    if out and out.endswith(HDF5_SUFFIXES):
        place = out if is_s3(out) else local_path(out)
        if len(sources) > 1:
            raise OptionError(f"out={out} is one file and data= are {len(sources)}: give a folder")
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
            raise OptionError(f"{first} and {sources[i]} would both be written to {output}: extract them apart")
    return outputs


def _same_file(place: Path | str, source: Path | str) -> bool:
    return isinstance(place, Path) and isinstance(source, Path) and place.resolve() == source.resolve()


def _beside(source: Path | str, out: str | None, suffix: str) -> Path | str:
    name = Path(str(source)).stem + suffix
    if out:
        return join_url(out, name) if is_s3(out) else local_path(out) / name
    return source.rsplit("/", 1)[0] + "/" + name if isinstance(source, str) else source.parent / name


def main(opt_path: str, pp_files: Sequence[str], clobber: bool = False, debug: bool = False) -> None:
    """Extract the latents of cutout files with the options and weights of a training run.

    The weights are `<s3_outdir>/<model_folder>/last.pth`, the latents go to `<s3_outdir>/<latents_folder>/`;
    `s3_outdir` is an s3:// address or a folder. A file that fails does not stop the others, and latents that
    are there already, whole and made with the same weights of the same source, are left alone.

    Args:
        opt_path: the JSON option file, a path or an s3:// address.
        pp_files: cutout files: paths, s3:// addresses, globs, prefixes.
        clobber: replace what is there.
        debug: two batches of each partition only, into files that end in `_latents_debug.h5`.

    Raises:
        OptionError: The option file cannot be used.
        FilesFailed: Some of several files failed; the log says which and why.
        NenyaError: What concerns all files, such as missing weights, or the only one.
    """
    opt = Params(opt_path)
    if not opt.s3_outdir:
        raise OptionError(f"{opt_path}: s3_outdir is needed: the s3:// address or folder of models/ and latents/")
    if not pp_files:
        raise OptionError("pp_files is empty: give cutout files, such as ['s3://bucket/PreProc/a_preproc.h5']")
    options = replace(as_options(ExtractOptions, opt), clobber=clobber, debug=debug, ckpt=weights_place(opt))
    if not is_main_process():
        _follow(options)
        return
    shard = find_shard(None, pp_files)
    code, items = _run_share(options, pp_files, under_outdir(opt, opt.latents_folder), shard)
    if code:
        failed = [item for item in items if item.fate == "failed"]
        raise FilesFailed(f"{len(failed)} of {len(items)} files failed, first {failed[0].place}: {failed[0].note}")


class HDF5RGBDataset(Dataset[ImageAndMetadata]):
    """Cutouts of one partition, one by one, with their channel repeated.

    Making one touches no disk; the file opens at the first use, once per process, and the data set can be
    pickled. A loader's batch is read at once, so that no chunk is unpacked for each cutout of it.

    Args:
        file_path: the cutout file.
        partition: `train`, `valid`.
        allowed_indices: rows to use, in their order; None for all.
        nchannels: how often the channel is repeated.
        allow_external: whether links in the file may lead out of its folder.
    """

    def __init__(
        self,
        file_path: str | Path,
        partition: str,
        allowed_indices: ArrayLike | None = None,
        nchannels: int = 3,
        allow_external: bool = False,
    ) -> None:
        super().__init__()
        self.file_path, self.partition, self.nchannels = file_path, partition, nchannels
        self.meta_dset = partition + "_metadata"
        self._reader = CutoutReader(local_path(str(file_path)), partition, allow_external=allow_external)
        self._metadata: NDArray[Any] | None = None
        self._rows = None if allowed_indices is None else np.asarray(allowed_indices)

    @property
    def h5f(self) -> h5py.File:
        """The open file of this process."""
        return self._reader.dataset().file

    @property
    def allowed_indices(self) -> NDArray[np.int64]:
        """Rows of the partition that the items are, (len(self),)."""
        rows = len(self._reader)
        if self._rows is None:
            return np.arange(rows)
        return _check_rows(self._rows, rows, f"{self.file_path}: '{self.partition}'")

    def __len__(self) -> int:
        return len(self.allowed_indices)

    def __getitem__(self, index: int) -> ImageAndMetadata:
        """Return the cutout (C, H, W), float32, and its entry of `<partition>_metadata`, None if there is none."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[ImageAndMetadata]:
        """Return several items."""
        rows = self.allowed_indices[np.asarray(indices, dtype=np.int64)]
        unique, places = np.unique(rows, return_inverse=True)
        images = np.repeat(self._reader.read_rows(unique), self.nchannels, axis=1)
        if self._metadata is None:  # all at once, as each reading checks the whole data set
            found = self._reader.companion("metadata")
            self._metadata = np.full(len(self._reader), None) if found is None else found
        return [(images[place], self._metadata[unique[place]]) for place in places]


def _check_rows(wanted: NDArray[Any], rows: int, where: str) -> NDArray[np.int64]:
    """Return row numbers, which a mask may stand for."""
    if wanted.dtype == bool and wanted.shape == (rows,):
        return np.flatnonzero(wanted)
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if wanted.dtype == bool:
        raise OptionError(f"allowed_indices is a mask of shape {wanted.shape}: {where} wants ({rows},)")
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise OptionError(f"allowed_indices of type {wanted.dtype} and shape {wanted.shape}: wanted are row numbers")
    if wanted.min() < 0 or wanted.max() >= rows:
        raise OptionError(
            f"allowed_indices from {wanted.min()} to {wanted.max()}: {where} has the rows 0 to {rows - 1}; "
            "give rows that it has, or the partition that they are meant for"
        )
    return wanted.astype(np.int64)


def _collate(items: Sequence[ImageAndMetadata]) -> tuple[Tensor, list[Any]]:
    """Join items to a batch: images (B, C, H, W), and the list of their metadata."""
    return torch.from_numpy(np.stack([image for image, _ in items])), [metadata for _, metadata in items]


def build_loader(
    data_file: str | Path,
    dataset: str,
    batch_size: int = 1,
    num_workers: int = 1,
    allowed_indices: ArrayLike | None = None,
    allow_external: bool = False,
) -> tuple[HDF5RGBDataset, DataLoader[ImageAndMetadata]]:
    """Return the cutouts of a partition in order, and a loader of them.

    Args:
        data_file: the cutout file.
        dataset: the partition: `train`, `valid`.
        batch_size: cutouts in a batch B.
        num_workers: loader processes.
        allowed_indices: rows to use, in their order; None for all.
        allow_external: whether links in the file may lead out of its folder.

    Returns:
        The data set, and the loader, which yields images (B, 3, H, W), float32, and a list of B metadata.
    """
    dset = HDF5RGBDataset(data_file, partition=dataset, allowed_indices=allowed_indices, allow_external=allow_external)
    loader = DataLoader(
        dset, batch_size=batch_size, shuffle=False, collate_fn=_collate, drop_last=False, num_workers=num_workers
    )
    return dset, loader


def calc_latent(model: nn.Module, image_tensor: Tensor, using_gpu: bool) -> NDArray[np.float32]:
    """Return the latents of a batch of images as they are, without gradients.

    Args:
        model: of `nenya.train_util.set_model`; it is put into evaluation mode.
        image_tensor: (B, C, H, W), of any floating-point type; three equal channels also suit a network of one.
        using_gpu: compute on the GPU, to which the model goes too.

    Returns:
        (B, D), float32.

    Raises:
        OptionError: There is no GPU.
    """
    if using_gpu and not torch.cuda.is_available():
        raise OptionError("using_gpu=True: torch finds no GPU here; give using_gpu=False")
    device = torch.device("cuda" if using_gpu else "cpu")
    model.to(device).eval()
    net = getattr(model, "net", model)
    tensor = torch.as_tensor(image_tensor, dtype=torch.float32)
    if tensor.ndim != 4:
        raise InputFileError(f"images of shape {tuple(tensor.shape)} came; wanted is (B, C, H, W)")
    images = fit_channels(tensor, getattr(net, "nchannels", tensor.shape[1]))
    with torch.inference_mode():
        latents: NDArray[np.float32] = model(images.to(device)).float().cpu().numpy()
    return latents


def fit_channels(images: Tensor, nchannels: int) -> Tensor:
    """Return images (B, C, H, W) for a network of `nchannels`: of equal channels one is enough.

    Raises:
        InputFileError: The channels differ, and the network has not as many.
    """
    if images.shape[1] in (1, nchannels):
        return images
    first = images[:, :1]
    same = torch.equal(torch.nan_to_num(first).expand_as(images), torch.nan_to_num(images))
    if not same:
        raise InputFileError(
            f"images of {images.shape[1]} different channels came, {nchannels} are wanted: give one channel"
        )
    return first


def model_latents_extract(
    opt: Any,
    data_file: str | Path | None,
    model_path: str | Path | None,
    remove_module: bool = True,
    in_loader: Iterable[Any] | None = None,
    partitions: Sequence[str] = ("train", "valid"),
    allowed_indices: ArrayLike | None = None,
    debug: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Return the latents of a file's cutouts, in memory.

    Args:
        opt: options of `nenya.io.load_opt`.
        data_file: one cutout file, a path or an s3:// address, of which a copy is made for the time; None where
            `in_loader` gives the images.
        model_path: the weights, a path or an s3:// address.
        remove_module: weights with and without `module.` in their names load either way.
        in_loader: yields batches, (B, C, H, W) float32 or a tuple or list that begins with one, of one partition:
            that of a `HDF5RGBDataset`, else the only one of `partitions`.
        partitions: those to extract, as far as the file has them.
        allowed_indices: rows of the file to extract, in their order; None for all. They hold for each partition.
        debug: two batches of each partition only.

    Returns:
        Partition -> (N, D), float32, in the order of `partitions`; a cutout with non-finite pixels has a row of NaN.

    Raises:
        InputFileError: The file cannot be used, or has none of the partitions.
        CheckpointError: The weights cannot be used.
        OptionError: Rows that a partition has not, several files, or a loader of no certain partition.
    """
    partitions = (partitions,) if isinstance(partitions, str) else tuple(partitions or ())
    if not partitions:
        raise OptionError("partitions= names none: give names of data sets, such as ('train', 'valid')")
    options = replace(as_options(ExtractOptions, opt), debug=debug)
    if model_path is None:
        raise OptionError(f"model_path=None: model {options.model.name} has no published weights; give a path")
    _, module = load_model(options, str(model_path))
    if in_loader is not None:
        if allowed_indices is not None:
            raise OptionError("allowed_indices are rows of a file: give them to build_loader, not beside in_loader")
        name = _partition_of(in_loader, partitions)
        return {name: _latents_of_loader(options, module, in_loader, name)}
    if data_file is None:
        raise OptionError("data_file=None: give the cutout file, or a loader with in_loader=")
    with temporary_copy(_one_source(data_file), options.loader.cache_dir) as path:
        return _latents_of_file(options, module, path, partitions, allowed_indices)


def _one_source(data_file: str | Path) -> Path | str:
    """Return the one file that is named."""
    if not isinstance(data_file, str | Path):
        raise OptionError(f"data_file={data_file}: wanted is the path or s3:// address of one cutout file")
    sources = find_sources(data_file)
    if len(sources) > 1:
        raise OptionError(
            f"data_file={data_file} stands for {len(sources)} files, first {sources[0]}: one is wanted; "
            "call it for each, or use main for a batch"
        )
    return sources[0]


def _latents_of_file(
    options: ExtractOptions,
    module: ContrastiveModule,
    path: Path,
    partitions: Sequence[str],
    allowed_indices: ArrayLike | None,
) -> dict[str, NDArray[np.float32]]:
    file = inspect_cutouts(path, partitions, allow_external=options.loader.allow_external)
    check_sizes(options, file)
    warn_of_means(options, file)
    found: dict[str, NDArray[np.float32]] = {}
    for name, info in file.partitions.items():
        limits, rows = row_limits(options, [name]), None
        if allowed_indices is not None:
            rows = _check_rows(np.asarray(allowed_indices), info.rows, f"{path}: '{name}'")[: limits.get(name)]
        blocks = cut_blocks(replace(file, partitions={name: info}), options.loader.block_size, limits, rows)
        data = BlocksDataModule(file, blocks, options.loader.num_workers)
        latents = _collect(options, module, data, name=f"{path.name} {name}", rows=sum(map(len, blocks)))
        found[name] = latents if rows is None else latents[np.unique(rows, return_inverse=True)[1]]
        bad = int(np.isnan(found[name]).any(axis=1).sum())
        if bad:
            log.warning("%s: %d rows of '%s' are NaN, as their cutouts have non-finite pixels", path, bad, name)
    return found


def _partition_of(loader: Iterable[Any], partitions: Sequence[str]) -> str:
    """Return the partition that a loader's batches belong to."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, HDF5RGBDataset):
        return dataset.partition
    if len(partitions) == 1:
        return partitions[0]
    raise OptionError(f"in_loader gives the cutouts of one partition, and partitions= are {len(partitions)}: name one")


class _LoaderBlocks:
    """A user's batches as blocks for the predict loop."""

    def __init__(self, loader: Iterable[Any], partition: str, module: ContrastiveModule, most: int | None) -> None:
        self.loader, self.partition, self.module, self.most = loader, partition, module, most

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = 0
        for number, batch in enumerate(self.loader):
            if number == self.most:
                return
            images = torch.as_tensor(batch[0] if isinstance(batch, tuple | list) else batch, dtype=torch.float32)
            self.module.batch_shape = self.module.batch_shape or len(images)
            fitting = fit_channels(images, self.module.net.nchannels)
            yield {"images": fitting, "partition": self.partition, "start": start}
            start += len(images)


def _latents_of_loader(
    options: ExtractOptions, module: ContrastiveModule, loader: Iterable[Any], name: str
) -> NDArray[np.float32]:
    blocks = _LoaderBlocks(loader, name, module, DEBUG_BATCHES if options.debug else None)
    return _collect(options, module, blocks, name=name, rows=0)


class _Collector(pl.Callback):
    """Keeps the latents that the predict loop makes."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.float32]] = []

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.parts.append(outputs.numpy())


def _collect(
    options: ExtractOptions, module: ContrastiveModule, data: Any, *, name: str, rows: int
) -> NDArray[np.float32]:
    """Run the predict loop in this process, and return the latents (rows, D)."""
    module.batch_shape = min(options.loader.batch_size_valid, rows) if rows else None
    settings = replace(options.trainer, devices=1 if options.trainer.devices == "auto" else options.trainer.devices)
    collector = _Collector()
    trainer = make_trainer(settings, callbacks=[collector], logger=False, enable_checkpointing=False)
    device, precision = trainer.strategy.root_device.type, settings.precision
    module.backend = choose_backend(options.model.backend, device, precision, 0)  # what fits into memory is not much
    if not (isinstance(data, BlocksDataModule) and not data.blocks):
        predict(trainer, module, data, name=name, rows=rows)
    empty = np.empty((0, latent_dim(options, module.net)), np.float32)
    return np.concatenate(collector.parts) if collector.parts else empty
