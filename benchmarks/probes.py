"""What latents know of an ocean whose truth is known: linear probes of slope, anisotropy and DT.

`python benchmarks/probes.py` generates an ocean (`nenya generate kind=ocean`), trains a small network on it without its
truth, and predicts `true_slope`, `true_anisotropy` and `true_DT` of each cutout by ridge regression from the latents,
beside what takes no training: the same network with the weights that it began with, the squared coefficients of as many
principal components of the images as there are latents, and the log power spectrum. The regression is fitted to `train`
(its penalty by leaving one out) and judged by R2 on `valid`, of other simulated flows. It prints the table and writes
`outputs/bench/probes.json`; further arguments are options of the training (`optim.learning_rate=0.1`).
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import machine, write
from numpy.typing import NDArray

from nenya import train
from nenya.commands.compose import compose
from nenya.commands.generate import write_ocean
from nenya.data.spectra import radial_power
from nenya.io import read_table
from nenya.latents.components import fit_pca
from nenya.models.contrastive import load_model, make_net
from nenya.models.resnet import ContrastiveNet
from nenya.options.commands import TrainOptions
from nenya.prepare.ocean import OceanOptions

Floats = NDArray[np.float64]

TARGETS = ("true_slope", "true_anisotropy", "true_DT")
KINDS = ("projection", "encoder")
PENALTIES = np.logspace(-3, 6, 28)
SIZE = 32
MARGIN = 0.02  # of R2: less is taken for chance
DEFAULTS = ("model=demo", "model.width=8", "trainer=cpu", "trainer.max_epochs=12")


def read(path: Path, partition: str) -> tuple[NDArray[np.float32], dict[str, Floats]]:
    """Return the cutouts of a partition, (n, S, S), and their truth, (n,) each."""
    table = read_table(path.with_suffix(".parquet"))
    rows = table[table["pp_type"] == {"train": 1, "valid": 0}[partition]].sort_values("pp_idx")
    with h5py.File(path) as file:
        images = file[partition][()]
    return images.reshape(len(images), *images.shape[-2:]), {name: rows[name].to_numpy() for name in TARGETS}


@torch.inference_mode()
def latents(net: ContrastiveNet, images: NDArray[np.float32]) -> dict[str, Floats]:
    """Return the projections and the features of the encoder, (n, D) each."""
    net.eval()
    parts = []
    for start in range(0, len(images), 256):
        features = net.encode(torch.from_numpy(images[start : start + 256, None]))
        parts.append((torch.nn.functional.normalize(net.head(features), dim=1), features))
    return {name: torch.cat([part[i] for part in parts]).double().numpy() for i, name in enumerate(KINDS)}


def probe(fit: Floats, judge: Floats, truth: Floats, judged: Floats) -> float:
    """Return R2 on held-out rows of a ridge regression on standardised features."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return float(make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(fit, truth).score(judge, judged))


def features(path: Path, options: TrainOptions, ckpt: Path) -> dict[str, dict[str, Floats]]:
    """Return contender -> partition -> (n, D)."""
    images = {name: read(path, name)[0] for name in ("train", "valid")}
    nets = {"trained": load_model(options, str(ckpt))[1].net, "untrained": make_net(options)}
    found: dict[str, dict[str, Floats]] = {}
    for name, net in nets.items():
        of = {partition: latents(net, array) for partition, array in images.items()}
        for kind in KINDS:
            found[f"{name} {kind}"] = {partition: values[kind] for partition, values in of.items()}
    flat = {name: array.reshape(len(array), -1).astype(np.float64) for name, array in images.items()}
    pca = fit_pca(flat["train"])
    for kind in KINDS:
        count = min(found[f"trained {kind}"]["train"].shape[1], len(pca.components))
        found[f"image PCA, {count} squared"] = {
            name: pca.transform(array)[:, :count] ** 2 for name, array in flat.items()
        }
    found["log power spectrum"] = {name: np.log(radial_power(array)) for name, array in images.items()}
    return found


def measure(folder: Path, rows: tuple[int, int], seed: int, overrides: list[str]) -> dict[str, Any]:
    """Generate, train and probe.

    Args:
        folder: of all files.
        rows: cutouts in `train` and `valid`.
        seed: of the ocean and of the training.
        overrides: options of the training.

    Returns:
        `r2`: contender -> truth -> R2; `lengths`: contender -> number of features; seconds.
    """
    start = time.monotonic()
    path = folder / "ocean_preproc.h5"
    if not path.exists():
        write_ocean(path, {"train": rows[0], "valid": rows[1]}, seed, OceanOptions(SIZE))
    generated = time.monotonic()
    options = compose("train", [*DEFAULTS, f"seed={seed}", *overrides])
    options = dataclasses.replace(options, data=str(path), out=str(folder / "run"), clobber=True)
    train.run(options)
    trained = time.monotonic()
    truth = {name: read(path, name)[1] for name in ("train", "valid")}
    found = features(path, options, folder / "run" / "last.pth")
    r2 = {
        name: {
            target: probe(of["train"], of["valid"], truth["train"][target], truth["valid"][target])
            for target in TARGETS
        }
        for name, of in found.items()
    }
    return {
        "rows": rows,
        "seed": seed,
        "overrides": overrides,
        "epochs": options.trainer.max_epochs,
        "r2": r2,
        "lengths": {name: of["train"].shape[1] for name, of in found.items()},
        "seconds": {
            "generate": generated - start,
            "train": trained - generated,
            "probe": time.monotonic() - trained,
        },
    }


def main() -> int:
    """Measure and print the table; 1 where the trained latents do not beat the untrained and the image PCA."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="training cutouts; a quarter of it for validation")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--folder", type=Path, help="keep the files there, and take an ocean that is there")
    parser.add_argument("--name", default="probes", help="of the JSON file")
    arguments, overrides = parser.parse_known_args()
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        found = measure(folder, (arguments.rows, arguments.rows // 4), arguments.seed, overrides)
    print(f"{'R2 on valid':28s}{'length':>7s}" + "".join(f"{target:>17s}" for target in TARGETS))
    for name, of in found["r2"].items():
        print(f"{name:28s}{found['lengths'][name]:7d}" + "".join(f"{of[target]:17.3f}" for target in TARGETS))
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items()))
    found["beaten"] = beats(found["r2"])
    for kind, targets in found["beaten"].items():
        words = (f"{target} {'beats' if won else 'DOES NOT BEAT'}" for target, won in targets.items())
        print(f"{kind}: " + ", ".join(words))
    write(arguments.name, found, about)
    return 0 if any(all(targets.values()) for targets in found["beaten"].values()) else 1


def beats(r2: dict[str, dict[str, float]]) -> dict[str, dict[str, bool]]:
    """Return kind of latent -> truth -> whether the trained beats the untrained one and the images' components.

    By more than `MARGIN`: less is chance.
    """
    images = [of for name, of in r2.items() if name.startswith("image PCA")]
    found: dict[str, dict[str, bool]] = {}
    for kind in KINDS:
        others = [r2[f"untrained {kind}"], *images]
        best = {target: max(of[target] for of in others) for target in TARGETS}
        found[kind] = {target: r2[f"trained {kind}"][target] > best[target] + MARGIN for target in TARGETS}
    return found


if __name__ == "__main__":
    sys.exit(main())
