"""`nenya prepare`: fields of many kinds to cutouts and their table, and what happens where that cannot be."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from granules import SHAPE, grid, swath, swath_coordinates, tiles, write_swath
from scipy.ndimage import median_filter
from skimage.restoration import inpaint_biharmonic

import nenya.prepare.work as work_module
from nenya.analyze_image import calc_DT
from nenya.data.cutouts import inspect_cutouts
from nenya.errors import InputFileError, Interrupted
from nenya.prepare.geometry import to_vectors
from nenya.prepare.job import prepare
from nenya.prepare.sources import find_fields, open_fields

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (
    *("lat", "lon", "row", "col", "datetime", "filename", "UID", "clear_fraction", "mean_temperature"),
    *("Tmin", "Tmax", "T10", "T90", "field_size", "pp_file", "pp_root", "pp_type", "pp_idx"),
)


def make(out, **options):
    """Prepare in this process; return images (N, H, W) in the order of the table, and the table."""
    prepare({"workers": 1, "out": str(out), **options})
    return load(out)


def load(out):
    table = pd.read_parquet(Path(out).with_suffix(".parquet"))
    with h5py.File(out) as file:
        parts = {kind: file[name][:, 0] for kind, name in ((1, "train"), (0, "valid")) if name in file}
    images = np.stack([parts[kind][i] for kind, i in zip(table.pp_type, table.pp_idx, strict=True)])
    assert len(table) == sum(map(len, parts.values()))
    return images, table


def same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    pd.testing.assert_frame_equal(one[1].drop(columns="pp_file"), other[1].drop(columns="pp_file"))


def arc(lat1, lon1, lat2, lon2):
    a, b = to_vectors(np.asarray(lat1), np.asarray(lon1)), to_vectors(np.asarray(lat2), np.asarray(lon2))
    return 6371 * 2 * np.arcsin(np.linalg.norm(a - b, axis=-1) / 2)


@pytest.fixture(scope="module")
def granule(tmp_path_factory):
    """A MODIS granule of full size as a file, and its truth."""
    path = tmp_path_factory.mktemp("granule") / "20100304050607-L2P-generated.nc"
    return path, write_swath(path, seed=3, share=0.15, lat=-20.0, lon=179.0)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """A folder of six granules: grids of one day each."""
    folder = tmp_path_factory.mktemp("days")
    for day in range(6):
        field = grid(times=1, seed=day)
        field["time"] = field.time + np.timedelta64(day, "D")
        field.to_netcdf(folder / f"day{day}.nc", engine="h5netcdf")
    return folder


# Real files


@pytest.mark.parametrize(("name", "side", "variable"), [("nemo", 32, "tos"), ("ostia", 16, "surface_temperature")])
def test_real_grids(shared, nenya_cli, tiny_weights, tmp_path, name, side, variable):
    source = next((shared / "data").glob(f"{name}*.nc"))
    args = ["sensor=grid", f"data={source}", f"out={name}_preproc.h5", f"field_size={side}", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0, said
    images, table = load(tmp_path / f"{name}_preproc.h5")
    assert set(COLUMNS) <= set(table.columns) and table.UID.is_unique
    assert images.shape[1:] == (side, side) and np.isfinite(images).all()
    assert np.abs(images.mean(axis=(1, 2), dtype=np.float64)).max() < 1e-5
    with xr.open_dataset(source, decode_times=xr.coders.CFDatetimeCoder()) as dataset:
        values = dataset[variable].values
        lat, lon = (
            dataset[n].values for n in (("nav_lat", "nav_lon") if name == "nemo" else ("latitude", "longitude"))
        )
        if name == "ostia":
            values = values - 273.15
            times = pd.to_datetime(dataset.time.values)
            lat, lon = np.broadcast_arrays(lat[:, None], lon[None])
        else:
            times = pd.to_datetime(["2015-01-16"])
    steps = times.get_indexer(table.datetime)
    assert (steps >= 0).all()
    for i in range(0, len(table), 7):
        row = table.iloc[i]
        field = values[steps[i], row.row : row.row + side, row.col : row.col + side]
        clear = np.isfinite(field)
        np.testing.assert_allclose((images[i] + row.mean_temperature)[clear], field[clear], atol=2e-5)
        assert np.isclose(clear.mean(), row.clear_fraction) and clear.mean() >= 0.95
        middle = np.s_[
            row.row + side // 2 - 1 : row.row + side // 2 + 1, row.col + side // 2 - 1 : row.col + side // 2 + 1
        ]
        to_corners = arc(row.lat, row.lon, lat[middle].ravel(), lon[middle].ravel())
        assert to_corners.max() < 1.2 * arc(*[a[middle][d, e] for d, e in ((0, 0), (1, 1)) for a in (lat, lon)]) / 2 + 1
    debug = name == "ostia"  # two batches of each partition are enough
    args = ["model=demo", f"data={name}_preproc.h5", f"ckpt={tiny_weights}", f"debug={str(debug).lower()}"]
    code, said = nenya_cli("extract", args)
    assert code == 0, said
    with h5py.File(next(tmp_path.glob(f"{name}_preproc_latents*.h5"))) as file:
        assert set(file) == {"train", "valid"} if debug else sum(len(file[p]) for p in file) == len(table)
    assert "mean" not in said.lower()  # extract warns of cutouts that are not mean-free


def test_the_script(shared, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "prepare.py", "sensor=ssh", "quantity=any", "workers=1"]
    args = [f"data={shared}/data/nemo_orca1_tos_2015-01.nc", f"out={tmp_path}/n_preproc.h5"]
    done = subprocess.run([*command, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images, table = load(tmp_path / "n_preproc.h5")
    assert len(table) > 5 and (table.clear_fraction == 1).all() and (table.row % 16 == 0).all()
    np.testing.assert_allclose(images.mean(axis=(1, 2)), table.mean_temperature, atol=1e-4)  # this recipe keeps it


def test_the_command_loads_nothing_it_does_not_need():
    code = (
        "import sys, nenya.cli; nenya.commands.compose.compose('prepare', ['sensor=viirs']);"
        "assert not {'xarray', 'pandas', 'zarr', 'skimage', 'torch'} & set(sys.modules), 'too much'"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Swaths of full size


def test_the_modis_recipe(granule, nenya_cli, tmp_path):
    path, truth = granule
    code, said = nenya_cli("prepare", ["sensor=modis", f"data={path}", "out=m_preproc.h5", "workers=1"])
    assert code == 0, said
    images, table = load(tmp_path / "m_preproc.h5")
    assert images.shape[1:] == (64, 64) and len(images) > 20
    lats, lons = swath_coordinates(SHAPE, -20.0, 179.0)
    with xr.open_dataset(path, decode_timedelta=False) as dataset:
        sst = dataset.sea_surface_temperature.values[0] - 273.15
        quality = dataset.quality_level.values[0]
    masked = ~((quality >= 2) & (sst >= -2) & (sst <= 33))
    assert ((table.col >= 677 - 480) & (table.col + 128 <= 677 + 480)).all()
    assert (table.row % 128 == 0).all() and ((table.col - 197) % 128 == 0).all()
    clear = [not_masked(masked, row, 128) for row in table.itertuples()]
    np.testing.assert_allclose(table.clear_fraction, clear)
    expected = sum(
        not_masked(masked, pd.Series({"row": r, "col": c}), 128) >= 0.95
        for r in range(0, SHAPE[0] - 127, 128)
        for c in range(197, 1157 - 127, 128)
    )
    assert len(table) == expected
    assert (table.lon > 150).any() and (table.lon < -170).any()  # the swath lies on the dateline
    for i in range(0, len(table), 12):
        row = table.iloc[i]
        window = np.s_[row.row : row.row + 128, row.col : row.col + 128]
        field = np.where(masked[window], 0, sst[window]).astype(np.float64)
        filled = inpaint_biharmonic(field, masked[window]) if masked[window].any() else field
        np.testing.assert_allclose(
            [row.Tmin, row.Tmax, row.T10, row.T90],
            [filled.min(), filled.max(), *np.percentile(filled, [10, 90])],
            atol=1e-4,
        )
        small = median_filter(filled, size=(3, 1)).reshape(64, 2, 64, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(row.mean_temperature, small.mean(), atol=1e-4)
        np.testing.assert_allclose(images[i], small - small.mean(), atol=1e-4)
        assert row.DT40 == calc_DT(images[i], [40, 5])
        middle = row.row + 63, row.col + 63
        assert arc(row.lat, row.lon, lats[middle], lons[middle]) < 1.0
        after = row.datetime - pd.Timestamp("2010-03-04T05:06:07")
        assert abs(after.total_seconds() - 300 * (row.row + 64) / SHAPE[0]) < 2
        assert abs(row.height_km - 128) < 0.5 and abs(row.width_km - 128) < 0.5
        error = np.sqrt(((filled - truth[window])[masked[window]] ** 2).mean()) if masked[window].any() else 0
        assert error < truth[window].std()
    assert (table.pp_root == "modis").all() and (table.filename == path.name).all()
    with h5py.File(tmp_path / "m_preproc.h5") as file:
        assert (
            json.loads(file.attrs["options"])["nadir_offset"] == 480
            and file.attrs["variable"] == "sea_surface_temperature"
        )
        chunks = next(iter(file.values())).chunks
        assert chunks[1:] == (1, 64, 64)


def test_the_library_takes_recipes_too(granule, tmp_path):
    path, _ = granule
    _, table = make(tmp_path / "m_preproc.h5", data=str(path), sensor="modis", inpaint="fast", downscale=[4, 4])
    assert (table.pp_root == "modis").all() and (table.field_size == 128).all() and len(table) > 20
    assert inspect_cutouts(tmp_path / "m_preproc.h5").partitions.popitem()[1].height == 32


def not_masked(masked, row, side):
    return 1 - masked[row.row : row.row + side, row.col : row.col + side].mean()


def test_the_viirs_recipe(granule, nenya_cli, tmp_path):
    path, _ = granule
    args = ["sensor=viirs", f"data={path}", "out=v_preproc.h5", "inpaint=fast", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0, said
    images, table = load(tmp_path / "v_preproc.h5")
    assert images.shape[1:] == (64, 64) and len(images) > 20
    assert (table.row % 96 == 0).all() and (table.col % 96 == 0).all() and table.row.diff().abs().max() > 0
    assert (table.clear_fraction >= 0.95).all() and (table.clear_fraction < 1).any()
    assert (table.field_size == 192).all()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("lat", "lon"), [(0.0, 180.0), (89.9, 0.0), (-89.0, 90.0)])
def test_swaths_anywhere(tmp_path, lat, lon):
    shape = (200, 150)
    write_swath(tmp_path / "s.nc", shape=shape, seed=1, lat=lat, lon=lon, share=0)
    _, table = make(tmp_path / "s_preproc.h5", data=str(tmp_path / "s.nc"), field_size=50)
    lats, lons = swath_coordinates(shape, lat, lon)
    assert len(table) == 12 and table.lon.between(-180, 180).all()
    for row in table.itertuples():
        corners = to_vectors(lats, lons)[row.row + 24 : row.row + 26, row.col + 24 : row.col + 26].mean(axis=(0, 1))
        there = to_vectors(np.array(row.lat), np.array(row.lon))
        assert 6371 * np.linalg.norm(there - corners / np.linalg.norm(corners)) < 0.05
    np.testing.assert_allclose(table[["height_km", "width_km"]], 50, atol=0.3)


# Runs


def test_reruns_and_processes_change_nothing(days, tmp_path, nenya_cli):
    options = {"data": str(days), "field_size": 16, "clear_threshold": 80}
    first = make(tmp_path / "a" / "d_preproc.h5", **options)
    assert set(first[1].pp_type) == {0, 1}
    same(first, make(tmp_path / "b" / "d_preproc.h5", **options))
    same(first, make(tmp_path / "c" / "d_preproc.h5", **{**options, "workers": 2}))
    before = (tmp_path / "a" / "d_preproc.h5").stat()
    args = [f"data={days}", f"out={tmp_path}/a/d_preproc.h5", "field_size=16", "clear_threshold=80"]
    code, said = nenya_cli("prepare", args)
    assert code == 0 and "output exists and is complete" in said
    assert (tmp_path / "a" / "d_preproc.h5").stat().st_mtime_ns == before.st_mtime_ns
    code, said = nenya_cli("prepare", [*args, "field_size=32"])
    assert (code, said.count("\n")) == (2, 1) and "clobber=true" in said
    code, said = nenya_cli("prepare", [*args, "field_size=32", "clobber=true", "workers=1"])
    assert code == 0, said
    assert inspect_cutouts(tmp_path / "a" / "d_preproc.h5").partitions["train"].height == 32


def test_a_granule_is_on_one_side_whatever_else_there_is(days, tmp_path):
    _, table = make(tmp_path / "all_preproc.h5", data=str(days), field_size=16)
    assert (table.groupby("filename").pp_type.nunique() == 1).all()
    times = table.datetime.dt.strftime("%Y-%m-%dT%H:%M:%S")
    assert (table.granule == table.filename + " " + times).all() and table.granule.nunique() > 1
    files = [str(days / f"day{i}.nc") for i in (1, 4)]
    _, some = make(tmp_path / "some_preproc.h5", data=files, field_size=16)
    both = some.merge(table, on="UID", suffixes=("", "_all"))
    assert len(both) == len(some) and (both.pp_type == both.pp_type_all).all()
    _, other = make(tmp_path / "other_preproc.h5", data=str(days), field_size=16, valid_fraction=1.0)
    assert (other.pp_type == 0).all()


def test_an_interrupted_run_goes_on(days, tmp_path, monkeypatch):
    options = {"data": str(days), "field_size": 16}
    whole = make(tmp_path / "whole_preproc.h5", **options)
    done, original = [], work_module.prepare_granule

    def stop_at_four(layout, step, name, *rest):
        if len(done) == 3:
            raise Interrupted("stop")
        done.append(name)
        return original(layout, step, name, *rest)

    monkeypatch.setattr(work_module, "prepare_granule", stop_at_four)
    with pytest.raises(Interrupted):
        make(tmp_path / "d_preproc.h5", **options)
    assert not (tmp_path / "d_preproc.h5").exists() and not (tmp_path / "d_preproc.parquet").exists()
    assert len(list((tmp_path / "d_preproc.h5.partial").glob("*.npz"))) == 3
    again = []
    monkeypatch.setattr(work_module, "prepare_granule", lambda *args: (again.append(args[2]), original(*args))[1])
    same(whole, make(tmp_path / "d_preproc.h5", **options))
    assert len(again) == 3 and not set(again) & set(done)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on(days, tmp_path, number):
    whole = make(tmp_path / "whole_preproc.h5", data=str(days), field_size=16)
    slow = (
        "import os, sys, time; import nenya.prepare.work as w; from nenya.cli import run_command\n"
        "real, done = w.prepare_granule, []\n"
        "def held(*args):\n"
        "    while len(done) == 2 and not os.path.exists('go'): time.sleep(0.01)\n"
        "    return done.append(real(*args)) or done[-1]\n"
        "w.prepare_granule = held; sys.exit(run_command('prepare'))"
    )
    args = [f"data={days}", "out=d_preproc.h5", "field_size=16", "workers=1"]
    run = subprocess.Popen([sys.executable, "-c", slow, *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "d_preproc.h5.partial"
    while run.poll() is None and len(list(partial.glob("*.npz"))) < 2:
        time.sleep(0.02)
    run.send_signal(number)
    (tmp_path / "go").touch()
    said = run.communicate(timeout=300)[1]
    assert run.returncode == (75 if number == signal.SIGTERM else -number), said
    assert number == signal.SIGKILL or said.splitlines()[-1].startswith("nenya prepare: interrupted")
    assert 2 <= len(list(partial.glob("*.npz"))) < 6 and not (tmp_path / "d_preproc.h5").exists()
    same(whole, make(tmp_path / "d_preproc.h5", data=str(days), field_size=16))


def test_a_bad_granule_is_skipped(days, tmp_path, nenya_cli):
    for i in (0, 1):
        (tmp_path / f"day{i}.nc").write_bytes((days / f"day{i}.nc").read_bytes()[: (3000 if i else None)])
    code, said = nenya_cli("prepare", [f"data={tmp_path}/*.nc", "out=d_preproc.h5", "field_size=16", "workers=1"])
    assert code == 1
    assert "skipped: " in said and "day1.nc" in said and "skipped 1 granule;" in said
    _, table = load(tmp_path / "d_preproc.h5")
    assert set(table.filename) == {"day0.nc"}
    with h5py.File(tmp_path / "d_preproc.h5") as file:
        assert list(json.loads(file.attrs["failed"])) == ["day1.nc"]


def test_one_granule_given_twice_under_two_folders(days, tmp_path, nenya_cli):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "day0.nc").write_bytes((days / "day0.nc").read_bytes())
    args = [f"data=[{days}/day0.nc,{tmp_path}/copy/day0.nc]", "out=d_preproc.h5", "field_size=16", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 2 and "both called day0.nc" in said.splitlines()[-1]
    assert not list(tmp_path.glob("d_preproc*.h5"))


def test_granules_without_cutouts_are_counted(days, tmp_path, nenya_cli):
    """Times of one file are granules of their own, whose cutouts share its name."""
    grid(times=3).to_netcdf(tmp_path / "times.nc", engine="h5netcdf")
    code, said = nenya_cli("prepare", [f"data={tmp_path}/times.nc", "out=t_preproc.h5", "field_size=16", "workers=1"])
    assert code == 0 and "have no cutout" not in said, said
    with xr.open_dataset(days / "day0.nc", engine="h5netcdf") as field:
        land = field.load().where(False)
    land.to_netcdf(tmp_path / "land.nc", engine="h5netcdf")
    args = [f"data=[{tmp_path}/times.nc,{tmp_path}/land.nc]", "out=l_preproc.h5", "field_size=16", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0 and "1 of 4 fields have no cutout: nowhere 95 % clear" in said, said


def test_cutouts_on_one_side_only_come_with_the_command_that_trains_on_them(days, tmp_path, nenya_cli):
    args = [f"data={days}/day0.nc", "out=d_preproc.h5", "field_size=16", "workers=1", "valid_fraction=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0 and f"train without a validation (nenya train {tmp_path}/d_preproc.h5)" in said, said


# Other kinds of fields


@pytest.mark.parametrize("kind", ["NetCDF 3", "Zarr", "names only", "descending", "level", "coords"])
def test_forms_of_a_grid(tmp_path, kind):
    field = grid()
    wanted = make(tmp_path / "plain_preproc.h5", data=write(field, tmp_path / "plain.nc"), field_size=16)
    options = {}
    if kind == "NetCDF 3":
        field.to_netcdf(tmp_path / "g.nc", engine="scipy")
    elif kind == "Zarr":
        field.to_zarr(tmp_path / "g.zarr")
    elif kind == "names only":
        field = field.rename(lat="nav_lat", lon="nav_lon", time="time_counter")
        for name in ("nav_lat", "nav_lon"):
            field[name].attrs.clear()
        del field.tos.attrs["standard_name"]
        write(field, tmp_path / "g.nc")
    elif kind == "descending":
        write(field.isel(lat=slice(None, None, -1)), tmp_path / "g.nc")
    elif kind == "level":
        deep = xr.concat([field.tos, field.tos - 5], "depth").transpose("time", "depth", "lat", "lon")
        write(field.assign(tos=deep), tmp_path / "g.nc")
    else:
        write(xr.Dataset({"lat": field.lat, "lon": field.lon}), tmp_path / "places.nc")
        bare = field.drop_vars(["lat", "lon"])
        write(bare, tmp_path / "g.nc")
        options["coords"] = str(tmp_path / "places.nc")
    (source,) = [p for p in tmp_path.iterdir() if p.stem == "g"]
    images, table = make(tmp_path / "x_preproc.h5", data=str(source), field_size=16, **options)
    np.testing.assert_array_equal(images, wanted[0])
    np.testing.assert_allclose(table[["lat", "lon"]], wanted[1][["lat", "lon"]])
    assert (table.datetime == wanted[1].datetime).all()


def write(dataset, path):
    dataset.to_netcdf(path, engine="h5netcdf")
    return str(path)


def test_masks_by_flags(tmp_path):
    field = grid(times=1)
    flags = np.full((64, 96), 1, np.int8)
    flags[:, 48:] = 2
    flags[40:] = 9
    attributes = {"flag_meanings": "water land lake ice", "flag_masks": np.array([1, 2, 4, 8], np.int8)}
    field["mask"] = (("lat", "lon"), flags, attributes)
    _, table = make(tmp_path / "m_preproc.h5", data=write(field, tmp_path / "m.nc"), field_size=8, inpaint="none")
    land = (table.row < 16) & (table.col < 24)
    assert (
        len(table) == 5 * 6 - 2 * 3 and not land.any() and (table.row + 8 <= 40).all() and (table.col + 8 <= 48).all()
    )
    field["mask"] = (("lat", "lon"), (flags == 2).astype(np.int8), {"standard_name": "land_binary_mask"})
    _, table = make(tmp_path / "n_preproc.h5", data=write(field, tmp_path / "n.nc"), field_size=8, inpaint="none")
    assert len(table) == 5 * 6 - 2 * 3 + 3 * 12 and ((table.row >= 40) | (table.col + 8 <= 48)).all()


def test_files_of_ob_daac(tmp_path):
    dataset, _ = swath(shape=(160, 128), seed=2, share=0.1)
    quality = np.where(dataset.quality_level.values[0] == 5, 0, 4).astype(np.int8)
    quality[:40] = 2
    quality[40:80] = 3
    with h5py.File(tmp_path / "AQUA_MODIS.nc", "w") as file:
        file.attrs["time_coverage_start"] = np.bytes_("2003-03-10T21:25:06.000Z")
        for name, size in (("number_of_lines", 160), ("pixels_per_line", 128), ("pixel_control_points", 128)):
            file[name] = np.arange(size)
            file[name].make_scale(name)
        sst = np.nan_to_num(dataset.sea_surface_temperature.values[0] - 273.15, nan=-99.0)
        parts = {
            "geophysical_data/sst": (sst.astype(np.float32), "pixels_per_line", {"units": "degree_C"}),
            "geophysical_data/qual_sst": (quality, "pixels_per_line", {"flag_meanings": "BEST GOOD QUESTIONABLE BAD"}),
            "navigation_data/latitude": (dataset.lat.values, "pixel_control_points", {"units": "degrees_north"}),
            "navigation_data/longitude": (dataset.lon.values, "pixel_control_points", {"units": "degrees_east"}),
        }
        for name, (values, columns, attributes) in parts.items():
            file[name] = values
            file[name].dims[0].attach_scale(file["number_of_lines"])
            file[name].dims[1].attach_scale(file[columns])
            for key, value in attributes.items():
                file[name].attrs[key] = np.bytes_(value)
    options = {"field_size": 32, "step": 8, "quality_thresh": 2, "temp_bounds": [-2, 33], "clear_threshold": 90}
    _, table = make(tmp_path / "o_preproc.h5", data=str(tmp_path / "AQUA_MODIS.nc"), quantity="temperature", **options)
    assert ((table.row < 12) | (table.row >= 76)).all() and len(table)
    assert (table.row == 0).any()
    assert (table.datetime == pd.Timestamp("2003-03-10T21:25:06")).all()


def test_tiles(tmp_path, nenya_cli):
    dataset = tiles()
    data = write(dataset, tmp_path / "llc.nc")
    code, said = nenya_cli("prepare", ["sensor=llc", f"data={data}", "out=l_preproc.h5", "field_size=32", "workers=1"])
    assert code == 0, said
    images, table = load(tmp_path / "l_preproc.h5")
    assert set(table.face) == {1, 2} and len(table) == 6 + 9
    for image, row in zip(images, table.itertuples(), strict=True):
        field = dataset.Theta.values[0, row.face, row.row : row.row + 32, row.col : row.col + 32]
        np.testing.assert_allclose(image + row.mean_temperature, field, atol=1e-5)
        lat = dataset.YC.values[row.face, row.row + 15 : row.row + 17, row.col + 15 : row.col + 17]
        assert abs(lat.mean() - row.lat) < 1e-3


def test_a_recipe_in_km_with_noise(tmp_path):
    data = write(tiles(), tmp_path / "llc.nc")
    options = {"data": data, "field_size": 32, "fixed_km": 72.0, "land": 0.0, "clear_threshold": 100.0}
    clean, table = make(tmp_path / "c_preproc.h5", **options)
    noisy, again = make(tmp_path / "n_preproc.h5", **options, noise=0.039)
    assert (table.UID == again.UID).all() and set(table.height_px) == {36}
    np.testing.assert_allclose(table.height_km, 72, rtol=0.02)
    rest = noisy - clean
    assert abs(rest.std() - 0.039) < 0.001 and clean.shape[1:] == (32, 32)
    same((noisy, again), make(tmp_path / "o" / "n_preproc.h5", **options, noise=0.039))


def test_a_recipe_of_ones_own(days, nenya_cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("field_size: 32\nclear_threshold: 70\ndownscale: [2, 2]\n")
    args = ["sensor=mine.yaml", f"data={days}", "out=d_preproc.h5", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0, said
    images, table = load(tmp_path / "d_preproc.h5")
    assert images.shape[1:] == (16, 16) and (table.pp_root == "mine").all()
    (tmp_path / "bad.yaml").write_text("feild_size: 32\n")
    code, said = nenya_cli("prepare", ["sensor=bad.yaml", *args[1:]])
    assert code == 2 and "did you mean field_size?" in said


# Given places


def test_cutouts_at_given_places(tmp_path):
    data = write(grid(times=4), tmp_path / "g.nc")
    wanted = pd.DataFrame(
        {
            "lat": [0.3, 0.3, 20.0, -29.0, 10.0],
            "lon": [121.1, 121.1 - 360, 140.2, 101.0, 10.0],
            "datetime": pd.to_datetime(
                ["2015-01-02T01:00", "2015-01-02T11:00", "2015-03-01T00:00", "2015-01-02T00:00", "2015-01-02T00:00"]
            ),
        }
    )
    wanted.to_parquet(tmp_path / "argo.parquet")
    options = {"data": data, "at": str(tmp_path / "argo.parquet"), "field_size": 16, "max_km": 60.0}
    _, table = make(tmp_path / "a_preproc.h5", **options)
    assert list(table.at_index) == [0, 1]  # the others: another time, the edge of the field, another place
    assert (table.datetime == pd.Timestamp("2015-01-02")).all()
    np.testing.assert_allclose(table.at_hours, [-1, -11])
    np.testing.assert_allclose(arc(table.lat, table.lon, 0.3, 121.1), table.at_km, atol=45)
    assert table.UID.is_unique and (table.at_km < 60).all()
    missing = pd.read_csv(tmp_path / "a_preproc_missing.csv")
    assert missing.at_index.tolist() == [2, 3, 4]
    for why, words in zip(missing.why, ("no granule within max_hours=", "leave the field", "max_km=60"), strict=True):
        assert words in why
    _, several = make(tmp_path / "b_preproc.h5", **options, matches="all", max_hours=36.0)
    assert len(several) == 2 * 3 and set(several.at_index) == {0, 1}


def test_cutouts_of_a_swath_at_given_places(granule, tmp_path):
    path, _ = granule
    lats, lons = swath_coordinates(SHAPE, -20.0, 179.0)
    rows, cols = np.array([300, 1000, 1500]), np.array([400, 700, 900])
    places = pd.DataFrame({"lat": lats[rows, cols], "lon": lons[rows, cols], "datetime": "2010-03-04T06:00"})
    places.to_csv(tmp_path / "places.csv", index=False)
    options = {"at": str(tmp_path / "places.csv"), "field_size": 64, "clear_threshold": 0.0, "quality_thresh": 2}
    _, table = make(tmp_path / "a_preproc.h5", data=str(path), **options)
    assert set(table.at_index) <= {0, 1, 2} and len(table) >= 2
    assert (table.row + 32 == rows[table.at_index]).all() and (table.col + 32 == cols[table.at_index]).all()
    assert (table.at_km < 0.8).all()
    # One without enough clear pixels, and all of them, are named with their shares.
    options = {**options, "clear_threshold": 100.0, "inpaint": "none"}
    with pytest.raises(
        InputFileError, match=r"none of 3 places .*places.csv has a cutout \(3: fewer clear pixels than"
    ):
        make(tmp_path / "b_preproc.h5", data=str(path), **options)


def test_places_without_a_cutout_are_said(tmp_path, nenya_cli):
    data = write(grid(times=1), tmp_path / "g.nc")
    lat, time = [0.3, 0.3, 0.4], ["2015-01-01T01:00", "2015-03-01T00:00", "2015-04-01T00:00"]
    pd.DataFrame({"lat": lat, "lon": 121.1, "datetime": time}).to_csv(tmp_path / "p.csv", index=False)
    args = [f"data={data}", "at=p.csv", "field_size=16", "max_km=60", "workers=1", "out=a_preproc.h5"]
    code, said = nenya_cli("prepare", args)
    assert code == 0 and "1 of 3 places of at= have a cutout" in said, said
    assert "2 have none (2: no granule within max_hours=" in said and "rows 1, 2 of at=" in said
    assert pd.read_csv("a_preproc_missing.csv").at_index.tolist() == [1, 2]
    pd.read_csv("p.csv")[:1].to_csv("p.csv", index=False)
    code, said = nenya_cli("prepare", [*args, "clobber=true"])
    assert code == 0 and not (tmp_path / "a_preproc_missing.csv").exists()


# S3


def test_fields_on_s3(s3_service, s3_bucket, days, tmp_path, nenya_cli):
    client = s3_service.client()
    for i in range(2):
        client.upload_file(str(days / f"day{i}.nc"), s3_bucket, f"fields/day{i}.nc")
    args = [f"data=s3://{s3_bucket}/fields/", f"out=s3://{s3_bucket}/out/d_preproc.h5", "field_size=16", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0, said
    for name in ("d_preproc.h5", "d_preproc.parquet"):
        client.download_file(s3_bucket, f"out/{name}", str(tmp_path / name))
    here = make(tmp_path / "here_preproc.h5", data=[str(days / f"day{i}.nc") for i in range(2)], field_size=16)
    same(here, load(tmp_path / "d_preproc.h5"))
    assert set(load(tmp_path / "d_preproc.h5")[1].pp_file) == {f"s3://{s3_bucket}/out/d_preproc.h5"}
    assert nenya_cli("prepare", args)[0] == 0
    assert nenya_cli("prepare", [*args, "field_size=8"])[0] == 2
    assert not [p for p in (tmp_path / "outputs").rglob("*") if p.is_file()]


def test_zarr_on_s3_is_read_chunk_by_chunk(s3_service, s3_bucket, tmp_path):
    field = grid(times=2)
    field.to_zarr(tmp_path / "g.zarr", encoding={"tos": {"chunks": (1, 64, 96)}})
    client = s3_service.client()
    for path in (p for p in (tmp_path / "g.zarr").rglob("*") if p.is_file()):
        client.upload_file(str(path), s3_bucket, f"z/g.zarr/{path.relative_to(tmp_path / 'g.zarr')}")
    with open_fields(f"s3://{s3_bucket}/z/g.zarr") as dataset:
        np.testing.assert_array_equal(dataset.tos[1].values, field.tos[1].values)
    there = make(tmp_path / "a_preproc.h5", data=f"s3://{s3_bucket}/z/", field_size=16)
    same(there, make(tmp_path / "b_preproc.h5", data=str(tmp_path / "g.zarr"), field_size=16))


# Bad input


def without_time(field):
    return field.isel(time=0).drop_vars("time")


def without_units(field):
    del field.tos.attrs["units"]
    return field


def in_furlongs(field):
    field.tos.attrs["units"] = "furlong"
    return field


def said_to_be_kelvin(field):
    field.tos.attrs["units"] = "K"
    return field


def a_list_of_points(field):
    return field.stack(point=("lat", "lon")).reset_index("point").reset_coords(drop=False).transpose("time", "point")


def two_fields(field):
    field["u"], field["v"] = field.tos.copy(), field.tos.copy()
    for name in ("u", "v"):
        field[name].attrs = {"units": "m s-1"}
    return field.drop_vars("tos")


BAD_FIELDS = {
    "no time": (without_time, [], "no readable time"),
    "no coordinates": (lambda f: f.drop_vars(["lat", "lon"]), [], "no latitude"),
    "no longitude": (lambda f: f.drop_vars("lon"), [], "no longitude"),
    "all land": (lambda f: f.where(False), [], "entirely masked (land"),
    "no units that could be": (without_units, ["possible=[50,60]"], "got no units"),
    "wrong units": (in_furlongs, [], "got 'furlong'"),
    "units that the values belie": (said_to_be_kelvin, [], "look like degrees Celsius labelled K; units=degC"),
    "no quality": (lambda f: f, ["quality_thresh=2"], "no quality variable"),
    "another quality": (lambda f: f, ["quality_thresh=2", "quality=q"], "quality=q: no such variable"),
    "no variable": (lambda f: f, ["variable=sst"], "variable=sst: no such variable"),
    "no mask": (lambda f: f, ["mask=land"], "mask=land: no such variable"),
    "several variables": (two_fields, [], "got u, v; variable= names the field"),
    "a list of points": (a_list_of_points, [], "no two dimensions"),
    "a field that is too small": (lambda f: f, ["field_size=128"], "64 x 96 pixels has no cutout of field_size=128"),
    "too few clear pixels": (lambda f: f.where(f.lon % 1 == 0), [], "no cutout reaches clear_threshold=95 %"),
    "a third dimension": (
        lambda f: f.expand_dims(member=3).assign_coords(member=[0, 1, 2]),
        [],
        "neither time, level nor position",
    ),
    "a level that is not there": (lambda f: f.expand_dims(depth=[0.0, 5.0]), ["level=4"], "expected level= below 2"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields(nenya_cli, tmp_path, name):
    change, more, words = BAD_FIELDS[name]
    write(change(grid()), tmp_path / "bad.nc")
    code, said = nenya_cli("prepare", ["data=bad.nc", "out=x_preproc.h5", "field_size=16", "workers=1", *more])
    assert (code, said.count("\n")) == (2, 1), said
    assert words in said and "bad.nc" in said
    assert [p.name for p in tmp_path.iterdir()] == ["bad.nc"]


@pytest.mark.parametrize("kind", ["NetCDF 4", "NetCDF 3", "Zarr", "empty", "text", "GRIB", "NetCDF 5", "missing"])
def test_damaged_files(nenya_cli, tmp_path, kind):
    source = tmp_path / ("bad.zarr" if kind == "Zarr" else "bad.nc")
    if kind.startswith("NetCDF") and kind != "NetCDF 5":
        grid().to_netcdf(source, engine="h5netcdf" if kind == "NetCDF 4" else "scipy")
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    elif kind == "Zarr":
        grid().to_zarr(source, consolidated=False)
        for path in (source / "tos").rglob("zarr.json"):
            path.write_text("{")
    elif kind != "missing":
        source.write_bytes(
            {"empty": b"", "text": b"not a field", "GRIB": b"GRIB....", "NetCDF 5": b"CDF\x05...."}[kind]
        )
    code, said = nenya_cli("prepare", [f"data={source}", "out=x_preproc.h5", "field_size=16", "workers=1"])
    assert (code, said.count("\n")) == (2, 1), said
    assert source.name in said
    assert {p.name for p in tmp_path.iterdir()} <= {source.name}


BAD_OPTIONS = {
    "no data": (["out=x.h5"], "data= is required"),
    "no output": (["data=a.nc"], "out= is required"),
    "an output of another kind": (["data=a.nc", "out=cutouts"], "cutouts_preproc.h5"),
    "a share instead of a percentage": (["clear_threshold=0.95"], "a percentage"),
    "sizes that do not divide": (["data=a.nc", "out=x.h5", "field_size=65", "downscale=[2,2]"], "expected a multiple"),
    "bounds the wrong way round": (["temp_bounds=[33,-2]"], "two numbers"),
    "no recipe": (["sensor=modsi"], "did you mean modis?"),
    "no option": (["feild_size=3"], "did you mean field_size?"),
    "no such filling": (["inpaint=best"], "one of none, fast, biharmonic"),
    "a table that is not there": (["data=a.nc", "out=x.h5", "at=none.parquet"], "none.parquet"),
    "a table without places": (["data=a.nc", "out=x.h5", "at=t.csv"], "got no lat"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(nenya_cli, tmp_path, name):
    write(grid(), tmp_path / "a.nc")
    (tmp_path / "t.csv").write_text("latitude,lon,datetime\n1,2,2010-01-01\n")
    args, words = BAD_OPTIONS[name]
    code, said = nenya_cli("prepare", args)
    assert (code, said.count("\n")) == (2, 1), said
    assert words in said
    assert {p.name for p in tmp_path.iterdir()} == {"a.nc", "t.csv"}


def test_sensor_is_an_option_of_preparation_alone(nenya_cli):
    code, said = nenya_cli("extract", ["sensor=modis"])
    assert code == 2 and "it is archive.sensor" in said


def test_links_to_folders_around_them_are_not_followed_and_pipes_left_alone(tmp_path):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    for name in ("one", "two", "more/three"):
        (folder / name).symlink_to(folder)
    os.mkfifo(folder / "pipe.nc")
    (folder / "more" / "a.nc").write_bytes(b"CDF")
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "b.nc").write_bytes(b"CDF")
    (folder / "linked").symlink_to(tmp_path / "aside")
    assert find_fields(str(folder)) == [folder / "linked" / "b.nc", folder / "more" / "a.nc"]
    with pytest.raises(InputFileError, match="a pipe or a device"), open_fields(folder / "pipe.nc"):
        pass


def test_a_time_that_would_be_filled_up_takes_no_memory():
    """Its dimension has 211 million values, the time itself has one."""
    path = ROOT / "tests" / "fuzz" / "corpus" / "netcdf4" / "scan-times-of-200-million-rows.nc.bin"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError, match="'time' has 1 values, and its dimension 211504849"), open_fields(path):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
