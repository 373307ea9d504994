"""Latents through clouds: how far those of masked cutouts are from those of the clear ones, by share and shape of mask.

`python benchmarks/clouds.py` generates an ocean, trains the demonstration's network on it with and without clouds for
each of some seeds, and lays masks over cutouts that it has not seen. Against the latent of the clear cutout, each
masked one has three figures: the cosine (median), the share of its ten nearest neighbours that are those of the clear
one, and how often the clear cutout itself is the nearest. Beside them R2 of linear probes (`probes.py`) fitted to clear
cutouts and judged on masked ones, and for the first seed the share of places on a UMAP that are off by more than a
tenth of the layout. `--real` adds the figures on cutouts of a file, cut to 32 pixels.

What is done is kept in `--folder` and not done again. Writes `outputs/bench/clouds.json`, and with `--figure` a
picture.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import machine, write
from numpy.typing import NDArray
from probes import TARGETS, probe, read
from scipy.ndimage import gaussian_filter

from nenya import train
from nenya.commands.compose import compose
from nenya.commands.generate import write_ocean
from nenya.data.masks import network_input
from nenya.models.contrastive import load_model
from nenya.models.resnet import ContrastiveNet
from nenya.options.commands import TrainOptions
from nenya.prepare.ocean import OceanOptions

Images = NDArray[np.float32]
Masks = NDArray[np.bool_]

SIZE, JUDGED, NEIGHBOURS, EPOCHS = 32, 384, 10, 12
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SHAPES = ("smooth", "broken", "edge")
CLOUDS = ("model=demo", "augment.clouds=true")
NETWORKS = {  # name -> options, and what it sees of masked pixels
    "plain": (("model=demo",), ("mean", "fill")),
    "clouds mean": ((*CLOUDS, "preprocess.masked=mean"), ("mean",)),
    "clouds fill": ((*CLOUDS, "preprocess.masked=fill"), ("fill",)),
    "clouds mask": (("model=clouds",), ("mask",)),
}
ALWAYS = ("trainer=cpu", f"trainer.max_epochs={EPOCHS}")


def masks_of(shape: str, share: float, count: int) -> Masks:
    """Return masks (count, S, S) of a share; the same for every network and seed."""
    rng = np.random.default_rng([SHAPES.index(shape), round(100 * share)])
    fields = rng.standard_normal((count, SIZE, SIZE))
    scale = {"smooth": 2.0, "broken": 0.8, "edge": 3.0}[shape]
    fields = np.stack([gaussian_filter(field, scale) for field in fields])
    fields /= fields.std((1, 2), keepdims=True)
    if shape == "edge":
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        fields = 4 * (x * np.cos(angle) + y * np.sin(angle)) + 0.3 * fields
    order = fields.reshape(count, -1).argsort(1).argsort(1).reshape(fields.shape)
    return np.asarray(order < round(share * SIZE**2))


@torch.inference_mode()
def latents(net: ContrastiveNet, images: Images, masks: Masks, masked: str) -> NDArray[np.float64]:
    """Return the latents (n, D) of cutouts (n, S, S) under masks (n, S, S)."""
    seen = torch.from_numpy(network_input(images[:, None].copy(), masks, masked))
    return torch.cat([net(seen[start : start + 256]) for start in range(0, len(seen), 256)]).double().numpy()


def three_figures(clear: NDArray[np.float64], masked: NDArray[np.float64]) -> list[float]:
    """Return the median cosine, the overlap of the nearest neighbours and how often the own cutout is the nearest."""
    similar, own = masked @ clear.T, np.arange(len(clear))
    nearest = similar.argmax(1) == own
    neighbours = []
    for cosines in (clear @ clear.T, similar.copy()):
        cosines[own, own] = -2
        neighbours.append(np.argsort(-cosines, axis=1)[:, :NEIGHBOURS])
    overlap = [len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in zip(*neighbours, strict=True)]
    return [float(np.median(similar[own, own])), float(np.mean(overlap)), float(nearest.mean())]


def trained(folder: Path, name: str, seed: int, ocean: Path, extra: list[str]) -> ContrastiveNet:
    """Return a trained network: that of an earlier call, if there is one."""
    run = folder / f"{name.replace(' ', '_')}_{seed}"
    words = [*NETWORKS[name][0], *ALWAYS, f"seed={seed}", f"data={ocean}", f"out={run}", *extra]
    options: TrainOptions = compose("train", words)
    if not (run / "last.pth").is_file():
        options.clobber = True
        train.run(options)
    return load_model(options, str(run / "last.pth"))[1].net.eval()


def off_places(fit: NDArray[np.float64], clear: NDArray[np.float64], masked: list[NDArray[np.float64]]) -> list[float]:
    """Return, for each masked set, the share of rows misplaced on a UMAP by more than a tenth of the layout."""
    import umap

    reducer = umap.UMAP(random_state=1, n_jobs=1).fit(fit)
    layout = np.ptp(reducer.embedding_, axis=0).max()
    places = reducer.transform(clear)
    return [float((np.linalg.norm(reducer.transform(z) - places, axis=1) > 0.1 * layout).mean()) for z in masked]


def figures(net: ContrastiveNet, looks: tuple[str, ...], ocean: Path, real: Images | None, *, placed: bool) -> Any:
    """Return what is measured of one network: look -> shape -> share -> figures, probes and places."""
    images, truth = zip(*(read(ocean, name) for name in ("train", "valid")), strict=True)
    none = [np.zeros(array.shape, bool) for array in images]
    found: dict[str, Any] = {}
    for look in looks:
        train_z, valid_z = (latents(net, array, mask, look) for array, mask in zip(images, none, strict=True))
        r2 = {t: probe(train_z, valid_z, truth[0][t], truth[1][t]) for t in TARGETS}
        found[look] = {"clear": {"r2": r2}}
        for shape in SHAPES:
            found[look][shape] = {}
            seen = []
            for share in SHARES:
                z = latents(net, images[1], masks_of(shape, share, len(images[1])), look)
                seen.append(z[:JUDGED])
                found[look][shape][str(share)] = {
                    "figures": three_figures(valid_z[:JUDGED], z[:JUDGED]),
                    "r2": {t: probe(train_z, z, truth[0][t], truth[1][t]) for t in TARGETS},
                }
                if real is not None:
                    clear = latents(net, real, np.zeros(real.shape, bool), look)
                    under = latents(net, real, masks_of(shape, share, len(real)), look)
                    found[look][shape][str(share)]["real"] = three_figures(clear, under)
            if placed:
                for share, off in zip(SHARES, off_places(valid_z, valid_z[:JUDGED], seen), strict=True):
                    found[look][shape][str(share)]["umap_off"] = off
    return found


def real_cutouts(path: Path) -> Images:
    """Return all cutouts of a file, cut to 32 pixels, without their means."""
    with h5py.File(path) as file:
        whole = [file[name][()] for name in ("train", "valid") if name in file]
    parts = [np.squeeze(array, 1) if array.ndim == 4 else array for array in whole]
    tiles = [
        array[:, y : y + SIZE, x : x + SIZE]
        for array in parts
        for y in range(0, array.shape[1] - SIZE + 1, SIZE)
        for x in range(0, array.shape[2] - SIZE + 1, SIZE)
    ]
    found = np.concatenate(tiles).astype(np.float32)
    return found - found.mean((1, 2), keepdims=True)


def medians(of_seeds: list[Any]) -> Any:
    """Return the medians over seeds of equal trees of numbers."""
    first = of_seeds[0]
    if isinstance(first, dict):
        return {key: medians([tree[key] for tree in of_seeds if key in tree]) for key in first}
    if isinstance(first, list):
        return [statistics.median(values) for values in zip(*of_seeds, strict=True)]
    return statistics.median(of_seeds)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the three figures against the masked share, for each shape of mask."""
    import matplotlib.pyplot as plt

    axes = plt.subplots(3, len(SHAPES), figsize=(10, 8), sharex=True, sharey="row", layout="constrained")[1]
    for column, shape in enumerate(SHAPES):
        for row, label in enumerate(("cosine", f"overlap of {NEIGHBOURS} neighbours", "own cutout nearest")):
            for name, looks in results.items():
                for look, of in looks.items():
                    values = [of[shape][str(share)]["figures"][row] for share in SHARES]
                    shown = f"{name}, {look}" if name == "plain" else name
                    axes[row, column].plot(SHARES, values, "o-", ms=3, label=shown)
            if column == 0:
                axes[row, column].set_ylabel(label)
        axes[0, column].set_title(f"{shape} masks")
        axes[-1, column].set_xlabel("masked share")
    axes[0, 0].legend(fontsize=8)
    plt.savefig(path, dpi=120)


def table(results: dict[str, Any]) -> None:
    """Print the figures under smooth masks, and the probes of clear cutouts."""
    for name, looks in results.items():
        for look, of in looks.items():
            cells = ["/".join(f"{v:.2f}" for v in of["smooth"][str(s)]["figures"]) for s in (0.05, 0.1, 0.2, 0.4, 0.6)]
            r2 = " ".join(f"{value:.3f}" for value in of["clear"]["r2"].values())
            print(f"{name:12s} {look:5s} " + "  ".join(cells) + f"  clear: {r2}")


def main() -> int:
    """Train, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192, help="training cutouts; a quarter of it for validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench/clouds"), help="of all files; kept")
    parser.add_argument("--real", type=Path, help="a file of real cutouts")
    parser.add_argument("--figure", type=Path, help="a picture to write")
    parser.add_argument("--name", default="clouds", help="of the JSON file")
    arguments, extra = parser.parse_known_args()
    about, folder = machine(), arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    ocean = folder / "ocean_preproc.h5"
    if not ocean.exists():
        write_ocean(ocean, {"train": arguments.rows, "valid": arguments.rows // 4}, 1234, OceanOptions(SIZE))
    real = None if arguments.real is None else real_cutouts(arguments.real)
    results: dict[str, Any] = {}
    for name in arguments.networks:
        of_seeds = []
        for i, seed in enumerate(arguments.seeds):
            done = folder / f"{name.replace(' ', '_')}_{seed}.json"
            if not done.exists():
                net = trained(folder, name, seed, ocean, extra)
                done.write_text(json.dumps(figures(net, NETWORKS[name][1], ocean, real, placed=i == 0)))
            of_seeds.append(json.loads(done.read_text()))
        results[name] = medians(of_seeds)
    table(results)
    if arguments.figure is not None:
        draw(results, arguments.figure)
    settings = {"rows": arguments.rows, "seeds": arguments.seeds, "epochs": EPOCHS, "extra": extra}
    write(arguments.name, {"settings": settings, "networks": results}, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
