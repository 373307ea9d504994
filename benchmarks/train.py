"""Training on the CPU: making views, one step, a complete run; against plain PyTorch and the original's loader.

    python benchmarks/train.py [--quick] [--threads 1]

- views: two views of each cutout of a batch, from memory; the peers make them one by one (scikit-image as the original,
  `grid_sample` as in `benchmarks/peers/plain_training.py`).
- step: forward, loss, backward and update of ResNet18 on views that are there; the peer is the plain script's step.
  `nenya, auto` is what trainer.precision=auto and model.layout=auto choose for this processor.
- run: a complete training from a gzip-compressed file with automatic chunks, and from an uncompressed one, start-up
  excluded; the peer is the plain script with two loader processes.

Figures are samples (cutouts) a second, medians of contenders in turn; with one thread, of the processor's time.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from clock import seconds
from common import RESULTS, interleave, machine, make_cutouts, medians, write

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import plain_training
from original_loader import original_view

from nenya.cli import run_command
from nenya.commands.compose import compose
from nenya.data.augment import ViewSampler
from nenya.models.contrastive import make_net
from nenya.models.losses import contrastive_loss
from nenya.models.optimizers import make_optimizer
from nenya.runtime.allocator import keep_freed_memory
from nenya.runtime.processor import settle

RUN = ["model=demo", "trainer=cpu", "trainer.limit_val_batches=0", "loader.num_workers=0"]


def timed(call, samples):
    """Return a function that runs once and returns samples a second."""
    return lambda: samples / seconds(call)


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


def steps(batch, side, width=64):
    """Return the contenders of one step of ResNet18 with `width` channels in its first stage."""
    made = torch.randn(2, batch, 1, side, side, generator=torch.Generator().manual_seed(0))
    network = ["model=custom", "model.ssl_model=resnet18", "model.nchannels=1", f"model.width={width}"]
    plain = plain_training.Network(width=width)
    other = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def ours(*more):
        options, _ = settle(compose("train", [*network, "trainer.accelerator=cpu", *more]))
        net = make_net(options)
        layout = torch.channels_last if options.model.layout == "channels_last" else torch.contiguous_format
        net.to(memory_format=layout)
        optimizer = make_optimizer(options, net, on_gpu=False)
        views = made.transpose(0, 1).flatten(0, 1).contiguous(memory_format=layout)

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=options.trainer.precision == "bf16-mixed"):
                loss = contrastive_loss(net(views).unflatten(0, (batch, 2)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return timed(step, batch)

    return {
        "nenya": ours(),
        "nenya, auto": ours("trainer.precision=auto", "model.layout=auto"),
        "plain": timed(lambda: plain_training.step(plain, other, *made), batch),
    }


def runs(path, folder, rows, epochs):
    """Return the contenders of a complete training of the demonstration's network."""
    args = [*RUN, f"trainer.max_epochs={epochs}", f"data={path}", f"out={folder / 'run'}", "clobber=true"]

    def ours(*more):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            if run_command("train", [*args, *more]):
                raise RuntimeError(said.getvalue())

    def plain():
        network = plain_training.Network(width=16, features=64)
        plain_training.train(path, network, 64, epochs, workers=2, crop=24, jitter=3)

    float32 = "trainer.precision=32-true", "model.layout=contiguous"
    return {
        "nenya": timed(lambda: ours(*float32), rows * epochs),
        "nenya, auto": timed(ours, rows * epochs),
        "plain": timed(plain, rows * epochs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn on a few cutouts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each contender")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    quick = arguments.quick
    about, repeats, rows = machine(), 1 if quick else 3, 256 if quick else 1024
    cutouts = make_cutouts(2 * rows)
    result = {"repeats": repeats, "samples_per_second": {}}

    def measure(name, contenders):
        found = medians(interleave(contenders, repeats))
        result["samples_per_second"][name] = found
        best = found.get("nenya, auto", found["nenya"])
        ratios = ", ".join(f"{best / found[other]:.2f} x {other}" for other in found if "nenya" not in other)
        print(
            f"{name:<32}" + "".join(f"{who} {rate:,.1f}  " for who, rate in found.items()) + f" | {ratios}", flush=True
        )

    for batch in (64, 256):
        measure(f"views, batch {batch}", views(cutouts, batch))
    for batch, side, width in ((8, 64, 64),) if quick else ((64, 32, 16), (16, 64, 64), (32, 32, 64), (8, 128, 64)):
        measure(f"step, batch {batch}, {side} pixels, width {width}", steps(batch, side, width))
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
