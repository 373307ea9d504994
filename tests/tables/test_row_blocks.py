import numpy as np
import pandas as pd
import pytest

from nenya.errors import InputFileError, OptionError
from nenya.tables.blocks import block_folds, blocks_of, marks_of, marks_of_values, order_of_blocks


def table(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    granule = rng.integers(0, 9, rows)
    return pd.DataFrame(
        {
            "pp_file": np.where(granule % 2, "a_preproc.h5", "b_preproc.h5"),
            "pp_type": rng.integers(0, 2, rows),
            "pp_idx": np.arange(rows),
            "granule": [f"g{g}" for g in granule],
            "datetime": pd.Timestamp("2012-03-01") + pd.to_timedelta(rng.integers(0, 96, rows), unit="h"),
            "orbit": rng.integers(0, 4, rows),
        }
    )


@pytest.mark.parametrize(("block", "like"), [("granule", "granule"), ("orbit", "orbit"), ("day", None)])
def test_blocks_are_the_values_of_a_column(block, like):
    rows = table()
    expected = rows[like] if like else rows["datetime"].dt.floor("D")
    found = blocks_of(rows, block)
    assert pd.crosstab(found, expected.to_numpy()).gt(0).to_numpy().sum() == expected.nunique() == len(np.unique(found))


def test_a_row_without_a_block_is_one_of_its_own(caplog):
    rows = table()
    rows.loc[[3, 5], "granule"] = None
    rows = rows.drop(columns="datetime")
    found = blocks_of(rows)
    assert (found == found[3]).sum() == (found == found[5]).sum() == 1
    assert "2 of 60 rows have no granule" in caplog.text


@pytest.mark.parametrize(
    ("block", "drop", "error", "said"),
    [
        ("granul", [], OptionError, "did you mean granule"),
        ("granule", ["granule", "datetime"], InputFileError, "needs a column granule"),
        ("day", ["datetime"], InputFileError, "needs a column datetime"),
        ("empty", [], InputFileError, "no row of the table has one"),
    ],
)
def test_blocks_that_are_not_there_are_refused(block, drop, error, said):
    with pytest.raises(error, match=said):
        blocks_of(table().assign(empty=None).drop(columns=drop), block)


def test_marks_follow_the_rows_and_the_seed():
    rows = table()
    marks, order = marks_of(rows), np.random.default_rng(1).permutation(len(rows))
    assert (marks_of(rows.iloc[order]) == marks[order]).all() and len(np.unique(marks)) == len(rows)
    moved = rows.assign(pp_file="/elsewhere/" + rows["pp_file"].astype(str))
    assert (marks_of(moved) == marks).all()
    assert (marks_of(rows, seed=1) != marks).all()
    values = np.random.default_rng(2).standard_normal((60, 3))
    assert (marks_of_values(values[order]) == marks_of_values(values)[order]).all()


def test_marks_are_uniform():
    shares = marks_of(table(20_000)) / 2.0**64
    assert abs(np.sort(shares) - (np.arange(20_000) + 0.5) / 20_000).max() < 1.63 / np.sqrt(20_000)  # 1 % limit


def test_folds_keep_blocks_together_and_are_even_whatever_the_order():
    rows = table(400)
    blocks, marks = blocks_of(rows), marks_of(rows)
    folds = block_folds(blocks, 3, marks)
    assert pd.DataFrame({"b": blocks, "f": folds}).groupby("b")["f"].nunique().eq(1).all()
    assert np.ptp(np.bincount(folds)) <= np.bincount(blocks).max()
    order = np.random.default_rng(1).permutation(400)
    renamed = np.random.default_rng(2).permutation(50)[blocks]
    assert (block_folds(renamed[order], 3, marks[order]) == folds[order]).all()
    assert (order_of_blocks(renamed[order], marks[order]) == order_of_blocks(blocks, marks)[order]).all()
    assert set(block_folds(np.array([0, 0, 1]), 5, marks[:3])) == {0, 1}
