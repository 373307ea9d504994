"""Artefacts among the rarest: how many of 50 that are planted among generated cutouts are among the 200 rarest.

`python benchmarks/rarity.py` generates 5,000 cutouts of an ocean, adds stripes, cloud edges and noise to 50 of them,
and looks at them through untrained networks and, with `--ckpt`, through a trained one, for several k. Also: the rank
correlation of rarities from the nearest cells with the exact ones. Writes `outputs/bench/rarity.json`.
"""

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from common import machine, write
from scipy.stats import spearmanr

from nenya.commands.compose import compose
from nenya.commands.generate import write_ocean
from nenya.commands.network import with_network
from nenya.latents.nearest import Identity
from nenya.latents.rarity import rarity_of
from nenya.latents_extraction import calc_latent
from nenya.models.contrastive import ContrastiveModule, load_model, make_net
from nenya.prepare.ocean import OceanOptions

SIDE, PLANTED, RAREST, NEIGHBOURS = 32, 50, 200, (10, 20, 50)


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Every third to eighth row or column is 0.5 to 1.5 K off."""
    line, period = np.zeros(SIDE), int(rng.integers(3, 9))
    line[rng.integers(period) :: period] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
    return np.broadcast_to(line[:, None] if rng.random() < 0.5 else line, (SIDE, SIDE))


def cloud_edge(rng: np.random.Generator) -> np.ndarray:
    """One side of a wavy line is 2 to 5 K colder."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    angle = rng.uniform(0, 2 * np.pi)
    distance = np.cos(angle) * x + np.sin(angle) * y + 3 * np.sin(y / 4 + rng.uniform(0, 6))
    return -rng.uniform(2, 5) * (distance > rng.uniform(3, 8))


def noise(rng: np.random.Generator) -> np.ndarray:
    """White noise of 0.5 to 1.5 K."""
    return rng.normal(0, rng.uniform(0.5, 1.5), (SIDE, SIDE))


KINDS = (stripes, cloud_edge, noise)


def found(latents: np.ndarray, planted: np.ndarray) -> list[dict[str, object]]:
    """Return, for each k, how many of the planted rows are among the rarest, and the agreement of cells with all."""
    own, rows = Identity(np.arange(len(latents)), np.full(len(latents), -1)), []
    for k in NEIGHBOURS:
        exact = rarity_of(latents, own, k, exact=True, visible=False)
        cells = rarity_of(latents, own, k, exact=False, visible=False)
        rarest = np.argsort(-exact.rarity)[:RAREST]
        row = {kind.__name__: int(np.isin(planted[i :: len(KINDS)], rarest).sum()) for i, kind in enumerate(KINDS)}
        rows.append({"k": k, "found": sum(row.values()), **row, "spearman": spearmanr(exact.rarity, cells.rarity)[0]})
    return rows


def main() -> None:
    """Plant, look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ckpt")
    args, about = parser.parse_args(), machine()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sea_preproc.h5"
        write_ocean(place, {"train": args.rows, "valid": 1}, 11, OceanOptions(SIDE))
        with h5py.File(place) as file:
            cutouts = file["train"][:, 0]
    planted = np.sort(rng.choice(args.rows, PLANTED, replace=False))
    for i, row in enumerate(planted):
        cutouts[row] += KINDS[i % len(KINDS)](rng)
    images = torch.from_numpy(cutouts - cutouts.mean(axis=(1, 2), keepdims=True))[:, None]
    nets = {}
    for seed in range(args.seeds):
        options = compose("extract", ["model=demo", f"seed={seed}"])
        nets[f"untrained, seed {seed}"] = ContrastiveModule(options, make_net(options), trained=False)
    if args.ckpt:
        words = [f"ckpt={args.ckpt}"]
        nets["trained"] = load_model(with_network(compose("extract", words), words), args.ckpt)[1]
    results = {}
    for name, net in nets.items():
        latents = np.concatenate([calc_latent(net, part, False) for part in images.split(250)])
        results[name] = found(latents, planted)
        for row in results[name]:
            print(name, row)
    write("rarity", {"rows": args.rows, "planted": PLANTED, "results": results}, about)


if __name__ == "__main__":
    main()
