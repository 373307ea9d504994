"""Rows and columns by name, never by position: every order of dimensions, direction and kind of coordinates."""

import functools
import itertools

import numpy as np
import pytest
import xarray as xr
from granules import red_field, swath

from nenya.data.orientation import SOUTH_TO_NORTH, SWATH
from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.fields import Layout
from nenya.prepare.geometry import to_vectors
from nenya.prepare.work import prepare_granule

TIME = np.datetime64("2015-01-01", "ns")
OPTIONS = PrepareOptions(field_size=8, step=8, inpaint="none", demean=False)
SQUARE, WIDE = (32, 32), (24, 40)


def plain(shape=WIDE, lat=30.0, lon=-60.0):
    """Return a grid (time, lat, lon) whose values are different everywhere."""
    values = (15 + 2 * red_field(shape, 3)).astype(np.float32)
    return xr.Dataset(
        {"tos": (("time", "lat", "lon"), values[None], {"standard_name": "sea_surface_temperature", "units": "degC"})},
        coords={
            "time": [TIME],
            "lat": ("lat", lat + 0.1 * np.arange(shape[0]), {"units": "degrees_north"}),
            "lon": ("lon", lon + 0.1 * np.arange(shape[1]), {"units": "degrees_east"}),
        },
    )


def cutouts(dataset, **options):
    """Return the cutouts and their places, as `prepare` makes them."""
    settings = PrepareOptions(**{**vars(OPTIONS), **options})
    layout = Layout(dataset, "a.nc", settings)
    return prepare_granule(layout, 0, "a.nc", settings), layout


def same(one, other, atol=1e-9):
    for name in ("images", "row", "col", "height_px"):
        np.testing.assert_array_equal(one[name], other[name])
    for name in ("lat", "lon", "height_km", "width_km"):
        np.testing.assert_allclose(one[name], other[name], atol=atol)


def two_dimensional(dataset, names, order):
    """Return a grid with coordinates of two dimensions, under other names of the dimensions."""
    lat, lon = xr.broadcast(dataset.lat.drop_vars("lat"), dataset.lon.drop_vars("lon"))
    flat = dataset.drop_vars(["lat", "lon"])
    flat = flat.assign_coords(
        nav_lat=lat.transpose(*order).assign_attrs(units="degrees_north"),
        nav_lon=lon.transpose(*order).assign_attrs(units="degrees_east"),
    )
    return flat.rename(dict(zip(("lat", "lon"), names, strict=True)))


@pytest.mark.parametrize("shape", [SQUARE, WIDE])
@pytest.mark.parametrize("dims", list(itertools.permutations(("time", "lat", "lon"))), ids="-".join)
def test_every_order_and_direction_gives_the_same_cutouts(dims, shape):
    wanted, _ = cutouts(plain(shape))
    assert len(wanted["lat"]) == (shape[0] // 8) * (shape[1] // 8)
    for down, west in itertools.product((1, -1), repeat=2):
        dataset = plain(shape).isel(lat=slice(None, None, down), lon=slice(None, None, west)).transpose(*dims)
        forms = [dataset]
        forms += [two_dimensional(dataset, ("y", "x"), order) for order in (("lat", "lon"), ("lon", "lat"))]
        forms += [two_dimensional(dataset, ("a", "b"), ("lon", "lat")), two_dimensional(dataset, ("j", "i"), dims[-2:])
                  if "time" not in dims[-2:] else dataset]  # fmt: skip
        for form in forms:
            found, layout = cutouts(form)
            same(wanted, found)
            assert layout.row_order == SOUTH_TO_NORTH


@pytest.mark.parametrize("lon", [175.0, 355.0])
def test_longitudes_across_the_seam(lon):
    dataset = plain(lon=lon)
    wanted, _ = cutouts(dataset)
    jump = dataset.assign_coords(lon=("lon", (dataset.lon.values + 180) % 360 - 180, dataset.lon.attrs))
    for form in (jump, jump.isel(lon=slice(None, None, -1)), two_dimensional(jump, ("y", "x"), ("lon", "lat"))):
        same(wanted, cutouts(form)[0])


def test_a_global_grid_wraps_whichever_way_it_runs():
    dataset = plain((24, 72)).assign_coords(lat=np.linspace(-40, 40, 24), lon=5.0 * np.arange(72))
    wanted = Layout(dataset, "a.nc", OPTIONS).read(0, -1)
    turned = Layout(dataset.transpose("lon", "time", "lat").isel(lon=slice(None, None, -1)), "a.nc", OPTIONS)
    found = turned.read(0, -1)
    assert wanted.wraps and found.wraps
    np.testing.assert_array_equal(wanted.values, found.values)


@pytest.mark.parametrize("members", [1, 3])
def test_a_member_is_not_chosen_silently(members):
    dataset = plain()
    several = dataset.expand_dims(realization=members).transpose("time", "lat", "realization", "lon")
    if members == 1:
        same(cutouts(dataset)[0], cutouts(several)[0])
        return
    with pytest.raises(InputFileError, match="realization is neither time, level nor position"):
        cutouts(several)


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_a_swath_keeps_its_own_frame(ascending, turned):
    dataset, truth = swath((64, 48), seed=1, share=0, lat=20.0, lon=179.9)
    if not ascending:
        dataset, truth = dataset.isel(nj=slice(None, None, -1)), truth[::-1]
    lats, lons = dataset.lat.values, dataset.lon.values
    if turned:
        dataset = dataset.transpose("ni", "nj", "time")
    found, layout = cutouts(dataset)
    assert layout.row_order == SWATH and len(found["lat"]) == 8 * 6
    for image, row, col, lat, lon, height, width in zip(
        *(found[name] for name in ("images", "row", "col", "lat", "lon", "height_km", "width_km")), strict=True
    ):
        window = np.s_[row : row + 8, col : col + 8]
        np.testing.assert_allclose(image, truth[window], atol=1e-4)
        corners = to_vectors(lats[window], lons[window])[[0, 0, -1, -1], [0, -1, 0, -1]]
        middle = to_vectors(np.array(lat), np.array(lon))
        away = 6371 * np.linalg.norm(corners - middle, axis=1)
        np.testing.assert_allclose(away, np.hypot(3.5, 3.5), rtol=0.01)  # pixels of 1 km: it lies between them
        np.testing.assert_allclose([height, width], 8, rtol=0.01)


def test_corners_and_pixels_of_a_grid_are_those_of_the_source():
    """The four corners lie equally far from the place, the pixels are the source's, and north is the last row."""
    dataset = plain(SQUARE).isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
    found, _ = cutouts(dataset)
    half = 0.35  # degrees from the middle of a cutout of 8 pixels to the middle of its outer ones
    for image, lat, lon in zip(found["images"], found["lat"], found["lon"], strict=True):
        for i, j in itertools.product((0, 1), repeat=2):
            there = {"lat": lat - half + 2 * half * i, "lon": lon - half + 2 * half * j}
            pixel = dataset.tos.sel(there, method="nearest", tolerance=0.01).item()
            assert image[-i, -j] == np.float32(pixel)


def test_tiles_without_a_name_are_told_by_the_names_of_rows_and_columns():
    dataset = two_dimensional(plain(SQUARE), ("j", "i"), ("lat", "lon")).expand_dims(part=2)
    lat, lon = (dataset[name].expand_dims(part=2) for name in ("nav_lat", "nav_lon"))
    dataset = dataset.assign_coords(nav_lat=lat, nav_lon=lon).transpose("i", "part", "time", "j")
    layout = Layout(dataset, "a.nc", OPTIONS)
    assert layout.face_dim == "part" and layout.faces == [0, 1]


# Projections and models


def projected(name):
    """Return a projected field of 40 x 32 pixels without latitude and longitude, and those of its pixels."""
    import pyproj

    x, y, units, mapping = {
        "polar": (4e5 + 5e3 * np.arange(32), -8e5 + 5e3 * np.arange(40), "m", 3413),
        "utm": (300 + 2 * np.arange(32), 4000 + 2 * np.arange(40), "km", 32618),
        "goes": (-0.05 + 1e-4 * np.arange(32), 0.09 + 1e-4 * np.arange(40), "rad", -75.0),
        "himawari": (3578.5831 * (np.arange(32) - 500), 3578.5831 * (np.arange(40) - 400), "m", 140.7),
        "rotated": (-5 + 0.1 * np.arange(32), -3 + 0.1 * np.arange(40), "degrees", 0),
    }[name]  # fmt: skip
    height = 35786023.0 if name == "goes" else 35785831.0
    if name in ("goes", "himawari"):
        attributes = {
            "grid_mapping_name": "geostationary", "perspective_point_height": height, "semi_major_axis": 6378137.0,
            "semi_minor_axis": 6356752.31414, "longitude_of_projection_origin": mapping,
            "sweep_angle_axis": "x" if name == "goes" else "y",
        }  # fmt: skip
        text = f"+proj=geos +h={height} +lon_0={mapping} +sweep={attributes['sweep_angle_axis']} +a=6378137.0"
        crs = pyproj.CRS(f"{text} +b=6356752.31414 +units=m")
    elif name == "rotated":
        attributes = {
            "grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25,
            "grid_north_pole_longitude": -162.0,
        }  # fmt: skip
        crs = pyproj.CRS("+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +o_lon_p=0 +lon_0=18 +R=6371229 +no_defs")
    else:
        crs = pyproj.CRS.from_epsg(mapping)
        attributes = {"crs_wkt": crs.to_wkt()} if name == "utm" else {"spatial_ref": crs.to_wkt()}
    scale = {"km": 1e3, "rad": height}.get(units, 1.0)
    if name == "rotated":
        to_degrees = pyproj.Transformer.from_crs(crs, crs.source_crs, always_xy=True).transform
    else:
        to_degrees = functools.partial(pyproj.Proj(crs), inverse=True)
    lon, lat = to_degrees(*np.meshgrid(x * scale, y * scale))
    values = (15 + 2 * red_field((40, 32), 5)).astype(np.float32)
    kinds = (
        ("grid_latitude", "grid_longitude")
        if name == "rotated"
        else ("projection_y_coordinate", "projection_x_coordinate")
    )
    attrs = {"standard_name": "sea_surface_temperature", "units": "degC", "grid_mapping": "crs"}
    dataset = xr.Dataset(
        {"sst": (("time", "y", "x"), values[None], attrs), "crs": ((), 0, attributes)},
        coords={"time": [TIME], "y": ("y", y, {"units": units, "standard_name": kinds[0]}),
                "x": ("x", x, {"units": units, "standard_name": kinds[1]})},
    )  # fmt: skip
    return dataset, lat, lon


def test_units_of_a_projected_grid_that_are_no_lengths_are_said_once():
    dataset = projected("polar")[0]
    dataset.x.attrs["units"] = "parsec^2"
    with pytest.raises(InputFileError) as caught:
        cutouts(dataset)
    assert str(caught.value).endswith("expected 'x' in metres, kilometres or radians, got 'parsec^2'")
    assert "projection in" not in str(caught.value)


@pytest.mark.parametrize("name", ["polar", "utm", "goes", "himawari", "rotated"])
def test_projected_grids(name):
    dataset, lat, lon = projected(name)
    wanted, layout = cutouts(dataset)
    assert layout.row_order == SOUTH_TO_NORTH and len(wanted["lat"]) == 20
    assert np.isfinite(lat).all()
    field = layout.read(0, -1)
    order = np.argsort(field.values, axis=None), np.argsort(dataset.sst.values[0], axis=None)
    np.testing.assert_allclose(field.lat.ravel()[order[0]], lat.ravel()[order[1]], atol=1e-4)
    np.testing.assert_allclose(field.lon.ravel()[order[0]], lon.ravel()[order[1]], atol=1e-4)
    assert (np.diff(field.lat, axis=0) > 0).mean() > 0.9
    for down, west, dims in itertools.product((1, -1), (1, -1), (("time", "y", "x"), ("x", "time", "y"))):
        form = dataset.isel(y=slice(None, None, down), x=slice(None, None, west)).transpose(*dims)
        same(wanted, cutouts(form)[0])


def test_a_polar_grid_around_its_pole_keeps_its_projection():
    dataset, *_ = projected("polar")
    dataset = dataset.assign_coords(
        x=("x", 5e3 * (np.arange(32) - 15.5), dataset.x.attrs), y=("y", 5e3 * (np.arange(40) - 19.5), dataset.y.attrs)
    )
    wanted, _ = cutouts(dataset)
    same(wanted, cutouts(dataset.isel(y=slice(None, None, -1)).transpose("x", "y", "time"))[0])
    np.testing.assert_array_equal(wanted["images"][0], dataset.sst.values[0, :8, :8])


def test_a_projection_that_is_not_said_is_refused():
    dataset, *_ = projected("utm")
    with pytest.raises(InputFileError, match="has projected coordinates, but no grid_mapping"):
        cutouts(dataset.drop_vars("crs"))
    dataset.crs.attrs = {"grid_mapping_name": "mercatorial"}
    with pytest.raises(InputFileError, match="the projection in 'crs' cannot be understood"):
        cutouts(dataset)


MODELS = {  # latitude, longitude, rows, columns; and, on the same dimensions, those of other points of the cell
    "ROMS": ("lat_rho", "lon_rho", "eta_rho", "xi_rho", ()),
    "NEMO": ("nav_lat", "nav_lon", "y", "x", ()),
    "NEMO mesh": ("gphit", "glamt", "y", "x", ("gphif", "glamf")),
    "POP": ("TLAT", "TLONG", "nlat", "nlon", ("ULAT", "ULONG")),
    "MITgcm": ("YC", "XC", "j", "i", ()),
    "WRF": ("XLAT", "XLONG", "south_north", "west_east", ()),
    "HYCOM": ("Latitude", "Longitude", "Y", "X", ()),
    "MOM": ("geolat", "geolon", "yh", "xh", ("geolat_c", "geolon_c")),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("units", [True, False])
def test_names_of_models(model, units):
    lat, lon, rows, columns, others = MODELS[model]
    wanted, _ = cutouts(plain(SQUARE))
    dataset = two_dimensional(plain(SQUARE), (rows, columns), ("lat", "lon")).rename(nav_lat=lat, nav_lon=lon)
    for name, source in zip(others, (lat, lon), strict=False):
        dataset = dataset.assign_coords({name: dataset[source] + 0.05})
        dataset[name].attrs = dict(dataset[source].attrs)
    if not units:
        for name in (lat, lon, *others):
            dataset[name].attrs = {}
    for form in (dataset, dataset.transpose(columns, "time", rows)):
        same(wanted, cutouts(form)[0])


@pytest.mark.parametrize("shape", [SQUARE, WIDE])
def test_coordinates_on_dimensions_of_other_names(shape):
    """Rows go with rows and columns with columns, by their names."""
    wanted, _ = cutouts(plain(shape))
    dataset = plain(shape).rename(lat="y", lon="x").transpose("x", "time", "y")
    places = two_dimensional(plain(shape), ("nj", "ni"), ("lat", "lon"))
    for order in (("nj", "ni"), ("ni", "nj")):
        turned = {
            name: places[name].transpose(*order).drop_vars("time", errors="ignore") for name in ("nav_lat", "nav_lon")
        }
        same(wanted, cutouts(dataset.drop_vars(["y", "x"]).assign(turned))[0])
    flat = {"latitude": ("nlat", dataset.y.values, {"units": "degrees_north"}),
            "longitude": ("nlon", dataset.x.values, {"units": "degrees_east"})}  # fmt: skip
    same(wanted, cutouts(dataset.drop_vars(["y", "x"]).assign(flat))[0])


def test_moving_coordinates():
    """WRF has its coordinates at each time."""
    dataset = two_dimensional(plain(), ("south_north", "west_east"), ("lat", "lon")).rename(time="Time")
    dataset = dataset.rename(nav_lat="XLAT", nav_lon="XLONG")
    dataset = dataset.assign_coords({name: dataset[name].expand_dims(Time=1) for name in ("XLAT", "XLONG")})
    same(cutouts(plain())[0], cutouts(dataset)[0])
