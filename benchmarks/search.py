"""Similarity search: latency and recall of exact search, of the index, and under conditions.

100,000 and a million rows by default.

`python benchmarks/search.py` makes clustered unit vectors of 256 dimensions (seeded), with places and times, and
measures with them: building the index (time, and the peak memory of its process), exact search straight from the file
beside a plain numpy product with argpartition on an array in memory, the index by the number of parts that it looks at,
and search under conditions. Contenders run in turn; medians. Writes `outputs/bench/search.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from common import interleave, machine, medians, write

from nenya.latents.files import Latents
from nenya.latents.index import IndexSearcher
from nenya.latents.index_build import add_files, build_index
from nenya.latents.similarity import closest

DIM = 256
BLOCK = 16384
QUERIES = 20


def clustered(rows: int, clusters: int = 2000, seed: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yield first rows and unit vectors (n, DIM) around centres in 16 of the directions, with noise in all."""
    rng = np.random.default_rng(seed)
    lift = rng.standard_normal((16, DIM), dtype=np.float32) / 4
    centres = rng.standard_normal((clusters, 16), dtype=np.float32) @ lift
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        block = centres[rng.integers(0, clusters, count)]
        block = block + 0.5 * (rng.standard_normal((count, 16), dtype=np.float32) @ lift)
        block += 0.1 * rng.standard_normal((count, DIM), dtype=np.float32)
        yield start, block / np.linalg.norm(block, axis=1, keepdims=True)


def make(folder: Path, rows: int) -> Path:
    """Write a latents file and its table."""
    path = folder / f"noise{rows}_latents.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("train", (rows, DIM), "f4")
        for start, block in clustered(rows):
            made[start : start + len(block)] = block
    rng = np.random.default_rng(1)
    pd.DataFrame(
        {
            "pp_file": path.stem.removesuffix("_latents"),
            "pp_type": 1,
            "pp_idx": np.arange(rows),
            "lat": rng.uniform(-90, 90, rows),
            "lon": rng.uniform(-180, 180, rows),
            "draw": rng.random(rows),
        }
    ).to_parquet(path.with_suffix(".parquet"))
    return path


def build(path: Path, folder: Path, kind: str) -> dict[str, Any]:
    """Build the index in a process of its own."""
    code = "import sys, search; search.build_here(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), str(folder), kind]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    return json.loads(said.splitlines()[-1])


def build_here(path: str, folder: str, kind: str) -> None:
    """Build the index, and print seconds and peak memory as JSON."""
    start = time.perf_counter()
    add_files(Path(folder), Latents([Path(path)]), pd.read_parquet(Path(path).with_suffix(".parquet")))
    added = time.perf_counter()
    built = build_index(Path(folder), kind=kind, index_from=0)
    end = time.perf_counter()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's, where that is greater
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    print(json.dumps({"add_s": added - start, "index_s": end - added, "peak_gb": peak, **built}))


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def exact(path: Path, repeats: int) -> dict[str, Any]:
    """Measure exact search beside numpy."""
    latents = Latents([path])
    queries = latents.take(np.linspace(0, len(latents) - 1, 64).astype(int))
    array = latents[:]

    def plain(count: int) -> np.ndarray:
        scores = array @ queries[:count].T
        return np.argpartition(-scores, 10, axis=0)[:10]

    figures: dict[str, Any] = {}
    for count in (1, 64):
        contenders = {
            "nenya, from the file": lambda n=count: timed(lambda: closest(latents, queries[:n])),
            "numpy, from memory": lambda n=count: timed(lambda: plain(n)),
        }
        for run in contenders.values():
            run()
        figures[f"{count} queries"] = medians(interleave(contenders, repeats))
    brute = np.sort(plain(1)[:, 0])
    figures["same rows as numpy"] = bool((np.sort(closest(latents, queries[:1]).rows[0]) == brute).all())
    return figures


def index(path: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Measure the index: by parts looked at, and under conditions."""
    latents, archive = Latents([path]), IndexSearcher(folder)
    table = pd.read_parquet(path.with_suffix(".parquet"))
    rows = np.linspace(3, len(latents) - 2, QUERIES).astype(int)
    queries = latents.take(rows)
    truth = closest(latents, queries, 11)
    figures: dict[str, Any] = {"parts": archive.about["index"]["parts"], "chosen": archive.about["index"]["probes"]}
    chosen, by_parts = archive.about["index"]["probes"], []
    for probes in sorted({4, 8, 16, 32, 64, chosen}):
        found = [archive.approximate(query, 11, probes)[0] for query in queries]
        recall = np.mean([len(set(f) & set(t) - {row}) / 10 for f, t, row in zip(found, truth.rows, rows, strict=True)])
        seconds = np.median([timed(lambda q=q, p=probes: archive.approximate(q, 11, p)) for q in queries])
        by_parts.append({"parts": probes, "recall@10": float(recall), "seconds": float(seconds)})
    figures["by parts"] = by_parts
    for name, sql in (("0.1 %", "draw < 0.001"), ("1 %", "draw < 0.01"), ("25 %", "draw < 0.25")):
        allowed = table["draw"].to_numpy() < float(sql.split("<")[1])
        wanted = closest(latents, queries, 10, allowed=allowed).rows
        answers = [archive.search(query, 10, sql) for query in queries]
        figures[f"condition {name}"] = {
            "label": "exact" if answers[0].exact else "approximate",
            "rows": int(allowed.sum()),
            "recall@10": float(np.mean([len(set(a.rows) & set(w)) / 10 for a, w in zip(answers, wanted, strict=True)])),
            "seconds": float(np.median([timed(lambda q=q, s=sql: archive.search(q, 10, s)) for q in queries])),
        }
    figures["exact=true"] = float(
        np.median([timed(lambda: archive.search(queries[0], 10, exact=True)) for _ in range(repeats)])
    )
    return figures


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["IVF_FLAT"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default that of temporary files")
    args = parser.parse_args()
    about, results = machine(), {}
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = make(Path(folder), rows)
            results[f"{rows} rows"] = {"exact": exact(path, args.repeats)}
            for kind in args.kinds:
                place = Path(folder) / kind
                built = build(path, place, kind)
                results[f"{rows} rows"][kind] = {"build": built, **index(path, place, args.repeats)}
        print(json.dumps(results[f"{rows} rows"], indent=1), flush=True)
    write("search", results, about)


if __name__ == "__main__":
    main()
