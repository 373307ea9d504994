"""Extraction: from cutout files and weights to latents, in files and in memory.

Letters in shapes: N cutouts, B of them in a batch, C channels, H x W pixels, D the length of a latent.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import h5py
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nenya.data.cutouts import CutoutReader
from nenya.data.hdf5_open import open_hdf5
from nenya.data.masks import InputReader
from nenya.errors import FilesFailed, InputFileError, OptionError
from nenya.extraction.batch import extract_share, follow, output_places
from nenya.extraction.memory import check_rows, fit_channels, latents_of_file, latents_of_loader
from nenya.extraction.shard import find_shard
from nenya.io import Params, as_options, load_model_name, under_outdir, weights_place
from nenya.models.contrastive import ContrastiveModule, load_model
from nenya.models.resnet import ContrastiveNet
from nenya.options.commands import ExtractOptions
from nenya.runtime.process import is_main_process
from nenya.storage.paths import find_sources, is_s3, local_path, temporary_copy
from nenya.storage.s3.service import store
from nenya.storage.shipped import AVAILABLE

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ImageAndMetadata = tuple[NDArray[np.float32], Any]


def main(opt_path: str, pp_files: Sequence[str], clobber: bool = False, debug: bool = False) -> None:
    """Extract the latents of cutout files with the options and weights of a training run.

    The weights are `<s3_outdir>/<model_folder>/last.pth`, the latents go to `<s3_outdir>/<latents_folder>/`;
    `s3_outdir` is an s3:// address or a folder, without it the working folder. A file that fails does not stop the
    others. Complete latents made with the same weights from the same source are skipped.

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


def evaluate(  # the arguments that users know
    opt_path: str | Path,
    pp_file: str | Path,
    debug: bool = False,
    clobber: bool = False,
    use_gpu: bool | None = None,
    latents_file: str | Path | None = None,
    local_model_path: str | Path | None = None,
    base_model_name: str = "last.pth",
    *,
    model_name: str | None = None,
) -> str:
    """Extract the latents of one cutout file with the options and weights of a training run.

    Complete latents made with the same weights from the same file are skipped, and so is an existing file that nenya
    did not write, with a warning.

    Args:
        opt_path: the JSON option file.
        pp_file: the cutout file, a path or an s3:// address.
        debug: two batches of each partition only, into a file that ends in `_latents_debug.h5`.
        clobber: overwrite existing latents.
        use_gpu: compute on the GPU; None: if there is one. Without a GPU it is the CPU, with a warning.
        latents_file: the output; default `<name of pp_file>_latents.h5` beside it.
        local_model_path: the folder with `<model_folder>/`; see `nenya.io.load_model_name` for the default.
        base_model_name: name of the file with the weights, such as `ckpt_epoch_10.pth`.
        model_name: the same, by its earlier name.

    Returns:
        The location of the latents.

    Raises:
        NenyaError: The option file, the weights or the cutout file cannot be used, or the output exists.
    """
    opt, weights = load_model_name(opt_path, local_model_path, model_name or base_model_name)
    source = _one_source(pp_file)
    wanted = None if latents_file is None else str(latents_file)
    out = str(output_places([source], wanted, debug=debug)[0])
    if not clobber and not is_s3(out) and _is_of_others(Path(out)):
        log.warning("%s exists, not written by this nenya: kept; clobber=True overwrites it", out)
        return out
    options = replace(as_options(ExtractOptions, opt), clobber=clobber, debug=debug, ckpt=weights)
    if use_gpu is False or (use_gpu and not torch.cuda.is_available()):
        if use_gpu:
            log.warning("use_gpu=True, but torch finds no GPU here: computing on the CPU")
        options.trainer.accelerator = "cpu"
    code, items = extract_share(options, str(source), wanted, (0, 1))
    if code:
        raise FilesFailed(f"{items[0].place}: {items[0].note}")
    return out


def _is_of_others(path: Path) -> bool:
    """Return whether a file is there that has no provenance of ours."""
    if not path.is_file():
        return False
    with open_hdf5(path) as file:
        return "checkpoint_sha256" not in file.attrs


def prep(opt: Params) -> tuple[str, list[str]]:
    """Return the place of the weights of a training, and the names of the latents files that exist already.

    Each file is listed by our name, `a_preproc_latents.h5`, and by the first nenya's, `a_latents.h5`.

    Args:
        opt: options of `nenya.io.Params`.

    Raises:
        StorageError: An S3 service does not list them.
    """
    folder = under_outdir(opt, opt.latents_folder)
    if is_s3(folder):
        found = [item.url.rpartition("/")[2] for item in store().find(folder + "/")]
    else:
        found = [path.name for path in Path(folder).glob("*.h5")]
    older = [name.replace("_preproc_latents.h5", "_latents.h5") for name in found]
    return weights_place(opt), list(dict.fromkeys([*found, *older]))


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
        self.masked = "nan"  # or `holes`, see `nenya.data.masks.InputReader`
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
        images = np.repeat(InputReader(self._reader, self.masked).read_rows(unique), self.nchannels, axis=1)
        if self._metadata is None:  # all at once, because each read checks the entire data set
            found = self._reader.companion("metadata")
            self._metadata = np.full(len(self._reader), None) if found is None else found
        return [(images[place], self._metadata[unique[place]]) for place in places]


def _collate(items: Sequence[ImageAndMetadata]) -> tuple[Tensor, list[Any]]:
    """Collate items into a batch: images (B, C, H, W), and the list of their metadata."""
    return torch.from_numpy(np.stack([image for image, _ in items])), [metadata for _, metadata in items]


id_collate = _collate
"""The same, by the name in users' scripts."""


def _with_channels_first(function: Callable[P, T]) -> Callable[P, T]:
    """Let the last version's order through, in which the number of channels comes before the batch size.

    It is recognised by `batch_size` being given by name too, by a third number, or by 1 or 3 before a larger number.
    """

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> T:
        numbers = [size for size in args[2:] if isinstance(size, int)]
        first = bool(numbers) and ("batch_size" in named or len(numbers) > 2)
        if first or (len(numbers) == 2 and numbers[0] in (1, 3) and numbers[1] > numbers[0]):
            args, named = (*args[:2], *args[3:]), {"nchannels": args[2], **named}
        return function(*args, **named)

    return call


@_with_channels_first
def build_loader(
    data_file: str | Path,
    dataset: str,
    batch_size: int = 1,
    num_workers: int = 1,
    allowed_indices: ArrayLike | None = None,
    nchannels: int = 3,
    allow_external: bool = False,
) -> tuple[HDF5RGBDataset, DataLoader[ImageAndMetadata]]:
    """Return the cutouts of a partition in order, and a loader of them.

    The last version of the first nenya had `nchannels` before `batch_size`, which is understood where `batch_size` is
    given by name, or where the first number is 1 or 3 and a larger one follows.

    Args:
        data_file: the cutout file.
        dataset: the partition: `train`, `valid`.
        batch_size: cutouts in a batch B.
        num_workers: loader processes.
        allowed_indices: rows to use, in their order; None for all.
        nchannels: repetitions of the channel.
        allow_external: whether links in the file may lead out of its folder.

    Returns:
        The data set, and the loader, which yields images (B, C, H, W), float32, and a list of B metadata.
    """
    dset = HDF5RGBDataset(data_file, dataset, allowed_indices, nchannels, allow_external)
    loader = DataLoader(
        dset, batch_size=batch_size, shuffle=False, collate_fn=id_collate, drop_last=False, num_workers=num_workers
    )
    return dset, loader


def calc_latent(model: nn.Module, image_tensor: Tensor, using_gpu: bool) -> NDArray[np.float32]:
    """Return the latents of a batch of images, without preprocessing or gradients.

    Args:
        model: of `nenya.train_util.set_model`; it is put into evaluation mode.
        image_tensor: (B, C, H, W), of any floating-point type; a network of one channel also accepts three equal ones,
            and one with a mask channel image and mask, or the image alone with NaN at masked pixels.
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
    mask = getattr(net, "mask_channel", False)
    images = fit_channels(tensor, getattr(net, "nchannels", tensor.shape[1]), mask=mask)
    with torch.inference_mode():
        latents: NDArray[np.float32] = model(images.to(device)).float().cpu().numpy()
    return latents


def model_latents_extract(  # noqa: PLR0913  # the arguments that users know
    opt: Any,
    data_file: Any = None,
    model_path: Any = None,
    remove_module: bool | None = True,
    in_loader: Iterable[Any] | None = None,
    partitions: Sequence[str] = ("train", "valid"),
    allowed_indices: ArrayLike | None = None,
    debug: bool = False,
    *,
    model: nn.Module | None = None,
    using_gpu: bool | None = None,
    loader: Iterable[Any] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the latents of a file's cutouts, in memory.

    The last version of the first nenya had another order: options, network, file, using_gpu. A network in the second
    place tells it.

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
        model: a network with its weights in place of `model_path`.
        using_gpu: compute on the GPU; None: if there is one.
        loader: `in_loader` by its earlier name.

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
    if isinstance(data_file, nn.Module):
        model, data_file, model_path = data_file, model_path, None
        using_gpu = using_gpu if using_gpu is not None else remove_module
    in_loader = loader if in_loader is None else in_loader
    options = replace(as_options(ExtractOptions, opt), debug=debug)
    if using_gpu is False or not torch.cuda.is_available():
        options.trainer.accelerator = "cpu"
    if model is not None:
        module = _module_of(options, model)
    elif model_path is None:
        raise OptionError(
            f"model_path=None: model {options.model.name} has no published weights; give a path; {AVAILABLE}"
        )
    else:
        _, module = load_model(options, str(model_path))
    if in_loader is not None:
        if allowed_indices is not None:
            raise OptionError("allowed_indices cannot be combined with in_loader: give them to build_loader")
        name = _partition_of(in_loader, partitions)
        dataset = getattr(in_loader, "dataset", None)
        if isinstance(dataset, HDF5RGBDataset) and options.preprocess.masked != "nan":
            dataset.masked = "holes"
        return {name: latents_of_loader(options, module, in_loader, name)}
    if data_file is None:
        raise OptionError("data_file=None: give the cutout file, or a loader with in_loader=")
    with temporary_copy(_one_source(data_file), options.loader.cache_dir) as path:
        return latents_of_file(options, module, path, partitions, allowed_indices)


def _module_of(options: ExtractOptions, model: nn.Module) -> ContrastiveModule:
    """Return the module that extracts with a network of the user's."""
    net = getattr(model, "net", model)
    if not isinstance(net, ContrastiveNet):
        raise OptionError(f"model of type {type(model).__name__}: expected the network of set_model or SupConResNet")
    return ContrastiveModule(options, net)


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
