"""Invariance of latents under the rotations, flips and shifts of the training.

Letters: n cutouts of H x H pixels, D the length of a latent.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nenya.data.augment import ViewParameters, ViewSampler
from nenya.data.datamodule import view_sampler
from nenya.latents.metrics import alignment, mean_cosine
from nenya.options.sections import AugmentOptions

Encode = Callable[[Tensor], NDArray[np.float32]]

CHANGES = ("rotation", "flip", "jitter", "crop", "view", "two_views")
"""Changes that are compared; see `invariances`."""


def invariances(encode: Encode, images: Tensor, options: AugmentOptions, seed: int) -> dict[str, dict[str, float]]:
    """Compare the latents of transformed cutouts with those of the same cutouts unchanged.

    The views are made by the code of the training. A plain view has no flip, rotation, shift or noise: the central
    crop, resized. So in each of the first three pairs a single transformation differs:

    - `rotation`: the plain view with a random angle, against the plain view;
    - `flip`: with one of the three mirrorings;
    - `jitter`: with a random shift (recipe v2: a random crop);
    - `crop`: the plain view against the cutout itself, as in extraction;
    - `view`: a random view with all transformations of the training, against the cutout itself;
    - `two_views`: two such views of a cutout, which training brings together (alignment, Wang & Isola 2020).

    Args:
        encode: (B, 1, H, H) -> latents (B, D).
        images: (n, 1, H, H) float32, finite.
        options: of the views.
        seed: of the draws.

    Returns:
        Change -> `cosine`: mean cosine of the pairs, 1 for an invariant network, and `squared_distance`: mean |x - y|^2
        of latents scaled to unit length. Also `other`: cutouts against other cutouts, for comparison.

    Raises:
        OptionError: Such views cannot be made of these cutouts.
    """
    generator = torch.Generator().manual_seed(seed)
    quiet = view_sampler(replace(options, flip=True, rotate=True, gauss_noise=0.0))
    full = view_sampler(options)
    size = images.shape[-1]
    drawn = quiet.draw(len(images), size, generator)
    plain = _plain(drawn, quiet, size)
    mirrored = torch.randint(1, 4, (len(images),), generator=generator)
    own = encode(images)
    centre = encode(quiet.apply(images, plain))

    def seen(sampler: ViewSampler, params: ViewParameters) -> NDArray[np.float32]:
        return encode(sampler.apply(images, params))

    flips = replace(plain, flip_cols=mirrored % 2 == 1, flip_rows=mirrored >= 2)
    shifts = {name: getattr(drawn, name) for name in ("crop_rows", "crop_cols", "shift_rows", "shift_cols")}
    views = [seen(full, full.draw(len(images), size, generator)) for _ in range(2)]
    pairs = {
        "rotation": (seen(quiet, replace(plain, angle=drawn.angle)), centre),
        "flip": (seen(quiet, flips), centre),
        "jitter": (seen(quiet, replace(plain, **shifts)), centre),
        "crop": (centre, own),
        "view": (views[0], own),
        "two_views": (views[0], views[1]),
        "other": (own, np.roll(own, 1, axis=0)),
    }
    return {name: {"cosine": mean_cosine(x, y), "squared_distance": alignment(x, y)} for name, (x, y) in pairs.items()}


def _plain(drawn: ViewParameters, sampler: ViewSampler, size: int) -> ViewParameters:
    """Return the parameters of views in which nothing is random."""
    none, middle = torch.zeros_like(drawn.flip_cols), torch.zeros_like(drawn.shift_rows)
    whole = torch.full_like(middle, size)
    cuts = {"crop_rows": whole, "crop_cols": whole} if sampler.recipe == "v2" else {}
    angle = torch.zeros_like(drawn.angle)
    return replace(drawn, flip_cols=none, flip_rows=none, angle=angle, shift_rows=middle, shift_cols=middle, **cuts)
