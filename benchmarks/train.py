"""Training on the CPU: making views, one step, a complete run; against plain PyTorch and the original's loader.

    python benchmarks/train.py [--quick]

- views: two views of each cutout of a batch, from memory; the peers make them one by one (scikit-image as the original,
  `grid_sample` as in `benchmarks/peers/plain_training.py`).
- step: forward, loss, backward and update of ResNet18 on views that are there; the peer is the plain script's step.
- run: a complete training from a gzip-compressed file with automatic chunks, and from an uncompressed one, start-up
  excluded; the peer is the plain script with two loader processes.

Figures are samples (cutouts) a second, medians of contenders in turn.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from common import RESULTS, interleave, machine, make_cutouts, medians, write

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import plain_training
from original_loader import original_view

from nenya.cli import run_command
from nenya.commands.compose import compose
from nenya.data.augment import ViewSampler
from nenya.models.contrastive import make_net
from nenya.models.losses import contrastive_loss

RUN = ["model=demo", "trainer=cpu", "trainer.limit_val_batches=0", "loader.num_workers=0"]


def timed(call, samples):
    """Return a function that runs once and returns samples a second."""

    def run():
        start = time.perf_counter()
        call()
        return samples / (time.perf_counter() - start)

    return run


def views(cutouts, batch):
    """Return the contenders that make two views of each cutout of a batch."""
    images, generator = torch.from_numpy(cutouts[:batch]), torch.Generator().manual_seed(0)
    rng, few = np.random.default_rng(0), min(batch, 64)
    data = plain_training.Views.__new__(plain_training.Views)
    data.crop, data.jitter = 40, 5

    def one_by_one():
        for image in images[:few]:
            data.view(image), data.view(image)

    def original():
        for image in cutouts[:few, 0]:
            original_view(image, 40, 5, rng), original_view(image, 40, 5, rng)

    composed = ViewSampler(resampling="composed")
    return {
        "nenya": timed(lambda: ViewSampler().two_views(images, generator), batch),
        "nenya, composed": timed(lambda: composed.two_views(images, generator), batch),
        "plain": timed(one_by_one, few),
        "original": timed(original, few),
    }


def steps(batch, side):
    """Return the contenders of one step of ResNet18 with 64 channels in its first stage."""
    made = torch.randn(2, batch, 1, side, side, generator=torch.Generator().manual_seed(0))
    options = compose("train", ["model=custom", "model.ssl_model=resnet18", "model.nchannels=1"])
    ours, plain = make_net(options), plain_training.Network()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer = torch.optim.SGD(ours.parameters(), **settings)
    other = torch.optim.SGD(plain.parameters(), **settings)

    def step():
        features = ours(made.transpose(0, 1).flatten(0, 1)).unflatten(0, (batch, 2))
        loss = contrastive_loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"nenya": timed(step, batch), "plain": timed(lambda: plain_training.step(plain, other, *made), batch)}


def runs(path, folder, rows, epochs):
    """Return the contenders of a complete training of the demonstration's network."""
    args = [*RUN, f"trainer.max_epochs={epochs}", f"data={path}", f"out={folder / 'run'}", "clobber=true"]

    def ours():
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            if run_command("train", args):
                raise RuntimeError(said.getvalue())

    def plain():
        network = plain_training.Network(width=16, features=64)
        plain_training.train(path, network, 64, epochs, workers=2, crop=24, jitter=3)

    return {"nenya": timed(ours, rows * epochs), "plain": timed(plain, rows * epochs)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn on a few cutouts")
    quick = parser.parse_args().quick
    about, repeats, rows = machine(), 1 if quick else 3, 256 if quick else 1024
    cutouts = make_cutouts(2 * rows)
    result = {"repeats": repeats, "samples_per_second": {}}

    def measure(name, contenders):
        found = medians(interleave(contenders, repeats))
        result["samples_per_second"][name] = found
        ratios = ", ".join(f"{found['nenya'] / found[other]:.2f} x {other}" for other in found if other != "nenya")
        print(
            f"{name:<32}" + "".join(f"{who} {rate:,.1f}  " for who, rate in found.items()) + f" | {ratios}", flush=True
        )

    for batch in (64, 256):
        measure(f"views, batch {batch}", views(cutouts, batch))
    for batch, side in ((8, 64),) if quick else ((16, 64), (32, 32), (8, 128)):
        measure(f"step, batch {batch}, {side} pixels", steps(batch, side))
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        for name, layout in {"gzip, automatic chunks": {"compression": "gzip"}, "uncompressed": {}}.items():
            path = Path(folder) / "cutouts.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("train", data=cutouts[: rows // 2, :, 16:48, 16:48], **layout)
            measure(f"run, {name}", runs(path, Path(folder), rows // 2, 2))
    write("train", result, about)


if __name__ == "__main__":
    main()
