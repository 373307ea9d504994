"""Filling of masked pixels on the device of a network: each is about the mean of its four neighbours.

It is found from coarse to fine. A coarse pixel is the mean of the clear pixels below it; a masked pixel begins with the
value between the coarse pixels around it, and takes a few steps towards the mean of its neighbours. This costs a few
hundredths of a small network's step, and is the same for an image in any batch. It does not extrapolate from noisy
pixels at the rim of a hole, as the smoothest surface (`nenya.data.inpaint`) does.

Letters: B images, H rows and W columns of pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional

_STEPS, _STEP = 8, 0.8  # at each size, and which part of the way to the neighbours' mean
_LEAST = 1e-6  # of a weight that is divided by


def clear_mean(images: Tensor, clear: Tensor) -> Tensor:
    """Return the mean (B, 1, 1, 1) of the clear pixels of images (B, 1, H, W); 0 where there are none."""
    return (images * clear).sum((2, 3), keepdim=True) / clear.sum((2, 3), keepdim=True).clamp(min=1.0)


def fill_pyramid(images: Tensor, clear: Tensor) -> Tensor:
    """Fill masked pixels.

    Args:
        images: (B, 1, H, W) floating point; the values of masked pixels are ignored, if finite.
        clear: (B, 1, H, W) of the same type: 1 at clear pixels, 0 at masked ones.

    Returns:
        (B, 1, H, W); clear pixels are unchanged. An image without a clear pixel is 0.
    """
    levels = []
    values, weights = images * clear, clear
    while max(values.shape[-2:]) > 1:
        levels.append((values, weights))
        total, share = (functional.avg_pool2d(x, 2, ceil_mode=True) for x in (values, weights))
        weights = (4 * share).clamp(max=1.0)  # one clear pixel of four is enough
        values = total / share.clamp(min=_LEAST) * weights
    found = values / weights.clamp(min=_LEAST)
    for values, weights in reversed(levels):
        between = functional.interpolate(found, size=values.shape[-2:], mode="bilinear", align_corners=False)
        found = values + (1 - weights) * between
        step = _STEP * (1 - weights)
        for _ in range(_STEPS):
            near = functional.pad(found, (1, 1, 1, 1), mode="replicate")
            mean = (near[..., :-2, 1:-1] + near[..., 2:, 1:-1] + near[..., 1:-1, :-2] + near[..., 1:-1, 2:]) / 4
            found = found + step * (mean - found)
    return torch.where(clear > 0, images, found)
