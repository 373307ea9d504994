"""Writes `values.npz`: generated cutouts, and what nenya made of them when the file was written.

Weights are drawn from the names of tensors (`golden_weights`). Run it (`PYTHONPATH=src:tests python
tests/reference/make.py`) only where numbers are meant to change, and say so in the changelog.
"""

from pathlib import Path

import numpy as np
import torch
from golden_weights import golden_state_dict

from nenya.data.augment import ViewSampler
from nenya.data.spectra import Recipe, fit_slopes, radial_power
from nenya.latents.metrics import effective_rank, feature_std, uniformity
from nenya.models.losses import contrastive_loss
from nenya.models.resnet import ContrastiveNet
from nenya.tables.quantities import central_dt

PLACE = Path(__file__).parent / "values.npz"
NETWORKS = {"a": ("resnet18", 24, 1, 16), "b": ("resnet50", 16, 3, 16), "c": ("resnet34", 12, 1, 8)}
CUTOUTS, SIDE = 8, 32


def images():
    """Draw cutouts (8, 32, 32), float32: sums of waves whose phases a fixed rule gives, so no generator matters."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    found = np.zeros((CUTOUTS, SIDE, SIDE))
    for number in range(CUTOUTS):
        for wave in range(1, 25):
            ky, kx = (wave * (number + 3)) % 9 - 4, (wave * 5 + number) % 11 - 5
            found[number] += np.cos(2 * np.pi * (ky * y + kx * x) + 1.7 * wave * (number + 1)) / max(1, ky**2 + kx**2)
    return (found - found.mean(axis=(1, 2), keepdims=True)).astype(np.float32)


def latents(name, cutouts):
    """Encode cutouts by a network of drawn weights: (8, D) and the encoder's features."""
    net = ContrastiveNet(*NETWORKS[name])
    net.load_state_dict(golden_state_dict([(key, tuple(v.shape), v.dtype) for key, v in net.state_dict().items()]))
    batch = torch.from_numpy(cutouts[:, None]).expand(-1, NETWORKS[name][2], -1, -1)
    with torch.inference_mode():
        return net.eval()(batch).numpy(), net.encode(batch).numpy()


def values(cutouts):
    """Return all that is compared."""
    found = {}
    for name in NETWORKS:
        found[f"latents_{name}"], found[f"features_{name}"] = latents(name, cutouts)
    for window in ("hann", "none"):
        recipe = Recipe(window=window)
        radial = radial_power(cutouts, recipe)
        found[f"power_{window}"] = radial
        found[f"slopes_{window}"] = fit_slopes(radial, SIDE, Recipe(window=window, band=(4, 16)))[0]
    found["DT"] = central_dt(cutouts, 24)
    for recipe, crop in (("v4", 24), ("v2", 5)):
        sampler = ViewSampler(recipe=recipe, crop=crop, jitter=3)
        drawn = sampler.two_views(torch.from_numpy(cutouts[:3, None]), torch.Generator().manual_seed(5))
        found[f"views_{recipe}"] = drawn[:, :, 0].numpy()
    pairs = torch.from_numpy(found["latents_a"]).reshape(4, 2, -1)
    found["loss"] = np.array([float(contrastive_loss(pairs)), float(contrastive_loss(pairs, temperature=0.5))])
    rows = found["latents_b"].astype(np.float64)
    spectrum = np.linalg.svd(rows, compute_uv=False)
    found["metrics"] = np.array([effective_rank(spectrum), feature_std(rows), uniformity(rows)])
    return found


if __name__ == "__main__":
    np.savez_compressed(PLACE, images=images(), **values(images()))
