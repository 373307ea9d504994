"""What benchmarks share: test data, the description of the machine, contenders in turn, and the JSON of a result."""

import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = Path(__file__).resolve().parents[1] / "outputs" / "bench"
PACKAGES = ("nenya", "torch", "lightning", "numpy", "h5py", "deflate", "scikit-image")


def make_cutouts(rows: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Make red fields with a spectral slope of -3, as SST has: (rows, 1, side, side) float32, mean 0."""
    rng = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    k[0, 0] = np.inf
    cutouts = np.empty((rows, 1, side, side), np.float32)
    for start in range(0, rows, 1000):
        white = np.fft.rfft2(rng.standard_normal((min(1000, rows - start), side, side)))
        fields = np.fft.irfft2(white * k**-1.5, s=(side, side))
        cutouts[start : start + 1000, 0] = fields / fields.std((1, 2), keepdims=True)
    return cutouts


def machine() -> dict[str, Any]:
    """Describe what is measured on: processor, cores that may be used, versions, date, and the load just now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg(),
    }


def interleave(contenders: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure contenders in turn, so that all feel whatever else the machine does.

    Args:
        contenders: name -> a function that measures once and returns a figure.
        repeats: number of turns, after one that does not count.

    Returns:
        name -> the figures.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, measure in contenders.items():
            figure = measure()
            if turn:
                figures[name].append(figure)
    return figures


def write(name: str, results: dict[str, Any]) -> Path:
    """Write results, with the machine if they do not say it themselves, to `outputs/bench/<name>.json`."""
    path = OUTPUT / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"written: {path}")
    return path
