"""Reading cutout files: every layout and type equals the array, every bad file is refused in one line."""

import itertools
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest

from nenya.data import unpack
from nenya.data.cutouts import CutoutReader, fingerprint, inspect_cutouts, nonfinite_rows, plan_blocks
from nenya.data.unpack import load_partition
from nenya.errors import InputFileError, OptionError, OutputError
from nenya.runtime import process
from nenya.runtime.process import Threads
from nenya.storage.process import available_memory

ROWS, SIDE = 130, 16

LAYOUTS = {
    "contiguous": {},
    "automatic gzip": {"compression": "gzip"},
    "gzip across pixels": {"compression": "gzip", "chunks": (50, 1, 6, 8)},
    "gzip by row": {"compression": "gzip", "chunks": (1, 1, SIDE, SIDE)},
    "gzip by rows": {"compression": "gzip", "chunks": (64, 1, SIDE, SIDE)},
    "shuffled gzip": {"compression": "gzip", "shuffle": True, "chunks": (40, 1, 5, SIDE)},
    "checked gzip": {"compression": "gzip", "fletcher32": True, "chunks": (40, 1, 8, 8)},
    "lzf": {"compression": "lzf", "chunks": (33, 1, 8, 8)},
    "chunked": {"chunks": (17, 1, SIDE, SIDE)},
}


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).standard_normal((ROWS, 1, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def every_chunk_in_threads(monkeypatch):
    monkeypatch.setattr(unpack, "_SLAB", 60)
    monkeypatch.setattr(process, "cores", lambda: 2)


def write(path, data, name="train", **layout):
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=data, **layout)
    return path


@pytest.fixture
def gzipped(tmp_path, array):
    return write(tmp_path / "gzipped.h5", array, compression="gzip", chunks=(50, 1, 4, 4))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8", ">f8"])
def test_every_layout_and_type_equals_the_array(tmp_path, array, layout, kind):
    stored = array.astype(kind)
    wanted = stored.astype(np.float32)
    with CutoutReader(write(tmp_path / "c.h5", stored, **layout), "train") as reader:
        whole = reader.read(0, ROWS)
        assert whole.dtype == np.float32
        assert whole.flags.c_contiguous
        np.testing.assert_array_equal(whole, wanted)
        np.testing.assert_array_equal(reader.read(47, 101), wanted[47:101])
        with Threads(3) as pool:
            for start, stop in ((0, ROWS), (47, 101), (101, 103), (3, 4), (60, ROWS - 1)):
                np.testing.assert_array_equal(reader.read(start, stop, pool.spread), wanted[start:stop])
        rows = np.array([0, 1, 2, 49, 50, 63, 64, 65, 100, ROWS - 1])
        np.testing.assert_array_equal(reader.read_rows(rows), wanted[rows])
        assert reader.read(5, 5).shape == reader.read_rows([]).shape == (0, 1, SIDE, SIDE)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_a_partition_loads_alike_into_memory_and_into_the_cache(
    tmp_path, array, every_chunk_in_threads, layout, kind, squeeze
):
    stored = array[:, 0] if squeeze else array
    if squeeze and "chunks" in layout:
        layout = layout | {"chunks": (layout["chunks"][0], *layout["chunks"][2:])}
    path = write(tmp_path / "c.h5", stored.astype(kind), **layout)
    in_memory = load_partition(path, "train", memory_limit=2**30)
    mapped = load_partition(path, "train", cache_dir=tmp_path / "cache", memory_limit=0)
    for loaded in (in_memory, mapped):
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, array[:, 0])
    assert not isinstance(in_memory, np.memmap)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    mappable = kind == "<f4" and not layout
    assert (tmp_path / "cache").exists() == (not mappable)


def test_chunks_unpacked_in_threads_need_no_help_from_hdf5(tmp_path, array, every_chunk_in_threads):
    path = write(tmp_path / "c.h5", array, compression="gzip", shuffle=True, chunks=(50, 1, 6, 8))
    out = np.zeros((50, SIDE, SIDE), np.float32)
    with CutoutReader(path, "train") as reader, Threads(2) as pool:
        reader.read_into(out, 50, pool.spread)
    np.testing.assert_array_equal(out, array[50:100, 0])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path, array, every_chunk_in_threads):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "train", array.shape, "f4", compression="gzip", chunks=(20, 1, 8, 8), fillvalue=np.nan
        )
        data[:50] = array[:50]
    loaded = load_partition(path, "train")
    np.testing.assert_array_equal(loaded[:50], array[:50, 0])
    assert np.isnan(loaded[50:]).all()


def test_one_partition_may_be_named_alone(small_file):
    assert list(inspect_cutouts(small_file, "valid").partitions) == ["valid"]


def test_real_cutouts(shared):
    path = shared / "data" / "real_sst_preproc.h5"
    described = inspect_cutouts(path)
    assert {name: part.rows for name, part in described.partitions.items()} == {"train": 9, "valid": 5}
    assert described.size == path.stat().st_size
    train = described.partitions["train"]
    assert (train.height, train.width, train.block_rows, train.compression) == (64, 64, 3, "gzip")
    with h5py.File(path) as file, CutoutReader(path, "train") as reader:
        np.testing.assert_array_equal(reader.read(0, 9), file["train"][:])


def test_float64_beyond_float32_becomes_infinite(tmp_path):
    data = np.ones((3, 1, 4, 4))
    data[1, 0, 2, 2] = 1e300
    with CutoutReader(write(tmp_path / "c.h5", data), "train") as reader:
        assert nonfinite_rows(reader.read(0, 3)).tolist() == [False, True, False]


def test_nonfinite_rows_are_marked():
    block = np.zeros((5, 1, 4, 4), np.float32)
    block[1, 0, 0, 0], block[3, 0, 3, 3], block[4, 0, 1, 1] = np.nan, np.inf, -np.inf
    assert nonfinite_rows(block).tolist() == [False, True, False, True, True]
    assert nonfinite_rows(block[:, 0]).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("rows", [[3, 3], [5, 2], [-1, 2], [0, ROWS]])
def test_row_numbers_must_increase_within_the_partition(gzipped, rows):
    with CutoutReader(gzipped, "train") as reader, pytest.raises(IndexError, match="strictly increasing"):
        reader.read_rows(rows)
    with CutoutReader(gzipped, "train") as reader, pytest.raises(IndexError, match="expected rows from 0"):
        reader.read(100, ROWS + 1)


def test_single_rows_never_unpack_a_chunk_twice(gzipped, monkeypatch):
    reads = []
    whole = CutoutReader.read
    monkeypatch.setattr(CutoutReader, "read", lambda self, a, b, *more: reads.append((a, b)) or whole(self, a, b))
    with CutoutReader(gzipped, "train") as reader:
        reader.read_rows([0, 3, 49, 60, 61, 120])
    assert reads == [(0, 50), (60, 62), (120, 121)]


# Blocks


@pytest.mark.parametrize(
    ("rows", "chunk", "wanted", "starts"),
    [
        (100, None, 40, [0, 40, 80]),
        (100, 1, 40, [0, 40, 80]),
        (100, 16, 40, [0, 32, 64, 96]),
        (100, 60, 40, [0, 60]),
        (100, 100, 40, [0]),
        (0, 16, 40, []),
    ],
)
def test_blocks_follow_the_chunks(rows, chunk, wanted, starts):
    assert [block.start for block in plan_blocks(rows, chunk, wanted)] == starts


@pytest.mark.parametrize(
    ("rows", "chunk", "wanted"), list(itertools.product((1, 63, 64, 1000), (None, 7, 64), (1, 50, 200)))
)
def test_blocks_cover_every_row_once_and_cut_no_chunk(rows, chunk, wanted):
    blocks = plan_blocks(rows, chunk, wanted)
    assert list(itertools.chain(*blocks)) == list(range(rows))
    assert all(block.start % (chunk or 1) == 0 for block in blocks)


def test_blocks_obey_the_memory_before_the_chunks():
    assert max(map(len, plan_blocks(1000, 1000, 200, max_rows=64))) == 64


# Processes


def test_making_and_pickling_a_reader_touches_no_disk(tmp_path, array):
    reader = CutoutReader(tmp_path / "c.h5", "train")
    copy = pickle.loads(pickle.dumps(reader))  # noqa: S301 - bytes of our own
    write(tmp_path / "c.h5", array)
    np.testing.assert_array_equal(copy.read(3, 5), array[3:5])


def test_an_open_reader_pickles(gzipped, array):
    with CutoutReader(gzipped, "train") as reader:
        reader.read(0, 1)
        with pickle.loads(pickle.dumps(reader)) as copy:  # noqa: S301 - bytes of our own
            np.testing.assert_array_equal(copy.read(60, 70), array[60:70])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_reader_opens_its_own_handle(gzipped, array):
    def child(reader, queue):
        inherited = reader._file
        block = reader.read(60, 70)
        queue.put((block, not inherited and bool(reader._file)))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with CutoutReader(gzipped, "train") as reader:
        reader.read(0, 1)
        process = context.Process(target=child, args=(reader, queue))
        process.start()
        block, own = queue.get(timeout=300)
        process.join(300)
        assert process.exitcode == 0
        assert own
        np.testing.assert_array_equal(block, array[60:70])
        np.testing.assert_array_equal(reader.read(70, 80), array[70:80])


def test_a_closed_reader_opens_again(gzipped, array):
    reader = CutoutReader(gzipped, "train")
    assert len(reader) == ROWS
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(0, 2), array[:2])
        reader.close()
        reader.close()


# Bad files


def refusal(path, partitions=("train", "valid")):
    with pytest.raises(InputFileError) as caught:
        inspect_cutouts(path, partitions)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_paths_that_are_no_hdf5_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.h5")
    assert "got a folder" in refusal(tmp_path)
    (tmp_path / "text.h5").write_text("SST, K\n")
    assert "got a file that begins with b'SST, K" in refusal(tmp_path / "text.h5")
    (tmp_path / "empty.h5").touch()
    assert "is empty" in refusal(tmp_path / "empty.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(gzipped):
    gzipped.chmod(0)
    assert "check its permissions" in refusal(gzipped)


@pytest.mark.parametrize("kept", [20, 5_000, 100_000])
def test_a_truncated_file(gzipped, kept):
    with gzipped.open("r+b") as file:
        file.truncate(kept)
    assert "truncated or damaged" in refusal(gzipped)


def test_a_file_without_the_partitions(tmp_path, array):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as file:
        file["images"] = array
        file["more/latents"] = np.zeros((3, 4))
    message = refusal(path)
    assert "expected a data set named train or valid" in message
    assert "images (130, 1, 16, 16), more/latents (3, 4)" in message
    assert "loader.train_key" in message
    assert list(inspect_cutouts(path, ("images", "valid")).partitions) == ["images"]
    assert "'more' expected a data set of cutouts, got a group" in refusal(path, ("more",))
    with h5py.File(path, "w"):
        pass
    assert "holds no data sets" in refusal(path)


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((8, 8), "f4", "has the shape (8, 8); expected (N, 1, H, W) or (N, H, W)"),
        ((), "f4", "has the shape ()"),
        ((2, 1, 1, 8, 8), "f4", "has the shape (2, 1, 1, 8, 8)"),
        ((4, 3, 8, 8), "f4", "3 channels; expected (N, 1, H, W)"),
        ((4, 8, 8, 1), "f4", "channels last; expected (N, 1, H, W)"),
        ((4, 8, 8, 3), "f4", "channels last; expected (N, 1, H, W)"),
        ((4, 1, 8, 9), "f4", "has cutouts of 8 x 9 pixels"),
        ((4, 8, 9), "f4", "has cutouts of 8 x 9 pixels"),
        ((0, 1, 8, 8), "f4", "it has no cutouts"),
        ((4, 1, 8, 8), "u1", "has the type uint8; expected a floating-point type"),
        ((4, 1, 8, 8), "i2", "has the type int16; expected a floating-point type"),
        ((4, 1, 8, 8), "c8", "has the type complex64; expected a floating-point type"),
    ],
)
def test_data_of_another_shape_or_type(tmp_path, shape, kind, message):
    assert message in refusal(write(tmp_path / "c.h5", np.zeros(shape, kind)))


def test_a_filter_that_is_not_installed(tmp_path, array, monkeypatch):
    path = write(tmp_path / "c.h5", array, compression="lzf")
    available = h5py.h5z.filter_avail
    lzf = h5py.h5z.FILTER_LZF
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != lzf and available(code))
    message = refusal(path)
    assert "is compressed with lzf" in message
    assert "hdf5plugin" in message


def damage(path, row):
    """Overwrite the chunk that holds the first pixels of a row."""
    with h5py.File(path) as file:
        chunks = [file["train"].id.get_chunk_info(i) for i in range(file["train"].id.get_num_chunks())]
    chunk = next(c for c in chunks if c.chunk_offset[0] <= row < c.chunk_offset[0] + 50)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)


def test_a_damaged_chunk_is_named_by_its_rows(gzipped, array, every_chunk_in_threads):
    damage(gzipped, 60)
    with CutoutReader(gzipped, "train") as reader:
        np.testing.assert_array_equal(reader.read(0, 50), array[:50])
        with pytest.raises(InputFileError, match=r"rows 50 to 99 of 'train' cannot be read .* damaged"):
            reader.read(50, 100)
    with pytest.raises(InputFileError, match=r"rows 50 to 99 of 'train' cannot be read"):
        load_partition(gzipped, "train")


# The cache


def test_a_copy_is_made_once_and_again_when_the_source_changes(tmp_path, gzipped, array):
    cache, calls = tmp_path / "cache", []

    def load():
        return load_partition(
            gzipped, "train", cache_dir=cache, memory_limit=0, progress=lambda *done: calls.append(done)
        )

    load()
    assert calls[-1] == (ROWS, ROWS)
    calls.clear()
    np.testing.assert_array_equal(load(), array[:, 0])
    assert not calls
    write(gzipped, array + 1, compression="gzip", chunks=(50, 1, 4, 4))
    np.testing.assert_array_equal(load(), array[:, 0] + 1)
    assert calls
    assert len(list(cache.glob("*.npy"))) == 1


def test_a_damaged_copy_is_made_again(tmp_path, gzipped, array):
    options = {"cache_dir": tmp_path / "cache", "memory_limit": 0}
    load_partition(gzipped, "train", **options)
    (copy,) = (tmp_path / "cache").glob("*.npy")
    with copy.open("r+b") as file:
        file.truncate(1000)
    np.testing.assert_array_equal(load_partition(gzipped, "train", **options), array[:, 0])


def test_copies_of_two_files_of_one_name_do_not_meet(tmp_path, array):
    loaded = []
    for folder, shift in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / "c.h5", array + shift, compression="gzip")
        loaded.append(load_partition(path, "train", cache_dir=tmp_path / "cache", memory_limit=0))
    np.testing.assert_array_equal(loaded[0] + 1, loaded[1])


def test_fingerprints_tell_sources_apart(tmp_path, gzipped, array):
    first = fingerprint(gzipped, "train")
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert fingerprint(gzipped, "train") == first
    stamps = gzipped.stat()
    os.utime(gzipped, ns=(stamps.st_atime_ns, stamps.st_mtime_ns + 1))
    assert fingerprint(gzipped, "train") != first
    damage(gzipped, 60)
    os.utime(gzipped, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert gzipped.stat().st_size == stamps.st_size
    assert fingerprint(gzipped, "train") != first


SLOW_UNPACK = """
import sys, time
from pathlib import Path
from nenya.data.unpack import load_partition
def report(done, total):
    print(done, flush=True)
    time.sleep(float(sys.argv[3]))
array = load_partition(sys.argv[1], "train", cache_dir=Path(sys.argv[2]), memory_limit=0, progress=report)
print("sum", float(array.sum(dtype="f8")), flush=True)
"""


def unpacking(path, cache, pause):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_UNPACK, path, cache, str(pause)], stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def long(tmp_path):
    data = np.random.default_rng(1).standard_normal((3000, 1, 8, 8)).astype(np.float32)
    return write(tmp_path / "long.h5", data, compression="gzip", chunks=(500, 1, 8, 8)), data


def test_an_unpack_that_was_killed_leaves_nothing_to_trip_over(tmp_path, long):
    path, data = long
    cache = tmp_path / "cache"
    process = unpacking(path, cache, 60)
    assert process.stdout.readline().strip() == "1000"
    process.send_signal(signal.SIGKILL)
    process.wait(300)
    assert len(list(cache.glob(".*.tmp"))) == 1
    assert not list(cache.glob("*.npy"))
    loaded = load_partition(path, "train", cache_dir=cache, memory_limit=0)
    np.testing.assert_array_equal(loaded, data[:, 0])
    assert not list(cache.glob(".*.tmp"))


def test_two_processes_unpack_one_copy(tmp_path, long):
    path, data = long
    cache = tmp_path / "cache"
    first = unpacking(path, cache, 1)
    assert first.stdout.readline().strip() == "1000"
    second = unpacking(path, cache, 1)
    outputs = [process.communicate(timeout=300)[0].split() for process in (first, second)]
    assert outputs[0][:-2] == ["2000", "3000"]
    assert outputs[1][:-2] == []
    assert all(float(output[-1]) == data.sum(dtype="f8") for output in outputs)


def test_too_little_memory_and_no_cache(gzipped):
    with pytest.raises(OptionError, match=r"the memory limit is 0\.0 GB.*loader\.cache_dir"):
        load_partition(gzipped, "train", memory_limit=1000)


def test_too_little_room_on_the_disk(tmp_path, gzipped, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"the disk has 0\.0 GB left"):
        load_partition(gzipped, "train", cache_dir=tmp_path / "cache", memory_limit=0)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_cache_that_cannot_be_a_folder(tmp_path, gzipped):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot be written .*loader\.cache_dir"):
        load_partition(gzipped, "train", cache_dir=tmp_path / "cache", memory_limit=0)


def test_progress_bar_goes_to_stderr(gzipped, capsys):
    load_partition(gzipped, "train", progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "gzipped.h5" in err


def test_available_memory_is_plausible():
    assert 2**20 < available_memory() < 2**50
