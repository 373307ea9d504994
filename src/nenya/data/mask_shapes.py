"""Masks of cutouts: their shapes as numbers, and generated ones.

Letters in shapes: n masks of H x W pixels, True where a pixel is masked.
"""

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Float64Array = NDArray[np.float64]

SHAPE_NAMES = ("share", "hole", "depth", "edge", "contrast", "roughness")
"""What `mask_shapes` returns, in its order."""

_FLAT = 1e-6  # smallest standard deviation, in units of the field
_KINDS = 3  # smooth, broken, and from an edge


def mask_shapes(masks: Masks, images: NDArray[np.floating]) -> Float64Array:
    """Return natural logarithms of what a mask hides and what it leaves.

    `share` is the masked share of the pixels. `hole` is the largest and `depth` the mean distance of a masked pixel
    from a clear one, both in sides of the cutout. `edge` is the share of pairs of neighbouring pixels with exactly one
    masked pixel. `contrast` is the standard deviation of the clear pixels, in units of the field. `roughness` is the
    root mean square difference of neighbouring clear pixels, relative to the contrast; 1 without such neighbours.

    Args:
        masks: (n, H, W), each with a masked and a clear pixel.
        images: (n, H, W); values of masked pixels are ignored.

    Returns:
        (n, 6), each row independent of the others.
    """
    from scipy.ndimage import distance_transform_edt

    count, height, width = masks.shape
    if not count:
        return np.empty((0, len(SHAPE_NAMES)))
    share = masks.mean(axis=(1, 2))
    distance = np.stack([distance_transform_edt(mask) for mask in masks]) / max(height, width)
    hole, depth = distance.max(axis=(1, 2)), distance.sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    edges = (masks[:, 1:] != masks[:, :-1]).sum(axis=(1, 2)) + (masks[:, :, 1:] != masks[:, :, :-1]).sum(axis=(1, 2))
    edge = edges / (height * (width - 1) + width * (height - 1))
    clear = np.where(masks, 0.0, images.astype(np.float64))
    number = (~masks).sum(axis=(1, 2))
    mean = clear.sum(axis=(1, 2)) / number
    around = np.where(masks, 0.0, clear - mean[:, None, None])
    contrast = np.sqrt((around**2).sum(axis=(1, 2)) / number)
    contrast = np.maximum(contrast, _FLAT)
    rough, pairs = _differences(clear, masks)
    roughness = np.where(pairs > 0, np.maximum(rough, _FLAT) / contrast, 1.0)
    found: Float64Array = np.log(np.stack([share, hole, depth, edge, contrast, roughness], axis=1))
    return found


def _differences(images: Float64Array, masks: Masks) -> tuple[Float64Array, NDArray[np.int64]]:
    """Return the root mean square difference of neighbouring clear pixels, and the number of such pairs, (n,) each."""
    total, number = np.zeros(len(images)), np.zeros(len(images), np.int64)
    for first, second in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        clear = ~(masks[first] | masks[second])
        total += (np.where(clear, images[first] - images[second], 0.0) ** 2).sum(axis=(1, 2))
        number += clear.sum(axis=(1, 2))
    return np.sqrt(total / np.maximum(number, 1)), number


def varied_masks(count: int, size: int, most: float, rng: np.random.Generator) -> Masks:
    """Draw masks of clouds: smooth, broken, and such that come in from one side, a third of each, all of many textures.

    Args:
        count: number n of masks.
        size: side of a cutout in pixels.
        most: largest masked share; shares are drawn evenly from one pixel to it.
        rng: source of chance.

    Returns:
        (n, size, size).
    """
    from scipy import fft

    kind = np.arange(count) % _KINDS
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    power = np.where(kind == 1, rng.uniform(0.4, 1.1, count), rng.uniform(1.3, 3.0, count))[:, None, None]
    waves = fft.rfft2(rng.standard_normal((count, size, size))) * k**-power
    field = fft.irfft2(waves, s=(size, size))
    field /= field.std(axis=(1, 2), keepdims=True)
    angle = rng.uniform(0, 2 * np.pi, count)
    along = np.linspace(-1.7, 1.7, size)
    ramp = np.cos(angle)[:, None, None] * along[:, None] + np.sin(angle)[:, None, None] * along
    field = np.where((kind == 2)[:, None, None], 3 * ramp + 0.5 * field, field)
    share = rng.uniform(0, most, count)
    order = np.argsort(np.argsort(field.reshape(count, -1), axis=1), axis=1)
    wanted = np.clip(np.rint(share * size**2), 1, size**2 - 1)
    masks: Masks = (order < wanted[:, None]).reshape(count, size, size)
    return masks
