"""Extraction from a file with masked pixels, against the same file without masks.

The modes of `preprocess.masked` take turns on two gzip-compressed files of the same fields, one clear, one with smooth
masks of a given share of each cutout. With `calibrated` masked pixels are filled, and each row gets its known error
from a calibration. `speed` is that of rows, relative to the clear file.

    python benchmarks/masked.py [--share 0.2] [--repeats 5] [--threads 1]

With one thread the processor's time is measured: on a shared machine, take `--threads 1`. All work is counted then,
also that of the thread that fills the next block while the network computes.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from clock import seconds
from common import interleave, machine, make_cutouts, medians, write
from scipy.ndimage import gaussian_filter

from nenya.commands import calibrate
from nenya.extraction.batch import run
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.options.calibration import CalibrateOptions
from nenya.options.commands import ExtractOptions
from nenya.options.flat import flat_view
from nenya.options.sections import build_options

NETWORKS = {
    "demo": ({"ssl_model": "resnet18", "width": 16, "feat_dim": 64}, 32, 2048, 64),
    "resnet18": ({"ssl_model": "resnet18", "feat_dim": 256}, 64, 256, 32),
    "resnet50": ({"ssl_model": "resnet50", "feat_dim": 256}, 64, 96, 32),
}
"""Name -> options of the network, side of the cutouts in pixels, number of them, and of those in a forward pass."""


def smooth_masks(shape, share, seed=0):
    """Return masks (n, H, W) of the same share of each cutout: smooth noise above a threshold."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0, shape[1] / 16, shape[2] / 16))
    return noise > np.quantile(noise, 1 - share, axis=(1, 2), keepdims=True)


def measure(name, folder, share, repeats):
    """Return mode -> rows a second, in each turn."""
    network, side, rows, batch = NETWORKS[name]
    cutouts = make_cutouts(rows, side=side)[:, 0]
    masks = smooth_masks(cutouts.shape, share)
    for kind, fields in (("clear", cutouts), ("masked", np.where(masks, np.float32(np.nan), cutouts))):
        with h5py.File(folder / f"{name}_{kind}.h5", "w") as file:
            how = {"chunks": (min(rows, 64), 1, side, side), "compression": "gzip"}
            file.create_dataset("train", data=fields[:, None], **how)
            if kind == "masked":
                file.create_dataset("train_mask", data=masks[:, None].astype(np.uint8), **how)

    def options_of(mode):
        kind, masked = ("clear", "nan") if mode == "clear" else ("masked", mode)
        masked = "fill" if mode == "calibrated" else masked
        weights = folder / f"{name}_{masked == 'mask'}.pth"
        shared = {
            "model": {**network, "mask_channel": masked == "mask"},
            "preprocess": {"masked": masked},
            "loader": {"batch_size_valid": batch},
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
            "ckpt": str(weights),
            "clobber": True,
        }
        own = {"data": str(folder / f"{name}_{kind}.h5"), "out": str(folder / f"{name}_{mode}_latents.h5")}
        if mode == "calibrated":
            own["calibration"] = str(folder / f"{name}_calibration.h5")
            made = {"data": str(folder / f"{name}_clear.h5"), "out": own["calibration"], "masks": 1, "cutouts": 90}
            calibrate.run(build_options(CalibrateOptions, {**shared, **made}))
        options = build_options(ExtractOptions, {**shared, **own})
        if not weights.exists():
            save_pth(weights, make_net(options).eval(), options=flat_view(options), epoch=1)
        run(options)  # what comes first takes longer
        return options

    options = {mode: options_of(mode) for mode in ("clear", "fill", "calibrated", "mask", "mean")}
    return interleave({mode: (lambda o=o: rows / seconds(run, o)) for mode, o in options.items()}, repeats)


def main():
    """Measure, print and write the speeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.2, help="masked share of each cutout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--networks", nargs="+", default=["demo", "resnet18"], choices=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("nenya").setLevel(logging.ERROR)
    about, results = machine(), {"share": arguments.share, "threads": arguments.threads}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(name, Path(folder), arguments.share, arguments.repeats)
        rates = medians(figures)
        speed = {mode: float(np.median(np.divide(f, figures["clear"]))) for mode, f in figures.items()}
        results[name] = {"rows_per_second": rates, "speed": speed, "all": figures}
        print(f"{name}: {arguments.share:.0%} masked; medians of {arguments.repeats}")
        for mode, rate in rates.items():
            print(f"  {mode:<11}{rate:>9.1f} cutouts/s  {speed[mode]:>5.2f} of clear")
    write("masked", results, about)


if __name__ == "__main__":
    main()
