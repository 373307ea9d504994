"""The granules of the study: real ones where they are, else generated ones in the same form.

Real granules are looked for in the folder that NENYA_SHARED names, or in `shared` beside the repository. They are
GHRSST L2P granules of NASA, cut out around a region, as the tests of podaac/l2ss-py have them. They are too large for
the repository.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import xarray as xr
from pages import ROOT
from scipy import ndimage

NAMES = ("amsr2_l2p.nc", "modis_terra_l2p.nc")
REAL = "Its numbers and pictures are those of real granules of GHRSST, L2P: AMSR2 (REMSS) and MODIS Terra (JPL)."
GENERATED = (
    "This build had no real granules. Its pictures are of generated fields in the same form; the numbers in the text "
    "are those of the real granules."
)


def provide_granules(folder: Path, pictures: Path) -> str:
    """Put the granules into `granules/`, and a sentence that says which ones into `study_data.txt` of the pictures.

    Args:
        folder: of the study.
        pictures: of the pages.

    Returns:
        The sentence.
    """
    granules = folder / "granules"
    granules.mkdir(parents=True)
    source = Path(os.environ.get("NENYA_SHARED", ROOT.parent / "shared")) / "trials"
    real = all((source / name).is_file() for name in NAMES)
    if real:
        for name in NAMES:
            shutil.copyfile(source / name, granules / name)
    else:
        _write_swath(granules / NAMES[0], (400, 243), km=10.0, blur=2.0, noise=0.02, seed=1)
        _write_swath(granules / NAMES[1], (900, 1100), km=1.0, blur=0.0, noise=0.08, seed=2)
    sentence = REAL if real else GENERATED
    (pictures / "study_data.txt").write_text(sentence + "\n")
    return sentence


def _write_swath(path: Path, shape: tuple[int, int], *, km: float, blur: float, noise: float, seed: int) -> None:
    """Write a swath in the South Atlantic: a red field in K, blurred, with noise and clouds.

    Args:
        path: the NetCDF file.
        shape: lines and pixels.
        km: side of a pixel.
        blur: standard deviation of the footprint, pixels.
        noise: standard deviation of the noise, K.
        seed: of the field, the clouds and the noise.
    """
    rng = np.random.default_rng(seed)
    field = 4 + 1.5 * ndimage.gaussian_filter(_red(shape, 3.0, rng), blur) + noise * rng.standard_normal(shape)
    field[_red(shape, 3.5, rng) > 0.6] = np.nan
    lines, pixels = np.indices(shape) * km / 111.0
    lat = -48 + lines - lines.mean()
    coordinates = {
        "lat": (("nj", "ni"), lat.astype("float32"), {"units": "degrees_north"}),
        "lon": (("nj", "ni"), (-50 + pixels / np.cos(np.radians(lat))).astype("float32"), {"units": "degrees_east"}),
        "time": (("time",), [np.datetime64("2019-08-21T17:48", "ns")], {"standard_name": "time"}),
    }
    about = {"units": "kelvin", "standard_name": "sea_surface_skin_temperature"}
    kept = (np.where(np.isfinite(field), 5, 0)[None]).astype("int8")
    levels = {"standard_name": "sea_surface_skin_temperature status_flag", "long_name": "quality level of SST pixel"}
    flags = {"flag_values": np.arange(6, dtype="int8"), "flag_meanings": "no_data bad worst low acceptable best"}
    xr.Dataset(
        {
            "sea_surface_temperature": (("time", "nj", "ni"), (field[None] + 273.15).astype("float32"), about),
            "quality_level": (("time", "nj", "ni"), kept, {**levels, **flags}),
        },
        coordinates,
    ).to_netcdf(path, engine="h5netcdf")


def _red(shape: tuple[int, int], slope: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a field of variance 1, with a spectrum that is a power law of the wavenumber."""
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    k[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * k ** (-slope / 2), s=shape)
    return (field - field.mean()) / field.std()
