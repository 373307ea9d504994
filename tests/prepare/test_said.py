"""What preparation says: a bar of fields, sizes, and answers to what was typed."""

import os
import pty
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from nenya.prepare.counts import FieldCount
from nenya.runtime.process import RowProgress


def write_months(path, months, shape=(40, 60)):
    """Write a file of fields with several times."""
    values = np.random.default_rng(0).normal(15, 2, (months, *shape)).astype("f4")
    xr.Dataset(
        {"sst": (("time", "lat", "lon"), values, {"units": "degC", "standard_name": "sea_surface_temperature"})},
        coords={
            "time": np.datetime64("2010-01-16", "ns") + np.arange(months) * np.timedelta64(30, "D"),
            "lat": ("lat", np.linspace(0, 19, shape[0]), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(0, 29, shape[1]), {"units": "degrees_east"}),
        },
    ).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_bar_counts_fields_of_a_file(tmp_path, workers):
    write_months(tmp_path / "a.nc", 5)
    write_months(tmp_path / "b.nc", 2)
    command = ["prepare", "sensor=grid", f"data={tmp_path}/*.nc", "field_size=16", "out=o_preproc.h5"]
    script = "import sys; from nenya.cli import main; sys.exit(main(sys.argv[1:]))"
    primary, other = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", script, *command, f"workers={workers}"], stderr=other, cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(other)
    said = b""
    while True:
        try:
            block = os.read(primary, 4096)
        except OSError:
            break
        if not block:
            break
        said += block
    os.close(primary)
    assert done.wait() == 0, said
    assert b"fields" in said and b"7/7" in said and b"/2 " not in said.split(b"7/7")[-1], said


def test_fields_of_unopened_files_are_estimated():
    progress = RowProgress("fields", 3, visible=False)
    count = FieldCount(3, progress)
    assert count.total == 3
    count.report(0, 0, 54)
    assert count.total == progress.total == 162
    count.report(0, 1, 54)
    count.report(1, 0, 1)
    assert (progress.done, progress.total) == (1, 54 + 1 + 28)
    for task in (0, 1, 2):
        count.end(task)
    assert progress.done == progress.total == 54 + 1 + 1


def test_a_field_smaller_than_a_cutout_is_said_with_both_sizes(tmp_path, nenya_cli):
    write_months(tmp_path / "a.nc", 1)
    args = ["sensor=grid", "workers=1", "out=o_preproc.h5"]
    code, said = nenya_cli("prepare", [*args, "data=a.nc", "field_size=64"])
    assert code == 2 and "40 x 60 pixels" in said and "field_size=64" in said and "field_size=40" in said, said
    write_months(tmp_path / "b.nc", 1, (80, 80))
    code, said = nenya_cli("prepare", [*args, "data=[a.nc,b.nc]", "field_size=64"])
    assert code == 0 and "1 of 2 fields have no cutout: 1 smaller than field_size=64" in said, said
    assert "40 x 60" in said


def test_places_are_told_of_places_only(tmp_path, nenya_cli):
    write_months(tmp_path / "a.nc", 3)
    (tmp_path / "at.csv").write_text("lat,lon,datetime\n9.5,14.5,2010-01-16\n")
    args = ["sensor=grid", "data=a.nc", "at=at.csv", "field_size=16", "max_hours=24", "max_km=100", "out=o_preproc.h5"]
    code, said = nenya_cli("prepare", [*args, "workers=1"])
    assert code == 0 and "no cutout" not in said and "to train on them" not in said, said


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["data=a.nc", "out=foo.nc"], "such as out=foo_preproc.h5"),
        (["data=a.nc", "out=dir/"], "such as out=dir/modis_2010_preproc.h5"),
        (["data=a.nc", "out=dir"], "such as out=dir/modis_2010_preproc.h5"),
        (["data=a.nc", "out=s3://bucket/x.zarr"], "such as out=s3://bucket/x_preproc.h5"),
        (["data=a.nc"], "out= is required"),
        (["out=a_preproc.h5"], "data= is required: the files of fields"),
        ([], "data= is required"),
        (["data=a.nc", "out=a_preproc.h5", "storage.references=[s3://]"], "expected the address of a bucket"),
        (["data=a.nc", "out=a_preproc.h5", "storage.anonymous=maybe"], "storage.anonymous=maybe"),
        (
            ["data=a.nc", "out=a_preproc.h5", "storage.anonymous=true", "storage.requester_pays=true"],
            "needs an account",
        ),
    ],
)
def test_what_was_typed_is_answered_in_its_own_terms(tmp_path, nenya_cli, args, wanted):
    (tmp_path / "dir").mkdir()
    write_months(tmp_path / "a.nc", 1)
    code, said = nenya_cli("prepare", ["sensor=grid", *args])
    assert code == 2 and said.count("\n") == 1 and wanted in said, said
    assert sorted(os.listdir(tmp_path)) == ["a.nc", "dir"]
