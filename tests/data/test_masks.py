import h5py
import numpy as np
import pytest

from nenya.data.blocks import BlockRows, cut_blocks
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import InputReader
from nenya.data.unpack import load_partition
from nenya.errors import InputFileError

ROWS, SIDE = 23, 16


def field_and_mask(rows=ROWS, side=SIDE, seed=0):
    """Smooth fields (n, H, W), and masks with a wholly clear, a wholly masked and many partly masked cutouts."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    phase = rng.uniform(0, 6, (3, rows, 1, 1))
    fields = (np.sin(5 * x + phase[0]) + np.cos(4 * y + phase[1]) + x * phase[2]).astype(np.float32)
    mask = rng.random((rows, side, side)) < rng.uniform(0, 0.6, (rows, 1, 1))
    mask[0], mask[1] = False, True
    return fields, mask


def write(path, fields, mask=None, name="train", kind=np.uint8, four=True, **how):
    with h5py.File(path, "a") as h5:
        h5.create_dataset(name, data=fields[:, None], **how)
        if mask is not None:
            h5.create_dataset(f"{name}_mask", data=(mask[:, None] if four else mask).astype(kind), **how)
    return path


def read(path, masked, start=0, stop=None, name="train"):
    file = inspect_cutouts(path)
    with file.reader(name) as reader:
        return InputReader(reader, masked).read(start, len(reader) if stop is None else stop)


@pytest.mark.parametrize("kind", [np.uint8, bool])
@pytest.mark.parametrize("four", [True, False])
@pytest.mark.parametrize("how", [{}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "compression": "lzf"}])
def test_a_mask_says_the_same_as_nan(tmp_path, kind, four, how):
    fields, mask = field_and_mask()
    holed = np.where(mask, np.nan, fields).astype(np.float32)
    path = write(tmp_path / "a.h5", fields, mask, kind=kind, **({"four": four} if not how else {}), **how)
    other = write(tmp_path / "b.h5", holed)
    for masked in ("fill", "mean", "mask"):
        found = read(path, masked)
        np.testing.assert_array_equal(found, read(other, masked))
        assert found.shape == (ROWS, 2 if masked == "mask" else 1, SIDE, SIDE)
        assert np.isfinite(found[2:]).all() and np.isnan(found[1, 0]).all()
        np.testing.assert_array_equal(found[:, 0][~mask], fields[~mask])
    np.testing.assert_array_equal(read(path, "mask")[:, 1], mask)


def test_nan_leaves_the_pixels_as_they_are(tmp_path):
    fields, mask = field_and_mask()
    found = read(write(tmp_path / "a.h5", fields, mask), "nan")
    np.testing.assert_array_equal(found[2:, 0], fields[2:])
    assert np.isnan(found[1]).all(), "a wholly masked cutout has no latent in any mode"
    holed = np.where(mask, np.nan, fields).astype(np.float32)
    np.testing.assert_array_equal(read(write(tmp_path / "b.h5", holed), "nan")[:, 0], holed)


@pytest.mark.parametrize("masked", ["nan", "fill", "mean", "mask"])
def test_nan_outside_the_mask_is_refused(tmp_path, masked):
    fields, mask = field_and_mask()
    fields[7, :2, :2], mask[7] = np.nan, False
    path = write(tmp_path / "a.h5", fields, mask)
    with pytest.raises(InputFileError, match="row 7 of 'train' has 4 pixels that are not finite outside 'train_mask'"):
        read(path, masked)
    assert len(read(path, masked, stop=7)) == 7


def test_copies_with_and_without_a_mask_are_kept_side_by_side(tmp_path):
    fields, mask = field_and_mask()
    path = write(tmp_path / "a.h5", fields, mask, chunks=True, compression="gzip")
    made = {}
    for masked in (True, False):
        load_partition(path, "train", cache_dir=tmp_path / "cache", memory_limit=0, mask=masked)
        made[masked] = {file.name for file in (tmp_path / "cache").glob("*.npy")}
    assert len(made[True]) == 1 and len(made[False]) == 2 and made[True] < made[False]
    with h5py.File(path, "r+") as h5:
        h5["train"][0] = 1
    load_partition(path, "train", cache_dir=tmp_path / "cache", memory_limit=0)
    left = {file.name for file in (tmp_path / "cache").glob("*.npy")}
    assert len(left) == 2 and made[True] < left, "the outdated copy is removed"


def test_an_infinite_pixel_is_no_mask(tmp_path):
    fields, _ = field_and_mask()
    fields[3, 4, 4], fields[3, 5, 5] = np.inf, np.nan
    for masked in ("fill", "mean", "mask"):
        found = read(write(tmp_path / f"{masked}.h5", fields), masked)
        assert not np.isfinite(found[3, 0]).all() and np.isfinite(found[4]).all()


@pytest.mark.parametrize("masked", ["fill", "mean", "mask"])
def test_a_row_does_not_depend_on_its_block(tmp_path, masked):
    fields, mask = field_and_mask()
    path = write(tmp_path / "a.h5", fields, mask, chunks=(4, 1, 8, 8), compression="gzip")
    wanted = read(path, masked)
    for start, stop in ((0, 5), (5, 6), (6, ROWS), (3, 3)):
        np.testing.assert_array_equal(read(path, masked, start, stop), wanted[start:stop])
    file = inspect_cutouts(path)
    with file.reader("train") as reader:
        some = np.array([1, 2, 9, 10, 22])
        np.testing.assert_array_equal(InputReader(reader, masked).read_rows(some), wanted[some])
    for ahead in (False, True):
        data = BlockRows(file, cut_blocks(file, 8), ahead=ahead, threads=3, masked=masked)
        blocks = [data.__getitems__(block)["images"].numpy() for block in data.order]
        np.testing.assert_array_equal(np.concatenate(blocks), wanted)
        data.close()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((ROWS - 1, 1, SIDE, SIDE), np.uint8), "expected a mask of shape"),
        (np.zeros((ROWS, SIDE, SIDE - 1), np.uint8), "expected a mask of shape"),
        (np.zeros((ROWS, 2, SIDE, SIDE), np.uint8), "expected a mask of shape"),
        (np.zeros((ROWS, 1, SIDE, SIDE), np.float32), "type uint8 or bool .* got float32"),
        (np.zeros((ROWS, 1, SIDE, SIDE), np.int8), "type uint8 or bool .* got int8"),
    ],
)
def test_a_wrong_mask_is_refused(tmp_path, mask, words):
    path = write(tmp_path / "a.h5", field_and_mask()[0])
    with h5py.File(path, "a") as h5:
        h5["train_mask"] = mask
    with pytest.raises(InputFileError, match=words):
        inspect_cutouts(path)


@pytest.mark.parametrize("how", [{}, {"chunks": True, "compression": "gzip"}])
def test_other_values_than_0_and_1_are_refused(tmp_path, how):
    fields, mask = field_and_mask()
    values = mask.astype(np.uint8)
    values[9, 3, 3] = 255
    path = write(tmp_path / "a.h5", fields, values, **how)
    with pytest.raises(InputFileError, match="row 9 of 'train_mask' holds 255, expected 1 at masked"):
        read(path, "fill")


def test_a_mask_is_no_partition(tmp_path):
    fields, mask = field_and_mask()
    file = inspect_cutouts(write(tmp_path / "a.h5", fields, mask))
    assert list(file.partitions) == ["train"] and file.partitions["train"].has_mask
    with pytest.raises(InputFileError, match="floating-point"):
        inspect_cutouts(tmp_path / "a.h5", ("train_mask",))


def test_a_mask_may_be_virtual(tmp_path):
    fields, mask = field_and_mask()
    path, other = write(tmp_path / "a.h5", fields), write(tmp_path / "b.h5", fields, mask)
    layout = h5py.VirtualLayout(mask[:, None].shape, np.uint8)
    layout[:] = h5py.VirtualSource("b.h5", "train_mask", mask[:, None].shape)
    with h5py.File(path, "a") as h5:
        h5.create_virtual_dataset("train_mask", layout)
    np.testing.assert_array_equal(read(path, "mask"), read(other, "mask"))
    info = inspect_cutouts(path).partitions["train"]
    assert [source.rpartition("/")[2] for source in info.sources] == ["b.h5"], "its change changes the fingerprint"
