"""What the latents of `model=ocean` know: linear probes on generated oceans, and latents of real cutouts under clouds.

`python benchmarks/ocean_probes.py weights=FILE data=FILES out=FOLDER` judges weights on oceans of 32 and 64 pixels that
the training has not seen, beside image PCA, the log power spectrum, DT with moments, the statistics that the training
predicts, and the network without training; `plain=FILE` adds weights of the published recipe. Then it lays masks over
the real cutouts that were set aside. Prints tables and writes `FOLDER/probes.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clouds import masks_of, three_figures
from common import machine
from numpy.typing import NDArray
from ocean_data import real, statistics_of
from probes import TARGETS, probe, read

from nenya.commands.generate import write_ocean
from nenya.data.spectra import radial_power
from nenya.latents.components import fit_pca
from nenya.models.checkpoint import load_checkpoint, load_weights
from nenya.models.resnet import ContrastiveNet
from nenya.prepare.ocean import OceanOptions

Floats = NDArray[np.float64]

ROWS = {32: (8192, 2048, 1234), 64: (1536, 512, 1234)}
"""Side -> cutouts that probes are fitted to, cutouts that they are judged by, seed of the ocean."""

SHARES = (0.05, 0.2, 0.4)  # masked


def network(path: Path | None, like: ContrastiveNet | None = None) -> ContrastiveNet:
    """Return the network of a file, or one with its initial weights."""
    torch.manual_seed(1)
    if path is None:
        assert like is not None
        return ContrastiveNet(**like.architecture).eval()
    checkpoint = load_checkpoint(path)
    net = ContrastiveNet(**checkpoint.architecture)
    load_weights(net, checkpoint)
    return net.eval()


@torch.inference_mode()
def latents(net: ContrastiveNet, images: NDArray[np.float32], masks: NDArray[np.bool_] | None = None) -> Any:
    """Return kind -> latents (n, D) of cutouts (n, S, S)."""
    inputs = torch.from_numpy(images)[:, None]
    if masks is not None:
        inputs = torch.cat([inputs, torch.from_numpy(masks)[:, None].float()], dim=1)
    features = torch.cat([net.encode(part) for part in inputs.split(256)])
    projection = torch.nn.functional.normalize(net.head(features), dim=1)
    return {"projection": projection.double().numpy(), "encoder": features.double().numpy()}


def baselines(images: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, Floats]]:
    """Return what takes no training: contender -> partition -> (n, D)."""
    flat = {name: array.reshape(len(array), -1).astype(np.float64) for name, array in images.items()}
    some = np.random.default_rng(1).permutation(len(flat["train"]))[:2048]
    pca = fit_pca(flat["train"][some])
    of = {name: statistics_of(torch.from_numpy(array)).double().numpy() for name, array in images.items()}
    return {
        "image PCA, 64 squared": {name: pca.transform(array)[:, :64] ** 2 for name, array in flat.items()},
        "log power spectrum": {name: np.log(radial_power(array)) for name, array in images.items()},
        "DT and moments": {name: array[:, :4] for name, array in of.items()},
        "16 statistics": of,
    }


def probes(nets: dict[str, ContrastiveNet], folder: Path, size: int) -> dict[str, dict[str, float]]:
    """Return contender -> truth -> R2 on an ocean that is generated unless it is there."""
    fit, judge, seed = ROWS[size]
    path = folder / f"judged_{size}_preproc.h5"
    if not path.exists():
        write_ocean(path, {"train": fit, "valid": judge}, seed, OceanOptions(size))
    images, truth = {}, {}
    for name in ("train", "valid"):
        images[name], truth[name] = read(path, name)
    found = baselines(images)
    for name, net in nets.items():
        of = {partition: latents(net, array) for partition, array in images.items()}
        for kind in ("projection", "encoder"):
            found[f"{name}, {kind}"] = {partition: values[kind] for partition, values in of.items()}
    return {
        name: {t: probe(of["train"], of["valid"], truth["train"][t], truth["valid"][t]) for t in TARGETS}
        for name, of in found.items()
    }


def clouded(net: ContrastiveNet, folder: Path, inputs: list[Path]) -> dict[str, Any]:
    """Return source -> share -> cosine, overlap of neighbours, own cutout nearest, of clear cutouts set aside."""
    found: dict[str, Any] = {}
    sets = {name: of["valid"] for name, of in real(folder, inputs).items()}
    for name, cutouts in sets.items():
        clear = cutouts.images if cutouts.masks is None else cutouts.images[~cutouts.masks.flatten(1).any(dim=1)]
        images = clear[:384, :32, :32].numpy()
        if len(images) < 20:
            continue
        whole = latents(net, images)["projection"]
        found[name] = {"cutouts": len(images)}
        for share in SHARES:
            masked = latents(net, images, masks_of("smooth", share, len(images)))["projection"]
            found[name][str(share)] = three_figures(whole, masked)
    return found


def main() -> int:
    """Judge and print."""
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    folder = Path(words.get("out", "outputs/ocean"))
    folder.mkdir(parents=True, exist_ok=True)
    trained = network(Path(words["weights"]))
    nets = {"ocean": trained, "untrained": network(None, trained)}
    if "plain" in words:
        nets["published recipe"] = network(Path(words["plain"]))
    result: dict[str, Any] = {"machine": machine(), "words": words}
    for size in map(int, words.get("sizes", "32,64").split(",")):
        result[f"r2_{size}"] = probes(nets, folder, size)
        print(f"{f'R2, {size} pixels':32s}" + "".join(f"{target:>17s}" for target in TARGETS))
        for name, of in result[f"r2_{size}"].items():
            print(f"{name:32s}" + "".join(f"{of[target]:17.3f}" for target in TARGETS), flush=True)
    if "data" in words:
        result["clouds"] = clouded(trained, folder, [Path(word) for word in words["data"].split(",")])
        for name, of in result["clouds"].items():
            print(
                f"{name:12s} {of['cutouts']:4d}", *(f"{s}: {'/'.join(f'{v:.2f}' for v in of[str(s)])}" for s in SHARES)
            )
    (folder / words.get("json", "probes.json")).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
