"""Clouds over the views of a training: random masks, different ones over the two views of a cutout.

A bank holds the shapes of clouds, each as an order of its pixels: a cloud of share f covers the first f S^2 of them, so
every shape comes in every share. Shapes come from a generator (`generated_shapes`) or from masks of real cutouts
(`shapes_of_masks`: pixels deep in the cloud first, so a mask at its own share is as it was), flipped and turned by
quarters.

Letters: K shapes, V views, C channels, S rows and columns of a view.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nenya.data.fill import fill_cutouts
from nenya.data.pyramid import clear_mean
from nenya.options.sections import Options

Order = NDArray[np.int32]

SHAPES = 512
"""Shapes in a bank; each is flipped and turned in eight ways."""

_CLEAR = 0.1  # of the views are without a cloud
_LEAST_CLEAR = 0.1  # of the pixels of a view that is masked itself stay clear; else it gets no further cloud
_STREAM = 0xC10D  # of random numbers


@dataclass(frozen=True)
class CloudParameters:
    """The clouds of V views; tensors (V,) on the CPU.

    Attributes:
        shape: int64, number in the bank, turned ones included.
        share: float64, masked share of the pixels.
    """

    shape: Tensor
    share: Tensor

    def __getitem__(self, views: slice) -> "CloudParameters":
        return replace(self, **{name: value[views] for name, value in vars(self).items()})


class CloudSampler:
    """Draws clouds and lays them over views.

    Drawing and laying are separate, as those of views: draws come from a generator on the CPU, view by view.

    Args:
        order: (K, S, S), the place of each pixel in the order in which a growing cloud covers them.
        most: largest masked share.
        masked: what the network sees of masked pixels, `preprocess.masked`; `nan` counts as `fill`.
    """

    def __init__(self, order: Order, most: float, masked: str) -> None:
        turned = [np.rot90(order, turn, (1, 2)) for turn in range(4)]
        turned += [one[:, :, ::-1] for one in turned]
        self._order = torch.from_numpy(np.concatenate(turned))
        self.most, self.masked = most, masked

    def draw(self, views: int, generator: torch.Generator) -> CloudParameters:
        """Draw the clouds of views: n drawn at once equal n drawn in smaller portions.

        A tenth of the views has none; the shares of the others are even from 0 to `most`.

        Args:
            views: their number V.
            generator: on the CPU; the only source of randomness.
        """
        u = torch.rand(views, 3, dtype=torch.float64, generator=generator).unbind(1)
        share = torch.where(u[2] < _CLEAR, 0.0, self.most * u[1])
        return CloudParameters((u[0] * len(self._order)).long(), share)

    def masks(self, params: CloudParameters, device: torch.device) -> Tensor:
        """Return the masks (V, 1, S, S) bool, True where there is a cloud."""
        self._order = self._order.to(device)
        covered = (params.share * self._order[0].numel()).int().to(device)
        return (self._order[params.shape.to(device)] < covered[:, None, None])[:, None]

    def lay(self, views: Tensor, params: CloudParameters) -> Tensor:
        """Lay clouds over views.

        Args:
            views: (V, C, S, S) floating point; C = 2 with a mask in the second channel, 1 at pixels that are masked
                already.
            params: of the V views.

        Returns:
            (V, C, S, S): the masked pixels are 0 and marked in the second channel, or with one channel filled.
        """
        clouds, field = self.masks(params, views.device), views[:, :1]
        if views.shape[1] > 1:
            before = views[:, 1:] > 0
            clear = 1 - (clouds | before).to(views.dtype).mean((1, 2, 3), keepdim=True)
            clouds = before | (clouds & (clear >= _LEAST_CLEAR))
            return torch.cat([field.masked_fill(clouds, 0.0), clouds.to(views.dtype)], dim=1)
        if self.masked == "mean":
            return torch.where(clouds, clear_mean(field, (~clouds).to(views.dtype)), field)
        filled, holes = field[:, 0].cpu().numpy().copy(), clouds[:, 0].cpu().numpy()
        fill_cutouts(filled, holes)
        return torch.from_numpy(filled)[:, None].to(views.device)


def turned(images: Tensor, number: Tensor) -> Tensor:
    """Return images (B, C, S, S), each flipped and turned by quarters in one of eight ways.

    Args:
        images: (B, C, S, S).
        number: (B,) int64, 0 to 7: bit 0 reverses the rows, bit 1 the columns, bit 2 swaps them.
    """
    bits = [((number >> bit) & 1).bool()[:, None, None, None].to(images.device) for bit in range(3)]
    images = torch.where(bits[0], images.flip(2), images)
    images = torch.where(bits[1], images.flip(3), images)
    return torch.where(bits[2], images.transpose(2, 3), images)


def generator_of(*numbers: int) -> np.random.Generator:
    """Return the generator of a bank, for a seed."""
    return np.random.default_rng([*numbers, _STREAM])


def order_of(fields: NDArray[np.floating[Any]]) -> Order:
    """Return the order (K, S, S) in which the pixels of fields (K, S, S) are covered: the smallest first."""
    order = fields.reshape(len(fields), -1).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return order.astype(np.int32).reshape(fields.shape)


def generated_shapes(count: int, size: int, seed: int) -> Order:
    """Return the shapes (count, size, size) of smooth, broken and edge-like clouds of many scales."""
    rng = generator_of(seed)
    kinds = rng.choice(len(_KINDS), count, p=_SHARES)
    return order_of(np.stack([_KINDS[kind](size, rng) for kind in kinds]))


def _blurred(size: int, scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise (size, size) of a scale in pixels and a standard deviation of 1."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal((size, size))
    field = gaussian_filter(noise, scale, mode="wrap" if rng.integers(2) else "reflect")
    return np.asarray(field / max(float(field.std()), 1e-12))


def _smooth(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return _blurred(size, float(np.exp(rng.uniform(np.log(1.2), np.log(max(size / 4, 2))))), rng)


def _broken(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return small clouds, gathered in some places."""
    return _blurred(size, rng.uniform(0.5, 1.3), rng) + rng.uniform(0, 1.5) * _blurred(size, size / 6, rng)


def _edge(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a front with a wavy rim, from one side of the view."""
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / (0.28 * size)
    angle = rng.uniform(0, 2 * np.pi)
    front = x * np.cos(angle) + y * np.sin(angle)
    return np.asarray(front + rng.uniform(0, 0.5) * _blurred(size, rng.uniform(1, size / 8), rng))


def _red(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return clouds of all scales, of a spectrum that falls as a power of the wavenumber."""
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((size, size)))
    return np.fft.irfft2(noise * k ** -rng.uniform(1.2, 2.5), s=(size, size))


_KINDS = (_smooth, _broken, _edge, _red)
_SHARES = (0.4, 0.15, 0.2, 0.25)


def shapes_of_masks(masks: NDArray[np.bool_]) -> Order:
    """Return the shapes (K, S, S) of masks (K, S, S), each masked in part: the pixels deep in the cloud first."""
    from scipy.ndimage import distance_transform_edt

    depth = [distance_transform_edt(mask) - distance_transform_edt(~mask) for mask in masks]
    return order_of(-np.stack(depth))


def partly_masked(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return those of masks (n, H, W) that cover a part of the pixels."""
    share = masks.mean(axis=(1, 2))
    return np.asarray(masks[(share > 0) & (share < 1)])


def clear_epochs(options: Options) -> int:
    """Return the number of first epochs that are without clouds."""
    return int(options.trainer.max_epochs * options.augment.clouds_from)
