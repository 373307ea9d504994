"""Damaged and hostile HDF5 files: read right, or refused in one line; no crash, no hang, no huge allocation."""

import os
import resource
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from fuzz.hdf5_cases import FAMILIES, LAYOUTS, ROWS, SIDE, make_case, truth, write
from fuzz.runner import run, table

from nenya.data.cutouts import CutoutReader, fingerprint, inspect_cutouts
from nenya.data.filters import undo_filters
from nenya.data.unpack import load_partition
from nenya.errors import InputFileError

TRAIN = truth("train")


def refusal(path, names=("train", "valid"), **options):
    """Return the line that refuses a file, whenever in reading it."""
    with pytest.raises(InputFileError) as caught:
        inspect_cutouts(path, names, **options)
        for name in names:
            load_partition(path, name, memory_limit=2**40, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def pixels(path, name="train", **options):
    with CutoutReader(path, name, **options) as reader:
        return reader.read(0, len(reader))[:, 0]


# Cases of the fuzzer


def fuzz(seeds, processes):
    cases = [("cutouts-known", seed) for seed in seeds]
    with ThreadPoolExecutor(processes) as pool:
        parts = pool.map(run, (cases[i::processes] for i in range(processes)))
        results = [result for part in parts for result in part]
    assert sorted(int(result.case) for result in results) == sorted(seeds)
    return results


def test_some_damaged_files():
    results = fuzz(range(160), 1)
    assert not [result for result in results if result.bad], table(results)
    assert {result.line for result in results} >= {"whole", "as stored"}
    assert "refused" in {result.outcome for result in results}


@pytest.mark.slow
def test_many_damaged_files(capsys):
    results = fuzz(range(1000, 4200), 2)
    with capsys.disabled():
        print("\n" + table(results))  # noqa: T201
    assert not [result for result in results if result.bad]
    assert sum(result.line == "unprovable" for result in results) < 5
    assert sum(result.line != "whole" for result in results) >= 2000


def test_a_seed_makes_one_file(tmp_path):
    for seed in range(sum(FAMILIES.values())):
        first = make_case(seed, tmp_path)
        for _ in range(5):  # HDF5 writes the second in which a virtual data set was made
            written = first.path.read_bytes()
            shutil.rmtree(first.path.parent)
            again = make_case(seed, tmp_path)
            if again.path.read_bytes() == written:
                break
        assert again.path.read_bytes() == written
        assert again.description == first.description


# Links


@pytest.fixture
def folders(tmp_path):
    """A folder of the user's, and a good file in another one."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    return tmp_path / "own", write(tmp_path / "other" / "secret.h5")


def linked(path, file, target="train", name="train"):
    with h5py.File(path, "a") as h5:
        h5[name] = h5py.ExternalLink(str(file), target)
    return path


@pytest.mark.parametrize("way", ["absolute", "relative", "symlink", "symlinked folder", "group"])
def test_a_link_out_of_the_folder_is_refused_unless_allowed(folders, way):
    own, secret = folders
    path = own / "cutouts.h5"
    if way == "symlink":
        (own / "near.h5").symlink_to(secret)
    elif way == "symlinked folder":
        (own / "near").symlink_to(secret.parent)
    file = {"relative": "../other/secret.h5", "symlink": "near.h5", "symlinked folder": "near/secret.h5"}.get(
        way, str(secret)
    )
    names = ("train",)
    if way == "group":
        linked(path, file, "/", "a")
        names = ("a/train",)
    else:
        linked(path, file)
    message = refusal(path, names)
    assert str(secret.resolve()) in message
    assert "loader.allow_external=true" in message
    described = inspect_cutouts(path, names, allow_external=True)
    assert described.allow_external
    np.testing.assert_array_equal(pixels(path, names[0], allow_external=True), TRAIN)


def test_a_link_within_the_folder_is_followed(folders, monkeypatch):
    own, _ = folders
    (own / "deep").mkdir()
    write(own / "deep" / "data.h5")
    path = linked(own / "cutouts.h5", "deep/data.h5")
    monkeypatch.chdir(own.parent)
    info = inspect_cutouts(path).partitions["train"]
    assert (info.offset, info.sources) == (None, (str(own / "deep" / "data.h5"),))
    np.testing.assert_array_equal(pixels(path), TRAIN)
    np.testing.assert_array_equal(load_partition(path, "train", memory_limit=0, cache_dir=own / "cache"), TRAIN)
    (own.parent / "alias.h5").symlink_to(path)
    np.testing.assert_array_equal(pixels(own.parent / "alias.h5"), TRAIN)
    np.testing.assert_array_equal(pixels(os.path.relpath(path)), TRAIN)


def test_a_change_of_a_linked_file_changes_the_fingerprint(folders):
    own, _ = folders
    data = write(own / "data.h5")
    path = linked(own / "cutouts.h5", "data.h5")
    first = fingerprint(path, "train")
    assert fingerprint(path, "train") == first
    os.utime(data, ns=(0, 1))
    assert fingerprint(path, "train") != first


@pytest.mark.parametrize("suffix", ["labels", "metadata"])
def test_labels_and_metadata_are_checked_with_their_partition(folders, suffix):
    own, secret = folders
    path = own / "cutouts.h5"
    with h5py.File(path, "w") as h5:
        h5["train"] = TRAIN
        h5[f"train_{suffix}"] = h5py.ExternalLink(str(secret), "train_labels")
    assert f"'train_{suffix}' is a link to {secret}" in refusal(path)
    with CutoutReader(path, "train", allow_external=True) as reader:
        np.testing.assert_array_equal(reader.companion(suffix), np.arange(ROWS["train"]))
        assert reader.companion("more") is None


@pytest.mark.parametrize("variable", ["HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX"])
def test_prefixes_of_the_environment_do_not_lead_out(folders, monkeypatch, variable):
    own, secret = folders
    (secret.parent / "secret.raw").write_bytes(TRAIN.tobytes())
    path = own / "cutouts.h5"
    if variable == "HDF5_EXT_PREFIX":
        linked(path, "secret.h5")
    elif variable == "HDF5_VDS_PREFIX":
        virtual(path, ("secret.h5", TRAIN))
    else:
        with h5py.File(path, "w") as h5:
            h5.create_dataset("train", TRAIN.shape, "f4", external=[("secret.raw", 0, TRAIN.nbytes)])
    assert "does not exist" in refusal(path)
    for prefix in (str(secret.parent), "${ORIGIN}/../other"):
        monkeypatch.setenv(variable, prefix)
        message = refusal(path)
        assert str(secret.parent) in message and "loader.allow_external=true" in message
        np.testing.assert_array_equal(pixels(path, allow_external=True), TRAIN)


@pytest.mark.parametrize("target", ["train", "/b", "gone", "x/y/z"])
def test_soft_links_that_lead_nowhere(tmp_path, target):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        h5["train"] = h5py.SoftLink(target)
        h5["b"] = h5py.SoftLink("train")
    assert ("circle" if target in ("train", "/b") else "does not exist") in refusal(path)


def test_soft_links_are_followed(tmp_path):
    path = write(tmp_path / "c.h5")
    with h5py.File(path, "a") as h5:
        h5.create_group("a/b")["up"] = h5py.SoftLink("/train")
        h5["images"] = h5py.SoftLink("a/./b/up")
    np.testing.assert_array_equal(pixels(path, "images"), TRAIN)


def test_a_name_that_holds_control_characters(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        h5["two\nlines \x1b[2J"] = TRAIN
        h5["train"] = h5py.SoftLink("two\nlines")
    assert "two\\x0alines" in refusal(path)
    assert "two\\x0alines \\x1b[2J (60, 16, 16)" in refusal(path, ("other",))


def test_links_are_not_followed_to_list_what_is_there(folders):
    own, secret = folders
    path = linked(own / "c.h5", secret, "/", "far")
    with h5py.File(path, "a") as h5:
        group = h5
        for _ in range(3000):
            group = group.create_group("g")
        h5["z"] = np.zeros(3)
    message = refusal(path)
    assert "the file holds z (3,)" in message
    assert "secret" not in message


@pytest.mark.parametrize("where", ["itself", "link", "virtual"])
def test_a_pipe_is_not_waited_for(tmp_path, where):
    os.mkfifo(tmp_path / "pipe.h5")
    if where == "itself":
        assert "regular file" in refusal(tmp_path / "pipe.h5")
    elif where == "link":
        assert "does not exist" in refusal(linked(tmp_path / "c.h5", "pipe.h5"))
    else:
        assert "does not exist" in refusal(virtual(tmp_path / "c.h5", ("pipe.h5", TRAIN)))


# Virtual data sets and external storage


def virtual(path, *sources, name="train"):
    """Write a virtual data set that joins the rows of others: (file, its pixels)."""
    rows = sum(len(values) for _, values in sources)
    layout, start = h5py.VirtualLayout((rows, 1, SIDE, SIDE), "f4"), 0
    for file, values in sources:
        layout[start : start + len(values)] = h5py.VirtualSource(str(file), name, (len(values), 1, SIDE, SIDE))
        start += len(values)
    with h5py.File(path, "w") as h5:
        h5.create_virtual_dataset("train", layout, fillvalue=0)
    return path


def test_a_virtual_data_set_joins_files_of_the_folder(tmp_path):
    write(tmp_path / "a.h5", "gzip")
    write(tmp_path / "b.h5", "contiguous")
    path = virtual(tmp_path / "c.h5", ("a.h5", TRAIN), ("b.h5", TRAIN))
    wanted = np.concatenate([TRAIN, TRAIN])
    np.testing.assert_array_equal(pixels(path), wanted)
    np.testing.assert_array_equal(load_partition(path, "train"), wanted)
    with CutoutReader(path, "train") as reader:
        np.testing.assert_array_equal(reader.read_rows([5, 59, 60, 100])[:, 0], wanted[[5, 59, 60, 100]])
    assert len(inspect_cutouts(path).partitions["train"].sources) == 2


def test_a_virtual_data_set_without_all_of_its_sources_is_refused(tmp_path):
    write(tmp_path / "a.h5")
    path = virtual(tmp_path / "c.h5", ("a.h5", TRAIN), ("b.h5", TRAIN))
    with h5py.File(path) as h5:
        assert not h5["train"][60:].any()  # what HDF5 itself makes of it
    assert "b.h5, which does not exist" in refusal(path)
    write(tmp_path / "b.h5", names=("valid",), libver="latest")
    with h5py.File(tmp_path / "b.h5", "a") as h5:
        h5["more"] = TRAIN
    assert "source 'train'" in refusal(path)


def test_a_virtual_data_set_is_refused_where_it_leads_out(folders):
    own, secret = folders
    path = virtual(own / "c.h5", (secret, TRAIN))
    assert str(secret) in refusal(path)
    np.testing.assert_array_equal(pixels(path, allow_external=True), TRAIN)


def test_a_virtual_data_set_of_itself(tmp_path):
    assert "virtual" in refusal(virtual(tmp_path / "c.h5", (".", TRAIN)))


@pytest.mark.parametrize("cwd", ["own", "other"])
def test_external_storage_within_the_folder(folders, monkeypatch, cwd):
    own, secret = folders
    monkeypatch.chdir(own.parent / cwd)
    raw = TRAIN.tobytes()
    (own / "a.raw").write_bytes(b"head" + raw[:999])
    (own / "b.raw").write_bytes(raw[999:])
    path = own / "c.h5"
    with h5py.File(path, "w") as h5:
        parts = [("a.raw", 4, 999), (str(own / "b.raw"), 0, h5py.h5f.UNLIMITED)]
        h5.create_dataset("train", TRAIN.shape, "f4", external=parts)
    np.testing.assert_array_equal(pixels(path), TRAIN)
    np.testing.assert_array_equal(load_partition(path, "train", memory_limit=0, cache_dir=own / "cache"), TRAIN)
    os.truncate(own / "b.raw", 5000)
    assert "is too short" in refusal(path)  # HDF5 reads zeros there
    assert secret.exists()


def test_external_storage_out_of_the_folder(folders):
    own, secret = folders
    path = own / "c.h5"
    with h5py.File(path, "w") as h5:
        h5.create_dataset("train", (1, 16, 16), "f4", external=[(str(secret), 0, 1024)])
    assert str(secret) in refusal(path)
    assert pixels(path, allow_external=True).shape == (1, 16, 16)


# What is not in the file


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"fillvalue": np.nan}, {"compression": "lzf"}])
def test_rows_that_were_never_written(tmp_path, options):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset("train", (10**12, 1, 16, 16), "f4", chunks=(50, 1, 16, 16), **options)
        data[:50] = TRAIN[:50, None]
    assert "declares 1000000000000 rows, but only 1 of their 20000000000 chunks are in the file" in refusal(path)
    with h5py.File(path, "w") as h5:
        h5.create_dataset("train", (10**12, 16, 16), "f4")
    assert "none was written" in refusal(path)


@pytest.mark.parametrize("name", ["train_labels", "train_metadata"])
def test_labels_that_were_never_written(tmp_path, name):
    path = write(tmp_path / "c.h5", names=("train",))
    with h5py.File(path, "a") as h5:
        del h5["train_labels"], h5["train_metadata"]
        h5.create_dataset(name, (10**12,), "i8", chunks=(1000,))
    assert f"'{name}' declares 1000000000000 rows" in refusal(path)


# Labels and metadata

TEXTS = [f"granule {i} {'é' * (i % 7)}" for i in range(ROWS["train"])] + [""]


@pytest.mark.parametrize("packing", [{}, {"chunks": (9,)}, {"compression": "gzip", "shuffle": True}], ids=str)
@pytest.mark.parametrize("settings", [{}, {"libver": "latest"}, {"userblock_size": 512}], ids=str)
def test_labels_and_metadata_of_any_type(tmp_path, packing, settings):
    columns = np.array([(i, i / 2) for i in range(61)], [("a", "i4"), ("b", "f8")])
    path = write(tmp_path / "c.h5", names=("train",), **settings)
    with h5py.File(path, "a") as h5:
        h5.create_dataset("train_long", data=TEXTS, dtype=h5py.string_dtype(), **packing)
        h5.create_dataset("train_short", data=np.array([f"g{i}" for i in range(61)], "S5"), **packing)
        h5.create_dataset("train_numbers", data=np.arange(61), **packing)
        h5.create_dataset("train_records", data=columns, **packing)
        wide = {"chunks": (7, 2)} if packing else {}
        table = np.array(TEXTS[:60], object).reshape(20, 3)
        h5.create_dataset("train_table", data=table, dtype=h5py.string_dtype(), **packing | wide)
    rows = np.array([0, 8, 9, 60])
    with CutoutReader(path, "train") as reader:
        for suffix, wanted in {
            "long": np.array(TEXTS, object),
            "short": np.array([f"g{i}" for i in range(61)], object),
            "numbers": np.arange(61),
            "records": columns,
        }.items():
            np.testing.assert_array_equal(reader.companion(suffix), wanted)
            np.testing.assert_array_equal(reader.companion(suffix, rows), wanted[rows])
        np.testing.assert_array_equal(reader.companion("table"), table)
        assert isinstance(reader.companion("short")[0], str)
        assert reader.companion("gone") is None


def test_labels_and_metadata_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "c.h5", names=("train",))
    with h5py.File(path, "a") as h5:
        h5.create_dataset("train_chunk", (60,), "i8", chunks=(60,), compression="gzip")
        h5["train_chunk"].id.write_direct_chunk((0,), zlib.compress(bytes(100)))  # HDF5 crashes on it
        h5.create_dataset("train_lists", (3,), h5py.vlen_dtype(np.int32))[0] = np.arange(3)
        h5["train_bytes"] = np.array([b"\xff"] * 3)
        h5.create_group("train_group")
    with CutoutReader(path, "train") as reader:
        for suffix, said in {
            "chunk": "does not hold the expected 480 bytes",
            "lists": "expected numbers or strings",
            "bytes": "cannot be read",
            "group": "got a group",
        }.items():
            with pytest.raises(InputFileError, match=said):
                reader.companion(suffix)
        with pytest.raises(InputFileError, match="'train_labels' cannot be read"):
            reader.companion("labels", np.array([3, 700]))


@pytest.mark.parametrize("place", range(16, 120, 8))
def test_a_heap_of_texts_that_is_damaged(tmp_path, place):
    """Zeros among its sizes are a loop without end to HDF5."""
    path = write(tmp_path / "c.h5", names=("train",))
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    data[heap + place : heap + place + 64] = bytes(64)
    path.write_bytes(data)
    np.testing.assert_array_equal(pixels(path), TRAIN)
    with CutoutReader(path, "train") as reader, pytest.raises(InputFileError, match="'train_metadata' cannot be read"):
        reader.companion("metadata")


def chunk_replaced(path, layout, new):
    """Write a good file, but for its second chunk."""
    write(path, layout)
    with h5py.File(path, "r+") as h5:
        data = h5["train"].id
        data.write_direct_chunk(data.get_chunk_info(1).chunk_offset, new)
    return path


@pytest.mark.parametrize("length", [1, 100, 25 * 64 * 4 - 1, 25 * 64 * 4 + 1, 10**6])
def test_a_chunk_that_unpacks_to_another_length(tmp_path, length):
    path = chunk_replaced(tmp_path / "c.h5", "gzip", zlib.compress(os.urandom(100) + bytes(length - 1)))
    assert "damaged" in refusal(path)


def test_an_lzf_chunk_that_unpacks_to_less(tmp_path):
    """HDF5 gives what was in memory for the rest of it."""
    stream = b"\x1f" + bytes(32) + b"\xe0\x10\x00" * 90
    message = refusal(chunk_replaced(tmp_path / "c.h5", "lzf", stream))
    assert "does not hold the expected 25600 bytes" in message


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_a_bomb_takes_no_memory(tmp_path, compression):
    path, rows = tmp_path / "c.h5", 300
    stream = zlib.compress(bytes(2**27)) if compression == "gzip" else b"\x00\x00" + b"\xe0\xff\x00" * 100_000
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset("train", (rows, 1, 32, 32), "f4", chunks=(rows, 1, 32, 32), compression=compression)
        data.id.write_direct_chunk((0, 0, 0, 0), stream)
    inspect_cutouts(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "does not hold" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_file_that_ends_while_it_is_read(tmp_path):
    for layout in ("contiguous", "gzip", "lzf", "chunked"):
        path = write(tmp_path / "c.h5", layout)
        with CutoutReader(path, "train") as reader:
            reader.read(0, 1)
            os.truncate(path, 5000)
            with pytest.raises(
                InputFileError, match=r"rows 30 to 59 of 'train' cannot be read \(.*(ends early|truncated)"
            ):
                reader.read(30, 60)


# Types


def test_a_float_of_unusual_bits_is_refused(tmp_path):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(126)
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        data = h5py.h5d.create(h5.id, b"train", kind, h5py.h5s.create_simple((4, 8, 8)))
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((4, 8, 8), "f4"))
    assert "not float16, float32 or float64" in refusal(path)


def test_a_byte_order_that_makes_no_sense(tmp_path):
    for kind in ("f4", "f8"):
        path = tmp_path / f"{kind}.h5"
        with h5py.File(path, "w") as h5:
            h5.create_dataset("train", data=(TRAIN + 0.1).astype(kind).byteswap(), dtype=f"<{kind}")
        assert "only in the other byte order" in refusal(path)


def test_a_packing_that_reads_beyond_its_chunks_is_refused(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((20, 16, 16))
        creation.set_filter(h5py.h5z.FILTER_NBIT)
        space = h5py.h5s.create_simple(TRAIN.shape)
        h5py.h5d.create(h5.id, b"train", h5py.h5t.IEEE_F32LE, space, creation).write(h5py.h5s.ALL, h5py.h5s.ALL, TRAIN)
    assert "compressed with nbit" in refusal(path)


@pytest.mark.parametrize("options", [{"scaleoffset": 4}, {"compression": "szip"}])
def test_packings_that_only_the_library_knows(tmp_path, options):
    path = tmp_path / "c.h5"
    try:
        with h5py.File(path, "w") as h5:
            h5.create_dataset("train", data=TRAIN, chunks=(20, 16, 16), **options)
    except ValueError as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(pixels(path), TRAIN, atol=1e-4)


def test_data_within_the_header(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((20, 16, 16))
        h5py.h5d.create(h5.id, b"train", h5py.h5t.IEEE_F32LE, space, creation).write(
            h5py.h5s.ALL, h5py.h5s.ALL, TRAIN[:20].copy()
        )
    np.testing.assert_array_equal(pixels(path), TRAIN[:20])


def test_a_data_set_that_grew_and_shrank(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset("train", data=TRAIN, chunks=(16, 8, 8), maxshape=(100, 16, 16), compression="gzip")
        data.resize(70, 0)
        data[60:] = 1
        data.resize(57, 0)
    np.testing.assert_array_equal(pixels(path), TRAIN[:57])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chunk_has_the_checksum_that_the_library_wrote(tmp_path, layout):
    """Unpacked here and by HDF5, every chunk is alike; with a bit flipped, those with a checksum are refused."""
    path = write(tmp_path / "c.h5", layout)
    with h5py.File(path) as h5:
        data = h5["train"]
        if data.chunks is None:
            return
        creation, size = data.id.get_create_plist(), int(np.prod(data.chunks)) * data.dtype.itemsize
        codes = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        mask, packed = data.id.read_direct_chunk((0, 0, 0, 0))
        raw = undo_filters(packed, codes, mask, size, data.dtype.itemsize)
        chunk = np.frombuffer(raw, data.dtype).reshape(data.chunks)
        corner = tuple(map(slice, data.chunks))
        np.testing.assert_array_equal(chunk, data[corner])
    if {*codes} & {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_DEFLATE}:
        for place in (0, len(packed) // 2, len(packed) - 1):
            wrong = bytearray(packed)
            wrong[place] ^= 4
            with pytest.raises(ValueError, match=r"chunk|decompress"):
                undo_filters(bytes(wrong), codes, mask, size, data.dtype.itemsize if data else 4)
