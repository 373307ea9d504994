"""A Zarr store's metadata names only codecs and types that compute; what else it names is refused before it is made."""

import json
import os
import pickle
import resource
import zlib

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from granules import grid

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.fields import Layout
from nenya.prepare.sources import open_fields
from nenya.prepare.zarr_check import check_metadata
from nenya.prepare.zarr_chunks import Packing, check_packed, packing_of
from nenya.prepare.zarr_stores import LocalZarr


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def field(source):
    with open_fields(source) as dataset:
        return Layout(dataset, str(source), PrepareOptions(temp_bounds=None)).read(0, -1).values


def stored(path, version, *, consolidated=True):
    grid((64, 96), times=1).to_zarr(path, zarr_format=version, consolidated=consolidated)
    return path


def changed(path, name, change):
    """Change the metadata of an array, where it stands alone and where it is consolidated."""
    for file in (path / name / ".zarray", path / name / "zarr.json", path / ".zmetadata", path / "zarr.json"):
        if not file.exists():
            continue
        values = json.loads(file.read_text())
        inner = values
        if file.parent == path:
            held = values.get("metadata") or (values.get("consolidated_metadata") or {}).get("metadata", {})
            inner = held.get(f"{name}/.zarray", held.get(name, {}))
        if inner:
            change(inner)
        file.write_text(json.dumps(values))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_usual_store_is_read(tmp_path, version, consolidated):
    path = stored(tmp_path / "a.zarr", version, consolidated=consolidated)
    wanted = grid((64, 96), times=1)["tos"].values[0]
    np.testing.assert_array_equal(field(path), wanted)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("name", ["tos", "lat", "time"])
@pytest.mark.parametrize("codec", ["pickle", "json2", "vlen-array", "mine"])
def test_codecs_that_are_not_known_are_refused(tmp_path, version, consolidated, name, codec):
    path, hit = stored(tmp_path / "a.zarr", version, consolidated=consolidated), tmp_path / "hit"

    def change(values):
        if version == 2:
            values["filters"] = [{"id": codec}]
        else:
            values["codecs"] = [{"name": f"numcodecs.{codec}", "configuration": {}}]

    changed(path, name, change)
    for chunk in (path / name).rglob("*"):
        if chunk.is_file() and chunk.name not in (".zarray", ".zattrs", "zarr.json"):
            chunk.write_bytes(pickle.dumps(Payload(hit)))
    with pytest.raises(
        InputFileError, match=rf"codec .*{codec}.* is refused because it is unknown or may run code"
    ) as caught:
        field(path)
    assert "\n" not in str(caught.value)
    assert not hit.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"},
        {"dtype": [["a", "<f4"], ["b", "|O"]]},
        {"compressor": {"id": "pickle"}},
        {"compressor": "pickle"},
        {"filters": [{"id": "msgpack2"}]},
        {"filters": [{"id": "vlen-utf8"}]},
        {"filters": [{"id": "categorize"}]},
        {"filters": [{"id": "delta", "name": "pickle"}]},
        {"filters": {"id": "pickle"}},
        {"fill_value": {"a": 1}},
        {"fill_value": "x" * 10**5},
        {"chunks": [10**6, 10**6]},
        {"chunks": [-1]},
        {"codecs": ["numcodecs.pickle"]},
        {"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "pickle"}]}}]},
        {"codecs": [{"name": "sharding_indexed", "configuration": {"index_codecs": [{"name": "pickle"}]}}]},
        {"codecs": [{"name": "numcodecs.zlib", "configuration": {"id": "pickle"}}]},
        {"data_type": "string"},
        {"data_type": {"name": "variable_length_utf8"}},
        {"data_type": {"name": "structured", "configuration": {"fields": [["a", "string"]]}}},
        {"storage_transformers": [{"name": "mine"}]},
        {"chunk_key_encoding": {"name": "mine"}},
        {"consolidated_metadata": {"metadata": {"a": {"consolidated_metadata": {"metadata": {"b": {"dtype": "O"}}}}}}},
        {"metadata": {"a/.zarray": {"filters": [{"id": "pickle"}]}}},
    ],
    ids=str,
)
def test_metadata_that_names_something_else_is_refused(change):
    usual = {"zarr_format": 2, "dtype": "<f4", "compressor": {"id": "zlib", "level": 1}, "filters": None}
    check_metadata(json.dumps(usual).encode(), "a.zarr")
    with pytest.raises(InputFileError, match=r"^a\.zarr") as caught:
        check_metadata(json.dumps({**usual, **change}).encode(), "a.zarr")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe"])
def test_damaged_metadata_is_one_line(content):
    with pytest.raises(InputFileError, match="expected metadata of a Zarr store"):
        check_metadata(content, "a.zarr")


def test_links_out_of_a_store_are_not_followed(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        stored(folder / "a.zarr", 2)
    (own / "a.zarr" / "tos" / "0.0.0").unlink()
    (own / "a.zarr" / "tos" / "0.0.0").symlink_to(other / "a.zarr" / "tos" / "0.0.0")
    with pytest.raises(InputFileError, match="outside the store's own folder: refused"):
        field(own / "a.zarr")
    with open_fields(own / "a.zarr", allow_external=True) as dataset:
        assert np.isfinite(dataset["tos"].values).any()


def test_stores_on_s3_are_checked_too(s3_service, s3_bucket, tmp_path):
    path = stored(tmp_path / "a.zarr", 2)
    changed(path, "lat", lambda values: values.update(filters=[{"id": "pickle"}]))
    client = s3_service.client()
    for file in path.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), s3_bucket, f"a.zarr/{file.relative_to(path).as_posix()}")
    with pytest.raises(InputFileError, match="codec pickle is refused"):
        field(f"s3://{s3_bucket}/a.zarr")


PACKINGS = {
    "zlib": (numcodecs.Zlib(1), None), "gzip": (numcodecs.GZip(1), zarr.codecs.GzipCodec(level=1)),
    "bz2": (numcodecs.BZ2(1), None), "lzma": (numcodecs.LZMA(preset=1), None),
    "zstd": (numcodecs.Zstd(1), zarr.codecs.ZstdCodec(level=1)), "lz4": (numcodecs.LZ4(1), None),
    "blosc": (numcodecs.Blosc(), zarr.codecs.BloscCodec(cname="lz4")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "codec"), [(v, name) for name, codecs in PACKINGS.items() for v in (2, 3) if codecs[v - 2]]
)
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_chunk_that_unpacks_to_more_than_its_values_is_refused(tmp_path, version, codec, consolidated):
    packer, packer_v3 = PACKINGS[codec]
    encoding = {"compressors": [packer if version == 2 else packer_v3], "chunks": (1, 32, 96)}
    if version == 2 and codec == "zlib":
        encoding["filters"] = [numcodecs.Shuffle(4)]
    path = tmp_path / "a.zarr"
    grid((64, 96), times=1).to_zarr(path, zarr_format=version, consolidated=consolidated, encoding={"tos": encoding})
    np.testing.assert_array_equal(field(path), grid((64, 96), times=1)["tos"].values[0])
    chunk = path / "tos" / ("0.0.0" if version == 2 else "c/0/0/0")
    chunk.write_bytes(bytes(packer.encode(bytes(2**26))))
    assert chunk.stat().st_size < 2**19
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError, match="unpacks to more than"):
        field(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    chunk.write_bytes(chunk.read_bytes()[:3])
    with pytest.raises(InputFileError):
        field(path)


def test_shards_are_read(tmp_path):
    path = tmp_path / "a.zarr"
    encoding = {"tos": {"shards": (1, 64, 96), "chunks": (1, 16, 48)}}
    grid((64, 96), times=1).to_zarr(path, zarr_format=3, encoding=encoding)
    np.testing.assert_array_equal(field(path), grid((64, 96), times=1)["tos"].values[0])


def test_frames_of_unknown_size_are_bounded_by_their_blocks():
    """Each block of four bytes stands for 128 KiB."""
    block = ((2**17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    stream = b"\x28\xb5\x2f\xfd\x00\x58" + block * 3000 + b"\x01\0\0"
    with pytest.raises(InputFileError, match="unpacks to more than"):
        check_packed(stream, Packing("zstd", 2**20), "a")
    check_packed(stream, Packing("zstd", 2**29), "a")
    with pytest.raises(InputFileError, match="expected one compressing codec, got gzip followed by zlib"):
        packing_of({"chunks": [4], "dtype": "<f4", "filters": [{"id": "gzip"}], "compressor": {"id": "zlib"}}, "a")


def test_a_coordinate_that_is_declared_too_long_takes_no_memory(tmp_path):
    path = stored(tmp_path / "a.zarr", 2)
    changed(path, "lon", lambda values: values.update(shape=[10**12]))
    with pytest.raises(InputFileError, match=r"declares 8000\.00 GB"):
        field(path)


@pytest.mark.parametrize("flags", [0x02, 0x12, 0x33, 0x03])
def test_a_blosc_chunk_that_ends_early_shows_no_memory(tmp_path, flags):
    """The library copies as many bytes as the chunk's head says are there."""
    path = tmp_path / "a.zarr"
    encoding = {"compressors": [numcodecs.Blosc()], "chunks": (1, 64, 96)}
    grid((64, 96), times=1).to_zarr(path, zarr_format=2, encoding={"tos": encoding})
    size = 4 * 64 * 96
    head = bytes([2, 1, flags, 4]) + b"".join(n.to_bytes(4, "little") for n in (size, size, size + 16))
    (path / "tos" / "0.0.0").write_bytes(head + bytes(8))
    with pytest.raises(InputFileError, match="damaged chunk"):
        field(path)


GZIP = (zarr.codecs.GzipCodec(),)


def sharded(path, *, compressors=GZIP, chunks=(1, 16, 48), **change):
    """Write a store of shards, with other values in the configuration of their codec."""
    encoding = {"tos": {"shards": (1, 64, 96), "chunks": chunks, "compressors": compressors}}
    grid((64, 96), times=1).to_zarr(path, zarr_format=3, encoding=encoding)
    changed(path, "tos", lambda values: values["codecs"][0]["configuration"].update(change))
    return path / "tos" / "c" / "0" / "0" / "0"


def shard_of(inner, *, count=8, first=0, length=None):
    """Return a shard, all of whose chunks are one."""
    index = np.array([[first, len(inner) if length is None else length]] * count, "<u8").tobytes()
    return inner + index + crc_of(index)


def crc_of(index):
    return int(google_crc32c.value(index)).to_bytes(4, "little")


def row_of(path):
    """Read a few pixels, so that Zarr reads a part of the shard alone."""
    with open_fields(path) as dataset:
        return dataset["tos"][0, :4, :4].values


@pytest.mark.parametrize("read", [field, row_of])
@pytest.mark.parametrize("chunks", [(1, 16, 48), (1, 64, 96)])
def test_a_chunk_in_a_shard_that_unpacks_to_too_much_is_refused(tmp_path, read, chunks):
    shard = sharded(tmp_path / "a.zarr", chunks=chunks)
    read(tmp_path / "a.zarr")
    shard.write_bytes(shard_of(bytes(numcodecs.GZip(9).encode(bytes(2**23))), count=64 * 96 // (chunks[1] * chunks[2])))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputFileError, match=r"chunk 0: a chunk of .* unpacks to more than"):
        read(tmp_path / "a.zarr")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000


@pytest.mark.parametrize("read", [field, row_of])
def test_a_blosc_chunk_in_a_shard_shows_no_memory(tmp_path, read):
    shard = sharded(tmp_path / "a.zarr", compressors=[zarr.codecs.BloscCodec(cname="lz4")])
    size = 4 * 16 * 48
    head = bytes([2, 1, 2, 4]) + b"".join(n.to_bytes(4, "little") for n in (size, size, size + 16))
    shard.write_bytes(shard_of(head + bytes(8)))
    with pytest.raises(InputFileError, match=r"damaged chunk \(blosc"):
        read(tmp_path / "a.zarr")


@pytest.mark.parametrize("read", [field, row_of])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a shard of 0 bytes, fewer than those of its index"),
        (bytes(100), "a shard of 100 bytes, fewer"),
        (shard_of(b"a" * 10, length=2**40), "chunk 0 lies outside its shard"),
        (shard_of(b"a" * 10, first=2**63), "chunk 0 lies outside its shard"),
        (shard_of(b"a" * 10, first=2**64 - 1), "chunk 0 lies outside its shard"),
        (shard_of(b"a" * 10, length=0), "chunk 0 lies outside its shard"),
    ],
)
def test_a_damaged_shard_is_not_read_as_missing_values(tmp_path, read, content, said):
    sharded(tmp_path / "a.zarr").write_bytes(content)
    with pytest.raises(InputFileError, match=said):
        read(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_shape": [1, 0, 48]},
        {"chunk_shape": [1, 7, 48]},
        {"chunk_shape": [64, 96]},
        {"codecs": []},
        {"codecs": [{"name": "sharding_indexed", "configuration": {}}]},
        {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]},
        {"index_location": "middle"},
    ],
    ids=str,
)
def test_unusual_shards_are_refused(tmp_path, change):
    sharded(tmp_path / "a.zarr", **change)
    with pytest.raises(InputFileError, match=r"write the store again without shards$"):
        field(tmp_path / "a.zarr")


def test_shards_with_the_index_first_and_missing_chunks_are_read(tmp_path):
    shard = sharded(tmp_path / "a.zarr", compressors=None, index_location="start")
    index = np.full((8, 2), 2**64 - 1, "<u8")
    index[0] = (8 * 16 + 4, 4 * 16 * 48)
    head = index.tobytes()
    shard.write_bytes(head + crc_of(head) + np.full(16 * 48, 3, "<f4").tobytes())
    values = field(tmp_path / "a.zarr")
    assert (values[:16, :48] == 3).all() and np.isnan(values[16:]).all()


def test_an_array_within_an_array_loosens_no_bound(tmp_path):
    values = {"chunks": [4, 4], "dtype": "<f4", "compressor": {"id": "zlib", "level": 1}}
    store = LocalZarr(tmp_path)
    for key, chunks in (("a/.zarray", [4, 4]), ("a/0/.zarray", [4096, 4096])):
        store._check(key, json.dumps({**values, "chunks": chunks}).encode())
    with pytest.raises(InputFileError, match="unpacks to more than"):
        store._check("a/0/0", zlib.compress(bytes(2**20)))


@pytest.mark.parametrize("size", [0, -1, "4", 2**40, True])
def test_a_shuffle_of_elements_without_bytes_is_refused(size):
    for change in (
        {"filters": [{"id": "shuffle", "elementsize": size}]},
        {"codecs": [{"name": "numcodecs.shuffle", "configuration": {"elementsize": size}}]},
    ):
        with pytest.raises(InputFileError, match="expected elementsize of shuffle from 1 to"):
            check_metadata(json.dumps(change).encode(), "a.zarr")


def test_a_codec_of_two_names_is_refused():
    with pytest.raises(InputFileError, match="expected codecs of one name"):
        packing_of({"chunks": [4], "data_type": "float32", "codecs": [{"name": "gzip", "id": "bytes"}]}, "a")
