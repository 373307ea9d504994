"""The process that reads what the portal's visitors send: it reaches nothing, ends in time, and reads every format."""

import contextlib
import gc
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib

import h5netcdf
import h5py
import numpy as np
import psutil
import pytest
from hostile_reader import ATTACKS
from PIL import Image
from scipy.io import netcdf_file

from nenya.errors import InputFileError, OptionError
from nenya.portal.jail import Jail, Stopped
from nenya.portal.upload import read_image

FIELD = np.random.default_rng(3).normal(size=(24, 24)).astype(np.float32).cumsum(0) + 280
STACK = np.stack([FIELD, FIELD + 1, FIELD + 2])


@pytest.fixture(scope="module")
def jail():
    found = Jail()
    yield found
    found.close()


@pytest.fixture(scope="module")
def attacked():
    os.environ["NENYA_TEST_KEY"] = "a secret of the server"
    found = Jail(256, 60, reader="hostile_reader")
    yield found
    found.close()
    del os.environ["NENYA_TEST_KEY"]


@pytest.fixture(scope="module")
def hurried():
    found = Jail(256, 1, reader="hostile_reader")
    yield found
    found.close()


needs_walls = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="this system has no such walls"
)


def saved(array, writer=np.save, **settings):
    stream = io.BytesIO()
    writer(stream, array, **settings)
    return stream.getvalue()


def hdf5(**arrays):
    """An HDF5 file of arrays, each with the arguments of its data set."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, (values, settings) in arrays.items():
            file.create_dataset(name, data=values, **settings)
    return stream.getvalue()


def netcdf4(**settings):
    stream = io.BytesIO()
    with h5netcdf.File(stream, "w") as file:
        file.dimensions = {"n": 3, "y": 24, "x": 24}
        whole = np.round((STACK - 270) * 100).astype("i2")
        sst = file.create_variable("sst", ("n", "y", "x"), data=whole, fillvalue=np.int16(-9), **settings)
        sst.attrs["scale_factor"], sst.attrs["add_offset"] = 0.01, 270.0
    return stream.getvalue()


def netcdf3():
    stream = io.BytesIO()
    file = netcdf_file(stream, "w")
    for name, size in (("n", None), ("y", 24), ("x", 24)):
        file.createDimension(name, size)
    file.createVariable("sst", "f4", ("n", "y", "x"))[:3] = STACK
    file.flush()
    return stream.getvalue()


def png(image=None):
    stream = io.BytesIO()
    grey = np.round((FIELD[::-1] - 200) / 200 * 65535).astype(np.uint16) if image is None else image
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, pieces in members:
            with archive.open(name, "w", force_zip64=True) as out:
                for piece in pieces:
                    out.write(piece)
    return stream.getvalue()


def header(shape, kind="<f4", by_columns=False):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": by_columns, "shape": shape})
    return stream.getvalue()


PACKED = {"chunks": (2, 9, 9), "compression": "gzip", "shuffle": True, "fletcher32": True}
CUTOUTS = {"chunks": (3, 1, 4, 4), "compression": "lzf"}
GOOD = {
    "npy": ("a.npy", lambda: saved(STACK), {}),
    "npy of one": ("a.npy", lambda: saved(FIELD), {"row": "9"}),
    "npy by columns": ("a.npy", lambda: saved(np.asfortranarray(STACK)), {}),
    "npy of 4": ("a.npy", lambda: saved(STACK[:, None].astype(">f8")), {}),
    "npz": ("a.npz", lambda: saved(STACK, np.savez), {}),
    "npz packed": ("a.npz", lambda: saved(STACK, np.savez_compressed), {}),
    "npz by lzma": ("ä.npz", lambda: zipped(("ä.npy", [saved(STACK)]), method=zipfile.ZIP_LZMA), {}),
    "npz by bzip2": ("a.npz", lambda: zipped(("a.npy", [saved(STACK)]), method=zipfile.ZIP_BZIP2), {}),
    "h5": ("a.h5", lambda: hdf5(a=(STACK, {})), {}),
    "hdf5 packed": ("a.HDF5", lambda: hdf5(a=(STACK, PACKED)), {}),
    "cutouts": ("a.h5", lambda: hdf5(valid=(STACK[:, None], CUTOUTS), a=(STACK + 9, {})), {}),
    "netcdf 4": ("a.nc", netcdf4, {}),
    "netcdf 4 packed": ("a.nc", lambda: netcdf4(compression="gzip", chunks=(1, 24, 24)), {}),
    "netcdf 3": ("a.nc", netcdf3, {}),
    "png": ("a.png", png, {"scale": ("200", "400")}),
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_format_is_read_behind_the_walls_as_it_is_without_them(jail, kind):
    name, make, settings = GOOD[kind]
    settings = {"row": "1"} | settings
    data = make()
    found, plain = jail.read(name, data, **settings), read_image(name, data, **settings)
    one = kind in ("png", "npy of one")
    assert np.allclose(found.image, FIELD + (0 if one else 1), atol=0.006)
    assert np.array_equal(found.image, plain.image) and found.source == plain.source
    assert found.source == ("" if one else "row 1 of the rows 0 to 2")


def test_what_is_refused_is_said_as_without_walls(jail):
    for name, data, settings, error, word in (
        ("a.npy", saved(STACK), {"row": "3"}, OptionError, "a row from 0 to 2"),
        ("a.npy", saved(STACK), {"row": "x"}, OptionError, "an integer"),
        ("a.png", png(), {}, OptionError, "brightness"),
        ("a.npy", saved(FIELD[:, :20]), {}, InputFileError, "square"),
        ("a.gz", b"\x1f\x8b\x08\0", {}, InputFileError, "expected a file ending in"),
        ("a.tif", b"II*\0\x08\0\0\0", {}, InputFileError, "expected a file ending in"),
        ("a.png", b"II*\0\x08\0\0\0\xff\xff" + bytes(9999), {"scale": ("0", "1")}, InputFileError, "cannot be read"),
        ("a.npy", b"", {}, InputFileError, "cannot be read"),
    ):
        with pytest.raises(error, match=word):
            jail.read(name, data, **settings)


@pytest.mark.parametrize("row", ["0", "2"])
def test_an_npz_whose_bytes_changed_is_damaged_wherever_they_lie(row):
    data = bytearray(saved(STACK, np.savez))
    data[data.index(STACK[1].tobytes()) + 99] ^= 64
    with pytest.raises(InputFileError, match="damaged"):
        read_image("a.npz", bytes(data), row)


@needs_walls
def test_the_child_finds_its_walls_closed_and_has_nothing_of_the_server(jail, attacked):
    assert jail.closed and attacked.closed
    for name in ("environment", "modules"):
        with pytest.raises(InputFileError) as found:
            attacked.read(name, b"")
        text = str(found.value)
        assert "secret" not in text and "NENYA" not in text and "HOME" not in text and "torch" not in text, text


@needs_walls
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_hole_of_a_decoder_would_do_is_refused(attacked, tmp_path, attack):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of the server")
    secret.chmod(0o644)
    server = os.getpid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        targets = {
            "open": [str(secret), "/etc/passwd", "/proc/self/environ", f"/proc/{server}/mem", f"/proc/{server}/environ",
                     "/proc/self/fd/0", "/dev/zero", "/sys/kernel/mm", "/dev/shm"],
            "reuse": ["/etc/passwd", str(secret)], "list": ["/", str(tmp_path), f"/proc/{server}/fd"],
            "write": [str(tmp_path / "new"), "/dev/shm/new", "new"], "mkdir": [str(tmp_path / "folder"), "folder"],
            "connect": [port], "udp": [port], "unix": [str(tmp_path / "a"), "\0abstract"],
            "kill": [str(server)], "ptrace": [str(server)], "vm_readv": [str(server)],
        }  # fmt: skip
        for target in targets.get(attack, [str(secret)]):
            with pytest.raises(InputFileError, match="refused") as found:
                attacked.read(attack, target.encode())
            assert "Operation not permitted" in str(found.value) or attack in ("import", "thread", "raise_limit")
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert secret.read_text() == "a secret of the server" and os.listdir(tmp_path) == ["secret.txt"]


@needs_walls
@pytest.mark.parametrize(
    ("attack", "words"), [("allocate", "within 256 MB of memory"), ("map", "the process that read it died")]
)
def test_memory_without_end_is_refused_in_a_sentence(attacked, attack, words):
    with pytest.raises(InputFileError, match=words):
        attacked.read(attack, b"")
    none_left(attacked)


@pytest.mark.parametrize("attack", ["spin", "sleep", "dribble"])
def test_work_without_end_is_ended_in_time(hurried, attack):
    with pytest.raises(InputFileError, match=r"within 1 seconds|the process that read it died"):
        hurried.read(attack, b"")
    none_left(hurried)


def frame(head, body=b""):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + body


LIES = {
    "no frame": b"hello, this is no frame",
    "nothing": b"",
    "long header": struct.pack(">I", 2**31) + b"{" * 100,
    "deep header": frame(b"[" * 4000),
    "no JSON": frame(b"{'side': 16}"),
    "list": frame([16]),
    "text": frame({"side": "16", "source": ""}, bytes(1024)),
    "truth": frame({"side": True, "source": ""}, bytes(4)),
    "negative": frame({"side": -16, "source": ""}, bytes(1024)),
    "huge": frame({"side": 10**9, "source": ""}, bytes(1024)),
    "small": frame({"side": 4, "source": ""}, bytes(64)),
    "fraction": frame({"side": 16.5, "source": ""}, bytes(1024)),
    "too short": frame({"side": 16, "source": ""}, bytes(1020)),
    "too long": frame({"side": 16, "source": ""}, bytes(1028)),
    "no source": frame({"side": 16}, bytes(1024)),
    "source of another type": frame({"side": 16, "source": {"a": 1}}, bytes(1024)),
    "another error": frame({"error": "exec", "text": "x"}),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("lie", LIES)
def test_the_childs_answer_is_taken_for_hostile(attacked, lie):
    with pytest.raises(InputFileError, match="the process that read it died"):
        attacked.read("raw", LIES[lie])


def test_an_image_of_the_child_is_checked_again_and_its_texts_are_plain(attacked):
    for values, word in ((np.nan, "missing"), (1e9, "values up to"), (7, "constant")):
        with pytest.raises(InputFileError, match=word):
            attacked.read("raw", frame({"side": 16, "source": ""}, np.full(256, values, "<f4").tobytes()))
    with pytest.raises(InputFileError) as found:
        attacked.read("raw", frame({"error": "input", "text": "\x1b[31m\n" + "x" * 2000}))
    assert str(found.value).isprintable() and len(str(found.value)) < 600
    body = np.arange(256, dtype="<f4").tobytes()
    assert attacked.read("raw", frame({"side": 16, "source": "a\x1bb\n"}, body)).source == "a\\x1bb\\x0a"


def test_a_child_that_crashes_or_floods_is_one_sentence(attacked):
    with pytest.raises(InputFileError, match=r"the process that read it died \(SIGSEGV\)"):
        attacked.read("crash", b"")
    before = psutil.Process().memory_info().rss
    with pytest.raises(InputFileError, match="the process that read it died"):
        attacked.read("flood", b"")
    assert psutil.Process().memory_info().rss - before < 30e6
    none_left(attacked)


def none_left(jail):
    """No process of a jail is left but the one that waits, and no zombie."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        children = [child for child in psutil.Process().children() if is_jailed(child)]
        known = {child.process.pid for child in jail._all}
        if len(known) <= 1 and all(child.status() != psutil.STATUS_ZOMBIE for child in children):
            return
        time.sleep(0.05)
    raise AssertionError(f"left: {known}")


def is_jailed(process):
    with contextlib.suppress(psutil.Error):
        return process.status() == psutil.STATUS_ZOMBIE or any("nenya.portal.jailed" in a for a in process.cmdline())
    return False


def png_bomb(width, height, size=10**7):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(size), 9)) + chunk(b"IEND", b"")


def raw_chunk(data, shape, chunks, packed_by="gzip"):
    """An HDF5 file of one chunk, which holds the bytes that are given."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        held = file.create_dataset("sst", shape, "f4", chunks=chunks, compression=packed_by)
        held.id.write_direct_chunk((0,) * len(shape), data)
    return stream.getvalue()


def empty_hdf5(shape, kind="f8", **settings):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("valid", shape, kind, **settings)
    return stream.getvalue()


def many_ifds():
    """A TIFF of a million directories."""
    folders = np.zeros(10**6, np.dtype([("entries", "<u2"), ("next", "<u4")]))
    folders["next"] = 14 + 6 * np.arange(10**6)
    return b"II*\0\x08\0\0\0" + folders.tobytes()


SQUARE = (24, 24), (24, 24)
BIG = (900, 1024, 1024)
OLD_BOMB = b"CDF\1\0\0\0\0\0\0\0\x0a\x7f\xff\xff\xff" + bytes(10**6)
ZEROS = [bytes(2**20)] * 160
BOMBS = {
    "h5 of 7.4 GB that were never written": ("a.h5", lambda: empty_hdf5((900_000, 32, 32), chunks=True), "constant"),
    "h5 of a chunk of 3.7 GB": ("a.h5", lambda: empty_hdf5(BIG, "f4", chunks=BIG), "chunks"),
    "h5 of a chunk of 100 MB": (
        "a.h5",
        lambda: raw_chunk(zlib.compress(bytes(100 * 2**20), 9), (100, 512, 512), (100, 512, 512)),
        "memory|constant",
    ),
    "h5 of a short chunk": ("a.h5", lambda: raw_chunk(zlib.compress(bytes(999)), *SQUARE), "damaged"),
    "h5 of a long chunk": ("a.h5", lambda: raw_chunk(zlib.compress(bytes(10**7)), *SQUARE), "damaged"),
    "h5 of a short chunk of lzf": ("a.h5", lambda: raw_chunk(b"\x02abc\xe0\xff\x02", *SQUARE, "lzf"), "damaged"),
    "nc of a short chunk": ("a.nc", lambda: raw_chunk(zlib.compress(bytes(999)), *SQUARE), "damaged"),
    "png of 50k x 50k": ("a.png", lambda: png_bomb(50_000, 50_000), "got 50000 x 50000"),
    "png of much behind the image": ("a.png", lambda: png_bomb(1000, 1000, 10**8), "constant"),
    "npz of 160 MB by columns": (
        "a.npz",
        lambda: zipped(("a.npy", [header((20, 1024, 1024), "<f8", True), *ZEROS])),
        "within 128 MB of memory",
    ),
    "npz of 160 MB by rows": ("a.npz", lambda: zipped(("a.npy", [header((20, *BIG[1:]), "<f8"), *ZEROS])), "constant"),
    "npz that says 10 GB": ("a.npz", lambda: zipped(("a.npy", [header((10**4, 1024, 1024), "<f8")])), "expected"),
    "npz of a dictionary of 4 GB": ("a.npz", lambda: lzma_bomb(), "memory|cannot be read"),
    "npy that says 10 GB": ("a.npy", lambda: header((10**4, 1024, 1024), "<f8"), "expected numbers"),
    "npy that says 400 MB": ("a.npy", lambda: header((50, 1024, 1024), "<f8", True), "cannot be read"),
    "npy of a deep header": ("a.npy", lambda: b"\x93NUMPY\1\0\xff\xff" + b"[" * 65535, "cannot be read"),
    "netcdf 3 of 2 billion dimensions": ("a.nc", lambda: OLD_BOMB, "cannot be read|seconds"),
    "tif of a million directories": ("a.tif", many_ifds, "expected a file ending in"),
    "tif by another name": ("a.png", many_ifds, "cannot be read"),
    "gz of 100 MB": ("a.nc.gz", lambda: zlib.compress(bytes(10**8), wbits=31), "expected a file ending in"),
    "gz by another name": ("a.nc", lambda: zlib.compress(bytes(10**8), wbits=31), "HDF5"),
}  # fmt: skip


def lzma_bomb():
    data = bytearray(zipped(("a.npy", [saved(FIELD)]), method=zipfile.ZIP_LZMA))
    place = data.index(b"a.npy") + 5 + struct.unpack_from("<H", data, 28)[0]
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"  # the dictionary's size, behind version, length and properties
    return bytes(data)


@pytest.fixture(scope="module")
def small():
    found = Jail(128, 60)
    yield found
    found.close()


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end_in_the_child_within_its_limits(small, bomb):
    name, make, words = BOMBS[bomb]
    data = make()
    gc.collect()
    peak, stop = watch_memory()
    try:
        with pytest.raises(InputFileError, match=words) as found:
            small.read(name, data, scale=("0", "30"))
    finally:
        stop.set()
    assert str(found.value).isprintable() and len(str(found.value)) < 400
    assert max(peak()) < 40e6
    none_left(small)


def watch_memory():
    """Return what this process takes more than now, from time to time, and what ends the watch."""
    process, stop, found = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def look():
        while not stop.wait(0.01):
            found.append(process.memory_info().rss - before)

    thread = threading.Thread(target=look)
    thread.start()
    return lambda: (thread.join(), found)[1], stop


def external(path, secret):
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"y": 32, "x": 32}
        file.create_variable("y", ("y",), data=np.arange(32.0))
        file.create_variable("x", ("x",), data=np.arange(32.0))
    with h5py.File(path, "a") as file:
        held = file.create_dataset("sst", (32, 32), "u1", external=[(str(secret), 0, 1024)])
        for axis, name in enumerate("yx"):
            held.dims[axis].attach_scale(file[name])


def virtual(path, secret):
    with h5py.File(path.with_suffix(".source"), "w") as file:
        file["sst"] = FIELD
    layout = h5py.VirtualLayout((24, 24), "f4")
    layout[:] = h5py.VirtualSource(str(path.with_suffix(".source")), "sst", (24, 24))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("sst", layout)


def inner_virtual(path, secret):
    layout = h5py.VirtualLayout((24, 24), "f4")
    layout[:] = h5py.VirtualSource(".", "held", (24, 24))
    with h5py.File(path, "w") as file:
        file.create_group("g")["held"] = FIELD
        file.create_virtual_dataset("sst", layout)


def linked(path, secret):
    virtual(path, secret)
    with h5py.File(path, "w") as file:
        file["sst"] = h5py.ExternalLink(str(path.with_suffix(".source")), "sst")


def soft(path, secret):
    with h5py.File(path, "w") as file:
        file.create_group("g")["held"] = FIELD
        file["sst"] = h5py.SoftLink("/g/held")


@pytest.mark.parametrize("suffix", [".h5", ".nc"])
@pytest.mark.parametrize("make", [external, virtual, inner_virtual, linked, soft])
@pytest.mark.parametrize("walls", [True, False])
def test_nothing_leads_out_of_an_hdf5_or_netcdf_file_with_walls_or_without(jail, tmp_path, make, suffix, walls):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(range(256)) * 4)
    path = tmp_path / f"a{suffix}"
    make(path, secret)
    read = jail.read if walls else read_image
    with pytest.raises(InputFileError, match="uses a link, external storage"):
        read(path.name, path.read_bytes())


@pytest.mark.parametrize("suffix", [".h5", ".nc"])
def test_filters_beyond_the_usual_ones_are_refused(jail, suffix):
    for settings in ({"scaleoffset": 2}, {"compression": "szip"} if h5py.h5z.filter_avail(4) else {"scaleoffset": 1}):
        data = hdf5(sst=((FIELD * 10).astype("i4"), {"chunks": (24, 24), **settings}))
        with pytest.raises(InputFileError, match="other filters than gzip, shuffle, lzf and fletcher32"):
            jail.read(f"a{suffix}", data)


@pytest.mark.parametrize("packed_by", [None, "gzip"])
@pytest.mark.parametrize("stored", [1, 100, 24 * 24 * 4 - 1, 24 * 24 * 4 + 1])
def test_a_chunk_whose_stored_size_cannot_be_right_shows_no_memory(stored, packed_by):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        held = file.create_dataset("sst", (24, 24), "f4", chunks=(24, 24), compression=packed_by)
        data = (FIELD.tobytes() + b"x")[:stored]
        held.id.write_direct_chunk((0, 0), data, filter_mask=1 if packed_by else 0)
    with pytest.raises(InputFileError, match="damaged"):
        read_image("x.h5", stream.getvalue())


@pytest.mark.parametrize("row", ["1_0", "\u0661", "+1", " 1", "1.0", "9" * 5000])
def test_a_row_or_a_scale_in_other_than_plain_digits_is_refused(row):
    stream = io.BytesIO()
    np.save(stream, np.repeat(STACK, 4, axis=0))
    with pytest.raises(OptionError, match="expected a row"):
        read_image("x.npy", stream.getvalue(), row)
    with pytest.raises(OptionError, match="black and white"):
        read_image("x.png", b"", scale=("2_0", "30"))


def test_one_child_waits_for_the_next_file_and_each_reads_one(jail):
    jail.read("a.npy", saved(FIELD))
    none_left(jail)
    deadline = time.monotonic() + 3000
    while not jail._waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = jail._waiting
    before = child.process.pid
    jail.read("a.npy", saved(FIELD))
    assert not psutil.pid_exists(before)


def test_a_waiting_child_that_was_killed_is_replaced(jail):
    assert jail.closed in (True, False)
    jail.read("a.npy", saved(FIELD))
    deadline = time.monotonic() + 3000
    while not jail._waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting = jail._waiting[0].process.pid
    os.kill(waiting, signal.SIGKILL)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)  # it dies late on a busy machine
    assert np.array_equal(jail.read("a.npy", saved(FIELD)).image, FIELD)


def test_many_read_at_once_and_a_stop_ends_the_child(attacked):
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        attacked.read("sleep", b"", stop=stop)
    none_left(attacked)
    found = list(attacked.threads.map(lambda _: attacked.read("plain", b"").image.sum(), range(4)))
    assert found == [found[0]] * 4
    none_left(attacked)


def test_a_large_file_goes_through_the_pipe_whole(attacked):
    field = np.random.default_rng(1).normal(size=(16, 16)).astype("f4")
    found = attacked.read("image", field.tobytes() + bytes(9 * 2**20), row="7")
    assert np.array_equal(found.image, field) and found.source == f"{1024 + 9 * 2**20} bytes, row 7"


def test_many_files_leave_nothing_open(attacked):
    process = psutil.Process()
    attacked.read("plain", b"")
    none_left(attacked)
    files, threads = process.num_fds(), process.num_threads()
    for name in ["plain", "raw", "import", "crash"] * 4:
        with contextlib.suppress(InputFileError):
            attacked.read(name, b"")
    none_left(attacked)
    assert process.num_fds() <= files + 4 and process.num_threads() <= threads + 1


def test_without_walls_the_child_says_so_and_the_limits_hold(caplog):
    jail = Jail(128, 60, walls=False)
    try:
        assert not jail.closed and "from this machine only" in caplog.text
        assert np.array_equal(jail.read("a.npy", saved(FIELD)).image, FIELD)
        name, make, words = BOMBS["npz of 160 MB by columns"]
        with pytest.raises(InputFileError, match=words):
            jail.read(name, make())
    finally:
        jail.close()


def test_closing_ends_all_children_and_what_they_read(tmp_path):
    jail, errors = Jail(256, 60, reader="hostile_reader"), []
    jail.start()

    def read():
        try:
            jail.read("sleep", b"")
        except (InputFileError, OptionError) as error:
            errors.append(error)

    future = jail.threads.submit(read)
    deadline = time.monotonic() + 3000
    while not jail._all and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)
    jail.close()
    assert future.done() and len(errors) == 1 and not jail._all
    with pytest.raises(OptionError, match=r"closing|shutting"):
        jail.read("plain", b"")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_a_server_that_is_killed(how):
    code = (
        "import sys, time; sys.path[:0] = sys.argv[1].split(':')\n"
        "from nenya.portal.jail import Jail\n"
        "jail = Jail(256, 60, reader='hostile_reader'); jail.closed; child = next(iter(jail._all)).process.pid\n"
        "future = jail.threads.submit(jail.read, 'spin', b''); time.sleep(0.3)\n"
        "print(child, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, ":".join(p for p in sys.path if p)], stdout=subprocess.PIPE
    ) as p:
        assert p.stdout is not None
        child = int(p.stdout.readline())
        assert psutil.pid_exists(child)
        p.send_signal(how)
        p.wait(300)
    deadline = time.monotonic() + 300
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:  # nobody here takes orphans in
                break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(child)
