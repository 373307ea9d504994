"""Texts that an HDF5 file gives many times over, and attributes of odd kinds, in every role that reads them."""

import re
import resource
import struct

import h5py
import numpy as np
import pytest

from nenya.commands.inspect import inspect_file
from nenya.commands.migrate import _hdf5 as migrate_hdf5
from nenya.commands.repack import repack_file
from nenya.commands.verify import verify_file
from nenya.data.hdf5 import Hdf5File
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError
from nenya.latents.files import Latents
from nenya.latents.projector import Projector
from nenya.options.commands import RepackOptions
from nenya.prepare.sources import open_fields

LONG = 400_000  # bytes of the text that is given TIMES times
TIMES = 4000  # as many as an attribute holds


def repeat(path, first, count):
    """Let `count` variable-length values of a file all be the first one, which has `first` bytes."""
    data = bytearray(path.read_bytes())
    place = _reference(data, first, 0)
    data[place : place + 16 * count] = bytes(data[place : place + 16]) * count
    path.write_bytes(data)
    return path


def _reference(data, nbytes, start):
    """Return where a value of so many bytes is named, -1 if nowhere."""
    place = data.find(struct.pack("<I", nbytes), start)
    while 0 <= place <= len(data) - 16:
        heap = struct.unpack_from("<Q", data, place + 4)[0]
        if 0 < heap < len(data) and data[heap : heap + 4] == b"GCOL":
            return place
        place = data.find(struct.pack("<I", nbytes), place + 1)
    return -1


def texts(count=TIMES):
    return np.array(["x" * LONG, *["y"] * (count - 1)], object)


def latents(path):
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype("f4")
    with h5py.File(path, "w") as h5:
        h5["train"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return path


def cutouts(path):
    with h5py.File(path, "w") as h5:
        h5["train"] = np.random.default_rng(0).normal(size=(8, 1, 16, 16)).astype("f4")
    return path


def granule(path):
    with h5py.File(path, "w") as h5:  # in the old form of HDF5, whose heads have no checksums
        for name, size in (("lat", 64), ("lon", 96)):
            h5[name] = np.linspace(0, 10, size)
            h5[name].make_scale(name)
        h5["tos"] = np.random.default_rng(0).normal(size=(64, 96))
        for axis, name in enumerate(("lat", "lon")):
            h5["tos"].dims[axis].attach_scale(h5[name])
    return path


def raised(report):
    if report.problems:
        raise InputFileError(report.problems[0])


def fields(path, name=None):
    with open_fields(path) as dataset:
        return str(dataset.attrs) if name is None else dataset[name].values


ROLES = {
    "latents": (latents, "checkpoint_sha256", lambda path: Latents([path])),
    "verify": (latents, "rows", lambda path: raised(verify_file(path))),
    "inspect latents": (latents, "rows", inspect_file),
    "inspect": (cutouts, "made_by", inspect_file),
    "granule": (granule, "title", fields),
    "projector": (cutouts, "format", Projector.load),
    "migrate": (cutouts, "format", lambda path: migrate_hdf5(path, path)),
    "repack": (cutouts, "made_by", lambda path: repack_file(path, path.with_name("out.h5"), RepackOptions())),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_text_given_many_times_takes_no_memory(tmp_path, role):
    write, name, read = ROLES[role]
    path = write(tmp_path / ("a.nc" if role == "granule" else "a_latents.h5" if write is latents else "a.h5"))
    with h5py.File(path, "r+") as h5:
        h5.attrs.create(name, texts(), dtype=h5py.string_dtype())
    repeat(path, LONG, TIMES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NenyaError, match=r"texts or lists|a list") as caught:
        read(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB, of the 1.6 GB that it states
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_variable_of_texts_given_many_times(tmp_path):
    path = granule(tmp_path / "a.nc")
    with h5py.File(path, "r+") as h5:
        h5["station"] = texts()
        h5["station"].make_scale("station")
    repeat(path, LONG, TIMES)
    with pytest.raises(InputFileError, match="station' has 4000 texts or lists"):
        fields(path, "station")
    with Hdf5File(path) as file:  # as labels are read, where the text is kept once
        assert file.values(file.find("station"), "station")[-1] == "x" * LONG


def test_single_texts_that_are_one_and_the_same(tmp_path):
    """Each has no more bytes than the file, all together have far more."""
    path = cutouts(tmp_path / "a.h5")
    with h5py.File(path, "r+") as h5:
        for number in range(300):
            h5.attrs.create(f"a{number:03d}", "x" * LONG if number == 0 else "y", dtype=h5py.string_dtype())
    data = bytearray(path.read_bytes())
    first = _reference(data, LONG, 0)
    place = 0
    while (place := _reference(data, 1, place + 1)) > 0:
        data[place : place + 16] = data[first : first + 16]
    path.write_bytes(data)
    with open_hdf5(path) as file, pytest.raises(InputFileError, match="more than 4 times its size"):
        dict(file.attrs)


def test_a_virtual_data_set_of_texts_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["texts"] = np.array(["one", "two"], object)
        layout = h5py.VirtualLayout((2,), h5py.string_dtype())
        layout[...] = h5py.VirtualSource(h5["texts"])
        h5.create_virtual_dataset("all", layout)
    with (
        open_hdf5(tmp_path / "a.h5") as file,
        pytest.raises(InputFileError, match="of another data set"),
    ):
        file["all"][...]


def test_what_honest_files_hold_is_read(tmp_path):
    path = granule(tmp_path / "a.nc")
    names = np.array([f"station {n}" for n in range(5000)], object)
    with h5py.File(path, "r+") as h5:
        h5.attrs.create("flags", names[:300], dtype=h5py.string_dtype())
        h5.attrs["history"] = "h" * 300_000
        h5.attrs["empty"] = h5py.Empty("f4")
        h5["station"] = names
        h5.create_dataset("packed", data=names, chunks=(512,), compression="gzip", shuffle=True)
        h5["pairs"] = np.array([np.arange(3), np.arange(2)], dtype=h5py.vlen_dtype("i4"))
    with open_hdf5(path) as file:
        assert [*file.attrs["flags"]] == [*names[:300]] and len(file.attrs["history"]) == 300_000
        assert file.attrs.get("none") is None and "flags" in file.attrs and isinstance(file.attrs["empty"], h5py.Empty)
        assert [*file["station"].asstr()[...]] == [*file["packed"].asstr()[...]] == [*names]
        assert [*file["pairs"][1]] == [0, 1]
        assert file["tos"].dims[0].keys() == ["lat"]
    with h5py.File(path, "r+") as h5:
        del h5["pairs"]  # which xarray does not read
    assert "station 7" in fields(path) and fields(path, "packed")[-1] == "station 4999"


@pytest.mark.parametrize("value", [["a", "b"], np.zeros((2, 2)), h5py.Empty("f4")])
@pytest.mark.parametrize("name", ["rows", "checkpoint_sha256", "source", "latents_sha256"])
def test_an_attribute_that_is_no_single_value_is_named(tmp_path, name, value):
    path = latents(tmp_path / "a_latents.h5")
    with h5py.File(path, "r+") as h5:
        h5.attrs.update(rows='{"train": 40}', source_sha256="0" * 64, checkpoint_sha256="1" * 64)
        h5.attrs[name] = value
    wanted = f"'{name}' is (a list|empty); expected one value"
    with pytest.raises(InputFileError, match=wanted):
        raised(verify_file(path, provenance=False))
    if name == "latents_sha256":
        assert any(re.search(wanted, line) for line in inspect_file(path).warnings)
        return
    with pytest.raises(InputFileError, match=wanted):
        inspect_file(path)
    if name != "rows":
        with pytest.raises(InputFileError, match=wanted):
            Latents([path])
