"""Cutouts that keep their masked pixels."""

import h5py
import numpy as np
import pandas as pd
import pytest
from field_files import CELSIUS, H, W, grid, save
from granules import clouds

from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import InputReader
from nenya.prepare.job import prepare

MASK = clouds((H, W), 3, 0.3)


def made(folder, name="a", mask=MASK, **options):
    data = save(grid(np.where(mask, np.nan, CELSIUS).astype("f4")), folder / f"{name}.nc")
    out = folder / f"{name}_preproc.h5"
    usual = {"field_size": 16, "step": 8, "inpaint": "none", "valid_fraction": 0.0, "workers": 1}
    prepare({**usual, "data": data, "out": str(out), **options})
    table = pd.read_parquet(out.with_suffix(".parquet"))
    with h5py.File(out) as file:
        return file["train"][:, 0], file["train_mask"][:, 0] if "train_mask" in file else None, table


@pytest.mark.parametrize("least", [30.0, 80.0])
def test_masked_pixels_are_kept(tmp_path, least):
    images, mask, table = made(tmp_path, clear_threshold=least)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(np.isnan(images), mask == 1)
    windows = np.lib.stride_tricks.sliding_window_view(MASK, (16, 16))[::8, ::8].reshape(-1, 16, 16)
    assert len(images) == ((~windows).mean(axis=(1, 2)) >= least / 100).sum() > 3
    for image, masked, row in zip(images, mask == 1, table.itertuples(), strict=True):
        box = slice(row.row, row.row + 16), slice(row.col, row.col + 16)
        np.testing.assert_array_equal(masked, MASK[box])
        clear = CELSIUS[box][~masked]
        assert row.clear_fraction == pytest.approx((~masked).mean())
        assert row.mean_temperature == pytest.approx(clear.mean(), abs=1e-4)
        assert (row.Tmin, row.Tmax) == (clear.min(), clear.max())
        assert row.T90 == pytest.approx(np.percentile(clear, 90), abs=1e-4)
        np.testing.assert_allclose(image[~masked], clear - clear.mean(), atol=1e-4)


def test_a_file_without_masked_pixels_has_no_mask(tmp_path):
    images, mask, _ = made(tmp_path, clear_threshold=100.0)
    assert mask is None and np.isfinite(images).all()
    assert made(tmp_path, "b", np.zeros_like(MASK))[1] is None


def test_masks_go_through_the_steps(tmp_path):
    images, mask, table = made(tmp_path, clear_threshold=40.0, downscale=[2, 2], median=[3, 1])
    assert images.shape[1:] == mask.shape[1:] == (8, 8)
    np.testing.assert_array_equal(np.isnan(images), mask == 1)
    row = table.iloc[int(mask.sum(axis=(1, 2)).argmax())]
    whole = MASK[row.row : row.row + 16, row.col : row.col + 16].reshape(8, 2, 8, 2)
    np.testing.assert_array_equal(mask[row.pp_idx], whole.mean(axis=(1, 3)) >= 0.5)
    assert np.abs(np.nanmean(images, axis=(1, 2))).max() < 1e-5
    clear, no_mask, other = made(tmp_path, "b", clear_threshold=100.0, downscale=[2, 2], median=[3, 1])
    assert no_mask is None
    both = table.set_index("UID").pp_idx[other.assign(UID=uids_of(table, other)).UID]
    np.testing.assert_array_equal(images[both], clear)


@pytest.mark.parametrize("mixing", [{"downscale": [4, 4]}, {"median": [3, 3]}, {}])
def test_no_kept_pixel_is_made_impossible_by_filled_ones(tmp_path, mixing):
    """A hill with a hole in its top, which is filled beyond 40 degrees; the means of blocks get there too."""
    field, mask = CELSIUS.copy(), np.zeros((H, W), bool)
    away = np.abs(np.arange(16) - 5.5).clip(1.5) - 1.5
    field[:16, :16] = np.clip(39.9 - 4 * np.maximum(away, away[:, None]), 20, None)
    mask[5:7, 5:7] = True
    more = {"possible": [-3.0, 40.0], "clear_threshold": 40.0, "demean": False, **mixing}
    data = save(grid(np.where(mask, np.nan, field).astype("f4")), tmp_path / "front.nc")
    out = tmp_path / "front_preproc.h5"
    usual = {"field_size": 16, "step": 16, "inpaint": "none", "valid_fraction": 0.0, "workers": 1}
    prepare({**usual, "data": data, "out": str(out), **more})
    with h5py.File(out) as file:
        images = file["train"][()]
    table = pd.read_parquet(out.with_suffix(".parquet"))
    assert np.nanmax(images) <= 40
    assert ((table.row == 0) & (table.col == 0)).any() == ("downscale" not in mixing), "kept unless it is impossible"


def uids_of(table, other):
    """UIDs of the rows of another table in this one; they hold the name of the file."""
    place = table.set_index(["row", "col"]).UID
    return [place[row, col] for row, col in zip(other.row, other.col, strict=True)]


def test_what_is_written_is_read(tmp_path):
    images, mask, _ = made(tmp_path, clear_threshold=30.0)
    file = inspect_cutouts(tmp_path / "a_preproc.h5")
    with file.reader("train") as reader:
        found = InputReader(reader, "mask").read(0, len(reader))
    np.testing.assert_array_equal(found[:, 1], mask)
    np.testing.assert_array_equal(found[:, 0][mask == 0], images[mask == 0])
    assert np.isfinite(found).all()
