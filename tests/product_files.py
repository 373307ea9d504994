"""Small files in the layouts of the products that `nenya prepare` has recipes for, as their makers write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from field_files import CELSIUS, EAST, LAT, LON, NORTH, TIME, H, W, save

SSH = ((CELSIUS - 15) * 0.05).astype("f4")
KARIN = (
    "suspect_large_ssh_delta suspect_large_ssh_std suspect_large_ssh_window_std suspect_beam_used "
    "suspect_less_than_nine_beams suspect_ssb_out_of_range degraded_ssb_not_computable degraded_media_delays_missing "
    "bad_outside_of_range degraded bad_not_usable"
)
KARIN_BITS = np.array([1, 2, 4, 8, 16, 32, 1 << 13, 1 << 14, 1 << 28, 1 << 29, 1 << 31], "u4")


def swath(pixels: int = W) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes (H, pixels) of an inclined track of 2 km pixels."""
    along, across = np.meshgrid(np.arange(H) * 2.0, (np.arange(pixels) - pixels / 2) * 2.0, indexing="ij")
    turn = np.deg2rad(77)
    lat = 35 + (along * np.sin(turn) + across * np.cos(turn)) / 111.2
    return lat, (-60 + (along * np.cos(turn) - across * np.sin(turn)) / (111.2 * np.cos(np.deg2rad(lat)))) % 360


def packed(values: np.ndarray, scale: float, offset: float, fill: int, dtype: str = "i2") -> np.ndarray:
    """Integers (H, W) of values, fill where NaN."""
    return np.where(np.isfinite(values), np.round((values - offset) / scale), fill).astype(dtype)


def ghrsst(path: Path) -> str:
    """VIIRS L3U of ACSPO: (time, nj, ni), quality levels 0-5, flags; columns 80-95 are of level 3."""
    lat, lon = swath()
    quality = np.full((1, H, W), 5, "i1")
    quality[..., 80:] = 3
    dims = ("time", "nj", "ni")
    levels = "no_data bad_data worst_quality low_quality acceptable_quality best_quality"
    sst = {
        **{"standard_name": "sea_surface_subskin_temperature", "units": "kelvin", "_FillValue": np.int16(-32768)},
        **{"scale_factor": np.float32(0.01), "add_offset": np.float32(273.15)},
        **{"valid_min": np.int16(-200), "valid_max": np.int16(5000)},
    }
    flags = {"flag_masks": np.array([1, 2, 4], "i2"), "flag_meanings": "microwave land ice"}
    dataset = xr.Dataset(
        {
            "sea_surface_temperature": (dims, packed(CELSIUS, 0.01, 0, -32768)[None], sst),
            "sst_dtime": (dims, np.zeros((1, H, W), "i2"), {"units": "seconds"}),
            "quality_level": (dims, quality, {"flag_values": np.arange(6, dtype="i1"), "flag_meanings": levels}),
            "l2p_flags": (dims, np.zeros((1, H, W), "i2"), flags),
            "lat": (("nj", "ni"), lat.astype("f4"), NORTH),
            "lon": (("nj", "ni"), lon.astype("f4"), EAST),
            "time": ("time", np.array([1072915200], "i4"), {"units": "seconds since 1981-01-01 00:00:00"}),
        }
    )
    return save(dataset, path)


def swot(path: Path, variables: dict[str, Any], pixels: int = 69) -> str:
    """A file of SWOT: lines with a time each."""
    lat, lon = swath(pixels)
    time = TIME + (np.arange(H) * 300).astype("timedelta64[ms]")
    dims = ("num_lines", "num_pixels")
    places = {
        "latitude": (dims, lat, NORTH), "longitude": (dims, lon, EAST),
        "time": ("num_lines", time, {"standard_name": "time"}),
    }  # fmt: skip
    return save(xr.Dataset({**variables, **places}), path)


def swot_l2(path: Path) -> str:
    """SWOT L2 KaRIn, expert: lines 0-9 are bad, pixels 0-9 degraded from line 40, pixels 32-36 (nadir) empty."""
    ssh = SSH[:, :69].copy()
    ssh[:, 32:37] = np.nan
    bits = np.zeros((H, 69), "u4")
    bits[:10], bits[40:, :10], bits[20:30] = np.uint32(1 << 31), 1 << 13, 2
    dims = ("num_lines", "num_pixels")
    quality = {"standard_name": "status_flag", "flag_meanings": KARIN, "flag_masks": KARIN_BITS}
    height = "sea surface height anomaly"
    return swot(
        path,
        {
            "ssha_karin": (dims, ssh, {"units": "m", "long_name": height, "quality_flag": "ssha_karin_qual"}),
            "ssha_karin_2": (dims, ssh, {"units": "m", "long_name": height, "quality_flag": "ssha_karin_2_qual"}),
            "ssha_karin_qual": (dims, bits, quality),
            "ssha_karin_2_qual": (dims, bits * 0, quality),
        },
    )


def swot_l3(path: Path) -> str:
    """SWOT L3: variables of one standard name, a gap at nadir."""
    ssh = SSH[:, :69].copy()
    ssh[:, 32:37] = np.nan
    attrs = {"units": "m", "standard_name": "sea_surface_height_above_sea_level"}
    names = {"ssha_unedited": 0.02, "ssha_unfiltered": 0.01, "ssha_filtered": 0.0, "mdt": 0.5}
    return swot(path, {n: (("num_lines", "num_pixels"), ssh + np.float32(d), attrs) for n, d in names.items()})


def cube(name: str, dims: tuple[str, ...], values: np.ndarray, attrs: Any, coords: Any, **about: str) -> xr.Dataset:
    """A variable on (time, depth, latitude, longitude), as models have it."""
    return xr.Dataset({name: (dims, values, attrs)}, coords=coords, attrs=about)


def glorys(path: Path) -> str:
    """GLORYS12 of CMEMS: thetao (time, depth, latitude, longitude), packed, its fill value in the attributes."""
    dims = ("time", "depth", "latitude", "longitude")
    values = np.stack([packed(CELSIUS - d, 0.0007324442, 21, -32767) for d in (0, 1, 3)])[None]
    attrs = {
        **{"units": "degrees_C", "standard_name": "sea_water_potential_temperature", "_FillValue": np.int16(-32767)},
        **{"scale_factor": np.float32(0.0007324442), "add_offset": np.float32(21), "unit_long": "Degrees Celsius"},
        **{"valid_min": np.int16(-32766), "valid_max": np.int16(32767)},
    }
    depth = ("depth", np.array([0.494, 1.541, 2.646], "f4"), {"positive": "down", "units": "m", "axis": "Z"})
    coords = {
        "time": [TIME],
        "depth": depth,
        "latitude": ("latitude", LAT, NORTH),
        "longitude": ("longitude", LON, EAST),
    }
    return save(cube("thetao", dims, values, attrs, coords, source="MERCATOR GLORYS12V1"), path)


def roms(path: Path) -> str:
    """ROMS: temp (ocean_time, s_rho, eta_rho, xi_rho), the surface last, 1e37 on land and mask_rho."""
    lon, lat = np.meshgrid(LON, LAT)
    mask = np.ones((H, W))
    mask[:16, :16] = 0
    temp = np.stack([np.where(mask == 1, CELSIUS - d, 1e37) for d in (9, 4, 0)])[None].astype("f4")
    rho = ("eta_rho", "xi_rho")
    flags = {"flag_values": np.array([0.0, 1.0]), "flag_meanings": "land water", "long_name": "mask on RHO-points"}
    attrs = {"units": "Celsius", "long_name": "potential temperature", "time": "ocean_time"}
    levels = ("s_rho", np.array([-0.9, -0.5, -0.1]), {"positive": "up", "standard_name": "ocean_s_coordinate_g2"})
    coords = {"lon_rho": (rho, lon, EAST), "lat_rho": (rho, lat, NORTH), "s_rho": levels, "ocean_time": [TIME]}
    dataset = cube("temp", ("ocean_time", "s_rho", *rho), temp, attrs, coords)
    return save(dataset.assign(mask_rho=(rho, mask, flags)), path)


def nemo(path: Path) -> str:
    """NEMO: sosstsst (time_counter, y, x), 0 on land, nav_lat and nav_lon."""
    lon, lat = np.meshgrid(LON, LAT)
    sst = CELSIUS.copy()
    sst[:16, :16] = 0
    variables = {
        "sosstsst": (("time_counter", "y", "x"), sst[None], {"units": "C", "long_name": "Sea Surface temperature"}),
        "sosaline": (("time_counter", "y", "x"), sst[None] + 20, {"units": "PSU", "long_name": "Sea Surface Salinity"}),
        "nav_lat": (("y", "x"), lat.astype("f4"), {"units": "degrees_north"}),
        "nav_lon": (("y", "x"), lon.astype("f4"), {"units": "degrees_east"}),
    }
    return save(xr.Dataset(variables, coords={"time_counter": [TIME]}), path)


def oisst(path: Path) -> str:
    """OISST v2.1: sst, anom, err, ice (time, zlev, lat, lon), packed, 0 to 360 degrees east, -999 missing."""
    dims, sst = ("time", "zlev", "lat", "lon"), CELSIUS.copy()
    sst[:16, :16] = np.nan
    attrs = {
        **{"units": "Celsius", "_FillValue": np.int16(-999), "scale_factor": np.float32(0.01)},
        **{"add_offset": np.float32(0), "valid_min": np.int16(-300), "valid_max": np.int16(4500)},
    }
    stored = packed(sst, 0.01, 0, -999)[None, None]
    names = {
        "anom": "Daily sea surface temperature anomalies",
        "err": "Estimated error standard deviation",
    }
    variables = {name: (dims, stored, {**attrs, "long_name": long}) for name, long in names.items()}
    variables["sst"] = (dims, stored, {**attrs, "long_name": "Daily sea surface temperature"})
    zlev = ("zlev", [0.0], {"units": "meters", "positive": "down", "long_name": "Sea surface height"})
    coords = {"time": [TIME], "zlev": zlev, "lat": ("lat", LAT, NORTH), "lon": ("lon", LON % 360, EAST)}
    title = "NOAA/NCEI 1/4 Degree Daily Optimum Interpolation Sea Surface Temperature (OISST) Analysis"
    return save(xr.Dataset(variables, coords=coords, attrs={"title": title}), path)


def era5(path: Path) -> str:
    """ERA5 of the new CDS: sst in K (valid_time, latitude, longitude), north first, standard_name unknown."""
    sst = CELSIUS + np.float32(273.15)
    sst[:16, :16] = np.nan
    dims = ("valid_time", "latitude", "longitude")
    attrs = {"units": "K", "standard_name": "unknown", "long_name": "Sea surface temperature", "GRIB_paramId": 34}
    coords = {
        "valid_time": ("valid_time", [TIME], {"standard_name": "time", "long_name": "time"}),
        "latitude": ("latitude", LAT[::-1], NORTH), "longitude": ("longitude", LON, EAST),
        "number": ((), 0), "expver": ("valid_time", ["0001"]),
    }  # fmt: skip
    about = {"GRIB_centre": "ecmf", "institution": "European Centre for Medium-Range Weather Forecasts, ECMWF"}
    return save(cube("sst", dims, sst[::-1][None], attrs, coords, **about), path)


def hycom(path: Path) -> str:
    """HYCOM GOFS 3.1: water_temp (time, depth, lat, lon), packed, -30000 missing."""
    sst = CELSIUS.copy()
    sst[:16, :16] = np.nan
    values = np.stack([packed(sst - d, 0.001, 20, -30000) for d in (0, 2)])[None]
    attrs = {
        **{"units": "degC", "standard_name": "sea_water_temperature", "_FillValue": np.int16(-30000)},
        **{"missing_value": np.int16(-30000), "scale_factor": np.float32(0.001), "add_offset": np.float32(20)},
    }
    depth = ("depth", [0.0, 2.0], {"positive": "down", "units": "m", "standard_name": "depth"})
    coords = {"time": [TIME], "depth": depth, "lat": ("lat", LAT, NORTH), "lon": ("lon", LON % 360, EAST)}
    dataset = cube("water_temp", ("time", "depth", "lat", "lon"), values, attrs, coords)
    return save(dataset.assign(tau=("time", [0.0], {"units": "hours since analysis"})), path)


def goes(path: Path) -> str:
    """GOES ABI L2 SST: unsigned packed SST and DQF (y, x), scan angles in radians; columns 80-95 are degraded."""
    quality = np.zeros((H, W), "i1")
    quality[:, 80:] = 1
    flags = "good_quality_qf degraded_quality_qf severely_degraded_quality_qf invalid_due_to_unprocessed_qf"
    sst = {
        **{"units": "K", "standard_name": "sea_surface_skin_temperature", "grid_mapping": "goes_imager_projection"},
        **{"_Unsigned": "true", "_FillValue": np.int16(-1), "scale_factor": np.float32(0.00244163)},
        **{"add_offset": np.float32(180), "valid_range": np.array([0, -6], "i2"), "ancillary_variables": "DQF"},
    }
    projection = {
        **{"grid_mapping_name": "geostationary", "perspective_point_height": 35786023.0, "sweep_angle_axis": "x"},
        **{"semi_major_axis": 6378137.0, "semi_minor_axis": 6356752.31414, "longitude_of_projection_origin": -75.0},
    }
    stored = packed(CELSIUS + 273.15, 0.00244163, 180, 65535, "u2").view("i2")
    dataset = xr.Dataset(
        {
            "SST": (("y", "x"), stored, sst),
            "DQF": (("y", "x"), quality, {"flag_values": np.arange(4, dtype="i1"), "flag_meanings": flags}),
            "x": ("x", -0.05 + 5.6e-5 * np.arange(W), {"units": "rad", "standard_name": "projection_x_coordinate"}),
            "y": ("y", 0.1 - 5.6e-5 * np.arange(H), {"units": "rad", "standard_name": "projection_y_coordinate"}),
            "t": ((), TIME, {"standard_name": "time"}),
            "goes_imager_projection": ((), np.int32(0), projection),
        }
    )
    return save(dataset, path)


PRODUCTS: dict[str, Callable[[Path], str]] = {
    **{"ghrsst": ghrsst, "swot_l2": swot_l2, "swot_l3": swot_l3, "glorys": glorys, "roms": roms, "nemo": nemo},
    **{"oisst": oisst, "era5": era5, "hycom": hycom, "goes": goes},
}
