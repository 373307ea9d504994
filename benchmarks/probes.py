"""How well latents predict the known truth of a generated ocean: `nenya probe` for slope, anisotropy and DT.

`python benchmarks/probes.py` generates an ocean (`nenya generate kind=ocean`), trains a small network on it without its
truth, and has `nenya probe by=partition` predict `true_slope`, `true_anisotropy` and `true_DT` of cutouts of `valid`,
of other simulated flows, from what is learnt on `train`: from both kinds of latents, and from what takes no training,
the same network with the weights that it began with among it. It prints R2 of the linear probe with 95 % intervals and
writes `outputs/bench/probes.json`; further arguments are options of the training (`optim.learning_rate=0.1`).
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from common import machine, write
from numpy.typing import NDArray

from nenya import train
from nenya.commands import extract
from nenya.commands import probe as probe_command
from nenya.commands.compose import compose
from nenya.commands.generate import write_ocean
from nenya.commands.network import model_arguments
from nenya.io import read_table
from nenya.latents.linear import Folds, ridge_predictions
from nenya.latents.probes import FOLDS
from nenya.latents.scores import r2
from nenya.options.commands import TrainOptions
from nenya.prepare.ocean import OceanOptions

Floats = NDArray[np.float64]

TARGETS = ("true_slope", "true_anisotropy", "true_DT")
KINDS = ("projection", "encoder")
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


def probe(fit: Floats, judge: Floats, truth: Floats, judged: Floats) -> float:
    """Return R2 on held-out rows of a ridge regression on standardised features."""
    group = np.concatenate([np.arange(len(fit)) % FOLDS, np.full(len(judge), FOLDS)])
    folds = Folds(group, (FOLDS,), np.arange(len(group)), "partition")
    values = np.concatenate([truth, np.zeros(len(judge))])[:, None]
    made = ridge_predictions(np.concatenate([fit, judge]), values, folds)
    return r2(judged[:, None], made[len(fit) :])


def probe_files(folder: Path, path: Path, options: TrainOptions, rows: int) -> dict[str, Any]:
    """Extract the latents of a training, both kinds, and give them to `nenya probe`; return its `columns`.

    Untrained networks are called `untrained projection` and `untrained encoder`, as the trained ones.
    """
    for kind in KINDS:
        network = [*model_arguments(options), f"model.latent={kind}", "trainer=cpu", "clobber=true"]
        given = [f"data={path}", f"ckpt={folder / 'run' / 'last.pth'}", f"out={folder / kind}"]
        extract.run(compose("extract", [*given, *network]))
    probe_command.run(
        compose(
            "probe",
            [
                f"latents=[{','.join(str(folder / kind) for kind in KINDS)}]",
                f"names=[{','.join(repr(f'trained {kind}') for kind in KINDS)}]",
                f"table={path.with_suffix('.parquet')}",
                f"columns=[{','.join(TARGETS)}]",
                *("by=partition", f"images={path}", f"sample={rows}", f"seed={options.seed}"),
                *(f"out={folder / 'probe'}", "clobber=true"),
            ],
        )
    )
    found = json.loads((folder / "probe" / "probe.json").read_text())
    untrained = [name for name, model in found["models"].items() if name.startswith("untrained")]
    names = dict(zip(untrained, (f"untrained {kind}" for kind in KINDS), strict=True))
    return {
        column: {names.get(name, name): probes for name, probes in models.items()}
        for column, models in found["columns"].items()
    }


def measure(folder: Path, rows: tuple[int, int], seed: int, overrides: list[str]) -> dict[str, Any]:
    """Generate, train and probe.

    Args:
        folder: of all files.
        rows: cutouts in `train` and `valid`.
        seed: of the ocean and of the training.
        overrides: options of the training.

    Returns:
        `r2`: contender -> truth -> R2 of the linear probe; `probes`: truth -> contender -> both probes with intervals,
        as in `probe.json`; seconds.
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
    columns = probe_files(folder, path, options, sum(rows))
    names = list(columns[TARGETS[0]])
    values = {name: {target: columns[target][name]["linear"]["value"] for target in TARGETS} for name in names}
    return {
        "rows": rows,
        "seed": seed,
        "overrides": overrides,
        "epochs": options.trainer.max_epochs,
        "r2": values,
        "probes": columns,
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
    print(f"{'R2 on valid':28s}" + "".join(f"{target:>26s}" for target in TARGETS))
    for name in found["r2"]:
        own = (found["probes"][target][name]["linear"] for target in TARGETS)
        cells = (f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for one in own)
        print(f"{name:28s}" + "".join(f"{cell:>26s}" for cell in cells))
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
