"""Latents in memory, from a file or a loader, for calls from Python."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nenya.data.blocks import BlocksDataModule, cut_blocks
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import network_input
from nenya.errors import InputFileError, OptionError
from nenya.extraction.half import trainer_options
from nenya.extraction.job import (
    DEBUG_BATCHES,
    check_sizes,
    latent_dim,
    predict,
    row_limits,
    warn_of_means,
    why_no_latent,
)
from nenya.models.contrastive import ContrastiveModule
from nenya.models.inference import backend_of, choose_backend
from nenya.options.commands import ExtractOptions
from nenya.runtime.lightning import pl
from nenya.runtime.trainer import make_trainer
from nenya.storage.texts import counted

log = logging.getLogger(__name__)

_IMAGE_AND_MASK = 2  # channels


def check_rows(wanted: NDArray[Any], rows: int, where: str) -> NDArray[np.int64]:
    """Return row numbers, (n,), from row numbers or a mask.

    Args:
        wanted: row numbers, or a boolean mask (rows,).
        rows: number of rows of the partition.
        where: the partition, for errors.

    Raises:
        OptionError: Wrong type or shape, or rows that the partition does not have.
    """
    if wanted.dtype == bool and wanted.shape == (rows,):
        return np.flatnonzero(wanted)
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if wanted.dtype == bool:
        raise OptionError(f"allowed_indices: expected a mask of shape ({rows},) for {where}, got {wanted.shape}")
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise OptionError(
            f"allowed_indices: expected row numbers (n,), got type {wanted.dtype} and shape {wanted.shape}"
        )
    if wanted.min() < 0 or wanted.max() >= rows:
        raise OptionError(
            f"allowed_indices: expected rows from 0 to {rows - 1} for {where}, got {wanted.min()} to {wanted.max()}; "
            "give rows of this partition, or name their partition"
        )
    return wanted.astype(np.int64)


def fit_channels(images: Tensor, nchannels: int, *, mask: bool = False) -> Tensor:
    """Return images (B, C, H, W) for a network of `nchannels`; equal channels are reduced to one.

    Args:
        images: (B, C, H, W) float32.
        nchannels: of the network.
        mask: whether it sees a mask as well: that of a second channel, or else NaN, which is filled.

    Raises:
        InputFileError: The channels differ, and their number is not `nchannels`.
    """
    if mask:
        one = fit_channels(images, _IMAGE_AND_MASK)
        filled = network_input(one.numpy().copy(), None, "mask") if one.shape[1] == 1 else None
        return one if filled is None else torch.from_numpy(filled)
    if images.shape[1] in (1, nchannels):
        return images
    first = images[:, :1]
    same = torch.equal(torch.nan_to_num(first).expand_as(images), torch.nan_to_num(images))
    if not same:
        raise InputFileError(
            f"expected images of 1 or {nchannels} channels, got {images.shape[1]} different ones: give one channel"
        )
    return first


def latents_of_file(
    options: ExtractOptions,
    module: ContrastiveModule,
    path: Path,
    partitions: Sequence[str],
    allowed_indices: ArrayLike | None,
) -> dict[str, NDArray[np.float32]]:
    """Return the latents of a cutout file: partition -> (N, D) float32, of the allowed rows only."""
    file = inspect_cutouts(path, partitions, allow_external=options.loader.allow_external)
    check_sizes(options, file)
    warn_of_means(options, file)
    found: dict[str, NDArray[np.float32]] = {}
    for name, info in file.partitions.items():
        limits, rows = row_limits(options, [name]), None
        if allowed_indices is not None:
            rows = check_rows(np.asarray(allowed_indices), info.rows, f"{path}: '{name}'")[: limits.get(name)]
        blocks = cut_blocks(replace(file, partitions={name: info}), options.loader.block_size, limits, rows)
        data = BlocksDataModule(file, blocks, options.loader.num_workers, options.preprocess.masked)
        latents = _collect(options, module, data, name=f"{path.name} {name}", rows=sum(map(len, blocks)))
        found[name] = latents if rows is None else latents[np.unique(rows, return_inverse=True)[1]]
        bad = int(np.isnan(found[name]).any(axis=1).sum())
        if bad:
            why = why_no_latent(options.preprocess.masked)
            words = counted(bad, f"row of '{name}' is", f"rows of '{name}' are")
            log.warning("%s: %s NaN because %s", path, words, why)
    return found


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
            net, masked = self.module.net, self.module.options.preprocess.masked
            fitting = fit_channels(images, net.nchannels, mask=net.mask_channel)
            if masked in ("fill", "mean"):
                fitting = torch.from_numpy(network_input(fitting.numpy().copy(), None, masked))
            yield {"images": fitting, "partition": self.partition, "start": start}
            start += len(images)


def latents_of_loader(
    options: ExtractOptions, module: ContrastiveModule, loader: Iterable[Any], name: str
) -> NDArray[np.float32]:
    """Return the latents of a loader's batches, (N, D) float32, in their order."""
    blocks = _LoaderBlocks(loader, name, module, DEBUG_BATCHES if options.debug else None)
    return _collect(options, module, blocks, name=name, rows=0)


def latents_of_batches(
    options: ExtractOptions, module: ContrastiveModule, batches: Iterable[Tensor], name: str, rows: int
) -> NDArray[np.float32]:
    """Return the latents (rows, D) of batches of images (n, C, H, W) as the network sees them, in their order."""
    blocks = ({"images": images, "partition": name, "start": 0} for images in batches)
    return _collect(options, module, blocks, name=name, rows=rows)


class _Collector(pl.Callback):
    """Collects the latents of the predict loop."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.float32]] = []

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.parts.append(outputs.numpy())


def _collect(
    options: ExtractOptions, module: ContrastiveModule, data: Any, *, name: str, rows: int
) -> NDArray[np.float32]:
    """Run the predict loop in this process, and return the latents (rows, D)."""
    module.batch_shape = min(options.loader.batch_size_valid, rows) if rows else None
    settings = trainer_options(options, module.net)
    settings = replace(settings, devices=1 if settings.devices == "auto" else settings.devices)
    collector = _Collector()
    trainer = make_trainer(settings, callbacks=[collector], logger=False, enable_checkpointing=False)
    device, precision = trainer.strategy.root_device.type, options.trainer.precision
    chosen = choose_backend(options.model.backend, device, precision, 0)  # too little work to repay compiling
    module.backend = backend_of(module.net, chosen)
    if not (isinstance(data, BlocksDataModule) and not data.blocks):
        predict(trainer, module, data, name=name, rows=rows)
    empty = np.empty((0, latent_dim(options, module.net)), np.float32)
    return np.concatenate(collector.parts) if collector.parts else empty
