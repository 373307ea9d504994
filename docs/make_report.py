"""Draws the figures of `docs/report.md` from the measurements in `benchmarks/results/`.

    python docs/make_report.py

A figure shows what the files say: who measures again and builds again sees the new numbers.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PICTURES = DOCS / "pictures"
BLUE, ORANGE, GREY = "#0b5a7a", "#c9601a", "#9a9a9a"


def main() -> None:
    """Draw all figures, as SVG."""
    PICTURES.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "nenya", "axes.spines.top": False, "axes.spines.right": False})
    for name, draw in (("report_speed", speed), ("report_truth", truth), ("report_clouds", clouds)):
        figure = draw()
        figure.savefig(PICTURES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def results(name: str) -> dict[str, Any]:
    """Return a file of measurements."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def ratios() -> list[tuple[str, float]]:
    """Return what was compared, and how many times as fast nenya was."""
    loader = results("loader")["samples_per_second"]
    train = results("train")["samples_per_second"]
    extraction = results("extraction")["cutouts_per_second"]
    layouts = results("read")["layouts"]
    exact = results("search")["1000000 rows"]["exact"]["1 queries"]
    gzip, plain = loader["gzip, automatic chunks, batch 64"], loader["uncompressed, batch 64"]
    views, step = train["views, batch 64"], train["step, batch 16, 64 pixels"]
    auto, contiguous = layouts["gzip automatic"], layouts["contiguous"]
    return [
        ("training views, gzip file / original's loader", gzip["first_epoch"] / gzip["original"]),
        ("training views, uncompressed / original's loader", plain["first_epoch"] / plain["original"]),
        ("two views of a batch / plain PyTorch", views["nenya"] / views["plain"]),
        ("reading, gzip with automatic chunks / h5py", auto["extraction"] / auto["h5py slabs"]),
        ("reading, contiguous / h5py", contiguous["extraction"] / contiguous["h5py slabs"]),
        ("extraction, ResNet50 / original's loop", extraction["nenya"] / extraction["original"]),
        ("extraction, ResNet50 / plain PyTorch script", extraction["nenya"] / extraction["plain script"]),
        (
            "extraction, ResNet50 / ONNX Runtime, forward alone",
            extraction["nenya"] / extraction["onnxruntime, forward alone"],
        ),
        ("training step, ResNet18, float32 / plain PyTorch", step["nenya"] / step["plain"]),
        ("exact search in a file / NumPy in memory", exact["numpy, from memory"] / exact["nenya, from the file"]),
    ]


def speed() -> plt.Figure:
    """Draw the ratios to peers on a logarithmic axis."""
    names, values = zip(*sorted(ratios(), key=lambda pair: pair[1]), strict=True)
    figure, axes = plt.subplots(figsize=(7, 3.4))
    axes.barh(names, values, color=[BLUE if value >= 1 else ORANGE for value in values])
    axes.bar_label(axes.containers[0], labels=[f" {value:.2g}" if value < 100 else f" {value:.0f}" for value in values])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlim=(0.2, 400), xlabel="speed of nenya relative to the peer")
    return figure


def truth() -> plt.Figure:
    """Draw what features know of a generated ocean: R2 of linear probes."""
    r2 = results("ocean")["r2_32"]
    rows = [
        ("model=ocean, latents", "ocean, projection", BLUE),
        ("model=ocean, encoder", "ocean, encoder", "#5aa0bd"),
        ("published recipe, latents", "published recipe, projection", ORANGE),
        ("network before training", "untrained, projection", GREY),
        ("image PCA", "image PCA, 64 squared", "#bdbdbd"),
        ("log power spectrum", "log power spectrum", "#d9d9d9"),
    ]
    properties = {"true_slope": "spectral slope", "true_anisotropy": "anisotropy", "true_DT": "DT"}
    figure, axes = plt.subplots(figsize=(7, 2.8))
    width = 0.8 / len(rows)
    for number, (label, key, colour) in enumerate(rows):
        values = [max(r2[key][name], 0) for name in properties]
        axes.bar(np.arange(len(properties)) + (number - 2.5) * width, values, width, label=label, color=colour)
    axes.set(xticks=range(len(properties)), xticklabels=properties.values(), ylabel="R² of linear probes", ylim=(0, 1))
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def clouds() -> plt.Figure:
    """Draw how much of the neighbours of real cutouts stays under masks."""
    sources = {"modis_terra": "MODIS Terra", "amsr2": "AMSR2", "nemo": "NEMO", "ostia": "OSTIA"}
    found = results("ocean")["clouds"]
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.5))
    shares = ["0.05", "0.2", "0.4"]
    for panel, place, title in zip(panels, (0, 1), ("median cosine", "same ten nearest neighbours"), strict=True):
        for key, label in sources.items():
            panel.plot([100 * float(s) for s in shares], [found[key][s][place] for s in shares], "o-", label=label)
        panel.set(xlabel="masked pixels, %", ylabel=title)
    panels[0].set(ylim=(0.95, 1.002))
    panels[1].set(ylim=(0, 1))
    panels[0].legend(frameon=False)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
