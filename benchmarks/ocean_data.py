"""The cutouts that `model=ocean` learns from: generated oceans as sensors and models see them, and real fields.

Letters: n cutouts, S pixels along each side of one, K statistics of a cutout.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from nenya.cli import main as nenya
from nenya.commands.generate import write_ocean
from nenya.io import read_table
from nenya.prepare.ocean import OceanOptions

log = logging.getLogger(__name__)

Images = NDArray[np.float32]

GENERATED = {32: (6144, 512), 48: (8192, 512), 64: (2048, 512), 96: (640, 128)}
"""Side in pixels -> generated cutouts to learn from and to judge by."""

SEED = 7000  # of the generated oceans, plus their side
LEVELS = 3  # of halved resolution, for the statistics


@dataclass(frozen=True)
class Source:
    """A file of real fields, and how cutouts are made of it.

    Attributes:
        file: its name.
        words: of `nenya prepare`; empty for a file of cutouts.
        held: what is set aside and never learnt from: `all`, `east` (of the median longitude; the tenth next to it is
            left out), `late` (the last fifth of the times), or `valid` (that partition).
    """

    file: str
    words: tuple[str, ...]
    held: str


_SWATH = ("sensor=ghrsst", "clear_threshold=50", "inpaint=none", "sub_grid_step=4", "field_size=32")
SOURCES = {
    "modis_aqua": Source("modis_aqua_l2p.nc", (*_SWATH, "quality=none"), "all"),
    "modis_terra": Source("modis_terra_l2p.nc", (*_SWATH, "quality=none"), "east"),
    "viirs": Source("viirs_npp_l2p.nc", _SWATH, "east"),
    "amsr2": Source("amsr2_l2p.nc", _SWATH, "east"),
    "nemo": Source(
        "nemo_orca1_tos_2015-01.nc", ("sensor=nemo", "field_size=32", "sub_grid_step=4", "clear_threshold=60"), "east"
    ),
    "ostia": Source(
        "ostia_monthly_sst.nc", ("sensor=grid", "field_size=16", "sub_grid_step=4", "clear_threshold=100"), "late"
    ),
    "real_sst": Source("real_sst_preproc.h5", (), "valid"),
}
"""Name -> source; `docs/ocean_model.md` says where each is published."""


@dataclass(frozen=True)
class Cutouts:
    """Cutouts of one size.

    Attributes:
        images: (n, S, S) float32 in K, their means removed, 0 at masked pixels.
        masks: (n, S, S) bool, None if nothing is masked.
    """

    images: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


def generated(folder: Path, size: int) -> dict[str, Cutouts]:
    """Return partition -> generated cutouts as sensors see them; they are generated unless they are there."""
    path = folder / f"ocean_{size}_preproc.h5"
    if not path.exists():
        rows = dict(zip(("train", "valid"), GENERATED[size], strict=True))
        write_ocean(path, rows, SEED + size, OceanOptions(size, most_clouds=0.0))
    found = {}
    for number, name in enumerate(("train", "valid")):
        with h5py.File(path) as file:
            images = file[name][()].reshape(-1, size, size)
        seen = as_sensors_see(images, np.random.default_rng([SEED, size, number]))
        found[name] = Cutouts(torch.from_numpy(seen))
    return found


def as_sensors_see(images: Images, rng: np.random.Generator) -> Images:
    """Return cutouts (n, S, S) as a sensor or a model has them: unchanged, MODIS, VIIRS, AMSR2, a model.

    MODIS adds noise of 0.03 to 0.1 K and stripes of ten detectors, VIIRS noise of 0.02 to 0.05 K, AMSR2 blurs over 1 to
    2 pixels and adds smooth noise of 0.05 to 0.2 K, a model blurs over 0.8 to 2 pixels and adds nothing.
    """
    found = np.empty_like(images)
    kinds = rng.choice(5, len(images), p=(0.4, 0.15, 0.1, 0.15, 0.2))
    for i, (image, kind) in enumerate(zip(images, kinds, strict=True)):
        noise = rng.standard_normal(image.shape)
        if kind == 1:
            stripes = np.resize(rng.standard_normal(10), len(image))[:, None]
            image = image + rng.uniform(0.03, 0.1) * noise + rng.uniform(0, 0.05) * stripes
        elif kind == 2:
            image = image + rng.uniform(0.02, 0.05) * noise
        elif kind == 3:
            smooth = gaussian_filter(noise, 0.8, mode="wrap")
            image = gaussian_filter(image, rng.uniform(1, 2)) + rng.uniform(0.05, 0.2) * smooth / smooth.std()
        elif kind == 4:
            image = gaussian_filter(image, rng.uniform(0.8, 2))
        found[i] = image - image.mean()
    return found


def real(folder: Path, inputs: list[Path]) -> dict[str, dict[str, Cutouts]]:
    """Return source -> `train` and `valid` -> real cutouts, for the sources with files among the inputs.

    Args:
        folder: of the cutout files that are made; those that are there are taken.
        inputs: files, or folders of them.
    """
    found = {}
    for name, source in SOURCES.items():
        places = [path / source.file if path.is_dir() else path for path in inputs]
        given = next((path for path in places if path.name == source.file and path.is_file()), None)
        if given is None:
            log.warning("%s is not among data=: the network learns without it", source.file)
            continue
        path = given
        if source.words:
            path = folder / f"{name}_preproc.h5"
            if not path.exists() and nenya(["prepare", *source.words, f"data={given}", f"out={path}"]):
                raise RuntimeError(f"nenya prepare failed for {given}")
        found[name] = _divided(path, source)
    return found


def _divided(path: Path, source: Source) -> dict[str, Cutouts]:
    """Return the cutouts of a file, divided into what is learnt from and what is set aside."""
    with h5py.File(path) as file:
        names = [name for name in ("train", "valid") if name in file]
        parts = [file[name][()].reshape(-1, *file[name].shape[-2:]) for name in names]
    images = np.concatenate(parts).astype(np.float32)
    aside = np.repeat([name == "valid" for name in names], [len(part) for part in parts])
    if source.words:
        table = read_table(path.with_suffix(".parquet"))
        order = {name: i for i, name in enumerate(names)}
        table = table.assign(part=table["pp_type"].map({1: order.get("train"), 0: order.get("valid")}))
        table = table.sort_values(["part", "pp_idx"])
        aside = np.full(len(images), source.held == "all")
        if source.held == "east":
            aside = table["lon"].to_numpy() > float(table["lon"].median())
            between = table["lon"].between(*table["lon"].quantile([0.45, 0.55])).to_numpy()
            images, aside = images[~between], aside[~between]
        elif source.held == "late":
            time = table["datetime"].to_numpy()
            aside = time > np.sort(time)[int(0.8 * len(time))]
    return {"train": _cutouts(images[~aside]), "valid": _cutouts(images[aside])}


def _cutouts(images: Images) -> Cutouts:
    """Return cutouts of NaN at masked pixels; those of fewer than 32 pixels are doubled in size, as a smooth model."""
    masks = ~np.isfinite(images)
    means = np.nanmean(np.where(masks, np.nan, images), axis=(1, 2), keepdims=True) if len(images) else 0.0
    tensor = torch.from_numpy(np.where(masks, 0.0, images - means).astype(np.float32))
    if len(images) and images.shape[-1] < 32:
        side = 2 * images.shape[-1]
        tensor = functional.interpolate(tensor[:, None], size=(side, side), mode="bicubic")[:, 0]
        return Cutouts(tensor)
    return Cutouts(tensor, torch.from_numpy(masks) if masks.any() else None)


def statistics_of(images: Tensor) -> Tensor:
    """Return statistics (n, K) of complete cutouts (n, S, S), computed from their pixels alone.

    DT (T90 - T10) and its logarithm, skewness, kurtosis; and on each of `LEVELS` halved resolutions the coherence of
    the structure tensor, which is 0 for gradients of all directions and 1 for those of one, the logarithms of the
    gradients' variance and kurtosis, and of the variance that the next level has no more.
    """
    level = images[:, None] - images.mean(dim=(1, 2))[:, None, None, None]
    flat = level.flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.1, 0.9]), dim=1)
    scaled = flat / flat.std(dim=1, keepdim=True).clamp(min=1e-6)
    found = [(high - low).clamp(1e-4).log(), (high - low).clamp(max=8.0)]
    found += [scaled.pow(3).mean(1).clamp(-3, 3), scaled.pow(4).mean(1).clamp(max=8)]
    for _ in range(LEVELS):
        down = (level[..., 2:, 1:-1] - level[..., :-2, 1:-1]) / 2
        along = (level[..., 1:-1, 2:] - level[..., 1:-1, :-2]) / 2
        xx, yy, xy = ((a * b).mean(dim=(1, 2, 3)) for a, b in ((along, along), (down, down), (along, down)))
        total = (xx + yy).clamp(min=1e-10)
        square = (along.square() + down.square()).square().mean(dim=(1, 2, 3))
        smaller = functional.avg_pool2d(level, 2)
        detail = level - functional.interpolate(smaller, scale_factor=2, mode="nearest")
        found += [torch.hypot(xx - yy, 2 * xy) / total, total.log(), (square / total.square()).clamp(min=1e-3).log()]
        found.append(detail.square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log())
        level = smaller
    return torch.stack(found, dim=1)
