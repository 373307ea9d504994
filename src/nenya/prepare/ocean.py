"""An ocean-like set of cutouts with a known truth: stirred temperature of a chosen spectrum, placed on a globe.

A simulated flow (`nenya.prepare.synthetic`) stirs a temperature gradient into fronts and eddies. Each cutout takes the
phases of one snapshot, which make the fronts, and gives their waves the spectral density of its own parameters:

    P(k) ~ max(kappa, 1 / eddy_size)^-slope,   kappa^2 = anisotropy * k_along^2 + k_across^2 / anisotropy

with k in cycles per pixel, so that averaged over rings P falls as k^-slope from the eddy size down to two pixels.
The field is cut, scaled to its DT, and gets white noise and clouds.

Letters: n cutouts, S pixels along each side of one, G of the simulated square.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft  # type: ignore[import-untyped, unused-ignore]  # scipy ships no types
from torch import Tensor

from nenya.errors import OptionError
from nenya.prepare.synthetic import EDDY_SCALES, INTERVAL, MIN_GRID, SNAPSHOTS, SPIN_UP, FlowOptions, TurbulentOcean
from nenya.tables.key_columns import TYPES
from nenya.tables.quantities import DT40_SIDE, central_dt

Columns = dict[str, NDArray[Any]]
FloatArray = NDArray[np.float32]

SLOPE_RANGE = (2.0, 4.0)
DT_RANGE = (0.15, 6.0)  # K
NOISE_RANGE = (0.01, 0.1)  # K
MOST_ANISOTROPY = 4.0  # of lengths along and across; their ratio is log-uniform from 1 on, so that a cutout shows it
CLOUDY_SHARE = 0.5  # share of the cutouts that have any cloud
SHARPEST = 4.0  # pixels: shorter waves, which the simulation damps, have random phases
FIRST_DAY, LAST_DAY = "2010-01-01", "2020-01-01"

# Boxes of open ocean: west, east, south, north in degrees, and the factor of DT over quiet seas.
SEAS = {
    "north_pacific": (-180.0, -130.0, 5.0, 50.0, 1.0),
    "kuroshio": (145.0, 165.0, 32.0, 40.0, 3.0),
    "equatorial_pacific": (-175.0, -92.0, -5.0, 5.0, 1.3),
    "south_pacific": (-170.0, -82.0, -50.0, -5.0, 0.8),
    "north_atlantic": (-50.0, -25.0, 8.0, 38.0, 0.9),
    "gulf_stream": (-70.0, -45.0, 35.0, 42.0, 3.0),
    "south_atlantic": (-28.0, 5.0, -50.0, -8.0, 0.9),
    "agulhas": (12.0, 40.0, -43.0, -37.0, 3.0),
    "indian": (62.0, 92.0, -40.0, -9.0, 0.9),
    "southern": (20.0, 65.0, -62.0, -49.0, 1.2),
}


@dataclass(frozen=True)
class OceanOptions:
    """Options of an ocean-like set.

    Attributes:
        size: pixels S along each side of a cutout.
        most_clouds: largest cloudy share of a cutout.
        masked: set cloudy pixels to NaN; otherwise the temperature beneath stays, and only the mask marks them.
        device: where the flow is simulated: "cpu", "cuda".
    """

    size: int = 64
    most_clouds: float = 0.05
    masked: bool = False
    device: str = "cpu"

    @property
    def grid(self) -> int:
        """Pixels G along each side of the simulated square."""
        return max(MIN_GRID, 4 * self.size)


@dataclass(frozen=True)
class OceanBlock:
    """Cutouts and their true parameters.

    Attributes:
        cutouts: (n, S, S) float32, SSTa in K, each with a mean of zero over the pixels that are not NaN.
        clouds: (n, S, S) uint8, 1 where there is a cloud.
        columns: name -> (n,): of the table.
    """

    cutouts: FloatArray
    clouds: NDArray[np.uint8]
    columns: Columns


def ocean_blocks(
    rows: int, seed: np.random.SeedSequence, options: OceanOptions, partition: str = "train", pp_file: str = ""
) -> Iterator[OceanBlock]:
    """Yield an ocean-like set, snapshot by snapshot; the first cutouts do not depend on their number.

    Args:
        rows: total number of cutouts.
        seed: seed of all randomness; partitions that must be independent need different ones.
        options: of the set.
        partition: `train` or `valid`, for the table.
        pp_file: name of their file, for the table.

    Raises:
        OptionError: The options are out of range.
    """
    if rows < 0 or options.size < 8 or not 0 <= options.most_clouds < 1:
        raise OptionError(
            "expected at least 0 cutouts of at least 8 pixels, and clouds from 0 to below 1, got "
            f"{rows} cutouts of {options.size} pixels, clouds up to {options.most_clouds}"
        )
    done = 0
    for rng, spectra, stirred, name in _snapshots(seed, options):
        count = (options.grid // options.size) ** 2
        columns = _parameters(count, rng, options.size)
        fields = _fields(spectra, stirred, columns, rng, options.size)
        block = _finish(fields, columns, rng, options)
        wanted = min(count, rows - done)
        _add_identity(block.columns, partition, pp_file, name, done)
        if wanted:
            yield OceanBlock(
                block.cutouts[:wanted], block.clouds[:wanted], {key: v[:wanted] for key, v in block.columns.items()}
            )
        done += wanted
        if done == rows:
            return


def _snapshots(
    seed: np.random.SeedSequence, options: OceanOptions
) -> Iterator[tuple[np.random.Generator, Tensor, Tensor, str]]:
    """Yield generator, spectra of two temperatures (2, G, G // 2 + 1), mask of the stirred waves, name; without end."""
    sequence = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key)
    least, most = np.log(EDDY_SCALES)
    number = 0
    while True:
        rng = np.random.default_rng(sequence.spawn(1)[0])
        eddy_scale = float(np.exp(rng.uniform(least, most)))
        ocean = TurbulentOcean(options.grid, rng, FlowOptions(eddy_scale=eddy_scale), options.device)
        ky, kx = np.fft.fftfreq(options.grid)[:, None], np.fft.rfftfreq(options.grid)
        stirred = torch.from_numpy(np.hypot(kx, ky) < 1 / SHARPEST).to(ocean.device)
        ocean.run(SPIN_UP * eddy_scale)
        for snapshot in range(SNAPSHOTS):
            white = ocean.white() / options.grid
            yield rng, torch.where(stirred, ocean.state[1:], white), stirred, f"flow{number:03d}_{snapshot:03d}"
            ocean.run(INTERVAL)
        number += 1


def _parameters(count: int, rng: np.random.Generator, size: int) -> Columns:
    """Draw places, dates and the truth of some cutouts; columns (count,)."""
    sea, lat, lon = _places(count, rng)
    energy = np.array([box[4] for box in SEAS.values()])[sea]
    first, last = (np.datetime64(day, "s").astype(np.int64) for day in (FIRST_DAY, LAST_DAY))
    seconds = rng.integers(first, last, count)
    season = np.cos(2 * np.pi * (seconds / (365.25 * 86400) - 0.63 - 0.5 * (lat < 0)))  # warmest in August, February
    warm = 28.5 * np.cos(np.radians(lat)) ** 1.6 - 1.0 + 3.5 * np.sin(np.radians(np.abs(lat))) * season
    shrink = 1 - 0.5 * np.abs(lat) / 62  # the deformation radius falls with latitude
    return {
        "lat": lat,
        "lon": lon,
        "datetime": seconds.astype("datetime64[s]").astype("datetime64[ns]"),
        "region": np.array(list(SEAS))[sea],
        "mean_temperature": np.clip(warm + rng.normal(0, 0.8, count), -1.8, 32),
        "true_slope": rng.uniform(*SLOPE_RANGE, count),
        "true_DT": np.clip(0.6 * energy * np.exp(rng.normal(0, 0.5, count)), *DT_RANGE),
        "true_anisotropy": np.exp(rng.uniform(0, math.log(MOST_ANISOTROPY), count)),
        "true_orientation": rng.uniform(0, 180, count),
        "true_eddy_size": np.clip(size * shrink * np.exp(rng.normal(0, 0.1, count)), size / 3.0, float(size)),
        "true_noise": np.exp(rng.uniform(math.log(NOISE_RANGE[0]), math.log(NOISE_RANGE[1]), count)),
        "front_angle": rng.uniform(0, 360, count),
    }


def _places(count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Draw places evenly over the area of the seas: number of the sea, latitude, longitude in degrees."""
    west, east, south, north, _ = np.array(list(SEAS.values())).T
    low, high = np.sin(np.radians(south)), np.sin(np.radians(north))
    area = (east - west) * (high - low)
    sea = rng.choice(len(SEAS), count, p=area / area.sum())
    lat = np.degrees(np.arcsin(rng.uniform(low[sea], high[sea])))
    return sea, lat, rng.uniform(west[sea], east[sea])


def _fields(spectra: Tensor, stirred: Tensor, columns: Columns, rng: np.random.Generator, size: int) -> FloatArray:
    """Assemble the waves of each cutout and cut it; add its position in the snapshot, `row` and `col`, to the columns.

    `front_angle`, the direction of the stirred gradient, is removed from them.

    Returns:
        (n, S, S) float32, of any scale.
    """
    grid, count = spectra.shape[-2], len(columns["lat"])
    device = spectra.device
    ky, kx = torch.fft.fftfreq(grid, device=device)[:, None], torch.fft.rfftfreq(grid, device=device)
    along = grid // size
    shift = rng.integers(grid, size=2)
    rows, cols = np.divmod(np.arange(count), along)
    columns["row"], columns["col"] = (shift[0] + size * rows) % grid, (shift[1] + size * cols) % grid
    mirrored = rng.integers(2, size=(count, 2)).astype(bool)  # a mirrored flow is equally likely
    angle = np.radians(columns.pop("front_angle"))
    fields = np.empty((count, size, size), np.float32)
    ring = torch.round(torch.hypot(kx, ky) * grid).long()
    for i in range(count):
        wave = float(np.cos(angle[i])) * spectra[0] + float(np.sin(angle[i])) * spectra[1]
        wave = _flattened(torch.where(stirred, wave, spectra[0]), ring) * _amplitude(kx, ky, columns, i)
        field = torch.fft.irfft2(wave)
        row, col = int(columns["row"][i]), int(columns["col"][i])
        fields[i] = torch.roll(field, (-row, -col), (0, 1))[:size, :size].cpu().numpy()
        fields[i] = np.flip(fields[i], tuple(np.flatnonzero(mirrored[i]).tolist()))
        if mirrored[i].sum() == 1:
            columns["true_orientation"][i] = 180 - columns["true_orientation"][i]
    return fields


def _flattened(wave: Tensor, ring: Tensor) -> Tensor:
    """Return waves (G, G // 2 + 1) with a mean power of one in every ring of wavenumbers, and a mean of zero."""
    power = (wave.real**2 + wave.imag**2).reshape(-1)
    count = torch.bincount(ring.reshape(-1))
    mean = torch.bincount(ring.reshape(-1), weights=power) / count
    scale = torch.where(mean > 0, mean, 1.0).rsqrt()
    scale[0] = 0
    return wave * scale[ring]


def _amplitude(kx: Tensor, ky: Tensor, columns: Columns, i: int) -> Tensor:
    """Return the square root of the spectral density of cutout i, (G, G // 2 + 1)."""
    theta, ratio = np.radians(columns["true_orientation"][i]), float(columns["true_anisotropy"][i])
    along = float(np.cos(theta)) * kx + float(np.sin(theta)) * ky
    across = float(np.cos(theta)) * ky - float(np.sin(theta)) * kx
    kappa = torch.sqrt(ratio * along**2 + across**2 / ratio)
    return kappa.clamp_min(1 / float(columns["true_eddy_size"][i])) ** (-float(columns["true_slope"][i]) / 2)


def _finish(fields: FloatArray, columns: Columns, rng: np.random.Generator, options: OceanOptions) -> OceanBlock:
    """Scale fields to their DT, add noise and clouds, remove the means, and add the derived columns."""
    count, size = len(fields), options.size
    low, high = np.percentile(fields, (10, 90), axis=(1, 2))
    clean = fields * (columns["true_DT"] / (high - low))[:, None, None]
    noisy = clean + columns["true_noise"][:, None, None] * rng.standard_normal(fields.shape)
    share = options.most_clouds * rng.random(count) * (rng.random(count) < CLOUDY_SHARE)
    clouds = _clouds(share, size, rng)
    if options.masked:
        noisy[clouds.astype(bool)] = np.nan
    noisy -= np.nanmean(noisy, axis=(1, 2), keepdims=True)
    mean = columns["mean_temperature"]
    t10, t90 = np.nanpercentile(noisy, (10, 90), axis=(1, 2))
    columns |= {
        "clear_fraction": 1 - clouds.mean(axis=(1, 2)),
        "Tmin": mean + np.nanmin(noisy, axis=(1, 2)),
        "Tmax": mean + np.nanmax(noisy, axis=(1, 2)),
        "T10": mean + t10,
        "T90": mean + t90,
        "DT": t90 - t10,
    }
    cutouts = noisy.astype(np.float32)
    if size >= DT40_SIDE:
        columns["DT40"] = central_dt(cutouts, DT40_SIDE)
    return OceanBlock(cutouts, clouds, columns)


def _clouds(share: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return masks (n, S, S) uint8 of coherent clouds that cover these shares of the pixels, to one pixel."""
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    red = fft.irfft2(fft.rfft2(rng.standard_normal((len(share), size, size))) * k**-1.5, s=(size, size))
    order = np.argsort(np.argsort(red.reshape(len(share), -1), axis=1), axis=1)
    masks: NDArray[np.uint8] = (order < np.rint(share * size**2)[:, None]).astype(np.uint8)
    return masks.reshape(len(share), size, size)


def _add_identity(columns: Columns, partition: str, pp_file: str, name: str, start: int) -> None:
    """Add the columns that join a row of the table to its cutout; the UID is a hash of the row."""
    count = len(columns["lat"])
    words = [f"{name}/{partition}/{start + i}/{columns['lat'][i]!r}/{columns['lon'][i]!r}" for i in range(count)]
    uid = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1 for word in words]
    columns |= {
        "UID": np.array(uid, np.int64),
        "filename": np.full(count, f"{partition}_{name}"),
        "pp_file": np.full(count, pp_file),
        "pp_root": np.full(count, "ocean"),
        "pp_type": np.full(count, TYPES.get(partition, -1), np.int64),
        "pp_idx": np.arange(start, start + count, dtype=np.int64),
    }
