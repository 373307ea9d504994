"""Illustrations of the principal components of latents: the nearest cutouts, and optimised images.

Letters: M components, n cutouts of H x H pixels, D the length of a latent, R = 2 M directions: +1, -1, +2, -2, ...
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nenya.errors import OptionError
from nenya.latents.components import PCA
from nenya.latents.similarity import BLOCK_ROWS, closest_of

FloatArray = NDArray[np.float32]

_ROUGHNESS = 1.5  # exponent of the amplitude spectrum of the first guess: smooth fields like SST
_RATE = 0.05


@dataclass(frozen=True)
class Nearest:
    """The rows whose latents lie nearest to each direction.

    Attributes:
        rows: (R, k) int64 row numbers, the nearest first; -1 where there are too few latents.
        cosines: (R, k) float64, between the latent without the mean and the direction; NaN where the row is -1.
    """

    rows: NDArray[np.int64]
    cosines: NDArray[np.float64]


def directions(pca: PCA, modes: int) -> NDArray[np.float64]:
    """Return the directions +1, -1, +2, -2, ... of the first components: (2 modes, D).

    Raises:
        OptionError: There are fewer components.
    """
    if not 1 <= modes <= len(pca.components):
        raise OptionError(f"modes={modes}: expected 1 to {len(pca.components)}, the number of components")
    first = pca.components[:modes]
    return np.stack([first, -first], axis=1).reshape(2 * modes, -1)


def nearest_latents(pca: PCA, latents: Any, modes: int, count: int) -> Nearest:
    """Find the latents with the largest cosine to each direction, relative to the mean.

    Args:
        pca: of the latents.
        latents: `nenya.latents.files.Latents`, or an (N, D) array; rows that are not finite are left out.
        modes: number of components.
        count: rows k for each direction.

    Raises:
        OptionError: There are fewer components.
    """
    take = latents.take if hasattr(latents, "take") and not isinstance(latents, np.ndarray) else latents.__getitem__

    def scan() -> Iterator[tuple[NDArray[np.int64], FloatArray]]:
        for start in range(0, len(latents), BLOCK_ROWS):
            block = np.asarray(latents[start : start + BLOCK_ROWS], dtype=np.float64) - pca.mean
            yield np.arange(start, start + len(block)), block.astype(np.float32)

    def centred(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(take(rows), np.float64) - pca.mean

    found = closest_of(scan, centred, directions(pca, modes), count)
    return Nearest(found.rows, found.cosine)


def optimise_images(
    net: nn.Module | Callable[[Tensor], Tensor],
    pca: PCA,
    modes: int,
    size: int,
    *,
    std: tuple[float, float] = (1.0, 1.0),
    steps: int = 100,
    smoothness: float = 0.1,
    seed: int = 0,
) -> tuple[FloatArray, NDArray[np.float64]]:
    """Optimise images whose latents lie along each direction, by gradient ascent through the network.

    It maximises the cosine of (latent - mean) and the direction, minus `smoothness` times the total variation: the mean
    |difference| of neighbouring pixels in units of the standard deviation (Mahendran & Vedaldi 2015, arXiv:1412.0035,
    with an exponent of 1). The images keep zero mean; their standard deviations are optimised too, within a range.
    They start as smooth random fields with the geometric mean of that range; the optimiser is Adam.

    Args:
        net: (B, 1, H, H) -> latents (B, D), differentiable; a module is put into evaluation mode and its weights kept.
        pca: of latents of this network.
        modes: number of components.
        size: pixels H.
        std: smallest and largest standard deviation of an image, K, both above 0.
        steps: number of steps.
        smoothness: weight of the total variation.
        seed: of the first guess.

    Returns:
        The images (R, H, H) and their cosines (R,).

    Raises:
        OptionError: There are fewer components.
    """
    wanted = torch.from_numpy(directions(pca, modes)).float()
    mean = torch.from_numpy(pca.mean).float()
    if isinstance(net, nn.Module):
        net.eval()
        device = next(net.parameters()).device
        wanted, mean = wanted.to(device), mean.to(device)
    pixels = _start(len(wanted), size, seed).to(wanted.device).requires_grad_()
    contrast = torch.zeros(len(wanted), 1, 1, 1, device=wanted.device, requires_grad=True)
    adam = torch.optim.Adam([pixels, contrast], lr=_RATE)
    low, ratio = std[0], std[1] / std[0]

    def reach() -> tuple[Tensor, Tensor, Tensor]:
        plain = pixels - pixels.mean((2, 3), keepdim=True)
        plain = plain / plain.std((1, 2, 3), keepdim=True).clamp_min(1e-6)
        images = low * ratio ** torch.sigmoid(contrast) * plain
        return torch.nn.functional.cosine_similarity(net(images) - mean, wanted, dim=1), plain, images

    for _ in range(steps):
        reached, plain, _ = reach()
        rough = sum((plain.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3)), torch.zeros_like(reached))
        loss = (smoothness * rough - reached).sum()
        pixels.grad, contrast.grad = torch.autograd.grad(loss, (pixels, contrast))
        adam.step()
    with torch.no_grad():
        reached, _, images = reach()
    return images[:, 0].cpu().numpy(), reached.double().cpu().numpy()


def _start(count: int, size: int, seed: int) -> Tensor:
    """Return smooth random fields (count, 1, size, size) of standard deviation 1."""
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    white = np.random.default_rng(seed).standard_normal((count, size, size))
    fields = np.fft.irfft2(np.fft.rfft2(white) * k**-_ROUGHNESS, s=(size, size))
    return torch.from_numpy((fields / fields.std((1, 2), keepdims=True)).astype(np.float32))[:, None]


def draw(
    path: str | os.PathLike[str], share: NDArray[np.float64], nearest: FloatArray, made: FloatArray | None = None
) -> None:
    """Draw a row for each direction: the nearest cutouts, on one scale, then the optimised image, fitted to it.

    Args:
        path: the figure; its suffix sets the format.
        share: (M,) share of the variance of each component.
        nearest: (R, k, H, H) cutouts in K, NaN where there are too few.
        made: (R, H, H) in K, or None.
    """
    from nenya.plotting import eigen_sheet

    names = [f"{'+-'[i % 2]}{i // 2 + 1} ({100 * share[i // 2]:.1f} %)" for i in range(len(nearest))]
    columns = [f"nearest {i + 1}" for i in range(nearest.shape[1])]
    if made is not None:
        nearest, columns = np.concatenate([nearest, made[:, None]], axis=1), [*columns, "optimised"]
    eigen_sheet(nearest, names, columns, path, apart=int(made is not None))
