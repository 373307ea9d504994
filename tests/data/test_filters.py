import zlib

import h5py
import numpy as np
import pytest

from nenya.data import filters
from nenya.data.filters import FLETCHER32, GZIP, LZF, SHUFFLE, lzf_length, undo_filters, unpack_lzf_by_hdf5

PIXELS = np.cumsum(np.random.default_rng(0).integers(-3, 4, 4000)).astype("<f4")
RAW = PIXELS.tobytes()


def answer(work, *arguments):
    """Return the bytes that come out, None where the chunk is refused."""
    try:
        return bytes(work(*arguments))
    except (ValueError, OSError):  # OSError: HDF5's own way of saying it
        return None


def inflated(stream, size):
    """Unpack by zlib, the reference."""
    machine = zlib.decompressobj()
    try:
        data = machine.decompress(stream, size + 1)
    except zlib.error:
        return None
    return data if machine.eof and len(data) == size else None


@pytest.mark.parametrize("level", [0, 1, 4, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED])
@pytest.mark.parametrize("window", [9, 12, 15])
def test_every_kind_of_zlib_stream_unpacks(level, strategy, window):
    machine = zlib.compressobj(level, zlib.DEFLATED, window, 8, strategy)
    parts = [machine.compress(RAW[:5000]), machine.flush(zlib.Z_FULL_FLUSH), machine.compress(RAW[5000:])]
    stream = b"".join([*parts, machine.flush()])
    assert bytes(undo_filters(stream, [GZIP], 0, len(RAW), 4)) == RAW
    for size in (1, len(RAW) - 1, len(RAW) + 1, 2 * len(RAW)):
        assert answer(undo_filters, stream, [GZIP], 0, size, 4) is None


def test_damaged_zlib_streams_are_refused_as_zlib_refuses_them():
    rng, stream = np.random.default_rng(1), zlib.compress(RAW, 4)
    for number in range(600):
        hurt = bytearray(stream)
        for place in rng.integers(2, len(hurt), int(rng.integers(1, 4))):
            hurt[place] ^= 1 << int(rng.integers(8))
        hurt = hurt[: int(rng.integers(len(hurt)))] if number % 3 == 0 else hurt + bytes(number % 3)
        assert answer(undo_filters, bytes(hurt), [GZIP], 0, len(RAW), 4) == inflated(bytes(hurt), len(RAW))


def packed_by_hdf5(path, **options):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", data=PIXELS, chunks=PIXELS.shape, **options)
        creation = data.id.get_create_plist()
        mask, packed = data.id.read_direct_chunk((0,))
        return [creation.get_filter(i)[0] for i in range(creation.get_nfilters())], mask, packed


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("fletcher32", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_what_hdf5_packs_unpacks(tmp_path, shuffle, fletcher32, compression):
    codes, mask, packed = packed_by_hdf5(
        tmp_path / "a.h5", shuffle=shuffle, fletcher32=fletcher32, compression=compression
    )
    assert (GZIP in codes, LZF in codes) == (compression == "gzip", compression == "lzf")
    assert (SHUFFLE in codes, FLETCHER32 in codes) == (shuffle, fletcher32)
    assert bytes(undo_filters(packed, codes, mask, len(RAW), 4)) == RAW


@pytest.fixture(scope="module")
def lzf(tmp_path_factory):
    codes, mask, packed = packed_by_hdf5(tmp_path_factory.mktemp("lzf") / "a.h5", shuffle=True, compression="lzf")
    assert (codes, mask) == ([SHUFFLE, LZF], 0)
    return packed


def test_both_ways_to_unpack_lzf_agree_also_on_damage(lzf):
    if filters._lzf_function() is None:
        pytest.skip("this h5py does not show its LZF function")
    rng, refused = np.random.default_rng(2), 0
    for number in range(600):
        stream = bytearray(lzf)
        if number:
            stream[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
        stream = bytes(stream[: int(rng.integers(len(stream)))] if number % 4 == 3 else stream)
        first = answer(filters._unpack_lzf, stream, len(RAW))
        assert first == answer(unpack_lzf_by_hdf5, stream, len(RAW))
        refused += first is None
        assert first is None or lzf_length(stream) == len(RAW)
    assert 100 < refused < 600


def test_lzf_without_its_function(lzf, monkeypatch):
    monkeypatch.setattr(filters, "_lzf_function", lambda: None)
    assert bytes(undo_filters(lzf, [SHUFFLE, LZF], 0, len(RAW), 4)) == RAW
    assert answer(undo_filters, lzf[:-1], [SHUFFLE, LZF], 0, len(RAW), 4) is None
