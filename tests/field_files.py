"""Small files of fields with whatever is wrong in other people's, and what `nenya prepare` makes of them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr
from granules import red_field

from nenya.prepare.job import prepare

H, W = 64, 96
TIME = np.datetime64("2015-01-01T00:00", "ns")
NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}
LAT, LON = 30 + 0.1 * np.arange(H), -60 + 0.1 * np.arange(W)
CELSIUS: np.ndarray = (15 + 2 * red_field((H, W), 0)).astype("f4")
BASE = {"units": "degC", "standard_name": "sea_surface_temperature"}


def grid(values: np.ndarray = CELSIUS, name: str = "tos", times: Any = (TIME,), **attrs: Any) -> xr.Dataset:
    """A regular grid (time, lat, lon); an attribute None is left out."""
    stack = np.broadcast_to(values, (len(times), H, W)) if values.ndim == 2 else values
    kept = {key: value for key, value in {**BASE, **attrs}.items() if value is not None}
    return xr.Dataset(
        {name: (("time", "lat", "lon"), stack, kept)},
        coords={"time": ("time", list(times)), "lat": ("lat", LAT, NORTH), "lon": ("lon", LON, EAST)},
    )


def save(dataset: xr.Dataset, path: Path, **raw: dict[str, Any]) -> str:
    """Write a dataset; `raw` has attributes of variables as HDF5 should store them, None removes one."""
    dataset.to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "a") as file:
        for name, attributes in raw.items():
            for key, value in attributes.items():
                if key in file[name].attrs:
                    del file[name].attrs[key]
                if value is not None:
                    file[name].attrs.create(key, value)
    return str(path)


def cutouts(data: Any, out: Path, **options: Any) -> tuple[np.ndarray, pd.DataFrame]:
    """Prepare without filling; return images (N, H, W) in the order of the table, with their means, and the table."""
    plain = {"workers": 1, "field_size": 16, "inpaint": "none", "demean": False, "valid_fraction": 0.0}
    prepare({**plain, "data": data, "out": str(out), **options})
    with h5py.File(out) as file:
        images = file["train"][:, 0]
    return images, pd.read_parquet(out.with_suffix(".parquet"))
