"""Extraction: from cutout files and weights to latents, in files and in memory.

Letters in shapes: N cutouts, B of them in a batch, C channels, H x W pixels, D the length of a latent.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nenya.data.cutouts import CutoutReader
from nenya.errors import FilesFailed, InputFileError, OptionError
from nenya.extraction.batch import extract_share, follow
from nenya.extraction.memory import check_rows, fit_channels, latents_of_file, latents_of_loader
from nenya.extraction.shard import find_shard
from nenya.io import Params, as_options, under_outdir, weights_place
from nenya.models.contrastive import load_model
from nenya.options.commands import ExtractOptions
from nenya.runtime.process import is_main_process
from nenya.storage.paths import find_sources, local_path, temporary_copy

log = logging.getLogger(__name__)

ImageAndMetadata = tuple[NDArray[np.float32], Any]


def main(opt_path: str, pp_files: Sequence[str], clobber: bool = False, debug: bool = False) -> None:
    """Extract the latents of cutout files with the options and weights of a training run.

    The weights are `<s3_outdir>/<model_folder>/last.pth`, the latents go to `<s3_outdir>/<latents_folder>/`;
    `s3_outdir` is an s3:// address or a folder. A file that fails does not stop the others. Complete latents made with
    the same weights from the same source are skipped.

    Args:
        opt_path: the JSON option file, a path or an s3:// address.
        pp_files: cutout files: paths, s3:// addresses, globs, prefixes.
        clobber: overwrite existing latents.
        debug: two batches of each partition only, into files that end in `_latents_debug.h5`.

    Raises:
        OptionError: The option file cannot be used.
        FilesFailed: Some of several files failed; the log says which and why.
        NenyaError: An error that concerns all files, such as missing weights, or the only file.
    """
    opt = Params(opt_path)
    if not opt.s3_outdir:
        raise OptionError(f"{opt_path}: s3_outdir is needed: the s3:// address or folder of models/ and latents/")
    if not pp_files:
        raise OptionError("pp_files is empty: give cutout files, such as ['s3://bucket/PreProc/a_preproc.h5']")
    options = replace(as_options(ExtractOptions, opt), clobber=clobber, debug=debug, ckpt=weights_place(opt))
    if not is_main_process():
        follow(options)
        return
    shard = find_shard(None, pp_files)
    code, items = extract_share(options, pp_files, under_outdir(opt, opt.latents_folder), shard)
    if code:
        failed = [item for item in items if item.fate == "failed"]
        raise FilesFailed(f"{len(failed)} of {len(items)} files failed; the first: {failed[0].place}: {failed[0].note}")


class HDF5RGBDataset(Dataset[ImageAndMetadata]):
    """Cutouts of one partition, one by one, with their channel repeated.

    Constructing it touches no disk; the file is opened on first use, once per process, and the data set can be
    pickled. A loader's batch is read at once, so that no chunk is unpacked more than once for it.

    Args:
        file_path: the cutout file.
        partition: `train`, `valid`.
        allowed_indices: rows to use, in their order; None for all.
        nchannels: number of repetitions of the channel.
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
        """Rows of the partition behind the items, (len(self),)."""
        rows = len(self._reader)
        if self._rows is None:
            return np.arange(rows)
        return check_rows(self._rows, rows, f"{self.file_path}: '{self.partition}'")

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
        if self._metadata is None:  # all at once, because each read checks the entire data set
            found = self._reader.companion("metadata")
            self._metadata = np.full(len(self._reader), None) if found is None else found
        return [(images[place], self._metadata[unique[place]]) for place in places]


def _collate(items: Sequence[ImageAndMetadata]) -> tuple[Tensor, list[Any]]:
    """Collate items into a batch: images (B, C, H, W), and the list of their metadata."""
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
    """Return the latents of a batch of images, without preprocessing or gradients.

    Args:
        model: of `nenya.train_util.set_model`; it is put into evaluation mode.
        image_tensor: (B, C, H, W), of any floating-point type; a network of one channel also accepts three equal ones.
        using_gpu: compute on the GPU, and move the model there.

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
        raise InputFileError(f"expected images of shape (B, C, H, W), got {tuple(tensor.shape)}")
    images = fit_channels(tensor, getattr(net, "nchannels", tensor.shape[1]))
    with torch.inference_mode():
        latents: NDArray[np.float32] = model(images.to(device)).float().cpu().numpy()
    return latents


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
        data_file: one cutout file, a path or an s3:// address, which is copied temporarily; None with `in_loader`.
        model_path: the weights, a path or an s3:// address.
        remove_module: weights with and without `module.` in their names load either way.
        in_loader: yields batches, (B, C, H, W) float32 or a tuple or list that begins with one, of one partition:
            that of a `HDF5RGBDataset`, else the only one of `partitions`.
        partitions: those to extract, if the file has them.
        allowed_indices: rows of each partition to extract, in their order; None for all.
        debug: two batches of each partition only.

    Returns:
        Partition -> (N, D), float32, in the order of `partitions`; a cutout with non-finite pixels has a row of NaN.

    Raises:
        InputFileError: The file cannot be used, or has none of the partitions.
        CheckpointError: The weights cannot be used.
        OptionError: Rows outside a partition, several files, or a loader of unknown partition.
    """
    partitions = (partitions,) if isinstance(partitions, str) else tuple(partitions or ())
    if not partitions:
        raise OptionError("partitions= is empty: give names of data sets, such as ('train', 'valid')")
    options = replace(as_options(ExtractOptions, opt), debug=debug)
    if model_path is None:
        raise OptionError(f"model_path=None: model {options.model.name} has no published weights; give a path")
    _, module = load_model(options, str(model_path))
    if in_loader is not None:
        if allowed_indices is not None:
            raise OptionError("allowed_indices cannot be combined with in_loader: give them to build_loader")
        name = _partition_of(in_loader, partitions)
        return {name: latents_of_loader(options, module, in_loader, name)}
    if data_file is None:
        raise OptionError("data_file=None: give the cutout file, or a loader with in_loader=")
    with temporary_copy(_one_source(data_file), options.loader.cache_dir) as path:
        return latents_of_file(options, module, path, partitions, allowed_indices)


def _one_source(data_file: str | Path) -> Path | str:
    """Return the single file of `data_file`."""
    if not isinstance(data_file, str | Path):
        raise OptionError(f"data_file={data_file}: expected the path or s3:// address of one cutout file")
    sources = find_sources(data_file)
    if len(sources) > 1:
        raise OptionError(
            f"data_file={data_file}: expected one file, got {len(sources)}, first {sources[0]}; call it once per file, "
            "or use main for a batch"
        )
    return sources[0]


def _partition_of(loader: Iterable[Any], partitions: Sequence[str]) -> str:
    """Return the partition that a loader's batches belong to."""
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, HDF5RGBDataset):
        return dataset.partition
    if len(partitions) == 1:
        return partitions[0]
    raise OptionError(f"in_loader yields the cutouts of one partition, got partitions= of {len(partitions)}: name one")
