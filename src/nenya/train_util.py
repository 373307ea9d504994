"""The network, the views and the steps of a training, as users' own training loops call them.

Importing this module lets a plain `torch.load(path)` read the checkpoints of the original nenya. Their options are
instances of a class `Params`. Harmless stubs replace this class, and other types that could run code stay refused.

Views draw from torch's global generator, which `torch.manual_seed` sets. Letters in shapes: B cutouts, H x W pixels,
C channels, D the length of a latent.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nenya.data.augment import ViewParameters, ViewSampler
from nenya.data.cutouts import CutoutReader
from nenya.data.datamodule import view_sampler
from nenya.errors import NenyaError, OptionError
from nenya.io import Params, as_options, losses_filenames
from nenya.io import option_preprocess as option_preprocess  # users know it here too
from nenya.models.checkpoint import register_params_stubs
from nenya.models.contrastive import make_net
from nenya.models.loop import AverageMeter, warmup_learning_rate
from nenya.models.losses import contrastive_loss
from nenya.models.resnet import ContrastiveNet
from nenya.options.sections import Options
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.storage.paths import expand

log = logging.getLogger(__name__)

register_params_stubs()

FloatImage = NDArray[np.floating[Any]]


class ContrastiveLoss(nn.Module):
    """The contrastive loss as a module; see `nenya.models.losses.contrastive_loss`.

    Args:
        temperature: divides the cosines.
        contrast_mode: 'all': every view is an anchor; 'one': the first view of each image only.
        base_temperature: temperature at which the loss is not scaled.
    """

    def __init__(self, temperature: float = 0.07, contrast_mode: str = "all", base_temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature, self.contrast_mode, self.base_temperature = temperature, contrast_mode, base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the loss of features (B, V, D) of V views of B images, with labels (B,) or without.

        Raises:
            OptionError: A mask is given: give labels instead.
        """
        if mask is not None:
            raise OptionError("mask= is not supported: give labels=, one per image, equal for images that match")
        return contrastive_loss(
            features,
            labels,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            contrast_mode=self.contrast_mode,
        )


SupConLoss = ContrastiveLoss
"""The same by its name in users' training loops."""


class Demean:
    """Subtracts the mean of an image."""

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image without its mean; the argument stays as it is."""
        plain: FloatImage = image - image.mean()
        return plain


class ThreeChannel:
    """Repeats the channel of an image (H, W, 1) to three."""

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return (H, W, 3)."""
        return np.repeat(image, 3, axis=-1)


class RandomFlip:
    """Reverses rows and columns of an image, each with probability 0.5.

    Args:
        verbose: ignored.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image (H, W) or (H, W, C), flipped or not."""
        columns, rows = (torch.rand(2) < 0.5).tolist()
        image = image[:, ::-1] if columns else image
        return image[::-1] if rows else image


class RandomRotate:
    """Rotates an image by a random angle, counter-clockwise, bilinear, with zeros beyond its edges.

    Args:
        verbose: ignored.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image (H, H) or (H, H, C), rotated, float32."""
        return _viewed(image, angle=360.0 * float(torch.rand(1)))


class JitterCrop:
    """Cuts a square around the centre, shifted at random, and resizes it.

    Args:
        crop_dim: pixels along a side of the square.
        rescale: 0: resize to the size of the image; else the factor by which the square is enlarged.
        jitter_lim: largest shift along each axis, pixels.
        verbose: ignored.
    """

    def __init__(self, crop_dim: int = 32, rescale: int = 2, jitter_lim: int = 0, verbose: bool = False) -> None:
        self.crop_dim, self.rescale, self.jitter_lim, self.verbose = crop_dim, rescale, jitter_lim, verbose

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image (H, H) or (H, H, C), cut, float32."""
        rows, columns = (_integer(self.jitter_lim) for _ in range(2))
        side = self.crop_dim // 2 * 2
        views = _viewed(image, crop_rows=side, crop_cols=side, shift_rows=rows, shift_cols=columns)
        return views if self.rescale == 0 else _enlarged(image, side, rows, columns, self.rescale)


class RandomJitterCrop:
    """Cuts up to some pixels off each axis, the cut shifted at random, and resizes: the views of model version v2.

    Args:
        crop_lim: most pixels cut off an axis.
        jitter_lim: largest shift of the cut, which is at most half of it.
    """

    def __init__(self, crop_lim: int = 5, jitter_lim: int = 5) -> None:
        self.crop_lim, self.jitter_lim = crop_lim, jitter_lim

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image (H, H) or (H, H, C), cut, float32."""
        cuts = [int(torch.randint(0, self.crop_lim + 1, ())) for _ in range(2)]
        shifts = [_integer(min(cut // 2, self.jitter_lim)) for cut in cuts]
        sides = [len(image) - cut for cut in cuts]
        names = ("crop_rows", "crop_cols", "shift_rows", "shift_cols")
        return _viewed(image, **dict(zip(names, (*sides, *shifts), strict=True)))


class GaussianNoise:
    """Adds white noise to an image.

    Args:
        instrument_noise: mean and standard deviation, K.
    """

    def __init__(self, instrument_noise: tuple[float, float] = (0, 0.1)) -> None:
        self.noise_mean, self.noise_std = instrument_noise

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image with noise; the argument stays as it is."""
        noise: FloatImage = torch.randn(image.shape).numpy()
        return (image + self.noise_mean + self.noise_std * noise).astype(image.dtype)


class GaussianBlurring:
    """Blurs an image.

    Args:
        sigma: standard deviation of the kernel, pixels.
    """

    def __init__(self, sigma: float = 1) -> None:
        self.sigma = sigma

    def __call__(self, image: FloatImage) -> FloatImage:
        """Return the image (H, W) or (H, W, C), blurred along rows and columns."""
        from scipy import ndimage

        blurred: FloatImage = ndimage.gaussian_filter(image, (self.sigma, self.sigma) + (0,) * (image.ndim - 2))
        return blurred


def _integer(limit: int) -> int:
    return int(torch.randint(-limit, limit + 1, ()))


def _viewed(image: FloatImage, **given: float) -> FloatImage:
    """Return a view of an image (H, H) or (H, H, C), float32; what is not given leaves it as it is."""
    channels = torch.from_numpy(np.ascontiguousarray(image, np.float32).reshape(*image.shape[:2], -1))
    size = channels.shape[0]
    sampler = ViewSampler(crop=size, jitter=0, flip=False, rotate="angle" in given, demean=False)
    plain: dict[str, float] = {name: 0 for name in ViewParameters.__dataclass_fields__}
    params = {**plain, "crop_rows": size, "crop_cols": size, **given}
    kinds = {"angle": torch.float64, "flip_cols": torch.bool, "flip_rows": torch.bool}
    one = {name: torch.tensor([value], dtype=kinds.get(name, torch.int64)) for name, value in params.items()}
    many = ViewParameters(**{name: value.repeat(channels.shape[2]) for name, value in one.items()})
    views = sampler.apply(channels.permute(2, 0, 1)[:, None], many)[:, 0].permute(1, 2, 0)
    return views.numpy().reshape(image.shape)


def _enlarged(image: FloatImage, side: int, rows: int, columns: int, factor: int) -> FloatImage:
    """Return a square of an image (H, H) or (H, H, C), enlarged, with three channels."""
    from scipy import ndimage

    first = [len(image) // 2 - side // 2 + shift for shift in (rows, columns)]
    square = image.reshape(*image.shape[:2], -1)[first[0] : first[0] + side, first[1] : first[1] + side, 0]
    large = ndimage.zoom(square.astype(np.float32), factor, order=1, mode="mirror", grid_mode=True)
    return np.repeat(large[..., None], 3, axis=-1)


class NenyaDataset(Dataset[Any]):
    """Cutouts of one partition, each transformed.

    Args:
        data_path: the cutout file.
        transform: of one cutout (H, W, 1), float32.
        data_key: the partition.
    """

    def __init__(self, data_path: str | Path, transform: Callable[[Any], Any], data_key: str = "train") -> None:
        self.data_path, self.transform, self.data_key = data_path, transform, data_key
        self._reader = CutoutReader(Path(expand(str(data_path))), data_key)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Any:
        """Return what `transform` computes from a cutout."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several items, read at once."""
        unique, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        images = self._reader.read_rows(unique)
        return [self.transform(images[place].transpose(1, 2, 0)) for place in places]


class TwoViews:
    """Two random views of a cutout, as the `augment` options say.

    Args:
        sampler: of the views.
        nchannels: repetitions of the channel.
    """

    def __init__(self, sampler: ViewSampler, nchannels: int) -> None:
        self.sampler, self.nchannels = sampler, nchannels

    def __call__(self, image: FloatImage) -> list[Tensor]:
        """Return two views (C, H, W) of a cutout (H, W, 1)."""
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**62, ())))
        one = torch.from_numpy(np.ascontiguousarray(image[..., 0], np.float32))[None, None]
        views = self.sampler.two_views(one, generator)[0]
        return [view.expand(self.nchannels, -1, -1).contiguous() for view in views]


def nenya_loader(opt: Any, valid: bool = False) -> DataLoader[Any]:
    """Return a loader of two random views of each cutout of `<data_folder>/<images_file>`.

    Args:
        opt: options of `nenya.io.Params` or `load_opt`.
        valid: the validation data in place of the training data.

    Returns:
        The loader, which shuffles and yields a list of two tensors (B, C, H, W), float32.

    Raises:
        OptionError: The options name no file.
        InputFileError: The file cannot be used.
    """
    options = as_options(Options, opt)
    if not options.archive.images_file:
        raise OptionError("images_file is required: the cutout file, in data_folder")
    path = os.path.join(options.archive.data_folder, options.archive.images_file)
    loader = options.loader
    views = TwoViews(view_sampler(options.augment), options.model.nchannels)
    return DataLoader(
        NenyaDataset(path, views, loader.valid_key if valid else loader.train_key),
        batch_size=loader.batch_size_valid if valid else loader.batch_size_train,
        shuffle=True,
        num_workers=loader.num_workers,
    )


def set_model(opt: Any, cuda_use: bool | None = None) -> tuple[ContrastiveNet, ContrastiveLoss]:
    """Return a network and its training loss.

    The network's tensors have the names of the original's checkpoints without `module.`, so that
    `load_state_dict` accepts these. Its initial weights are drawn from the seed of the options.

    Args:
        opt: options of `nenya.io.load_opt`.
        cuda_use: put both on the GPU; by default if there is one. Without a GPU they stay on the CPU, with a warning.

    Raises:
        OptionError: `ssl_method` is neither SimCLR nor SupCon.
    """
    options = as_options(Options, opt)
    if (method := options.loss.ssl_method) not in ("SimCLR", "SupCon"):
        raise OptionError(
            f"ssl_method={method}: expected SimCLR or SupCon in a loop of your own; nenya.train has others"
        )
    device = torch.device("cuda" if use_gpu_if_any(cuda_use) else "cpu")
    criterion = ContrastiveLoss(options.loss.temp, options.loss.contrast_mode)
    return make_net(options).to(device), criterion.to(device)


def use_gpu_if_any(asked: bool | None) -> bool:
    """Return whether to compute on the GPU: as asked, or by default if there is one; a warning where there is none."""
    available = torch.cuda.is_available()
    if asked and not available:
        log.warning("cuda_use=True, but torch finds no GPU here: computing on the CPU")
    return available if asked is None else asked and available


def train_model(  # the arguments that users know
    train_loader: Any,
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    epoch: int,
    opt: Any,
    cuda_use: bool | None = True,
    update_model: bool = True,
) -> tuple[float, list[float], list[float]]:
    """Train for one epoch, or compute the losses of one with `update_model=False`.

    Args:
        train_loader: yields two views (B, C, H, W), as `nenya_loader` does.
        model: of `set_model`.
        criterion: of `set_model`.
        optimizer: of `set_optimizer`; not needed without an update.
        epoch: counted from 1, for the warm-up.
        opt: options.
        cuda_use: compute on the GPU, if there is one.
        update_model: whether the weights are trained; otherwise the model is in evaluation mode and stays as it is.

    Returns:
        The mean loss, the loss of each batch, and the running mean at each batch.

    Raises:
        OptionError: No optimizer.
        NenyaError: A loss is not finite.
    """
    if update_model and optimizer is None:
        raise OptionError("optimizer=None: give that of set_optimizer(opt, model), or update_model=False")
    device = torch.device("cuda" if cuda_use and torch.cuda.is_available() else "cpu")
    model.to(device).train(update_model)
    losses, steps, means = AverageMeter(), [], []
    for index, views in enumerate(train_loader):
        if update_model and optimizer is not None:
            warmup_learning_rate(opt, epoch, index, len(train_loader), optimizer)
        with torch.set_grad_enabled(update_model):
            pair = torch.cat([views[0], views[1]]).to(device, torch.float32)
            features = torch.stack(model(pair).chunk(2), dim=1)
            loss = criterion(features)
        if not bool(torch.isfinite(loss)):
            raise NenyaError(f"the loss became {float(loss)} in epoch {epoch}: lower the learning rate, check the data")
        if update_model and optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.update(float(loss.detach()), len(views[0]))
        steps.append(losses.val)
        means.append(losses.avg)
    return losses.avg, steps, means


def save_losses(opt: Params, *losses: Iterable[float]) -> None:
    """Write the learning curves of a training to `nenya.io.losses_filenames`.

    Args:
        opt: options.
        losses: of the training data by epoch, by step, and the running means by step; then of the validation data.

    Raises:
        OptionError: There are not six.
        OutputError: They cannot be written.
    """
    if len(losses) != 6:
        raise OptionError(f"expected six lists of losses, three of training and three of validation, got {len(losses)}")
    for path, part, curves in zip(losses_filenames(opt), ("train", "valid"), (losses[:3], losses[3:]), strict=True):
        with atomic_path(Path(path)) as temporary, write_hdf5(temporary) as file:
            for name, values in zip(("loss", "loss_step", "loss_avg"), curves, strict=True):
                file[f"{name}_{part}"] = np.asarray(list(values), np.float64)
