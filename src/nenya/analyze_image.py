"""One image, or a few, through the network.

Letters in shapes: N images, H = W pixels a side, D the length of a latent.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset

from nenya.data.datamodule import view_sampler
from nenya.data.masks import network_input
from nenya.errors import InputFileError, OptionError, OptionFileError
from nenya.io import as_options, load_opt
from nenya.latents_extraction import calc_latent
from nenya.models.contrastive import load_model
from nenya.models.resnet import check_image_size
from nenya.models.sizes import check_taken
from nenya.options.commands import ExtractOptions
from nenya.options.files import model_versions, read_group
from nenya.options.sections import Options, build_options
from nenya.tables.quantities import central_dt
from nenya.train_util import TwoViews

log = logging.getLogger(__name__)

_EXPECTED = "expected an image of shape (H, W), (1, H, W) or (N, 1, H, W) with H = W"


def get_latents(
    image: ArrayLike | None = None,
    model_file: str | Path | None = None,
    opt: Any = None,
    *,
    img: ArrayLike | None = None,
    side: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the latents of images, after removing the mean of each.

    `opt.options.preprocess.image = "none"` keeps the mean. For files no mean is removed (`preprocess.file`), because
    their cutouts have zero mean.

    Args:
        image: (H, W), (1, H, W) or (N, 1, H, W): SST or its anomaly in K or degrees C. Three equal channels count as
            one.
        model_file: the weights, a path or an s3:// address; read once per process.
        opt: options of `nenya.io.load_opt`.
        img: the image, by the name in users' scripts.
        side: pixels a side to which larger images are averaged, if theirs is a multiple. By default images keep their
            size, as the cutouts of a file do; a warning says that it is not the model's.

    Returns:
        Latents (N, D), float32, of unit length, and the images passed to the network, (N, 1, H, W), float32, without
        the mask. The latent of an image with non-finite or masked pixels is NaN, unless `preprocess.masked` says
        otherwise.

    Raises:
        InputFileError: The image has the wrong shape, is too small, or is not a multiple of the model's cutouts.
        CheckpointError: The weights cannot be used.
    """
    if model_file is None:
        raise OptionError("expected model_file=, the weights of the model")
    options = as_options(ExtractOptions, opt)
    images = _in_size(_as_batch(_given(image, img)), side or 0)
    check_taken(options.model, images.shape[-1], "image")
    wanted = options.model.image_size
    if side is None and wanted and images.shape[-1] != wanted:
        log.warning(
            "image of %d pixels a side, but model %s is designed for %d; it keeps its size, and side=%d averages it",
            *(images.shape[-1], options.model.name, wanted, wanted),
        )
    masked = options.preprocess.masked
    if masked != "nan":
        images = network_input(images.astype(np.float32), None, masked)
    if options.preprocess.image == "demean":
        means = images[:, :1].mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
        images = np.concatenate([images[:, :1] - means, images[:, 1:]], axis=1).astype(np.float32)
    _, module = load_model(options, str(model_file))
    tensor, size, gpu = torch.from_numpy(images), options.loader.batch_size_valid, torch.cuda.is_available()
    latents = [calc_latent(module, tensor[i : i + size], gpu) for i in range(0, len(tensor), size)]
    return np.concatenate(latents), images[:, :1]


def _given(image: ArrayLike | None, img: ArrayLike | None) -> ArrayLike:
    """Return the image that is given by either name."""
    if image is not None and img is not None:
        raise OptionError("image= and img= are the same argument: give one of them")
    found = img if image is None else image
    if found is None:
        raise OptionError("expected an image")
    return found


def _filled(images: NDArray[np.floating[Any]], masked: str) -> NDArray[np.floating[Any]]:
    """Return images (N, 1, H, H) with their masked pixels filled, as `preprocess.masked` says."""
    if masked == "nan":
        return images
    return network_input(images.astype(np.float32), None, "mean" if masked == "mean" else "fill")


def _in_size(images: NDArray[np.floating[Any]], side: int) -> NDArray[np.floating[Any]]:
    """Return images (N, 1, H, H) in the size of the model's cutouts; see `resized`."""
    return np.stack([resized(image, side) for image in images[:, 0]])[:, None]


def resized(image: NDArray[np.floating[Any]], side: int) -> NDArray[np.floating[Any]]:
    """Return an image in the size of the cutouts: block means where its side is a multiple of theirs.

    Args:
        image: (H, H).
        side: pixels a side of the cutouts; 0 if unknown, which leaves the image unchanged.

    Raises:
        InputFileError: The side of the image is not a multiple of `side`.

    Examples:
        >>> import numpy as np
        >>> resized(np.arange(16.0).reshape(4, 4), 2).tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    if not side or image.shape == (side, side):
        return image
    factor = len(image) // side
    if not factor or image.shape != (factor * side, factor * side):
        raise InputFileError(
            f"expected an image of {side} x {side} pixels or a multiple, got {image.shape[0]} x {image.shape[-1]}: "
            "cut or average it to that size"
        )
    averaged = image.reshape(side, factor, side, factor).mean(axis=(1, 3))
    return np.asarray(averaged, image.dtype if image.dtype.kind == "f" else np.float64)


def _as_batch(image: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return images as (N, 1, H, W)."""
    images = _unmasked(image)
    if images.dtype.kind not in "fiu":
        raise InputFileError(f"expected an image of integers or floats, got type {images.dtype}")
    images = images.astype(np.float64 if images.dtype.kind != "f" else images.dtype)
    shape = images.shape
    if images.ndim == 2 or (images.ndim == 3 and shape[0] == 1):
        images = images.reshape(1, 1, *shape[-2:])
    elif images.ndim != 4 or not len(images) or (shape[1] != 1 and not _equal_channels(images)):
        raise InputFileError(f"{_EXPECTED}, got {shape}")
    if images.shape[-2] != images.shape[-1]:
        raise InputFileError(f"{_EXPECTED}, got {shape}: cut it to a square")
    check_image_size(*images.shape[-2:])
    return images[:, :1]


def _unmasked(images: ArrayLike) -> NDArray[Any]:
    """Return an array with NaN in place of masked values."""
    if isinstance(images, np.ma.MaskedArray):
        kind = images.dtype if images.dtype.kind == "f" else np.dtype(np.float64)
        return np.asarray(np.ma.filled(images.astype(kind), np.nan))
    return np.asarray(images)


def _equal_channels(images: NDArray[np.floating[Any]]) -> bool:
    return images.shape[1] == 3 and np.array_equal(images, np.repeat(images[:, :1], 3, axis=1), equal_nan=True)


def umap_image(
    nenya_model: str, image: ArrayLike | None = None, *, img: ArrayLike | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], str, float, NDArray[np.float32]]:
    """Return the UMAP coordinates of an image.

    Args:
        nenya_model: name of a model version that has UMAPs, such as 'v5'.
        image: one image, (H, W), (1, H, W) or (1, 1, H, W): SST or its anomaly in K or degrees C. If its side is a
            multiple of that of the model's or the UMAP's cutouts, it is averaged down first; if neither states a size,
            the image keeps its own.
        img: the image, by the name in users' scripts.

    Returns:
        The coordinates, (1, 2) float32, equal to those in the table up to rounding of the latents; the image passed to
        the network, (1, 1, H, W); the path of the UMAP's table; DT in K; the latents (1, D).

    Raises:
        InputFileError: Not a single image, wrong size, missing pixels, or no UMAP file.
        OptionError: The model has no UMAPs.
        CheckpointError: The weights cannot be used.
    """
    from nenya.nenya_umap import load, places

    places(nenya_model, 0.0)  # refuses a model without UMAPs before anything is read
    images = _as_batch(_given(image, img))
    if len(images) != 1:
        raise InputFileError(
            f"expected one image, got {len(images)}: call it once per image, as each may need another UMAP"
        )
    opt, model_file = load_opt(nenya_model)
    missing, masked = int((~np.isfinite(images)).sum()), opt.options.preprocess.masked
    if missing and (masked == "nan" or missing == images.size or np.isinf(images).any()):
        raise InputFileError(
            f"{missing} of {images.size} pixels of the image are missing (NaN or masked), so it has no latent and no "
            "UMAP coordinates: fill the pixels, or choose another square"
        )
    if model_file is None:
        raise OptionError(f"model {nenya_model}: the location of its weights is unknown")
    crop, side = [opt.options.preprocess.dt_crop], opt.options.model.image_size or 0
    images = _in_size(images, side)
    DT = float(calc_DT(_filled(images, masked)[0, 0], crop))
    projector, table_file = load(nenya_model, DT=DT)
    if not side and images.shape[-1] != (side := projector.image_size or images.shape[-1]):
        images = _in_size(images, side)  # DT may now select another UMAP
        DT = float(calc_DT(_filled(images, masked)[0, 0], crop))
        projector, table_file = load(nenya_model, DT=DT)
    latents, pp_img = get_latents(images, model_file, opt, side=0)
    return projector.transform(latents), pp_img, table_file, DT, latents


def calc_DT(  # the name that users know
    images: ArrayLike, random_jitter: Sequence[int], verbose: bool = False
) -> NDArray[np.float64] | float:
    """Return DT = T90 - T10 of the central square of images.

    T90 and T10 are the 90th and 10th percentile, linearly interpolated, of the pixels from c - d // 2 to
    c + d // 2 - 1 in both directions, where c is half the side and d = random_jitter[0].

    Args:
        images: (H, W), (N, H, W) or (N, C, H, W), in K or degrees C; only the first channel is used.
        random_jitter: [side of the square in pixels, ...], such as `opt.random_jitter`.
        verbose: ignored.

    Returns:
        A float for (H, W), otherwise (N,), in the unit of the images; NaN if the square has missing pixels.

    Raises:
        InputFileError: The images have the wrong number of dimensions.
        OptionError: The square is empty.

    Examples:
        >>> import numpy as np
        >>> image = np.tile(np.linspace(0.0, 10.0, 64), (64, 1))  # K, warmer towards the right
        >>> round(float(calc_DT(image, (40, 5))), 1)
        5.0
    """
    values = _unmasked(images)
    if values.ndim not in (2, 3, 4):
        raise InputFileError(f"expected images of shape (H, W), (N, H, W) or (N, C, H, W), got {values.shape}")
    try:
        half = int(random_jitter[0]) // 2
    except (TypeError, IndexError, ValueError):
        raise OptionError(f"random_jitter={random_jitter}: expected [side of the central square, ...]") from None
    if half < 1:
        raise OptionError(f"random_jitter={random_jitter}: the central square has no pixels; give a side above 1")
    fields = values[:, 0] if values.ndim == 4 else values
    found = central_dt(fields, 2 * half)
    return float(found) if values.ndim == 2 else found


class ImageDataset(Dataset[Any]):
    """One image, transformed again at each access.

    Args:
        image: (1, H, W).
        transform: of an image (H, W, 1).
    """

    def __init__(self, image: ArrayLike, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = [_unmasked(image)], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        """Return what `transform` makes of the image."""
        return self.transform(np.transpose(self.images[index], (1, 2, 0)))


def image_loader(image: ArrayLike, version: str = "v4") -> DataLoader[Any]:
    """Return a loader of two random views of one image, as a model version is trained on.

    Args:
        image: (H, W) or (1, H, W), K or degrees C.
        version: name of a model version.

    Returns:
        A loader of one batch: a list of two tensors (1, C, H, W), float32.

    Raises:
        OptionError: The version is unknown.
        InputFileError: The image has the wrong shape.
    """
    if version not in model_versions():
        raise OptionFileError(f"no model version {version} (known: {', '.join(model_versions())})")
    options = build_options(Options, read_group("model", version))
    images = _as_batch(image)
    view_sampler(options.augment).check(images.shape[-1])
    dataset = ImageDataset(
        images[0].astype(np.float32), TwoViews(view_sampler(options.augment), options.model.nchannels)
    )
    return DataLoader(dataset, batch_size=1, shuffle=False)
