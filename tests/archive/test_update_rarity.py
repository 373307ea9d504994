"""Rarity in archives: of rows that come later against the sample of the first files."""

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.archive.rarity import add_reference, has_reference, rarity_columns
from nenya.errors import InputFileError
from nenya.latents.files import Latents
from nenya.latents.nearest import identity_of
from nenya.latents.rarity import rarity_of

ROWS, DIM = 60, 8


def write(folder, name, seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    with h5py.File(folder / f"{name}_latents.h5", "w") as file:
        file["train"] = rng.standard_normal((rows, DIM)).astype(np.float32)
        file["train"][4] = np.nan
    table = pd.DataFrame({"pp_file": f"{name}.h5", "pp_type": 1, "pp_idx": np.arange(rows)})
    table["granule"] = [f"g{(seed + row // 6) % 12}" for row in range(rows)]  # granules that several files have
    table["lat"], table["lon"] = rng.uniform(-1, 1, rows), rng.uniform(0, 5, rows)
    table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(rng.uniform(0, 40, rows), unit="D")
    return Latents([folder / f"{name}_latents.h5"]), table


@pytest.fixture
def centres(tmp_path):
    with h5py.File(tmp_path / "clusters.h5", "w") as file:
        file["centres"] = np.eye(4, DIM)
    return tmp_path / "clusters.h5"


def test_rarity_is_that_among_the_sample_and_later_files_change_nothing(centres, tmp_path):
    files = [write(tmp_path, "a", 0), write(tmp_path, "b", 3)]
    assert rarity_columns(centres, *files[0]) == {}
    add_reference(centres, files, 7)
    assert has_reference(centres)
    x = np.concatenate([latents[0:ROWS] for latents, _ in files])
    table = pd.concat([table for _, table in files], ignore_index=True)
    good = np.isfinite(x[:, 0])
    wanted = rarity_of(x, identity_of(table, 100.0, 3.0), 10, visible=False).rarity  # the sample is all of them
    found = [rarity_columns(centres, *file) for file in files]
    together = np.concatenate([columns["rarity"] for columns in found])
    np.testing.assert_allclose(together, wanted, atol=1e-7)
    percentile = np.concatenate([columns["rarity_percentile"] for columns in found])
    np.testing.assert_allclose(percentile[good], [100 * (wanted[good] <= v + 1e-12).mean() for v in together[good]])
    assert np.isnan(percentile[~good]).all()
    later = rarity_columns(centres, *write(tmp_path, "c", 5))
    assert np.isfinite(np.delete(later["rarity"], 4)).all() and np.isnan(later["rarity"][4])
    np.testing.assert_array_equal(rarity_columns(centres, *files[0])["rarity"], found[0]["rarity"])


def test_a_file_with_other_columns_is_measured_too(centres, tmp_path):
    add_reference(centres, [write(tmp_path, "a", 0)], 7)
    latents, table = write(tmp_path, "b", 3)
    bare = rarity_columns(centres, latents, table[["pp_file", "pp_type", "pp_idx"]])["rarity"]
    odd = table.assign(lat="north", datetime="some day")
    assert np.isfinite(np.delete(rarity_columns(centres, latents, odd)["rarity"], 4)).all()
    own = rarity_columns(centres, latents, table)["rarity"]
    assert (np.delete(own - bare, 4) >= -1e-9).all() and np.nanmax(own - bare) > 1e-3  # some neighbours do not count


def test_too_few_rows_have_no_rarity_and_a_damaged_sample_is_refused(centres, tmp_path):
    before = centres.read_bytes()
    add_reference(centres, [write(tmp_path, "a", 0, rows=9)], 7)
    assert centres.read_bytes() == before and not has_reference(centres)
    latents, table = write(tmp_path, "b", 0)
    add_reference(centres, [(latents, table)], 7)
    with h5py.File(centres, "a") as file:
        file["sample_table"][5:40] = 0
        del file["sample_latents"]
        file["sample_latents"] = np.full((3, DIM), np.nan, np.float32)
    with pytest.raises(InputFileError, match="sample of rarity is damaged"):
        rarity_columns(centres, latents, table)
