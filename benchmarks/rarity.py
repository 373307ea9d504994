"""Artefacts among the rarest: how many of 50 that are planted among generated cutouts are among the 200 rarest.

`python benchmarks/rarity.py` generates 5,000 cutouts of an ocean, adds stripes, cloud edges and noise to 50 of them,
and looks at them through untrained networks and, with `--ckpt`, through trained ones, for several k; and at the texture
of their pixels, alone and together with the latents. Other kinds than those by which the texture was chosen: `--kinds
other`; weaker ones: `--amplitude`. Also: the rank correlation of rarities from the nearest cells with the exact ones.
Writes `outputs/bench/rarity.json`.
"""

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from common import machine, write
from scipy.stats import spearmanr

from nenya.commands.compose import compose
from nenya.commands.generate import write_ocean
from nenya.commands.network import with_network
from nenya.commands.outliers import tails_of
from nenya.data.texture import texture_likelihood, texture_of
from nenya.latents.nearest import Identity
from nenya.latents.rarity import percentiles, rarity_of
from nenya.latents_extraction import calc_latent
from nenya.models.contrastive import ContrastiveModule, load_model, make_net
from nenya.prepare.ocean import OceanOptions

SIDE, PLANTED, RAREST, NEIGHBOURS = 32, 50, 200, (10, 50)


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


def square_stripes(rng: np.random.Generator) -> np.ndarray:
    """Bands of 2 to 8 rows or columns, alternately 0.5 to 1.5 K up and down."""
    line = rng.uniform(0.5, 1.5) * np.sign(np.sin(2 * np.pi * np.arange(SIDE) / rng.uniform(4, 16) + rng.uniform(0, 6)))
    return np.broadcast_to(line[:, None] if rng.random() < 0.5 else line, (SIDE, SIDE))


def corner(rng: np.random.Generator) -> np.ndarray:
    """A rectangle in a corner is 3 to 8 K colder."""
    found, (high, wide) = np.zeros((SIDE, SIDE)), rng.integers(6, 20, 2)
    found[:high, :wide] = -rng.uniform(3, 8)
    return found


def specks(rng: np.random.Generator) -> np.ndarray:
    """2 to 20 % of the pixels are 1 to 4 K off."""
    return (
        rng.choice([-1, 1], (SIDE, SIDE))
        * rng.uniform(1, 4, (SIDE, SIDE))
        * (rng.random((SIDE, SIDE)) < rng.uniform(0.02, 0.2))
    )


KINDS = {"own": (stripes, cloud_edge, noise), "other": (square_stripes, corner, specks)}


def among(score: np.ndarray, planted: np.ndarray, names: list[str]) -> dict[str, int]:
    """Return how many of the planted rows are among the rarest, in all and of each kind."""
    rarest = np.argsort(-score, kind="stable")[:RAREST]
    row = {name: int(np.isin(planted[i :: len(names)], rarest).sum()) for i, name in enumerate(names)}
    return {"found": sum(row.values()), **row}


def found(latents: np.ndarray, texture: np.ndarray, planted: np.ndarray, names: list[str]) -> list[dict[str, object]]:
    """Return, for each k, what latents find, alone and with the texture, and the agreement of cells with all."""
    own, rows = Identity(np.arange(len(latents)), np.full(len(latents), -1)), []
    for k in NEIGHBOURS:
        exact = rarity_of(latents, own, k, exact=True, visible=False)
        cells = rarity_of(latents, own, k, exact=False, visible=False)
        latent, pixels = tails_of(pd.DataFrame({"rarity_percentile": exact.percentile, "texture_percentile": texture}))
        both = among(-np.fmin(latent, pixels), planted, names)
        agreement = float(spearmanr(exact.rarity, cells.rarity)[0])
        rows.append({"k": k, "latents": among(exact.rarity, planted, names), "list": both, "spearman": agreement})
    return rows


def main() -> None:
    """Plant, look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ckpt", nargs="*", default=[])
    parser.add_argument("--kinds", choices=KINDS, default="own")
    parser.add_argument("--amplitude", type=float, default=1.0)
    parser.add_argument("--draw", type=int, default=0)
    args, about = parser.parse_args(), machine()
    kinds, rng = KINDS[args.kinds], np.random.default_rng(args.draw)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sea_preproc.h5"
        write_ocean(place, {"train": args.rows, "valid": 1}, 11, OceanOptions(SIDE))
        with h5py.File(place) as file:
            cutouts = file["train"][:, 0]
    planted = np.sort(rng.choice(args.rows, PLANTED, replace=False))
    for i, row in enumerate(planted):
        cutouts[row] += args.amplitude * kinds[i % len(kinds)](rng)
    names = [kind.__name__ for kind in kinds]
    texture = percentiles(-texture_likelihood(texture_of(cutouts)))
    results: dict[str, object] = {"texture": among(texture, planted, names)}
    print("texture", results["texture"])
    images = torch.from_numpy(cutouts - cutouts.mean(axis=(1, 2), keepdims=True))[:, None]
    nets = {}
    for seed in range(args.seeds):
        options = compose("extract", ["model=demo", f"seed={seed}"])
        nets[f"untrained, seed {seed}"] = ContrastiveModule(options, make_net(options), trained=False)
    for number, ckpt in enumerate(args.ckpt):
        words = [f"ckpt={ckpt}"]
        nets[f"trained, {number}"] = load_model(with_network(compose("extract", words), words), ckpt)[1]
    for name, net in nets.items():
        latents = np.concatenate([calc_latent(net, part, False) for part in images.split(250)])
        results[name] = rows = found(latents, texture, planted, names)
        for row in rows:
            print(name, row, flush=True)
    write("rarity", {**vars(args), "ckpt": len(args.ckpt), "planted": PLANTED, "results": results}, about)


if __name__ == "__main__":
    main()
