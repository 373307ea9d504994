"""Large tables in parts: the same columns as read at once, and copies with more of them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nenya.errors import InputFileError
from nenya.io import read_table, write_table
from nenya.tables import streamed
from nenya.tables.streamed import read_rows, read_some, write_with


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "pp_file": pd.Categorical(["a.h5", "b.h5", "a.h5", None]),
            "pp_idx": [2**53 + 1, 0, 5, 7],
            "UID": pd.array([2**53 + 1, None, 3, 4], dtype="Int64"),
            "DT": [0.5, np.nan, 2.0, 3.0],
            "when": pd.to_datetime(["2003-01-01", None, "2004-02-02T03:04:05", "2005-01-01"], format="ISO8601"),
            "cluster": [9, 9, 9, 9],
        }
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_some_rows_are_those_of_the_complete_table(table, tmp_path, monkeypatch, groups):
    monkeypatch.setattr(streamed, "_GROUP_ROWS", 3)  # several batches
    plain = pa.Table.from_pandas(table).replace_schema_metadata(None)  # not of pandas
    pq.write_table(plain, tmp_path / "a.parquet", row_group_size=groups)
    rows = np.array([3, 0, 1, 0])
    expected = read_table(tmp_path / "a.parquet").iloc[rows].reset_index(drop=True)
    found = read_rows(tmp_path / "a.parquet", rows)
    pd.testing.assert_frame_equal(found, expected)
    assert found["UID"][1] == 2**53 + 1, "an integer beside a missing one keeps its last digit"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_some_columns_are_those_of_the_whole_table(table, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_table(table, path)
    whole = read_table(path)
    pd.testing.assert_frame_equal(read_some(path, ("UID", "pp_idx", "no such")), whole[["pp_idx", "UID"]])
    assert read_some(path, ("no such",)).shape == (4, 0)


def test_an_index_is_left_out(table, tmp_path):
    table.iloc[[3, 1]].to_parquet(tmp_path / "a.parquet")
    assert read_some(tmp_path / "a.parquet", ("DT", "UID"))["DT"].iloc[0] == 3
    write_with(tmp_path / "a.parquet", tmp_path / "b.parquet", {"cluster": np.array([4, 5])})
    found = read_table(tmp_path / "b.parquet")
    assert found["cluster"].tolist() == [4, 5] and found.index.tolist() == [0, 1]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_copy_has_more_columns_and_the_others_unchanged(table, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(streamed, "_GROUP_ROWS", 3)
    path, out = tmp_path / "a.parquet", tmp_path / f"b{suffix}"
    write_table(table, path)
    labels, share = np.array([1, 2, -1, 0]), np.array([0.5, np.nan, 1, 2], np.float32)
    write_with(path, out, {"cluster": labels, "share": share})
    write_table(read_table(path).assign(cluster=labels, share=share), tmp_path / f"c{suffix}")
    pd.testing.assert_frame_equal(read_table(out), read_table(tmp_path / f"c{suffix}"))


def test_a_table_that_changed_is_refused_and_nothing_is_left(table, tmp_path):
    write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputFileError, match="it has 4 rows now"):
        write_with(tmp_path / "a.parquet", tmp_path / "b.parquet", {"cluster": np.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputFileError, match=r"a\.parquet"):
        read_some(tmp_path / "a.parquet", ("DT",))


def test_a_damaged_column_that_was_not_needed_before_is_told_from_a_failed_copy(tmp_path):
    path, noise = tmp_path / "a.parquet", np.random.default_rng(0).standard_normal(1000)
    pd.DataFrame({"DT": np.arange(1000.0), "other": noise}).to_parquet(path, index=False, compression="gzip")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    assert len(read_some(path, ("DT",))) == 1000
    with pytest.raises(InputFileError, match=r"a\.parquet: cannot be read as a table"):
        write_with(path, tmp_path / "b.parquet", {"cluster": np.zeros(1000)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_copy_does_not_hold_what_it_has_read(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**62, 2**20)
    pq.write_table(pa.table({"x": values}), tmp_path / "a.parquet", row_group_size=2**14)
    held, batches, before = [], streamed._batches, pa.total_allocated_bytes()

    def watched(*args):
        for batch in batches(*args):
            held.append(pa.total_allocated_bytes() - before)
            yield batch

    monkeypatch.setattr(streamed, "_batches", watched)
    monkeypatch.setattr(streamed, "_GROUP_ROWS", 2**14)
    write_with(tmp_path / "a.parquet", tmp_path / "b.parquet", {"y": values})
    assert len(held) == 64 and max(held) < values.nbytes / 2
