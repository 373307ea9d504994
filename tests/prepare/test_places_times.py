"""Places that cannot be, coordinates that are none, and times with undeclared fill values."""

import numpy as np
import pyproj
import pytest
import xarray as xr
from field_files import BASE, CELSIUS, EAST, LAT, LON, NORTH, TIME, H, W, cutouts, grid, save

from nenya.errors import NenyaError

SQUARE = CELSIUS[:, :64]
DISK = {
    **{"grid_mapping_name": "geostationary", "perspective_point_height": 35786023.0, "sweep_angle_axis": "x"},
    **{"semi_major_axis": 6378137.0, "semi_minor_axis": 6356752.31414, "longitude_of_projection_origin": -75.2},
}


def projected(values, x, y, units, mapping, dims=("y", "x")):
    """A field on projected coordinates."""
    return xr.Dataset(
        {"tos": (dims, values, {**BASE, "grid_mapping": "crs"}), "crs": ((), np.int32(0), mapping)},
        coords={dims[1]: (dims[1], x, {"units": units}), dims[0]: (dims[0], y, {"units": units}), "time": TIME},
    )


def test_pixels_that_lie_nowhere_are_in_no_cutout(tmp_path):
    """The corners of a full disk are off the Earth, whatever values a file has there."""
    angle = np.linspace(-0.1515, 0.1515, 96)
    field = np.pad(CELSIUS, ((0, 32), (0, 0)), mode="reflect")
    full = projected(field, angle, -angle, "rad", DISK)
    _, table = cutouts(save(full, tmp_path / "a.nc"), tmp_path / "a_preproc.h5", clear_threshold=100)
    disk = pyproj.Proj(proj="geos", h=35786023.0, lon_0=-75.2, sweep="x", a=6378137.0, b=6356752.31414)
    east, north = np.meshgrid(angle * 35786023.0, angle * 35786023.0)
    seen = np.isfinite(disk(east, north, inverse=True)[1])
    whole = [seen[r : r + 16, c : c + 16].all() for r in range(0, 81, 4) for c in range(0, 81, 4)]
    assert 0 < sum(whole) < len(whole) == 21**2
    assert all(seen[r : r + 16, c : c + 16].all() for r, c in zip(table["row"], table["col"], strict=True))
    holed = grid().assign_coords(lat=("lat", np.where(np.arange(H) == 20, np.nan, LAT), NORTH))
    _, table = cutouts(save(holed, tmp_path / "b.nc"), tmp_path / "b_preproc.h5", clear_threshold=100)
    assert len(table) and not ((table["row"] <= 20) & (table["row"] > 4)).any()


def test_projected_coordinates_are_no_degrees_however_small(tmp_path):
    """Kilometres called yc and xc, some below 90, beside a grid_mapping: the projection gives the places."""
    polar = pyproj.CRS(3413)
    mapping = {key: value for key, value in polar.to_cf().items() if key != "crs_wkt"}
    x, y = np.arange(W) - 40.0, np.arange(H) - 32.0
    field = projected(CELSIUS, x, y, "km", mapping, ("yc", "xc"))
    _, table = cutouts(save(field, tmp_path / "a.nc"), tmp_path / "a_preproc.h5")
    assert (table["lat"] > 89).all()
    east, north = (table[name].to_numpy() + 7.5 for name in ("col", "row"))
    lon, lat = pyproj.Transformer.from_crs(polar, 4326, always_xy=True).transform(
        (x[0] + east) * 1e3, (y[0] + north) * 1e3
    )
    np.testing.assert_allclose(table["lat"], lat, atol=1e-3)
    assert (np.abs((table["lon"] - lon + 180) % 360 - 180) * np.cos(np.radians(lat)) < 1e-3).all()


def test_radians_are_converted(tmp_path):
    field = grid()
    for name in ("lat", "lon"):
        field[name] = (name, np.radians(field[name].values), {"units": "radians", "long_name": name})
    _, table = cutouts(save(field, tmp_path / "a.nc"), tmp_path / "a_preproc.h5")
    assert table["lat"].between(30, 37).all() and table["lon"].between(-60, -50).all()


@pytest.mark.parametrize("name", ["lat", "lon"])
def test_coordinates_that_are_the_same_everywhere_are_refused(tmp_path, name):
    field = grid()
    field[name] = (name, np.zeros(field.sizes[name]), field[name].attrs)
    with pytest.raises(NenyaError, match=f"expected degrees in '{name}', got 0 everywhere"):
        cutouts(save(field, tmp_path / "a.nc"), tmp_path / "a_preproc.h5")


@pytest.mark.parametrize("turned", [False, True])
def test_coordinates_on_other_dimensions_of_a_square_are_refused_where_their_order_is_not_known(tmp_path, turned):
    lat, lon = np.meshgrid(LAT, LON[:64], indexing="ij")
    lat, lon = (lat.T, lon.T) if turned else (lat, lon)
    field = xr.Dataset(
        {"tos": (("ny", "nx"), SQUARE, BASE), "lat": (("a", "b"), lat, NORTH), "lon": (("a", "b"), lon, EAST)},
        coords={"time": TIME},
    )
    path = save(field, tmp_path / "a.nc")
    if turned:
        with pytest.raises(NenyaError, match="its values run along nx: their order is not known"):
            cutouts(path, tmp_path / "a_preproc.h5")
        return
    images, table = cutouts(path, tmp_path / "a_preproc.h5")
    row, col = (
        np.rint((table["lat"] - 30) / 0.1 - 7.5).astype(int),
        np.rint((table["lon"] + 60) / 0.1 - 7.5).astype(int),
    )
    for image, r, c in zip(images, row, col, strict=True):
        np.testing.assert_allclose(image, SQUARE[r : r + 16, c : c + 16], atol=1e-4)


@pytest.mark.parametrize("units", ["degrees_Celsius", "degrees_kelvin", "degrees C", "degree_C"])
def test_units_that_begin_like_those_of_a_coordinate_are_a_temperature(tmp_path, units):
    shift = 273.15 if "kelvin" in units else 0
    images, _ = cutouts(
        save(grid(CELSIUS + np.float32(shift), units=units), tmp_path / "a.nc"), tmp_path / "a_preproc.h5"
    )
    np.testing.assert_allclose(images[0], CELSIUS[:16, :16], atol=1e-4)


@pytest.mark.parametrize("fill", [9.96921e36, 1e20, -1e15])
def test_times_with_an_undeclared_fill_value_are_left_out(tmp_path, fill):
    field = grid(times=(TIME, TIME, TIME)).drop_vars("time")
    field = field.assign_coords(time=("time", [0.0, fill, 1.0], {"units": "days since 2015-01-01"}))
    _, table = cutouts(save(field, tmp_path / "a.nc"), tmp_path / "a_preproc.h5")
    assert sorted(table["datetime"].unique()) == [np.datetime64("2015-01-01"), np.datetime64("2015-01-02")]


def test_dates_of_the_julian_calendar_are_those_of_ours(tmp_path):
    field = grid().drop_vars("time")
    attrs = {"units": "days since 1900-01-01", "calendar": "julian"}
    _, table = cutouts(
        save(field.assign_coords(time=("time", [0.0], attrs)), tmp_path / "a.nc"), tmp_path / "a_preproc.h5"
    )
    assert (table["datetime"] == np.datetime64("1900-01-13")).all()


def test_one_date_is_not_that_of_several_steps(tmp_path):
    path = save(grid(times=(TIME, TIME + np.timedelta64(1, "D"))), tmp_path / "a.nc")
    with pytest.raises(NenyaError, match="expected a time for each of the 2 steps of 'tos', got one date"):
        cutouts(path, tmp_path / "a_preproc.h5", time="2015-01-01T00:00")
