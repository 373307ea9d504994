"""What benchmarks share: test data, the machine in words, contenders in turn, results as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "outputs" / "bench"
PACKAGES = ("nenya", "torch", "lightning", "numpy", "h5py", "deflate", "scikit-image", "onnxruntime")


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
    """Describe what is measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu,
        **gpu,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg(),
    }


def interleave(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure contenders in turn, so that all feel whatever else the machine does.

    Args:
        contenders: name -> what runs once and returns its figure.
        repeats: turns.

    Returns:
        Name -> a figure each turn.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            found[name].append(run())
    return found


def medians(figures: Mapping[str, list[float]]) -> dict[str, float]:
    """Return name -> median."""
    return {name: statistics.median(values) for name, values in figures.items()}


def write(name: str, results: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> Path:
    """Write `outputs/bench/<name>.json`, and report it.

    Args:
        name: of the benchmark.
        results: its figures.
        about: the machine, taken before the measurement; None: as it is now.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": dict(about or machine()), **results}, indent=1) + "\n")
    print(f"written: {path}")
    return path
