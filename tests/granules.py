"""Generated fields in the forms that archives have: L2P swaths, grids, tiles; with the truth under their clouds."""

from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (2030, 1354)  # rows and columns of a MODIS granule


def red_field(shape: tuple[int, int], seed: int, slope: float = 3.0) -> np.ndarray:
    """Draw a field (H, W), float64, of mean 0 and variance 1 whose power falls as k^-slope."""
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    k[0, 0] = np.inf
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal(shape))
    field = np.fft.irfft2(white * k ** (-slope / 2), s=shape)
    return (field - field.mean()) / field.std()


def clouds(shape: tuple[int, int], seed: int, share: float = 0.3) -> np.ndarray:
    """Draw a mask (H, W) of clouds that cover a share of a field: large banks and many small ones; none for 0."""
    if share == 0:
        return np.zeros(shape, dtype=bool)
    draw = np.random.default_rng(seed).random
    banks = red_field(shape, seed, 4.0)
    small = red_field(shape, seed + 1, 2.0)
    cover = banks > np.quantile(banks, 1 - share)
    return cover | (small > np.quantile(small, 0.99)) | (draw(shape) > 0.999)


def swath_coordinates(shape: tuple[int, int], lat: float, lon: float, heading: float = 20.0, km: float = 1.0) -> Any:
    """Return latitude and longitude (H, W) of a swath around a place, anywhere on the globe, pixels `km` apart."""
    along = (np.arange(shape[0]) - shape[0] / 2)[:, None] * km / 6371
    across = (np.arange(shape[1]) - shape[1] / 2)[None, :] * km / 6371
    turn = np.radians(heading)
    north, east = along * np.cos(turn) + across * np.sin(turn), across * np.cos(turn) - along * np.sin(turn)
    angle = np.hypot(north, east)
    share = np.divide(np.sin(angle), angle, out=np.ones_like(angle), where=angle > 0)
    phi, lam = np.radians(lat), np.radians(lon)
    up = np.array([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])
    to_north = np.array([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)])
    to_east = np.array([-np.sin(lam), np.cos(lam), 0.0])
    x = np.cos(angle)[..., None] * up + (share * north)[..., None] * to_north + (share * east)[..., None] * to_east
    return np.degrees(np.arcsin(x[..., 2])), np.degrees(np.arctan2(x[..., 1], x[..., 0]))


def swath(shape: tuple[int, int] = SHAPE, seed: int = 0, lat: float = 35.0, lon: float = -60.0, **more: Any) -> Any:
    """Return a GHRSST L2P swath as a dataset, and its truth (H, W) in degrees Celsius."""
    import xarray as xr

    truth = 20 + 2 * red_field(shape, seed) + np.linspace(3, -3, shape[0])[:, None]
    cloudy = clouds(shape, seed + 100, more.get("share", 0.3))
    quality = np.where(cloudy, np.random.default_rng(seed).integers(0, 2, shape), 5).astype(np.int8)
    sst = np.where(cloudy & (quality == 0), np.nan, truth - np.where(cloudy, 8.0, 0.0)) + 273.15
    lats, lons = swath_coordinates(shape, lat, lon)
    time = np.datetime64(more.get("time", "2010-03-04T05:06:07"), "ns")
    dims = ("time", "nj", "ni")
    seconds = np.broadcast_to(np.linspace(0, 300, shape[0])[:, None], shape).astype(np.float32)
    flags = "no_data bad_data worst_quality low_quality acceptable_quality best_quality"
    dataset = xr.Dataset(
        {
            "sea_surface_temperature": (
                dims,
                sst[None].astype(np.float32),
                {"standard_name": "sea_surface_skin_temperature", "units": "kelvin", "long_name": "SST"},
            ),
            "sst_dtime": (dims, seconds[None], {"units": "seconds", "long_name": "time difference"}),
            "quality_level": (
                dims,
                quality[None],
                {"flag_meanings": flags, "flag_values": np.arange(6, dtype=np.int8)},
            ),
            "sses_bias": (dims, np.zeros((1, *shape), np.float32), {"units": "kelvin"}),
        },
        coords={
            "lat": (("nj", "ni"), lats.astype(np.float32), {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": (("nj", "ni"), lons.astype(np.float32), {"standard_name": "longitude", "units": "degrees_east"}),
            "time": ("time", [time], {"standard_name": "time"}),
        },
        attrs={"Conventions": "CF-1.7", "title": "generated"},
    )
    return dataset, truth


def write_swath(path: Path, **arguments: Any) -> np.ndarray:
    """Write a swath as archives do, packed and compressed; returns its truth (H, W) in degrees Celsius."""
    dataset, truth = swath(**arguments)
    packed = {"dtype": "int16", "scale_factor": 0.005, "add_offset": 273.15, "_FillValue": -32767}
    zipped = {"zlib": True, "complevel": 1, "shuffle": True}
    encoding: dict[str, Any] = {
        "sea_surface_temperature": {**packed, **zipped},
        "quality_level": {"_FillValue": -128, **zipped},
        "sst_dtime": {"dtype": "int16", "scale_factor": 0.1, "_FillValue": -32768, **zipped},
        "lat": zipped,
        "lon": zipped,
        "time": {"units": "seconds since 1981-01-01", "dtype": "int32"},
    }
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return truth


def grid(shape: tuple[int, int] = (64, 96), times: int = 2, seed: int = 0, **names: str) -> Any:
    """Return a regular CF grid (time, lat, lon) of SST in degrees Celsius, with land, as a dataset."""
    import xarray as xr

    fields = np.stack([15 + 3 * red_field(shape, seed + t) for t in range(times)])
    fields[:, : shape[0] // 4, : shape[1] // 4] = np.nan
    lat, lon, time = (names.get(key, key) for key in ("lat", "lon", "time"))
    days = np.datetime64("2015-01-01", "ns") + np.arange(times) * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "tos": (
                (time, lat, lon),
                fields.astype(np.float32),
                {"standard_name": "sea_surface_temperature", "units": "degC"},
            )
        },
        coords={
            time: (time, days, {"standard_name": "time"}),
            lat: (lat, np.linspace(-30, 30, shape[0]), {"units": "degrees_north"}),
            lon: (lon, 100 + 0.5 * np.arange(shape[1]), {"units": "degrees_east"}),
        },
    )


def tiles(side: int = 96, faces: int = 3, seed: int = 0) -> Any:
    """Return tiles (time, face, j, i) as an LLC model has them: 2 km apart, 0 on land, coordinates of their own."""
    import xarray as xr

    coordinates = [swath_coordinates((side, side), 10.0 + 20 * f, 170.0 + 5 * f, km=2.0) for f in range(faces)]
    lats, lons = (np.stack(axis) for axis in zip(*coordinates, strict=True))
    fields = np.stack([12 + red_field((side, side), seed + f) for f in range(faces)])
    fields[0] = 0
    fields[1, :20] = 0
    dims = ("face", "j", "i")
    return xr.Dataset(
        {"Theta": (("time", *dims), fields[None].astype(np.float32), {"units": "degC", "long_name": "temperature"})},
        coords={
            "XC": (dims, lons, {"units": "degrees_east"}),
            "YC": (dims, lats, {"units": "degrees_north"}),
            "time": ("time", [np.datetime64("2012-06-01T12:00", "ns")]),
        },
    )
