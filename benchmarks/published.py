"""Two published models trained again: the number of principal components of their latents, N99, against the published.

`python benchmarks/published.py` makes 150,000 + 50,000 cutouts of white noise (`wnoise`, published N99 = 11) and of
random fields with a power spectrum k^-2 (`pk2`, 24), trains each model as published, extracts the latents and counts
the principal components that hold 99 % of their variance. On a GPU this takes about an hour and a half; after
`--minutes` it stops with exit code 75, and the same command resumes. It writes `outputs/bench/published.json`.
"""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from nenya.commands.generate import write_published
from nenya.latents.components import fit_pca
from nenya.storage.disk import atomic_path

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {"wnoise": 11, "pk2": 24}
KINDS = {"wnoise": "white", "pk2": "power2"}
SIDE, SEED = 64, 1234


def call(script: str, *args: str, until: float) -> bool:
    """Run a script; stop it in time. Returns whether it is done."""
    process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / f"{script}.py"), *args])
    try:
        code = process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in (0, 75, -signal.SIGTERM):  # the last one in the seconds of the imports
        raise SystemExit(f"scripts/{script}.py ended with {code}")
    return code == 0


def components(path: Path, share: float) -> int:
    """Return the number of principal components that hold a share of the variance of a file's latents."""
    with h5py.File(path) as file:
        blocks = (file[name][i : i + 8192] for name in file for i in range(0, len(file[name]), 8192))
        pca = fit_pca(itertools.chain(blocks))
    return int(np.searchsorted(np.cumsum(pca.explained_variance_ratio), share) + 1)


def measure(model: str, folder: Path, args: argparse.Namespace, until: float) -> dict[str, object] | None:
    """Do what is left of one model; None if the time is over before it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    data, run, latents = folder / "cutouts_preproc.h5", folder / "run", folder / "cutouts_preproc_latents.h5"
    if not data.exists():
        write_published(data, KINDS[model], {"train": args.rows, "valid": args.rows // 3}, SEED, SIDE)
    trainer = [f"trainer={args.trainer}", "trainer.enable_progress_bar=false"]
    if not (run / "last.pth").exists():
        resumed = (run / "checkpoints" / "last.ckpt").exists()
        start = [f"resume={run}"] if resumed else [f"model={model}", f"data={data}", f"out={run}", "clobber=true"]
        if not call("train", *start, *trainer, *([] if resumed else args.overrides), until=until):
            return None
    if not latents.exists():
        wanted = [o for o in args.overrides if o.startswith("model.")]
        ckpt = [f"model={model}", f"data={data}", f"ckpt={run / 'last.pth'}"]
        if not call("extract", *ckpt, *trainer, "trainer.precision=32-true", *wanted, until=until):
            return None
    return {"N99": components(latents, 0.99), "N95": components(latents, 0.95), "published_N99": PUBLISHED[model]}


def main() -> int:
    """Continue until all is done or the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="until it stops itself")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "published")
    parser.add_argument("--models", default="pk2,wnoise")
    parser.add_argument("--rows", type=int, default=150_000, help="training cutouts; a third more for validation")
    parser.add_argument("--trainer", default="gpu", help="configs/trainer/")
    parser.add_argument("overrides", nargs="*", help="options of the training that differ from the published")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    results = {}
    for model in args.models.split(","):
        found = measure(model, args.folder / model, args, until)
        if found is None:
            print(f"{model}: not done in {args.minutes:g} minutes; the same command resumes")
            return 75
        results[model] = found
        print(f"{model}: N99 {found['N99']} (published {found['published_N99']}), N95 {found['N95']}")
    out = ROOT / "outputs" / "bench" / "published.json"
    with atomic_path(out) as temporary:
        about = {"rows": args.rows, "overrides": args.overrides, "date": time.strftime("%Y-%m-%d")}
        temporary.write_text(json.dumps({**results, **about}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
