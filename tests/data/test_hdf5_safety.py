"""What an HDF5 file names outside of itself is not read, and what it lacks is not taken from memory, in any role."""

import ast
import io
import os
import resource
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from granules import grid

from nenya.archive.stages import read_centres
from nenya.commands.inspect import inspect_file
from nenya.commands.migrate import _hdf5 as migrate_hdf5
from nenya.commands.verify import verify_file
from nenya.data.chunk_check import SCALEOFFSET, check_chunk
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.data.hdf5_open import open_hdf5
from nenya.data.unpack import load_partition
from nenya.errors import InputFileError, NenyaError
from nenya.latents.files import Latents
from nenya.latents.projector import Projector
from nenya.latents.projector_file import FORMAT, FORMAT_VERSION
from nenya.options.commands import PrepareOptions
from nenya.options.sections import build_options
from nenya.portal.upload import read_image
from nenya.prepare.fields import Layout
from nenya.prepare.sources import open_fields

SECRET = np.linspace(5.0, 25.0, 64 * 96, dtype=np.float32).reshape(64, 96)
SOURCE = Path(__file__).resolve().parents[2] / "src" / "nenya"


# What each role reads, and of which name


def granule(path, **options):
    settings = build_options(PrepareOptions, {"temp_bounds": None, **options})
    with open_fields(path, allow_external=settings.loader.allow_external) as dataset:
        return Layout(dataset, str(path), settings).read(0, -1).values


ROLES = {
    "granule": ("tos", granule),
    "latents": ("train", lambda path: Latents([path])[0:64]),
    "cutouts": ("train", lambda path: CutoutReader(path, "train").read(0, 6)),
    "projector": ("latents", Projector.load),
    "centres": ("centres", read_centres),
    "inspect": ("train", inspect_file),
    "migrate": ("train", lambda path: migrate_hdf5(path, path)),
    "verify": ("train", lambda path: raised(verify_file(path, provenance=False))),
    "upload .nc": ("sst", lambda path: read_image("a.nc", path.read_bytes())),
    "upload .h5": ("a", lambda path: read_image("a.h5", path.read_bytes())),
}


def raised(report):
    if report.problems:
        raise InputFileError(report.problems[0])


def shape_of(role):
    return {"granule": (1, 64, 96), "cutouts": (6, 32, 32), "upload .nc": (64, 64), "upload .h5": (64, 64)}.get(
        role, (64, 96)
    )


def written(path, role):
    """Write a file of a role without its main data set, and return it."""
    name = ROLES[role][0]
    if role == "granule":
        grid((64, 96), times=1).to_netcdf(path, engine="h5netcdf")
        with h5py.File(path, "r+") as h5:
            del h5[name]
    else:
        with h5py.File(path, "w") as h5:
            if role == "projector":
                h5.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, parameters="{}", sha256="")
    return path


def scaled(path, role):
    """Give a field of NetCDF its dimensions."""
    with h5py.File(path, "r+") as h5:
        if role == "granule":
            for axis, dim in enumerate(("time", "lat", "lon")):
                h5["tos"].dims[axis].attach_scale(h5[dim])
            h5["tos"].attrs["units"] = "degC"
        elif role == "upload .nc":
            for axis, dim in enumerate("yx"):
                h5[dim] = np.arange(64)
                h5[dim].make_scale(dim)
                h5["sst"].dims[axis].attach_scale(h5[dim])
    return path


def put(path, role, way, secret):
    """Let the main data set of a file be one of another file."""
    name, shape = ROLES[role][0], shape_of(role)
    target = "s" + "x".join(map(str, shape))
    with h5py.File(secret, "a") as h5:
        if target not in h5:
            h5[target] = np.resize(SECRET, shape)
    relative = f"../{secret.parent.name}/{secret.name}"
    with h5py.File(path, "r+") as h5:
        if way == "external storage":
            h5.create_dataset(name, shape, "f4", external=[(str(secret), 0, int(np.prod(shape)) * 4)])
        elif way == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(secret), target, shape)
            h5.create_virtual_dataset(name, layout)
        elif way == "virtual, next to it":
            (path.parent / "near.h5").symlink_to(secret)
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource("near.h5", target, shape)
            h5.create_virtual_dataset(name, layout)
        elif way == "linked twice":
            with h5py.File(path.parent / "near.h5", "w") as other:
                other["x"] = h5py.ExternalLink(str(secret), target)
            h5[name] = h5py.ExternalLink("near.h5", "x")
        elif way == "soft link":
            h5["far"] = h5py.ExternalLink(relative, "/")
            h5[name] = h5py.SoftLink(f"/far/{target}")
        else:
            h5[name] = h5py.ExternalLink(str(secret) if way == "absolute" else relative, target)
    if way in ("external storage", "virtual"):
        scaled(path, role)
    return path


WAYS = ["absolute", "relative", "external storage", "virtual", "virtual, next to it", "linked twice", "soft link"]


@pytest.fixture
def folders(tmp_path):
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "own", tmp_path / "other" / "secret.h5"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ROLES)
def test_nothing_outside_of_the_folder_is_read(folders, role, way):
    own, secret = folders
    path = put(written(own / "a.h5", role), role, way, secret)
    with pytest.raises(NenyaError) as caught:
        ROLES[role][1](path)
    message = str(caught.value)
    assert "refused" in message or "not followed" in message, message
    assert "\n" not in message
    if not role.startswith("upload"):
        assert str(secret.resolve()) in message
        advised = "copy its data into" if role in ("projector", "centres") else "loader.allow_external=true"
        assert advised in message


@pytest.mark.parametrize("way", ["absolute", "external storage", "virtual", "linked twice"])
def test_all_of_it_is_read_where_that_is_allowed(folders, way):
    own, secret = folders
    path = put(written(own / "a.h5", "latents"), "latents", way, secret)
    got = Latents([path], allow_external=True)[0:64]
    with h5py.File(path) as h5:
        np.testing.assert_array_equal(got, h5["train"][()])
    if way in ("external storage", "virtual"):
        path = put(written(own / "b.nc", "granule"), "granule", way, secret)
        limits = {"possible": [-3e38, 3e38], "mask_constant": False}  # its pixels are the bytes of another file
        field = granule(path, loader={"allow_external": True}, **limits)
        with h5py.File(path) as h5:
            stored, kept = h5["tos"][0], np.isfinite(field)  # other bytes may be impossible temperatures
        assert kept.any()
        np.testing.assert_array_equal(field[kept], stored[kept])


@pytest.mark.parametrize("way", ["absolute", "external storage", "virtual", "linked twice"])
def test_an_upload_leads_nowhere_even_within_its_folder(folders, way):
    own, _ = folders
    for role in ("upload .nc", "upload .h5"):
        path = put(written(own / f"{role[-2:]}.h5", role), role, way, own / "data.h5")
        with pytest.raises(InputFileError, match=r"refused|not followed"):
            read_image(f"a{role[7:]}", path.read_bytes())
        with pytest.raises(InputFileError, match="refused"):
            open_hdf5(path, links="none").close()
        open_hdf5(path).close()


def test_prefixes_of_the_environment_do_not_lead_out(folders, monkeypatch):
    own, secret = folders
    with h5py.File(secret, "w") as h5:
        h5["s"] = SECRET
    (secret.parent / "raw").write_bytes(SECRET.tobytes())
    makes = {
        "HDF5_EXT_PREFIX": lambda h5: h5.__setitem__("train", h5py.ExternalLink("secret.h5", "s")),
        "HDF5_EXTFILE_PREFIX": lambda h5: h5.create_dataset("train", (64, 96), "f4", external=[("raw", 0, 24576)]),
        "HDF5_VDS_PREFIX": lambda h5: h5.create_virtual_dataset("train", layout_of("secret.h5")),
    }
    for variable, make in makes.items():
        path = own / f"{variable}.h5"
        with h5py.File(path, "w") as h5:
            make(h5)
        for prefix in (str(secret.parent), "${ORIGIN}/../other"):
            monkeypatch.setenv(variable, prefix)
            with pytest.raises(InputFileError, match="out of the file's own folder: refused"):
                Latents([path])
            monkeypatch.delenv(variable)
    monkeypatch.chdir(secret.parent)
    for variable in makes:  # where HDF5 looks as well
        with pytest.raises(InputFileError, match="out of the file's own folder: refused"):
            Latents([own / f"{variable}.h5"])


def layout_of(file, name="s"):
    layout = h5py.VirtualLayout(SECRET.shape, "f4")
    layout[...] = h5py.VirtualSource(file, name, SECRET.shape)
    return layout


def test_names_by_a_pattern_and_pipes_are_refused(folders):
    own, _ = folders
    with h5py.File(own / "a.h5", "w") as h5:
        space = h5py.h5s.create_simple(SECRET.shape, (h5py.h5s.UNLIMITED, 96))
        space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (64, 96), SECRET.shape)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_virtual(space, b"part-%b.h5", b"s", h5py.h5s.create_simple(SECRET.shape))
        h5py.h5d.create(h5.id, b"train", h5py.h5t.IEEE_F32LE, space, creation)
    with pytest.raises(InputFileError, match="named by a pattern"):
        Latents([own / "a.h5"])
    os.mkfifo(own / "pipe.h5")
    with h5py.File(own / "b.h5", "w") as h5:
        h5["train"] = h5py.ExternalLink("pipe.h5", "s")
    with pytest.raises(InputFileError, match=r"not a regular file|no ordinary file"):
        Latents([own / "b.h5"])


@pytest.mark.parametrize("role", ["latents", "cutouts", "upload .nc", "upload .h5"])
def test_links_of_a_kind_of_ones_own_are_refused(tmp_path, role):
    name = ROLES[role][0]
    path = written(tmp_path / "a.h5", role)
    with h5py.File(path, "r+") as h5:
        h5[name] = h5py.ExternalLink("b.h5", "x")
    content = bytearray(path.read_bytes())
    place = content.rfind(bytes([64, len(name)]) + name.encode())
    assert place > 0
    content[place] = 70
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"link of unknown type|not followed"):
        ROLES[role][1](path)


def test_awkward_files_are_gone_through(tmp_path):
    """Groups within themselves, deep ones, types and references, links to nothing."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        h5["train"] = SECRET
        h5["loop/back"] = h5["/"]
        h5["loop/self"] = h5["loop"]
        h5["kind"] = np.dtype("f4")
        h5["gone"] = h5py.SoftLink("/nowhere")
        h5["circle"] = h5py.SoftLink("/circle")
        h5["away"] = h5py.ExternalLink("gone.h5", "/")
        h5.create_dataset("refs", data=[h5["train"].ref, h5["loop"].ref], dtype=h5py.ref_dtype)
        h5.create_dataset("regions", data=[h5["train"].regionref[2:4, :5]], dtype=h5py.regionref_dtype)
        h5["typed"] = h5py.Empty("f4")
        group = h5
        for _ in range(300):
            group = group.create_group("g")
    np.testing.assert_array_equal(Latents([path])[0:64], SECRET)
    with open_hdf5(path) as h5:
        np.testing.assert_array_equal(h5[h5["refs"][0]][()], SECRET)
        region = h5["regions"][0]
        np.testing.assert_array_equal(h5[region][region], SECRET[2:4, :5])
        assert h5["loop"].get("none", 3) == 3 and h5["train"].parent["train"].file["kind"].dtype == "f4"


# Links within the folder


def test_latents_within_the_folder_are_those_of_the_linked_file(tmp_path):
    """Bytes at the same place of the first file are other ones."""
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(2, 50, 8)).astype("f4")
    with h5py.File(tmp_path / "data.h5", "w") as h5:
        h5["train"] = rows
    with h5py.File(tmp_path / "raw.h5", "w", userblock_size=512) as h5:
        h5["train"] = rows
    for number, file in enumerate(["data.h5", "raw.h5"]):
        path = tmp_path / f"{number}_latents.h5"
        with h5py.File(path, "w") as h5:
            h5["valid"] = others
            h5["train"] = h5py.ExternalLink(file, "train")
        latents = Latents([path])
        for held in (False, True):
            if held:
                latents = Latents([path])
                latents.hold()
            np.testing.assert_array_equal(latents[0:100], np.concatenate([rows, others]))
            np.testing.assert_array_equal(latents.take([49, 60, 3]), np.concatenate([rows, others])[[49, 60, 3]])
            np.testing.assert_array_equal(np.concatenate(list(latents.view(slice(0, 100)))), latents[0:100])


def test_latents_of_every_storage_are_read_as_they_are(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype("f4")
    (tmp_path / "raw").write_bytes(b"head" + rows.tobytes())
    for name, make in {
        "big-endian": lambda h5: h5.create_dataset("train", data=rows, dtype=">f4"),
        "chunks": lambda h5: h5.create_dataset("train", data=rows, chunks=(7, 8), compression="gzip"),
        "external": lambda h5: h5.create_dataset(
            "train", rows.shape, "f4", external=[(str(tmp_path / "raw"), 4, rows.nbytes)]
        ),
        "float64": lambda h5: h5.create_dataset("train", data=rows.astype("f8")),
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as h5:
            make(h5)
        np.testing.assert_array_equal(Latents([tmp_path / f"{name}.h5"])[0:50], rows)


@pytest.mark.parametrize("linked", ["train", "valid"])
def test_a_cutout_file_with_one_partition_linked(tmp_path, linked):
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(20, 1, 16, 16)).astype("f4") for name in ("train", "valid")}
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "data.h5", "w") as h5:
        h5["there"] = values[linked]
    with h5py.File(path, "w") as h5:
        for name, images in values.items():
            h5[name] = h5py.ExternalLink("data.h5", "there") if name == linked else images
    file = inspect_cutouts(path)
    assert [bool(part.sources) for part in file.partitions.values()] == [name == linked for name in values]
    for name, images in values.items():
        with file.reader(name) as reader:
            np.testing.assert_array_equal(reader.read(0, 20), images)
        np.testing.assert_array_equal(load_partition(path, name), images[:, 0])


# Chunks that end early


def packed(path, name, values, options, change, **more):
    """Write a data set of one chunk, and change the chunk's bytes."""
    with h5py.File(path, "a") as h5:
        if name in h5:
            del h5[name]
        data = h5.create_dataset(name, data=values, chunks=values.shape, **options, **more)
        corner = (0,) * values.ndim
        mask, chunk = data.id.read_direct_chunk(corner)
        assert mask == 0
        data.id.write_direct_chunk(corner, change(chunk))
    return path


def without_checksum_change(chunk):
    return chunk[:50] + bytes([chunk[50] ^ 1]) + chunk[51:]


SHORT = {
    "gzip": ({"compression": "gzip"}, lambda chunk: zlib.compress(zlib.decompress(chunk)[:700])),
    "cut gzip": ({"compression": "gzip"}, lambda chunk: chunk[: len(chunk) // 2]),
    "shuffled gzip": (
        {"compression": "gzip", "shuffle": True},
        lambda chunk: zlib.compress(zlib.decompress(chunk)[:700]),
    ),
    "gzip bomb": ({"compression": "gzip"}, lambda chunk: zlib.compress(bytes(2**27))),
    "lzf": ({"compression": "lzf"}, lambda chunk: b"\x1f" + bytes(32)),
    "szip": ({"compression": ("szip", ("nn", 8))}, lambda chunk: chunk[: len(chunk) // 3]),
    "szip by halves": ({"compression": ("szip", ("ec", 32))}, lambda chunk: chunk[:-40]),
    "scaleoffset": ({"scaleoffset": 3}, lambda chunk: chunk[:60]),
    "scaleoffset with gzip": (
        {"scaleoffset": 3, "compression": "gzip"},
        lambda chunk: zlib.compress(zlib.decompress(chunk)[:60]),
    ),
    "fletcher32": ({"fletcher32": True}, without_checksum_change),
}


def settings_of(options):
    method = options.get("compression")
    if isinstance(method, tuple):
        return {**options, "compression": method[0], "compression_opts": method[1]}
    return options


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("role", ["granule", "latents", "cutouts", "centres", "upload .nc", "upload .h5"])
def test_a_chunk_that_ends_early_is_damage(tmp_path, role, kind):
    options, change = SHORT[kind]
    name, read = ROLES[role]
    values = np.resize(np.random.default_rng(1).integers(1, 40, 9000) // 2, shape_of(role)).astype("f4")
    path = packed(written(tmp_path / "a.h5", role), name, values, settings_of(options), lambda chunk: chunk)
    whole = scaled(path, role)
    if role.startswith("upload") and ("szip" in kind or "scaleoffset" in kind):
        with pytest.raises(InputFileError, match=r"packed by|uses other filters"):
            read(whole)
        return
    read(whole)
    with h5py.File(path, "r+") as h5:
        corner = (0,) * values.ndim
        h5[name].id.write_direct_chunk(corner, change(h5[name].id.read_direct_chunk(corner)[1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_every_cut_of_a_szip_stream_is_seen(tmp_path):
    """Also one whose scan lines are padded, where the library says that all was unpacked."""
    path = tmp_path / "a.h5"
    rng = np.random.default_rng(3)
    for number, (kind, shape, block) in enumerate([("f4", (5, 37), 8), ("i2", (9, 32), 16), ("f8", (4, 20), 4)]):
        values = np.abs(rng.normal(size=shape) * 50).astype(kind)
        with h5py.File(path, "a") as h5:
            data = h5.create_dataset(f"a{number}", data=values, chunks=shape, compression="szip",
                                     compression_opts=("nn", block))  # fmt: skip
            code, _, settings, _ = data.id.get_create_plist().get_filter(0)
            chunk = data.id.read_direct_chunk((0, 0))[1]
        check_chunk(chunk, [(code, settings)], 0, values.nbytes, values.itemsize)
        for end in range(len(chunk) - 1):
            with pytest.raises(ValueError, match=r"ends early|does not hold|truncated"):
                check_chunk(chunk[:end], [(code, settings)], 0, values.nbytes, values.itemsize)


def test_heads_of_further_packings_say_how_much_they_hold():
    size = 4096
    heads = {
        32001: lambda n: struct.pack("<4BIII", 2, 1, 0, 4, n, n, 20) + bytes(4),
        32004: lambda n: struct.pack(">QI", n, n) + bytes(8),
        32008: lambda n: struct.pack(">QI", n, n) + bytes(8),
        32015: lambda n: b"\x28\xb5\x2f\xfd\x80\x58" + struct.pack("<I", n) + bytes(8),
    }
    for code, head in heads.items():
        values = (0, 4, 4, 0, 2)
        check_chunk(head(size), [(code, values)], 0, size, 4)
        for wrong in (0, size - 4, size + 4):
            with pytest.raises(ValueError, match="does not hold"):
                check_chunk(head(wrong), [(code, values)], 0, size, 4)
    with pytest.raises(ValueError, match="does not hold"):
        check_chunk(b"\xff" * 60, [(SCALEOFFSET, (0, 3, 1024, 1, 4, 0, 0))], 0, size, 4)


def test_filters_that_cannot_be_checked_are_refused(tmp_path):
    path = tmp_path / "a_latents.h5"
    with h5py.File(path, "w") as h5:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((64, 96))
        creation.set_filter(h5py.h5z.FILTER_NBIT)
        space = h5py.h5s.create_simple(SECRET.shape)
        data = h5py.h5d.create(h5.id, b"train", h5py.h5t.IEEE_F32LE, space, creation)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, SECRET)
    with pytest.raises(InputFileError, match=r"compressed with nbit.*h5repack -f GZIP=4"):
        Latents([path])[0:10]


# What does not fit


def test_a_field_that_a_small_file_declares_takes_no_memory(tmp_path):
    path = written(tmp_path / "a.nc", "granule")
    with h5py.File(path, "r+") as h5:
        for dim in ("lat", "lon"):
            del h5[dim]
        h5["lat"], h5["lon"] = np.linspace(0, 50, 25_000), np.linspace(0, 90, 50_000)
        h5["lat"].attrs["units"], h5["lon"].attrs["units"] = "degrees_north", "degrees_east"
        field = h5.create_dataset("tos", (1, 25_000, 50_000), "f4", chunks=(1, 500, 500), compression="gzip")
        for dim in ("lat", "lon"):
            h5[dim].make_scale(dim)
        field[0, :500, :500] = 15
    scaled(path, "granule")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError, match=r"'tos' declares .* GB"):
        granule(path)
    with pytest.raises(InputFileError, match=r"declares 5\.00 GB in a file of"):
        read_whole(path, "tos")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_data_in_another_file_that_is_short_or_gone_are_not_zeros(tmp_path):
    path, raw = tmp_path / "a_latents.h5", tmp_path / "raw"
    raw.write_bytes(SECRET.tobytes())
    with h5py.File(path, "w") as h5:
        h5.create_dataset("train", SECRET.shape, "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
    np.testing.assert_array_equal(Latents([path])[0:64], SECRET)
    os.truncate(raw, 500)
    with pytest.raises(InputFileError, match="has only 500 bytes of its data"):
        Latents([path])[0:64]
    raw.unlink()
    with pytest.raises(InputFileError, match="which does not exist"):
        Latents([path])[0:64]


def test_a_chunk_far_larger_than_its_data_takes_no_memory(tmp_path):
    path = tmp_path / "a_latents.h5"
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset("train", (10, 8), "f4", chunks=(2**24, 8), maxshape=(None, 8), compression="gzip")
        machine = zlib.compressobj(1)
        packed = b"".join(machine.compress(bytes(2**24)) for _ in range(32)) + machine.flush()
        data.id.write_direct_chunk((0, 0), packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError, match=r"0\.5 GB each"):
        Latents([path])[0:10]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def read_whole(path, name):
    with open_hdf5(path) as h5:
        return h5[name][()]


def test_parts_are_read_as_h5py_reads_them(tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 20, 10)).astype("f4")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("a", data=values, chunks=(7, 6, 5), compression="gzip", shuffle=True)
        h5["one"], h5["text"] = 3, "words"
    indexes = [(), ..., 3, -1, slice(2, 29, 3), (..., 2), (slice(None), 4), ([1, 5, 29],), (5, [0, 3], slice(1, 3))]
    indexes += [values > 0, (values[:, 0, 0] > 0,), slice(5, 5)]
    with open_hdf5(path) as h5:
        for index in indexes:
            np.testing.assert_array_equal(h5["a"][index], values[index])
        np.testing.assert_array_equal(np.asarray(h5["a"]), values)
        out = np.zeros((2, 20, 10), "f4")
        h5["a"].read_direct(out, np.s_[3:5])
        np.testing.assert_array_equal(out, values[3:5])
        np.testing.assert_array_equal(h5["a"].astype("f8")[4], values[4])
        assert h5["one"][()] == 3 and h5["text"].asstr()[()] == "words"
        assert [item.shape for item in h5.values()] == [(30, 20, 10), (), ()]
    with open_hdf5(io.BytesIO(path.read_bytes()), links="none") as h5:
        np.testing.assert_array_equal(h5["a"][3:20], values[3:20])


# The one door


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_else_opens_hdf5():
    """Files are read by `open_hdf5` alone; others write new ones, or ones in memory."""
    opened = {"h5py.File", "h5netcdf.File", "h5py.h5f.open", "xarray.open_dataset", "xarray.open_mfdataset"}
    opened |= {"xarray.open_groups", "xarray.open_datatree", "xarray.open_zarr", "File", "pandas.read_hdf"}
    allowed = {
        ("data/hdf5_open.py", "File"), ("data/hdf5_links.py", "h5py.File"),
        ("prepare/sources.py", "h5netcdf.File"), ("prepare/sources.py", "xarray.open_dataset"),
    }  # fmt: skip
    found = set()
    for path in SOURCE.rglob("*.py"):
        for name, call in calls(ast.parse(path.read_text())):
            modes = [ast.unparse(value) for value in call.args[1:2]]
            if name in opened and modes != ["'w'"] and path.stem != "jailed":  # which rehearses on files of its own
                found.add((path.relative_to(SOURCE).as_posix(), name))
    assert found == allowed
