"""Impossible values, units, valid ranges, constant regions: masked and counted, or refused with the likely cause."""

import logging

import numpy as np
import pytest
import xarray as xr
from field_files import CELSIUS, TIME, H, W, cutouts, grid, save

from nenya.errors import InputFileError
from nenya.prepare.ranges import flat_values, nowhere
from nenya.prepare.units import Conversion, from_pint, plain_text, read_units

CELSIUS_WORDS = [
    *("Celcius", "degrees Celcius", "degree_Celcius", "\u00baC", "\u00b0C", "\u2103", "\u02daC", "centigrade"),
    *("deg. C", "C_degree", "deg_C", "oC", "Deg.Celsius", "degC", "DEGREES_C", "celsius", "c", "[degC]", "C."),
    *("degrees Celsius (ITS-90)", "\u00c2\u00b0C", "deg-C", "Celsius degrees", "celcious"),
]
KELVIN_WORDS = ["K", "kelvin", "Kelvins", "degK", "Degrees Kelvin", "deg_K", "KELVIN", "\u00b0K", "(K)", "Kelvin (K)"]
OTHERS = {
    "Fahrenheit": (lambda c: c * 1.8 + 32, ["degF", "deg_F", "degrees F", "Farenheit", "\u00b0F"]),
    "mK": (lambda c: (c + 273.15) * 1000, ["mK", "1e-3 K", "0.001 kelvin"]),
    "centi-K": (lambda c: (c + 273.15) * 100, ["0.01 K", "cK", "10^-2 K"]),
    "centi-degC": (lambda c: c * 100, ["0.01 degC", "0.01 Celsius"]),
}
SPELLINGS = [
    *((word, CELSIUS) for word in CELSIUS_WORDS),
    *((word, CELSIUS + 273.15) for word in KELVIN_WORDS),
    *((word, change(CELSIUS.astype("f8"))) for change, words in OTHERS.values() for word in words),
]


def same_pixels(path, out, **options):
    images, table = cutouts(path, out, **options)
    assert len(table) == 24
    for image, row in zip(images, table.itertuples(), strict=True):
        np.testing.assert_allclose(image, CELSIUS[row.row : row.row + 16, row.col : row.col + 16], atol=1e-4)


@pytest.mark.parametrize(("units", "values"), SPELLINGS, ids=[f"{i}" for i in range(len(SPELLINGS))])
def test_any_spelling_of_units_gives_the_same_pixels(tmp_path, units, values):
    found = read_units(plain_text(units))
    assert found is not None and found.kind == "temperature"
    np.testing.assert_allclose(values * found.factor + found.offset, CELSIUS, atol=1e-4)
    if units in ("Celcius", "Degrees Kelvin", "degF", "0.01 K"):
        same_pixels(save(grid(values.astype("f4"), units=units), tmp_path / "u.nc"), tmp_path / "u_preproc.h5")


@pytest.mark.parametrize("stored", [b"\xb0C", b"\xc2\xb0C", b"\xbaC", b"degC\0", b"K"])
def test_units_in_any_bytes(tmp_path, stored):
    values = CELSIUS + (273.15 if stored == b"K" else 0)
    path = save(grid(values), tmp_path / "u.nc", tos={"units": np.bytes_(stored)})
    same_pixels(path, tmp_path / "u_preproc.h5")


def test_the_short_way_of_frequent_units_agrees_with_pint():
    for units in ("degC", "K", "m"):
        assert read_units(units) == from_pint(units)
    assert read_units("cm") == Conversion(0.01, 0.0, "length")
    assert read_units("psu").kind == read_units("K m-1").kind == "other"
    assert [read_units(text) for text in ("", "1", "none", "degrees", "unknown", "K*100")] == [None] * 6


@pytest.mark.parametrize(("units", "add"), [(None, 0), (None, 273.15), ("unknown", 273.15), ("degrees", 0), ("1", 0)])
def test_a_temperature_without_units_is_judged_by_its_range_and_said(tmp_path, caplog, units, add):
    path = save(grid(CELSIUS + np.float32(add), units=units), tmp_path / "u.nc")
    with caplog.at_level(logging.WARNING, "nenya"):
        same_pixels(path, tmp_path / "u_preproc.h5")
    assert f"taken as {'K' if add else 'degC'}, by their range" in caplog.text


@pytest.mark.parametrize(
    ("name", "standard", "long"),
    [("sst", "unknown", "Sea surface temperature"), ("SST", None, None), ("TSK", None, "SEA SURFACE SKIN"),
     ("t_surf", "ocean_mixed_layer_temperature", None)],
)  # fmt: skip
def test_kelvin_becomes_degrees_celsius_whatever_the_names(tmp_path, name, standard, long):
    path = save(grid(CELSIUS + 273.15, name, units="K", standard_name=standard, long_name=long), tmp_path / "k.nc")
    same_pixels(path, tmp_path / "k_preproc.h5")


WRONG_UNITS = {
    "kelvin labelled degC": (
        CELSIUS + 273.15,
        "degC",
        {},
        "the values look like kelvin labelled degC; units=K corrects this",
    ),
    "degC labelled kelvin": (CELSIUS, "K", {}, "look like degrees Celsius labelled K; units=degC corrects this"),
    "Fahrenheit labelled degC": (CELSIUS * 1.8 + 32, "degC", {}, "look like degrees Fahrenheit"),
    "degC labelled Fahrenheit": (CELSIUS - 10, "degF", {}, "look like degrees Celsius"),
    "a scale that is missing": (CELSIUS * 100, "degC", {}, "'units=0.01 degC' corrects this"),
    "packed kelvin": ((CELSIUS + 273.15) * 100, "K", {}, "'units=0.01 K' corrects this"),
    "kelvin labelled mK": (CELSIUS + 273.15, "mK", {}, "look like kelvin"),
    "no units, Fahrenheit": (CELSIUS * 1.8 + 32, None, {}, "look like degrees Fahrenheit"),
    "salinity": (CELSIUS + 20, "psu", {}, "got 'psu'"),
    "pressure": (CELSIUS * 1e5, "degC", {}, "possible=[min,max]"),
    "half of it": (np.where(np.arange(W) < W // 2, CELSIUS, CELSIUS + 273.15), "degC", {}, "% of the values outside"),
    "cm labelled m": ((CELSIUS - 15) * 10, "m", {"quantity": "height"}, "look like centimetres labelled m; units=cm"),
    "mm without units": ((CELSIUS - 15) * 1000, None, {"quantity": "height"}, "look like millimetres"),
    "a height in degC": (CELSIUS, "degC", {"quantity": "height"}, "for a height in m or cm, got 'degC'"),
}


@pytest.mark.parametrize("name", WRONG_UNITS)
def test_units_that_the_values_belie_are_refused_with_the_likely_cause(tmp_path, name):
    values, units, options, words = WRONG_UNITS[name]
    standard = "sea_surface_height_above_geoid" if options else "sea_surface_temperature"
    path = save(grid(values.astype("f4"), units=units, standard_name=standard), tmp_path / "w.nc")
    with pytest.raises(InputFileError) as caught:
        cutouts(path, tmp_path / "w_preproc.h5", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["w.nc"]
    if "units=" in words:
        units = words.split("units=")[1].split(" corrects")[0].strip("'")
        images, _ = cutouts(path, tmp_path / "w_preproc.h5", **{**options, "units": units})
        low, high = (-5, 5) if options else (-3, 45)
        assert images.min() >= low and images.max() <= high


def test_heights_in_cm_become_metres(tmp_path):
    heights = (CELSIUS - 15) * 0.1
    for units, factor in (("cm", 100), ("millimeters", 1000), ("M", 1)):
        path = save(
            grid((heights * factor).astype("f4"), "sla", units=units, standard_name=None), tmp_path / f"{units}.nc"
        )
        images, table = cutouts(path, tmp_path / f"{units}_preproc.h5", sensor="ssh", field_size=16, sub_grid_step=1)
        first = table.iloc[0]
        np.testing.assert_allclose(
            images[0], heights[first.row : first.row + 16, first.col : first.col + 16], atol=1e-6
        )


def test_anomalies_and_gradients_keep_their_zero(tmp_path):
    for units in ("K", "degC"):
        path = save(grid(CELSIUS - 15, "sst_anomaly", units=units, standard_name=None), tmp_path / f"{units}.nc")
        images, _ = cutouts(path, tmp_path / f"{units}_preproc.h5", variable="sst_anomaly")
        assert abs(images.mean()) < 0.01 and images.min() < -2


# Undeclared fills

FILLS = (-1000, -999, 1e10, 1e20, 32767, 9.96921e36)


@pytest.mark.parametrize("fill", FILLS)
def test_a_few_undeclared_fills_are_masked_and_counted(tmp_path, caplog, fill):
    values = CELSIUS.copy()
    values[40:44, 50:60] = fill
    with caplog.at_level(logging.INFO, "nenya"):
        images, table = cutouts(save(grid(values), tmp_path / "f.nc"), tmp_path / "f_preproc.h5")
    assert len(table) == 23 and images.min() >= 9 and images.max() <= 20
    assert "impossible 0.7 %" in caplog.text and "-3 to 45 degC are impossible and masked, mostly" in caplog.text


@pytest.mark.parametrize("fill", [-999, 1e20, 32767])
def test_much_undeclared_fill_is_refused_and_the_advice_works(tmp_path, fill):
    values = CELSIUS.copy()
    values[:20, :40] = fill
    path = save(grid(values), tmp_path / "f.nc")
    with pytest.raises(
        InputFileError, match=r"fill value or land that the file does not declare; land=\S+ masks it"
    ) as e:
        cutouts(path, tmp_path / "f_preproc.h5")
    land = float(str(e.value).split("land=")[1].split()[0])
    images, table = cutouts(path, tmp_path / "f_preproc.h5", land=land)
    assert len(table) == 24 - 6 and images.max() <= 20
    if fill == -999:
        _, table = cutouts(path, tmp_path / "g_preproc.h5", impossible_most=20)
        assert len(table) == 24 - 6


@pytest.mark.parametrize("land", [0.0, 5.0, 273.15])
def test_constant_land_within_the_possible_range_is_masked_and_said(tmp_path, caplog, land):
    add = 273.15 if land > 100 else 0
    values = CELSIUS + np.float32(add)
    values[:20, :40] = land
    path = save(grid(values, units="K" if add else "degC"), tmp_path / "l.nc")
    with caplog.at_level(logging.INFO, "nenya"):
        images, table = cutouts(path, tmp_path / "l_preproc.h5")
    assert len(table) == 24 - 6 and images.min() > 9
    assert "constant 13.0 %" in caplog.text and "mask_constant=false keeps them" in caplog.text
    _, table = cutouts(path, tmp_path / "k_preproc.h5", mask_constant=False)
    assert len(table) == 24 - 2  # two cutouts are land only, and so constant


def test_ice_at_the_freezing_point_is_no_land(tmp_path):
    values = np.maximum(CELSIUS - 16, -1.8).astype("f4")
    assert 0.1 < (values == np.float32(-1.8)).mean() < 0.5
    assert flat_values(values, np.ones_like(values, bool)) == []
    _, table = cutouts(save(grid(values), tmp_path / "i.nc"), tmp_path / "i_preproc.h5")
    assert len(table) > 12


def test_constant_cutouts_are_left_out_and_counted(tmp_path, caplog):
    values = CELSIUS.copy()
    values[:32, :32] = 15.0
    with caplog.at_level(logging.INFO, "nenya"):
        _, table = cutouts(save(grid(values), tmp_path / "c.nc"), tmp_path / "c_preproc.h5", mask_constant=False)
    assert len(table) == 20 and "4 constant cutouts left out" in caplog.text
    with pytest.raises(InputFileError, match="all 24 cutouts with enough clear pixels are const"):
        cutouts(save(grid(np.full_like(values, 15)), tmp_path / "d.nc"), tmp_path / "d_preproc.h5")
    values[:16, :16] = np.nan
    values[3, 3] = 7  # one pixel alone, and nothing else
    with caplog.at_level(logging.INFO, "nenya"):
        _, table = cutouts(
            save(grid(values), tmp_path / "e.nc"), tmp_path / "e_preproc.h5",
            clear_threshold=0, inpaint="fast", mask_constant=False,
        )  # fmt: skip
    assert len(table) == 20


def test_a_field_of_unknown_kind_has_no_fills_either(tmp_path):
    path = save(grid(values_with(-9999.0), "chl", units="mg m-3", standard_name=None), tmp_path / "c.nc")
    images, table = cutouts(path, tmp_path / "c_preproc.h5")
    assert len(table) == 23 and images.min() > 0


def values_with(fill):
    values = CELSIUS.copy()
    values[40:44, 50:60] = fill
    return values


def test_a_field_of_unknown_kind_has_no_constant_region_far_from_all_else(tmp_path):
    values = (CELSIUS - 15) * np.float32(0.01)
    values[:20, :12] = -7777
    path = save(grid(values, "kd490", standard_name=None, units="m-1"), tmp_path / "a.nc")
    images, _ = cutouts(path, tmp_path / "a_preproc.h5", clear_threshold=100)
    assert len(images) == 22 and np.abs(images).max() < 1


def test_an_anomaly_in_kelvin_is_never_taken_for_hundredths_of_a_degree(tmp_path):
    said = {"standard_name": None, "units": "kelvin"}
    path = save(grid(CELSIUS - 15, "ssta", long_name="SST anomalies", **said), tmp_path / "a.nc")
    images, _ = cutouts(path, tmp_path / "a_preproc.h5", variable="ssta")
    np.testing.assert_allclose(images[0], CELSIUS[:16, :16] - 15, atol=1e-5)
    path = save(grid(CELSIUS - 15, "sst", **said), tmp_path / "b.nc")
    with pytest.raises(InputFileError) as caught:
        cutouts(path, tmp_path / "b_preproc.h5")
    assert "hundredths" not in str(caught.value), caught.value


@pytest.mark.parametrize("share", [4.0, 6.0])
def test_the_share_of_impossible_values_is_counted_after_masks(tmp_path, share):
    values = CELSIUS.copy()
    values[: H // 2] = np.nan
    flat = values[H // 2 :].reshape(-1)
    flat[: int(len(flat) * share / 100)] = 99 + np.arange(int(len(flat) * share / 100)) * 0.01
    path = save(grid(values), tmp_path / "s.nc")
    if share > 5:
        with pytest.raises(InputFileError, match=r"got 5.99 % of the values outside"):
            cutouts(path, tmp_path / "s_preproc.h5")
    else:
        images, _ = cutouts(path, tmp_path / "s_preproc.h5")
        assert images.max() < 45
    images, _ = cutouts(path, tmp_path / "t_preproc.h5", possible=[-3, 500])
    assert images.max() > 98


# What the file declares


def packed(values, **attrs):
    stored = np.round(values / 0.01).astype("i2")
    return grid(stored, units="kelvin", scale_factor=np.float32(0.01), add_offset=np.float32(273.15), **attrs)


VALID = {
    "valid_max": {"valid_min": np.int16(-300), "valid_max": np.int16(4500)},
    "valid_range": {"valid_range": np.array([-300, 4500], "i2")},
    "a wider type": {"valid_max": np.int32(2500)},
    "unpacked": {"valid_range": np.array([270.0, 310.0])},
    "unpacked, and of integers": {"valid_min": np.int32(271), "valid_max": np.int32(310)},
    "valid_max alone": {"valid_max": np.int16(2500)},
}


@pytest.mark.parametrize("name", VALID)
def test_valid_ranges_are_applied_packed_or_not(tmp_path, caplog, name):
    stored = CELSIUS.copy()
    stored[40:44, 50:60] = 41.0
    if name in ("valid_max", "valid_range"):
        stored[40:44, 50:60] = 320.0
    with caplog.at_level(logging.INFO, "nenya"):
        images, table = cutouts(save(packed(stored, **VALID[name]), tmp_path / "v.nc"), tmp_path / "v_preproc.h5")
    assert len(table) == 23 and images.max() < 20 and "outside the file's valid range 0.7 %" in caplog.text


def test_valid_ranges_of_floats_and_their_being_ignored(tmp_path):
    path = save(grid(values_with(30.0), valid_min=np.float32(-2), valid_max=np.float32(29)), tmp_path / "v.nc")
    _, table = cutouts(path, tmp_path / "a_preproc.h5")
    images, whole = cutouts(path, tmp_path / "b_preproc.h5", valid_range="ignore", mask_constant=False)
    assert len(table) == 23 and len(whole) == 24 and images.max() == 30
    stored = np.clip(np.round(CELSIUS * 10), 0, 255).astype("u1")
    stored[40:44, 50:60] = 255
    unsigned = grid(stored.view("i1"), scale_factor=np.float32(0.1), _Unsigned="true", valid_max=np.int8(-2))
    images, table = cutouts(save(unsigned, tmp_path / "u.nc"), tmp_path / "u_preproc.h5")
    assert len(table) == 23 and images.max() < 21


@pytest.mark.parametrize(
    "missing",
    [
        np.array([-999, -1000], "f4"),
        np.bytes_(b"-999 -1000"),
        np.array([b"-999", b"-1000"]),
        np.array([-999, -1000], "i4"),
    ],
    ids=str,
)
def test_missing_values_of_all_forms_are_masked(tmp_path, caplog, missing):
    values = CELSIUS.copy()
    values[:20, :40], values[20:40, :40] = -999, -1000
    with caplog.at_level(logging.INFO, "nenya"):
        images, table = cutouts(
            save(grid(values), tmp_path / "m.nc", tos={"missing_value": missing}), tmp_path / "m_preproc.h5"
        )
    assert images.min() > 9 and (table.row >= 40).any() and len(table) == 24 - 9 and "missing 26.0 %" in caplog.text


# Places and laws


def test_regions_without_a_place_hold_no_cutout(tmp_path, caplog):
    field = grid(CELSIUS.copy())
    lat, lon = np.meshgrid(field.lat, field.lon, indexing="ij")
    field.tos.values.setflags(write=True)
    for value in (-1.0, 0.0):
        where = lat.copy(), lon.copy()
        for coordinate in where:
            coordinate[:20, :40] = value
        north, east = {"units": "degrees_north"}, {"units": "degrees_east"}
        plane = field.tos.values[0].copy()
        plane[:20, :40] = 14 + np.random.default_rng(1).random((20, 40))  # not even constant
        dataset = xr.Dataset(
            {"tos": (("time", "y", "x"), plane[None], field.tos.attrs), "nav_lat": (("y", "x"), where[0], north),
             "nav_lon": (("y", "x"), where[1], east), "time": ("time", [TIME])}
        )  # fmt: skip
        with caplog.at_level(logging.INFO, "nenya"):
            _, table = cutouts(save(dataset, tmp_path / f"{value}.nc"), tmp_path / f"{value}_preproc.h5")
        assert len(table) == 18 and not ((table.row < 20) & (table.col < 40)).any()
        assert "without a place 13.0 %" in caplog.text


def test_one_dimensional_coordinates_are_never_nowhere():
    assert nowhere(np.zeros(4), np.zeros(5)) is None
    lat, lon = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    assert nowhere(lat, lon) is None and nowhere(np.full((4, 5), np.nan), lon) is None
    assert nowhere(np.zeros((4, 5)), np.zeros((4, 5))).all()


def test_splitting_a_file_in_two_changes_nothing(tmp_path):
    days = [TIME + np.timedelta64(i, "D") for i in range(4)]
    values = np.stack([values_with(-999) + np.float32(273.15 * (i % 2)) for i in range(4)])
    values[values < -500] = -999
    whole = grid(values, times=days, units=None)  # the fields differ in units, and say nothing of them
    one, table = cutouts(save(whole, tmp_path / "w.nc"), tmp_path / "w_preproc.h5")
    parts = [save(whole.isel(time=slice(i, i + 2)), tmp_path / f"p{i}.nc") for i in (0, 2)]
    two, split = cutouts(parts, tmp_path / "p_preproc.h5")
    np.testing.assert_array_equal(one, two)
    assert (table.datetime == split.datetime).all() and len(table) == 4 * 23 and one.max() < 20


def test_a_file_is_said_in_two_lines(tmp_path, caplog):
    dataset = grid(np.stack([CELSIUS] * 2), times=[TIME, TIME + np.timedelta64(1, "D")], units="kelvin")
    dataset.tos.values[:] += 273.15
    dataset.tos.values[:, :8] = np.nan
    with caplog.at_level(logging.INFO, "nenya"):
        cutouts(save(dataset, tmp_path / "said.nc"), tmp_path / "s_preproc.h5")
    first, second = [record.message for record in caplog.records][:2]
    assert first == (
        "said.nc: recipe grid; 'tos' in 'kelvin', converted to degC; 2 times from 2015-01-01T00:00 to "
        "2015-01-02T00:00; no quality or mask used"
    )
    low, high = np.nanmin(CELSIUS[8:]), np.nanmax(CELSIUS[8:])
    assert second == f"said.nc: {low:.4g} to {high:.4g} degC, 12.5 % masked (missing 12.5 %)"


@pytest.mark.parametrize(
    ("degrees", "north", "words"),
    [(2, 62, "degrees Fahrenheit labelled degC; units=degF corrects this"), (24, 80, "units= or variable= may be")],
)
def test_water_too_warm_for_its_latitude_is_refused(tmp_path, degrees, north, words):
    cold = CELSIUS - CELSIUS.mean() + degrees
    stored = grid((cold * 1.8 + 32 if degrees == 2 else cold).astype("f4"))
    polar = save(stored.assign_coords(lat=stored.lat - stored.lat.mean() + north), tmp_path / "polar.nc")
    with pytest.raises(InputFileError, match=rf"at latitude {north}[.\d]*, got a median of [23]\d.*{words}.*possible="):
        cutouts(polar, tmp_path / "p_preproc.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["polar.nc"]
    assert len(cutouts(polar, tmp_path / "p_preproc.h5", possible=[-3, 60])[0]) == 24
    tropical = save(stored.assign_coords(lat=stored.lat - stored.lat.mean()), tmp_path / "tropical.nc")
    assert len(cutouts(tropical, tmp_path / "t_preproc.h5")[0]) == 24
