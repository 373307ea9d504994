"""Attributes of a file that would take for ever or open files: units, projections, flags."""

import numpy as np
import pyproj
import pytest
import xarray as xr

from nenya.errors import InputFileError
from nenya.options.declare import suggest
from nenya.prepare.flags import flag_test
from nenya.prepare.projections import project
from nenya.prepare.units import read_units


@pytest.mark.parametrize(
    "text",
    [
        "1e9**1e9",
        "9**9**9**9",
        "m*9**9**9",
        "m**9**9**9",
        "m**(9)**(9)**(9)**9",
        "((((9**9)**9)**9)**9)**9 m",
        "(((9 m)**9)**9)**9",
        "m2**9**9",
        "m**999999999",
        "(" * 200_000,
        " " * 200_000 + "x",
        "?" * 100_000 + "z",
        "é" * 200_000,
        "kilo" * 30_000 + "m",
        "1e999 K",
        "10^" + "9" * 60 + " m",
        "1e-999 m",
    ],
    ids=range(17),
)
def test_units_that_take_for_ever_are_none(text):
    assert read_units(text) is None


@pytest.mark.parametrize(
    "text", ["m^2 s^-2", "(m/s)^2", "mg m**-3", "W/m^2", "m s-1", "m**0.5", "W (m^2)", "10**-2 degC"]
)
def test_powers_of_units_are_read(text):
    assert read_units(text) is not None


def grid(**attrs):
    axis = np.arange(1.0, 6.0) * 1e5
    return xr.Dataset(
        {"sst": (("y", "x"), np.zeros((5, 5)), {"grid_mapping": "crs"}), "crs": ((), 0, attrs)},
        coords={name: (name, axis, {"units": "m"}) for name in ("y", "x")},
    )


def places(**attrs):
    dataset = grid(**attrs)
    return project(dataset, dataset.sst, "a.nc")


@pytest.mark.parametrize("key", ["proj4", "spatial_ref", "crs_wkt", "horizontal_datum_name"])
def test_a_projection_opens_no_file(tmp_path, key):
    """PROJ reads definitions and shifts from any file that a text names."""
    secret = tmp_path / "secret"
    secret.write_text("<1> +proj=merc +lat_ts=33 <>\n")
    with pytest.warns(FutureWarning):
        assert pyproj.CRS(f"+init={secret}:1").is_projected, "so it was read"
    more = {"grid_mapping_name": "mercator"} if key.endswith("name") else {}
    texts = [
        f"+init={secret}:1",
        f"+proj=pipeline +step +init={secret}:1",
        f"proj=merc init={secret}:1",
        f"+proj=hgridshift +grids={secret}",
        f"+proj=tinshift +file={secret}",
        f'PROJCS["x",EXTENSION["PROJ4","+proj=merc +nadgrids={secret} +no_defs"]]',
        f'BOUNDCRS[ABRIDGEDTRANSFORMATION["t",PARAMETERFILE["Latitude and longitude difference file","{secret}"]]]',
        '{"a":' * 10_000,
    ]
    for text in texts:
        with pytest.raises(InputFileError, match="cannot be understood") as caught:
            places(**{key: text}, **more)
        assert "names a file" in str(caught.value) and len(str(caught.value)) < 500, text


def test_shifts_between_datums_are_left_out(tmp_path):
    plain = places(proj4="+proj=merc +ellps=WGS84")
    for more in (
        f"+nadgrids={tmp_path}/none.gsb",
        "+geoidgrids=http://127.0.0.1:9/x.tif",
        "+nadgrids=@null,/etc/passwd",
    ):
        found = places(proj4=f"+proj=merc {more} +ellps=WGS84")
        for one, other in zip(plain, found, strict=True):
            np.testing.assert_array_equal(one, other)
    web = "+proj=merc +a=6378137 +b=6378137 +units=m +nadgrids=@null +no_defs"
    for text in (web, "+init=epsg:3857", "EPSG:3857", pyproj.CRS("EPSG:3857").to_wkt("WKT1_GDAL")):
        lat, lon = places(proj4=text, comment="made by init=none, grids=none" * 1000)
        assert lat[4, 4] == pytest.approx(4.48698) and lon[4, 4] == pytest.approx(4.49158)


def test_a_projection_of_a_megabyte_is_refused():
    with pytest.raises(InputFileError, match="attributes have 1000"):
        places(crs_wkt="PROJCS[" + "x" * 10**6)
    with pytest.raises(InputFileError) as caught:
        places(grid_mapping_name="x" * 10_000)
    assert len(str(caught.value)) < 500


def test_flag_meanings_of_a_megabyte_are_not_compared_one_by_one():
    names = [f"flag_number_{i}" for i in range(80_000)]
    variable = xr.DataArray(np.zeros(3, "i1"), attrs={"flag_meanings": " ".join(names), "flag_masks": [1]}, name="f")
    with pytest.raises(InputFileError, match="has no such flag") as caught:
        flag_test(variable, ["lant"], [], "a.nc")
    assert len(str(caught.value)) < 1000
    assert suggest("flag_number_x" * 10_000, names) == "" and "flag_number_5" in suggest("flag_numbr_5", names)
    assert suggest("lamd", ["x" * 10**6, "land"]) == "; did you mean land?"
