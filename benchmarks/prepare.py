"""What preparation costs, and how far filled pixels are from the truth: `python benchmarks/prepare.py`.

A generated MODIS granule of 2,030 x 1,354 pixels (packed, compressed L2P) is opened, read and cut in one thread, by
the recipes of MODIS and VIIRS, with each way of filling. The errors are those of the masked pixels of the cutouts,
against the field that the clouds were laid over.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  # after the number of threads
from common import ROOT, interleave, machine, medians, write  # noqa: E402

sys.path.insert(0, str(ROOT / "tests"))
from granules import clouds, red_field, write_swath  # noqa: E402

from nenya.commands.compose import compose  # noqa: E402
from nenya.data.inpaint import inpaint_biharmonic, inpaint_field  # noqa: E402
from nenya.prepare.cutouts import clear_share, grid_windows, integral  # noqa: E402
from nenya.prepare.fields import Layout  # noqa: E402
from nenya.prepare.geometry import Field  # noqa: E402
from nenya.prepare.sources import open_fields  # noqa: E402
from nenya.prepare.work import covered, prepare_granule  # noqa: E402


def granule_seconds(path: Path, sensor: str, inpaint: str) -> float:
    """Return the seconds of one core that a granule takes, from the file to finished cutouts."""
    options = compose("prepare", [f"sensor={sensor}", f"inpaint={inpaint}"])
    start = time.process_time()
    with open_fields(path) as dataset:
        columns = prepare_granule(Layout(dataset, path.name, options), 0, path.name, options)
    seconds = time.process_time() - start
    print(f"  {path.stem} {sensor} {inpaint}: {len(columns['images'])} cutouts, {seconds:.2f} s", flush=True)
    return seconds


def filling_seconds(path: Path, sensor: str) -> dict[str, float]:
    """Return the seconds of one core that the filling alone takes, of all cutouts of a granule."""
    options = compose("prepare", [f"sensor={sensor}"])
    with open_fields(path) as dataset:
        field = Layout(dataset, path.name, options).read(0, -1)
    windows = grid_windows(field, options)
    windows = windows.take(clear_share(integral(np.isfinite(field.values)), windows) >= 0.95)
    start = time.process_time()
    inpaint_field(field.values, np.isnan(field.values) & covered(field.shape, windows))
    fast = time.process_time() - start
    side = (options.field_size, options.field_size)
    pieces = np.lib.stride_tricks.sliding_window_view(field.values, side)[windows.row, windows.col]
    start = time.process_time()
    inpaint_biharmonic(pieces)
    return {"fast": fast, "biharmonic": time.process_time() - start}


def errors(slope: float, seed: int, share: float, noise: float) -> dict[str, float]:
    """Return the error (root mean square over masked pixels, per standard deviation of the field) of each filling."""
    shape = (768, 768)
    truth = red_field(shape, seed, slope)
    truth += noise * np.random.default_rng(seed).standard_normal(shape)
    masked = clouds(shape, seed + 50, share)
    values = np.where(masked, np.nan, truth).astype(np.float32)
    options = compose("prepare", ["field_size=128", "clear_threshold=95"])
    field = Field(values, np.linspace(0, 7, shape[0]), np.linspace(0, 7, shape[1]), np.datetime64("2010-01-01", "us"))
    windows = grid_windows(field, options)
    windows = windows.take(clear_share(integral(~masked), windows) >= 0.95)
    cut = np.lib.stride_tricks.sliding_window_view
    pieces = (windows.row, windows.col)
    holes, right = cut(masked, (128, 128))[pieces], cut(truth, (128, 128))[pieces]
    fast = cut(inpaint_field(values, masked & covered(shape, windows)), (128, 128))[pieces]
    slow = inpaint_biharmonic(cut(values, (128, 128))[pieces])
    mean = np.where(holes, np.nanmean(cut(values, (128, 128))[pieces], axis=(1, 2), keepdims=True), right)
    found = {"fast": fast, "biharmonic": slow, "mean of the cutout": mean}
    spread = float(right.std(axis=(1, 2)).mean())
    result = {k: float(np.sqrt(((v - right)[holes] ** 2).mean())) / spread for k, v in found.items()}
    between = float(np.sqrt(((fast - slow)[holes] ** 2).mean())) / spread
    return {**result, "fast from biharmonic": between, "cutouts": len(windows), "masked": float(holes.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-biharmonic", action="store_true", help="leave out what takes a minute")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "granule.nc"
        write_swath(path, seed=0, share=0.2)
        clear = Path(folder) / "clear.nc"
        write_swath(clear, seed=0, share=0)
        import pandas
        import scipy.ndimage
        import scipy.sparse.linalg
        import skimage.restoration
        import xarray  # noqa: F401  # loaded once a process, not once a granule

        del pandas, scipy, skimage
        contenders: dict[str, Callable[[], float]] = {
            f"{sensor} {way}": lambda sensor=sensor, way=way: granule_seconds(
                clear if way == "none" else path, sensor, way
            )
            for sensor in ("modis", "viirs")
            for way in ("none", "fast")
        }
        seconds = medians(interleave(contenders, arguments.repeats))
        if not arguments.no_biharmonic:
            for sensor in ("modis", "viirs"):
                seconds[f"{sensor} biharmonic"] = granule_seconds(path, sensor, "biharmonic")
        filling = {sensor: filling_seconds(path, sensor) for sensor in ("modis", "viirs")}
    print("of these, filling:", filling)
    print("seconds of one core a granule:", {k: round(v, 2) for k, v in seconds.items()})
    table = {}
    for slope, noise in ((2.0, 0.0), (3.0, 0.0), (3.0, 0.02), (4.0, 0.0)):
        found = errors(slope, 1, 0.2, noise)
        table[f"k^-{slope:g}, noise {noise:g}"] = found
        print(f"k^-{slope:g}, noise {noise:g}:", {k: round(v, 4) for k, v in found.items()})
    print("written to", write("prepare", {"seconds": seconds, "filling_seconds": filling, "errors": table}, about))


if __name__ == "__main__":
    main()
