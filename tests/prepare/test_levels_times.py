"""Which level, time and variable of a file is meant; and what is refused because nobody can tell."""

import numpy as np
import pytest
import xarray as xr
from granules import red_field

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.fields import Layout

TIME = np.datetime64("2015-01-01", "ns")
SHAPE = (12, 16)
FIELD = (15 + 2 * red_field(SHAPE, 3)).astype(np.float32)


def grid(values, dims=("lat", "lon"), name="tos", **attrs):
    attrs = {"standard_name": "sea_surface_temperature", "units": "degC", **attrs}
    return xr.Dataset(
        {name: (dims, values, attrs)},
        coords={
            "lat": ("lat", 30 + 0.1 * np.arange(SHAPE[0]), {"units": "degrees_north"}),
            "lon": ("lon", -60 + 0.1 * np.arange(SHAPE[1]), {"units": "degrees_east"}),
        },
    )


def layout(dataset, **options):
    return Layout(dataset, "a.nc", PrepareOptions(**options))


# Levels


def levels(values, name="depth", dim=None, surface=0, **attrs):
    """Return a field of as many levels, whose surface is FIELD and whose other levels are colder."""
    dim = dim or name
    stack = np.stack([FIELD - 4.0 * abs(k - surface) for k in range(len(values))])
    dataset = grid(stack, (dim, "lat", "lon"), time="x").assign_coords(time=TIME)
    return dataset.assign_coords({name: (dim, np.asarray(values, np.float64), attrs)})


LEVELS = {
    "depth down": (levels([0.5, 50, 100], positive="down", units="m"), 0),
    "deep first": (levels([100, 50, 0.5], positive="down", units="m", surface=2), 2),
    "heights": (levels([-100, -50, -0.5], positive="up", units="m", surface=2), 2),
    "heights, top first": (levels([-0.5, -50, -100], positive="up", units="m"), 0),
    "depth without attributes": (levels([0, 1, 2]), 0),
    "depth of the wrong sign": (levels([-100, -50, -5], surface=2), 2),
    "centimetres": (levels([500.0, 1500, 2500], "z_t", units="centimeters", positive="down"), 0),
    "s_rho": (levels([-0.9, -0.5, -0.1], "s_rho", surface=2, standard_name="ocean_s_coordinate_g2", positive="up"), 2),
    "s_rho, surface first": (levels([-0.1, -0.5, -0.9], "s_rho", standard_name="ocean_s_coordinate_g1"), 0),
    "s_rho without attributes": (levels([-0.9, -0.5, -0.1], "s_rho", surface=2), 2),
    "sigma from the bottom": (levels([0.0, 0.5, 1.0], "sigma", surface=2, positive="up"), 2),
    "numbers, up": (levels([1, 2, 3], "lev", surface=2, positive="up"), 2),
    "numbers, down": (levels([3, 2, 1], "lev", surface=2, positive="down"), 2),
    "a height along k": (levels([-5.0, -15, -25], "Z", "k", units="m", positive="up", standard_name="depth"), 0),
    "a height along k, upside down": (levels([-25.0, -15, -5], "Z", "k", surface=2, units="m", positive="up"), 2),
    "an axis": (levels([30.0, 10], "olev", surface=1, axis="Z", units="m"), 1),
    "pressure": (levels([500, 1000], "plev", surface=1, units="hPa"), 1),
    "soil": (levels([2.0, 0.1], "lev_soil", surface=1, units="m", positive="down"), 1),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_level_nearest_to_the_surface_is_taken(name):
    dataset, index = LEVELS[name]
    dim = dataset.tos.dims[0]
    for turned in (dataset, dataset.transpose("lon", dim, "lat"), dataset.isel({dim: slice(None, None, -1)})):
        found = layout(turned)
        np.testing.assert_array_equal(found.read(0, -1).values, FIELD)
    assert layout(dataset).level == index and layout(dataset, level=0).level == 0


def test_levels_without_a_coordinate():
    bare = levels([0, 1, 2], "depth").drop_vars("depth")
    found = layout(bare)
    assert found.level == 0 and "level 0 is taken as the surface" in found.notes[0]
    assert layout(bare.rename(depth="s_rho")).level == 2
    for name in ("z", "k", "level"):
        with pytest.raises(InputFileError, match=f"'{name}' has no coordinate; level= gives its index"):
            layout(bare.rename(depth=name))
        assert layout(bare.rename(depth=name), level=1).level == 1


def test_numbered_levels_that_could_run_either_way_are_refused():
    with pytest.raises(InputFileError, match="'lev' is numbered by 'lev' without saying which end is up"):
        layout(levels([1, 2, 3], "lev"))


# Times


def raw(values, units=None, calendar=None, name="time", **attrs):
    """Return a field whose times were not decoded."""
    values = np.asarray(values)
    attrs |= {key: text for key, text in (("units", units), ("calendar", calendar)) if text is not None}
    dataset = grid(np.repeat(FIELD[None], len(values), 0), (name, "lat", "lon"))
    return dataset.assign_coords({name: (name, values, attrs)})


TIMES = {
    "months of 360 days": (raw([0.5, 1.5], "months since 1960-01-01", "360", "T"), ["1960-01-16", "1960-02-16"]),
    "months of 360 days, by CF": (raw([24.0], "months since 1960-01-01", "360_day"), ["1962-01-01"]),
    "months of our calendar": (raw([1.5, 13], "months since 2001-01-01"), ["2001-02-15", "2002-02-01"]),
    "years": (raw([2.0], "years since 2000-07-01"), ["2002-07-01"]),
    "days, no leap years": (raw([59.0, 365], "days since 2000-01-01", "noleap"), ["2000-03-01", "2001-01-01"]),
    "days of 360": (raw([59.0], "days since 2001-01-01", "360_day"), ["2001-02-28"]),
    "hours": (raw([6], "hours since 1900-01-01 00:00:0.0", name="valid_time"), ["1900-01-01T06"]),
    "MT of HYCOM": (raw([40000.5], "days since 1900-12-31 00:00:00", name="MT"), ["2010-07-07T12"]),
    "whole numbers": (raw([20150131, 20150201]), ["2015-01-31", "2015-02-01"]),
    "with a fraction": (raw([20150131.25], "day as %Y%m%d.%f"), ["2015-01-31T06"]),
    "to the hour": (raw([2015013112]), ["2015-01-31T12"]),
    "year and month": (raw([201501]), ["2015-01-01"]),
    "texts": (raw(np.array(["2015-01-31T12:00:00Z"], object)), ["2015-01-31T12"]),
    "texts of WRF": (raw(np.array([b"2015-01-31_12:00:00"]), name="Times"), ["2015-01-31T12"]),
    "compact texts": (raw(np.array(["20150131"])), ["2015-01-31"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMES)
def test_times_of_many_forms(name):
    dataset, wanted = TIMES[name]
    found = layout(dataset)
    assert found.times == [np.datetime64(text, "us") for text in wanted]


@pytest.mark.parametrize("decoded", [True, False])
def test_steps_without_a_time_of_their_own_are_left_out_and_said(decoded):
    values = np.array([0.0, np.nan, 0.0, 2.0, 2.0, 3.0])
    dataset = raw(values, "days since 2015-01-01")
    dataset.tos.values[:] += np.arange(6, dtype=np.float32)[:, None, None]
    if decoded:
        dataset = xr.decode_cf(dataset)
    found = layout(dataset)
    assert found.times == [np.datetime64(f"2015-01-0{day}", "us") for day in (1, 3, 4)]
    for step, shift in enumerate((0, 3, 5)):
        np.testing.assert_allclose(found.read(step, -1).values, FIELD + shift, atol=1e-5)
    assert [note.split(": ")[1] for note in found.notes] == [
        "left out 1 (number 1) of 6 time steps, without a time",
        "left out 2 (number 2, 4) of 6 time steps, with the time of an earlier step",
    ]


@pytest.mark.parametrize("name", ["time_coverage_start", "start_time", "date", "time"])
@pytest.mark.parametrize("text", ["2015-01-31T12:00:00Z", "20150131T120000Z", b"2015-01-31 12:00:00"])
def test_a_time_in_the_attributes(name, text):
    for dataset in (grid(FIELD).assign_attrs({name: text}), grid(FIELD, **{name: text})):
        assert layout(dataset).times == [np.datetime64("2015-01-31T12", "us")]


@pytest.mark.parametrize("change", [{"history": "2015-01-31"}, {"date_created": "2015-01-31"}, {"date": "today"}])
def test_dates_that_are_not_those_of_the_field(change):
    with pytest.raises(InputFileError, match="no readable time"):
        layout(grid(FIELD).assign_attrs(change))


def test_a_time_for_each_line():
    rows, columns = SHAPE
    lat, lon = np.meshgrid(30 + 0.02 * np.arange(rows), -60 + 0.02 * np.arange(columns), indexing="ij")
    times = TIME + (1000 * np.arange(rows)).astype("timedelta64[ms]")
    times[3] = np.datetime64("NaT")
    lines = ("num_lines", "num_pixels")
    dataset = xr.Dataset(
        {
            "ssha": (lines, FIELD, {"units": "m"}),
            "time": ("num_lines", times, {"standard_name": "time"}),
            "time_tai": ("num_lines", times + np.timedelta64(37, "s"), {"standard_name": "time"}),
            "latitude": (lines, lat, {"units": "degrees_north"}),
            "longitude": (lines, lon, {"units": "degrees_east"}),
            "latitude_nadir": ("num_lines", lat[:, 0], {"units": "degrees_north"}),
            "longitude_nadir": ("num_lines", lon[:, 0], {"units": "degrees_east"}),
        }
    )
    for form in (dataset, dataset.transpose()):
        found = layout(form, quantity="height", possible=[0, 40])
        field = found.read(0, -1)
        assert found.times == [TIME.astype("datetime64[us]")] and found.row_order == "swath"
        np.testing.assert_array_equal(field.seconds, np.broadcast_to(np.arange(rows)[:, None], SHAPE))
        np.testing.assert_array_equal(field.values, FIELD)
        np.testing.assert_array_equal(field.lat, lat)


# Variables


def twins(*names, standard_name="sea_surface_temperature"):
    dataset = grid(FIELD, name=names[0], standard_name=standard_name).assign_coords(time=TIME)
    for name in names[1:]:
        dataset[name] = dataset[names[0]]
    return dataset


@pytest.mark.parametrize("other", ["t_err", "bias_of_t", "t_std", "error", "uncertainty", "t_count", "t_quality"])
def test_a_variable_about_another_is_not_the_field(other):
    assert layout(twins(other, "water")).variable == "water"
    named = twins("a", "b")
    named.a.attrs["long_name"] = "standard error of the temperature"
    assert layout(named).variable == "b"


def test_twins_that_nobody_can_tell_apart_are_refused():
    with pytest.raises(InputFileError, match="got day, night with the same standard name; variable= names one"):
        layout(twins("day", "night"))
    assert layout(twins("day", "night"), variable="night").variable == "night"
