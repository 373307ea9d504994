"""Generated fields: white noise, power laws, cutouts of a simulated turbulent ocean, and files of them.

The sets of the published study are white noise and random fields with a spectral density of k^-2 and k^-4
(`white_noise`, `power_law`). The ocean is a simulation:

The flow is two-dimensional, forced and doubly periodic; lengths are in pixels (one stands for about 2 km) and
times in pixels per r.m.s. velocity. With the streamfunction psi, u = -dpsi/dy, v = dpsi/dx and
q = -(-Laplacian)^(a/2) psi:

    dq/dt + u.grad(q) = F - r q - D(q)
    dT/dt + u.grad(T) = - s (T - G.x) - D(T)

F is white in time on a ring of wavenumbers, r is a linear drag, s a slow relaxation (the air-sea heat flux)
towards a uniform gradient G (K per pixel), and D = nu (-Laplacian)^4 a hyperviscosity that removes what
cascades to the grid. a = 2 is the barotropic vorticity equation, a = 1 surface quasi-geostrophy; between them
the fronts are sharp and still roll up, and the spectrum of T falls as about k^-2, as the ocean's does. Only
the anomaly T - G.x is periodic and is simulated.

Source: Pierrehumbert, Held and Swanson (1994), Chaos Solitons Fractals 4, 1111, for the family of equations.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft  # type: ignore[import-untyped, unused-ignore]  # scipy ships no types
from torch import Tensor

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.storage.disk import atomic_path, write_hdf5

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

SLOPES = {"white": 0.0, "power2": 2.0, "power4": 4.0}  # the published sets: exponent n of their spectral density k^-n
BLOCK_ROWS = 2048  # fields generated and written at once
MIN_GRID = 128  # pixels: about three eddies across
CFL = 1.1  # pixels that the fastest parcel moves in a step; RK4 with dealiased derivatives is stable to 1.35
SNAPSHOTS = 96  # snapshots of one realisation of the flow before the next one
SPIN_UP = 2.0  # turnovers (eddy scale / r.m.s. velocity) after which the temperature variance no longer grows
INTERVAL = 2.0  # pixels that the flow moves, r.m.s., from one snapshot to the next
QUIET_SHARE = 0.2  # share of the cutouts taken from the first turnover, when the gradient is little stirred
EDDY_SCALES = (28.0, 56.0)  # pixels: range of the forced wavelength
GRADIENTS = (0.007, 0.07)  # K per pixel: range of the mean gradient


def white_noise(rows: int, size: int, rng: np.random.Generator) -> FloatArray:
    """Return standard normal noise: (rows, size, size) float32, neither mean nor variance adjusted.

    Examples:
        >>> import numpy as np
        >>> white_noise(2, 32, np.random.default_rng(0)).shape
        (2, 32, 32)
    """
    return rng.standard_normal((rows, size, size), dtype=np.float32)


def power_law(rows: int, size: int, rng: np.random.Generator, *, slope: float) -> FloatArray:
    """Return periodic random fields whose spectral density falls exactly as k^-slope.

    The amplitude of every wave is k^(-slope/2), k in cycles per pixel, and 0 for k = 0; its phase is uniform, and
    opposite for k and -k, so that the field is real.

    Args:
        rows: number of fields; each takes the same number of draws, so the first ones do not depend on `rows`.
        size: pixels along each side.
        rng: source of the phases.
        slope: exponent n of the density k^-n.

    Returns:
        (rows, size, size) float32, each of mean zero and variance one.

    Examples:
        >>> import numpy as np
        >>> fields = power_law(2, 32, np.random.default_rng(0), slope=3)
        >>> fields.shape, round(float(fields.std()), 3)
        ((2, 32, 32), 1.0)
    """
    k = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    k[0, 0] = np.inf
    amplitude = (k ** (-slope / 2) * np.isfinite(k)).astype(np.float32)
    phase = rng.random((rows, *k.shape), dtype=np.float32) * np.float32(2 * np.pi)
    half = (size - 1) // 2
    for column in {0, size // 2} if size % 2 == 0 else {0}:  # waves with their opposite in the same column
        phase[:, size - half :, column] = -phase[:, half:0:-1, column]
        for row in {0, size // 2} if size % 2 == 0 else {0}:  # their own opposites
            phase[:, row, column] = np.where(phase[:, row, column] < np.pi, 0, np.pi)
    waves = np.empty(phase.shape, np.complex64)
    waves.real, waves.imag = amplitude * np.cos(phase), amplitude * np.sin(phase)
    fields: FloatArray = fft.irfft2(waves, s=(size, size))
    fields -= fields.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    fields /= fields.std(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return fields


def published_blocks(kind: str, rows: int, size: int, seed: np.random.SeedSequence) -> Iterator[FloatArray]:
    """Yield one of the published generated sets in blocks (n, size, size) float32.

    Args:
        kind: "white", "power2" or "power4".
        rows: total number of fields; the first ones do not depend on it.
        size: pixels along each side.
        seed: seed of all randomness, such as `np.random.SeedSequence(1234).spawn(2)[0]` for `train`.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key))
    slope = SLOPES[kind]
    draw: Callable[[int], FloatArray] = (
        (lambda n: power_law(n, size, rng, slope=slope)) if slope else (lambda n: white_noise(n, size, rng))
    )
    for start in range(0, rows, BLOCK_ROWS):
        yield draw(min(BLOCK_ROWS, rows - start))


@dataclass(frozen=True)
class FlowOptions:
    """Parameters of the flow; lengths in pixels, times in pixels per r.m.s. velocity.

    Attributes:
        alpha: exponent a that ties q to the streamfunction: 2 barotropic, 1 surface quasi-geostrophic.
        eddy_scale: wavelength at which the flow is forced.
        drag: rate r of the linear drag on q.
        relaxation: rate s at which the temperature returns to the uniform gradient.
        damping: rate of the hyperviscosity at the smallest scale that is kept.
    """

    alpha: float = 1.5
    eddy_scale: float = 40.0
    drag: float = 0.02
    relaxation: float = 0.01
    damping: float = 0.5


class TurbulentOcean:
    """Pseudo-spectral simulation of a turbulent flow and of two temperatures that it stirs.

    The two temperatures have unit mean gradients (1 K per pixel) along x and along y; since their equation is
    linear, a weighted sum of them solves it for every other gradient.

    Args:
        grid: number of pixels along each side of the periodic square; even.
        rng: source of the initial flow and of the forcing.
        options: parameters of the flow.
        device: where it is simulated: "cpu", "cuda".
    """

    def __init__(
        self, grid: int, rng: np.random.Generator, options: FlowOptions | None = None, device: str = "cpu"
    ) -> None:
        self.options = options or FlowOptions()
        self.device = torch.device(device)
        self.grid = grid
        self.rng = rng
        wavenumber = 2 * np.pi * np.fft.fftfreq(grid)
        kx, ky = 2 * np.pi * np.fft.rfftfreq(grid)[None, :], wavenumber[:, None]
        k = np.hypot(kx, ky)
        k[0, 0] = 1.0
        cutoff = 2 * np.pi / 3
        kept = (np.abs(kx) < cutoff) & (np.abs(ky) < cutoff)
        kept[0, 0] = False
        psi_of_q = -1.0 * kept * k**-self.options.alpha
        self._velocity = self._complex(np.stack([-1j * ky * psi_of_q, 1j * kx * psi_of_q]))
        self._minus_div = self._complex(np.stack([-1j * kx * kept, -1j * ky * kept]))
        decay = np.stack([self.options.drag + 0 * k] + 2 * [self.options.relaxation + 0 * k])
        decay += self.options.damping * (k / cutoff) ** 8
        self._decay = torch.from_numpy(decay.astype(np.float32)).to(self.device)
        ring = np.abs(k * self.options.eddy_scale / (2 * np.pi) - 1) < 0.35
        unit = np.sqrt((ring * k ** (2 - 2 * self.options.alpha) * np.where(kx > 0, 2, 1)).sum()) / grid
        self._ring = torch.from_numpy((ring / unit).astype(np.float32)).to(self.device)
        self.state = torch.zeros((3, grid, grid // 2 + 1), dtype=torch.complex64, device=self.device)
        self.state[0] = self._noise()

    def _complex(self, values: npt.NDArray[np.complexfloating]) -> Tensor:
        return torch.from_numpy(values.astype(np.complex64)).to(self.device)

    def white(self) -> Tensor:
        """Return the transform of white noise of deviation one: (grid, grid // 2 + 1) complex64."""
        noise = torch.from_numpy(self.rng.standard_normal((self.grid, self.grid), dtype=np.float32))
        transformed: Tensor = torch.fft.rfft2(noise.to(self.device))
        return transformed

    def _noise(self) -> Tensor:
        """Return random q, r.m.s. velocity one, on the forced ring: (grid, grid // 2 + 1) complex64."""
        return self.white() * self._ring

    def _tendency(self, state: Tensor) -> tuple[Tensor, float]:
        """Return the advective tendency, (3, grid, grid // 2 + 1) complex64, and the greatest speed."""
        velocity = self._velocity * state[0]
        fields = torch.fft.irfft2(torch.cat([velocity, state]))
        flux = torch.fft.rfft2(fields[:2, None] * fields[None, 2:])
        tendency = self._minus_div[0] * flux[0] + self._minus_div[1] * flux[1]
        tendency[1:] -= velocity
        speed = float(fields[:2].abs().sum(dim=0).max())
        return tendency, speed

    def step(self) -> float:
        """Advance by one Runge-Kutta step of fourth order, as long as the CFL condition allows.

        Returns:
            The length of the step, in pixels per r.m.s. velocity.
        """
        first, speed = self._tendency(self.state)
        dt = min(CFL / speed, 2.0)
        second, _ = self._tendency(self.state + dt / 2 * first)
        third, _ = self._tendency(self.state + dt / 2 * second)
        fourth, _ = self._tendency(self.state + dt * third)
        self.state += dt / 6 * (first + 2 * (second + third) + fourth)
        self.state *= torch.exp(-dt * self._decay)
        self.state[0] += math.sqrt(2 * self.options.drag * dt) * self._noise()
        return dt

    def run(self, duration: float) -> None:
        """Advance by at least `duration`, in pixels per r.m.s. velocity."""
        elapsed = 0.0
        while elapsed < duration:
            elapsed += self.step()

    def temperatures(self) -> FloatArray:
        """Return the anomalies from the two unit gradients: (2, grid, grid) float32, K per (K per pixel)."""
        anomalies: FloatArray = torch.fft.irfft2(self.state[1:]).cpu().numpy()
        return anomalies


def _tiles(fields: FloatArray, size: int, rng: np.random.Generator) -> FloatArray:
    """Cut two periodic anomalies into adjacent squares at a random offset and add their unit mean gradients.

    Args:
        fields: (2, grid, grid) float32, K per (K per pixel).
        size: pixels along each side of a square.
        rng: source of the offset.

    Returns:
        (2, M, size, size) float32, M = (grid // size)**2; K per (K per pixel).
    """
    grid = fields.shape[-1]
    along = grid // size
    shift = rng.integers(grid, size=2)
    cropped = np.roll(fields, tuple(shift), axis=(1, 2))[:, : along * size, : along * size]
    tiles = cropped.reshape(2, along, size, along, size).swapaxes(2, 3).reshape(2, along**2, size, size)
    slope = np.arange(size, dtype=np.float32)
    tiles += np.stack(np.broadcast_arrays(slope, slope[:, None]))[:, None]
    return tiles


def _snapshots(size: int, grid: int, seed: np.random.SeedSequence) -> Iterator[FloatArray]:
    """Yield batches of cutouts, (M, size, size) float32 in K, without end, in an order fixed by the seed."""
    (least_scale, most_scale), (least_gradient, most_gradient) = np.log(EDDY_SCALES), np.log(GRADIENTS)
    while True:
        rng = np.random.default_rng(seed.spawn(1)[0])
        eddy_scale = float(np.exp(rng.uniform(least_scale, most_scale)))
        log.debug("new realisation, %d x %d pixels, eddy scale %.1f pixels", grid, grid, eddy_scale)
        ocean = TurbulentOcean(grid, rng, FlowOptions(eddy_scale=eddy_scale))
        young = []
        for _ in range(round(eddy_scale / INTERVAL)):
            ocean.run(INTERVAL)
            young.append(ocean.temperatures())
        ocean.run((SPIN_UP - 1) * eddy_scale)
        for _ in range(SNAPSHOTS):
            stirred = _tiles(ocean.temperatures(), size, rng)
            quiet = _tiles(young[rng.integers(len(young))], size, rng)
            is_quiet = np.less(rng.random(stirred.shape[1]), QUIET_SHARE)
            tiles = np.where(is_quiet[:, None, None], quiet, stirred)
            angle = rng.uniform(0, 2 * np.pi, tiles.shape[1])
            gradient = np.exp(rng.uniform(least_gradient, most_gradient, tiles.shape[1]))
            weights = (gradient * np.stack([np.cos(angle), np.sin(angle)])).astype(np.float32)
            yield np.einsum("gm,gmyx->myx", weights, tiles)
            ocean.run(INTERVAL)


def turbulent_cutouts(
    n: int,
    size: int = 32,
    *,
    seed: int | np.random.SeedSequence,
    noise: float = 0.02,
    grid: int | None = None,
) -> FloatArray:
    """Return cutouts of sea-surface temperature anomaly from simulated ocean turbulence.

    Each cutout has its own position in a snapshot and its own mean gradient, of random direction and of 0.007
    to 0.07 K per pixel (log-uniform): its DT (T90 - T10) lies between about 0.2 and 4 K. One in five comes
    from the first turnover of the flow, when the gradient is little stirred. Successive snapshots of one realisation
    are correlated; sets that must be independent need different seeds.

    Args:
        n: number of cutouts.
        size: pixels along each side of a cutout.
        seed: seed of all randomness. The first cutouts do not depend on `n`.
        noise: standard deviation of the white measurement noise, in K.
        grid: pixels along each side of the simulated square, even, >= size and >= 64; by default 128, or four
            cutouts where that is more.

    Returns:
        (n, size, size) float32, K, each with a mean of zero.

    Raises:
        OptionError: `n`, `size`, `noise` or `grid` is out of range.
    """
    grid = max(MIN_GRID, 4 * size) if grid is None else grid
    if n < 0 or size < 1 or noise < 0:
        raise OptionError(f"expected n >= 0, size >= 1 and noise >= 0, got n={n}, size={size}, noise={noise}")
    if grid < max(size, MIN_GRID // 2) or grid % 2:
        raise OptionError(f"grid={grid}: expected an even number >= {max(size, MIN_GRID // 2)}")
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    flow_seed, noise_seed = np.random.SeedSequence(sequence.entropy, spawn_key=sequence.spawn_key).spawn(2)
    noise_rng = np.random.default_rng(noise_seed)
    cutouts = np.empty((n, size, size), np.float32)
    snapshots = _snapshots(size, grid, flow_seed)
    done = 0
    while done < n:
        batch = next(snapshots)[: n - done].astype(np.float64)
        batch += noise * noise_rng.standard_normal(batch.shape)
        batch -= batch.mean(axis=(1, 2), keepdims=True)
        cutouts[done : done + len(batch)] = batch
        done += len(batch)
    return cutouts


def _as_partition(name: str, cutouts: npt.NDArray[np.floating]) -> FloatArray:
    """Return cutouts (N, H, W) or (N, 1, H, W) as (N, 1, H, W) float32.

    Raises:
        InputFileError: The shape is different.
    """
    array = np.asarray(cutouts, dtype=np.float32)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] != 1 or 0 in array.shape:
        raise InputFileError(
            f"{name}: expected shape (N, H, W) or (N, 1, H, W) with N, H, W >= 1, got {np.shape(cutouts)}"
        )
    return array


def write_cutouts(
    path: str | os.PathLike[str],
    train: npt.NDArray[np.floating] | None,
    valid: npt.NDArray[np.floating] | None,
    *,
    compression: Literal["gzip"] | None = None,
    chunks: int = 64,
) -> None:
    """Write a cutout file atomically.

    Args:
        path: the HDF5 file; overwritten if it exists.
        train: (N, H, W) or (N, 1, H, W), K; written as data set `train`, (N, 1, H, W) float32. None leaves it
            out.
        valid: likewise, data set `valid`.
        compression: filter of HDF5, or None.
        chunks: complete cutouts in each chunk.

    Raises:
        InputFileError: a partition of another shape.
        OptionError: `chunks` < 1, or no partition at all.

    Examples:
        >>> import numpy as np
        >>> from nenya.data.cutouts import inspect_cutouts
        >>> fields = white_noise(6, 32, np.random.default_rng(0))
        >>> write_cutouts("noise_preproc.h5", fields[:4], fields[4:])
        >>> {name: part.rows for name, part in inspect_cutouts("noise_preproc.h5").partitions.items()}
        {'train': 4, 'valid': 2}
    """
    given = {"train": train, "valid": valid}
    partitions = {name: _as_partition(name, array) for name, array in given.items() if array is not None}
    if chunks < 1 or not partitions:
        raise OptionError(
            f"expected chunks >= 1 and at least one partition, got chunks={chunks} and {len(partitions)} partitions"
        )
    with atomic_path(Path(path)) as temporary, write_hdf5(temporary) as file:
        for name, array in partitions.items():
            chunk = (min(chunks, len(array)), *array.shape[1:])
            data = file.create_dataset(name, data=array, chunks=chunk, compression=compression)
            data.attrs["units"] = "K"


def stream_cutouts(
    path: Path,
    partitions: Mapping[str, tuple[tuple[int, ...], Iterator[Mapping[str, npt.NDArray[Any]]]]],
    attributes: Mapping[str, Any],
    chunks: int = 64,
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Write a cutout file atomically, block by block, so that memory does not grow with its length.

    Args:
        path: the HDF5 file; overwritten if it exists.
        partitions: name -> shape (N, H, W), and blocks: suffix ("" for the cutouts, in K, or "_mask") -> (n, H, W).
        attributes: of the file.
        chunks: complete cutouts in each chunk.
        finish: called when all blocks are written, before the file appears.

    Raises:
        OptionError: A partition is empty.
        OutputError: The file cannot be written, for instance on a full disk.
    """
    empty = [name for name, ((rows, *_), _) in partitions.items() if rows < 1]
    if empty or not partitions:
        raise OptionError(f"partition {', '.join(empty) or 'list'} is empty: expected at least one cutout in each")
    try:
        with atomic_path(path) as temporary:
            with write_hdf5(temporary) as file:
                file.attrs.update(attributes)
                for name, ((rows, height, width), blocks) in partitions.items():
                    _stream(file, name, (rows, 1, height, width), blocks, chunks)
            finish()
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _stream(
    file: Any, name: str, shape: tuple[int, ...], blocks: Iterator[Mapping[str, npt.NDArray[Any]]], chunks: int
) -> None:
    start = 0
    for block in blocks:
        for suffix, values in block.items():
            if name + suffix not in file:
                chunk = (min(chunks, shape[0]), *shape[1:])
                data = file.create_dataset(name + suffix, shape, values.dtype, chunks=chunk)
                data.attrs["units"] = "K" if not suffix else "1"
            file[name + suffix][start : start + len(values), 0] = values
        start += len(block[""])
    assert start == shape[0], f"{name}: expected {shape[0]} cutouts, got {start}"
