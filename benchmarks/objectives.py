"""What each objective learns at the same cost: linear probes of slope, anisotropy and DT on a generated ocean.

`python benchmarks/objectives.py` trains the network of `benchmarks/probes.py` with each objective and seed, each seed
with an ocean of its own, and judges it by the same probes. The same cost means as many passes of an image through the
network: forwards counts one, backwards two. If a teacher sees both views, an objective has 6/8 of the epochs. The
table has the mean R2 over the seeds and half the width of its 95 % interval (Student's t).

A result is kept as soon as it is there: a run that stopped resumes, and trainings of other options are
other results. It writes `outputs/bench/objectives.json`; further arguments are options of all trainings.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, machine, write
from probes import KINDS, TARGETS, measure

from nenya.options.objectives import DEFAULT_EMA
from nenya.storage.disk import atomic_path

_ADAMW = ("optim.optimizer=AdamW", "optim.learning_rate=0.0005", "optim.weight_decay=0.05")
_VICREG = ("loss.ssl_method=VICReg", "loss.expander=256", "optim.learning_rate=0.5", "optim.warm=true")
_SMALL = "augment.random_jitter=[16,8]"  # views overlap little, so that they share the texture and not the features
_SMOOTH = ("augment.resampling=composed", "augment.padding=reflection")  # one interpolation, no dark corners
_FAST = ("optim.optimizer=AdamW", "optim.learning_rate=0.002")
_LARGE = "loader.batch_size_train=256"

OBJECTIVES: dict[str, tuple[str, ...]] = {
    "SimCLR": (),
    "SimCLR, temperature 0.2": ("loss.temp=0.2",),
    "MoCo": ("loss.ssl_method=MoCo", "loss.queue=1024"),
    "VICReg": _VICREG,
    "VICReg, SGD": ("loss.ssl_method=VICReg", "loss.expander=256", "optim.optimizer=SGD", "optim.learning_rate=0.02"),
    "BarlowTwins": ("loss.ssl_method=BarlowTwins", "loss.expander=256", "optim.learning_rate=0.5", "optim.warm=true"),
    "BYOL": (
        "loss.ssl_method=BYOL",
        "loss.predictor=256",
        "loss.ema=0.99",
        "optim.learning_rate=0.5",
        "optim.warm=true",
    ),
    "DINO": ("loss.ssl_method=DINO", "loss.prototypes=512", "loss.ema=0.99", "optim.warm=true"),
    "ConvNeXt": ("model.ssl_model=convnext_tiny", *_ADAMW),
    "ViT": ("model.ssl_model=vit_tiny", "model.width=24", *_ADAMW),
    "SimCLR, crops of 16": (_SMALL,),
    "SimCLR, crops of 16, smooth": (_SMALL, *_SMOOTH),
    "SimCLR, smooth": _SMOOTH,
    "SimCLR, without rotation": ("augment.rotate=false",),
    "SimCLR, AdamW": _FAST,
    "SimCLR, batches of 256": (_LARGE, "optim.learning_rate=0.2"),
    "VICReg, crops of 16": (*_VICREG, _SMALL),
    "SimCLR, temperature 0.2, AdamW": ("loss.temp=0.2", *_FAST),
    "SimCLR, temperature 0.2, AdamW, smooth": ("loss.temp=0.2", *_FAST, *_SMOOTH),
    "SimCLR, temperature 0.2, rate 0.2": ("loss.temp=0.2", "optim.learning_rate=0.2"),
    "SimCLR, temperature 0.5": ("loss.temp=0.5",),
    "SimCLR, temperature 0.2, crops of 20": ("loss.temp=0.2", "augment.random_jitter=[20,6]"),
}
"""Name -> options; the sizes of the parts besides the network suit a network of this width."""

_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t of 97.5 %, by the number of seeds
_PASSES = {False: 6, True: 8}  # two views forwards and backwards; with a teacher, both once more forwards


def epochs_of(options: tuple[str, ...], epochs: int) -> int:
    """Return the epochs that cost as much as `epochs` of SimCLR."""
    method = next((o.partition("=")[2] for o in options if o.startswith("loss.ssl_method=")), "SimCLR")
    return max(1, round(epochs * _PASSES[False] / _PASSES[method in DEFAULT_EMA]))


def read(path: Path) -> dict[str, Any]:
    """Return the results so far: key -> what `probes.measure` returned."""
    return dict(json.loads(path.read_text())["runs"]) if path.is_file() else {}


def keep(path: Path, runs: dict[str, Any]) -> None:
    """Write the results so far; the file is either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"runs": runs}, indent=1))


def interval(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its 95 % interval; None for one value."""
    count = len(values)
    half = _T[count] * statistics.stdev(values) / math.sqrt(count) if count in _T else None
    return statistics.fmean(values), half


def table(runs: dict[str, Any], names: list[str]) -> dict[str, dict[str, dict[str, tuple[float, float | None]]]]:
    """Return objective -> contender -> truth -> mean and half width of R2 over the seeds."""
    found: dict[str, Any] = {}
    for name in names:
        mine = [run for run in runs.values() if run["objective"] == name]
        contenders = [f"trained {kind}" for kind in KINDS] + (list(mine[0]["r2"]) if name == names[0] and mine else [])
        found[name] = {
            who: {target: interval([run["r2"][who][target] for run in mine]) for target in TARGETS}
            for who in dict.fromkeys(contenders)
            if mine
        }
    return found


def main() -> int:
    """Train what is missing, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="training cutouts; a quarter of it for validation")
    parser.add_argument("--epochs", type=int, default=12, help="of SimCLR; others have as many as cost the same")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236])
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), metavar="NAME")
    parser.add_argument(
        "--folder", type=Path, default=RESULTS / "objectives", help="of oceans, runs and results so far"
    )
    parser.add_argument("--name", default="objectives", help="of the JSON file")
    arguments, overrides = parser.parse_known_args()
    about, kept = machine(), arguments.folder / "runs.json"
    runs, wanted = read(kept), {}
    for seed in arguments.seeds:  # all objectives with one seed first: the ocean is generated once
        for name in arguments.only:
            epochs = epochs_of(OBJECTIVES[name], arguments.epochs)
            settings = [*OBJECTIVES[name], f"trainer.max_epochs={epochs}", *overrides]
            key = f"{seed} {arguments.rows} {' '.join(settings)}"
            if key not in runs:
                folder = arguments.folder / f"ocean_{seed}_{arguments.rows}"
                folder.mkdir(parents=True, exist_ok=True)
                found = measure(folder, (arguments.rows, arguments.rows // 4), seed, settings)
                runs[key] = {"objective": name, **found}
                keep(kept, runs)
            wanted[key] = {**runs[key], "objective": name}
    means = table(wanted, arguments.only)
    print(f"{'R2 on valid':40s}{'latents':24s}" + "".join(f"{target:>20s}" for target in TARGETS))
    for name, of in means.items():
        for who, targets in of.items():
            texts = (f"{mean:.3f}" if half is None else f"{mean:.3f} +- {half:.3f}" for mean, half in targets.values())
            cells = "".join(f"{text:>20s}" for text in texts)
            print(f"{name:40s}{who:24s}{cells}")
    write(arguments.name, {"means": means, "seeds": arguments.seeds, "rows": arguments.rows, "runs": wanted}, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
