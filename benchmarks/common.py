"""What the benchmarks share: the machine in words, contenders in turn, results as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "outputs" / "bench"
PACKAGES = ("nenya", "torch", "lightning", "numpy", "h5py", "scikit-image", "onnxruntime")


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


def write(name: str, results: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write `outputs/bench/<name>.json`.

    Args:
        name: of the benchmark.
        results: its figures.
        about: the machine, taken before the measurement.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": dict(about), **results}, indent=1) + "\n")
    return path
