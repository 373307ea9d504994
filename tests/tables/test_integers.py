import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from nenya import io
from nenya.errors import InputFileError
from nenya.io import read_table, write_table
from nenya.storage.table_integers import comparable, take_rows

LONG = [2**64 - 1, 2**63 + 5, 7]
COLUMNS = {
    "UID": pd.array([LONG[0], None, LONG[2]], dtype="UInt64"),
    "negative": pd.array([-(2**62) - 1, None, 3], dtype="Int64"),
    "small": pd.array([1, None, -3], dtype="Int16"),
    "real": [0.5, np.nan, 2.0],
    "round": [1.0, np.nan, 2.0],
    "text": ["a", None, "007"],
    "plain": [1, 2, 3],
}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_whole_numbers_with_gaps_are_read_as_they_were_written(tmp_path, suffix):
    table = pd.DataFrame(COLUMNS)
    write_table(table, tmp_path / f"t{suffix}")
    found = read_table(tmp_path / f"t{suffix}")
    assert found["UID"].tolist()[::2] == LONG[::2] and found["negative"].tolist()[::2] == [-(2**62) - 1, 3]
    assert found["small"].dropna().tolist() == [1, -3]
    assert [found[name].dtype.kind for name in ("UID", "negative", "small", "real", "plain")] == list("uiifi")
    assert found["round"].dtype.kind == "f" and found["text"].tolist()[::2] == ["a", "007"]
    assert found.isna().to_numpy().tolist()[1] == [True] * 6 + [False]


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_nulls_of_files_that_pandas_did_not_write(tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    table = pa.table({"UID": pa.array([2**62 + 1, None]), "row": pa.array([None, 5], pa.int8()), "x": [0.5, None]})
    path = tmp_path / f"t{suffix}"
    {".parquet": pyarrow.parquet.write_table, ".feather": pyarrow.feather.write_feather}[suffix](table, path)
    found = read_table(path)
    assert found["UID"][0] == 2**62 + 1 and found["UID"].isna()[1] and found["row"][1] == 5
    assert [found[name].dtype.kind for name in found] == ["i", "i", "f"]


def test_digits_of_a_csv_file_written_by_hand(tmp_path):
    (tmp_path / "t.csv").write_text("UID,n\n18446744073709551615,1\n,\n1047103981024267577,3\n")
    found = read_table(tmp_path / "t.csv")
    assert found["UID"].tolist()[::2] == [2**64 - 1, 1047103981024267577] and found["n"].tolist()[::2] == [1, 3]


def test_rows_are_taken_without_loss():
    table = pd.DataFrame({"u": np.array(LONG, np.uint64), "i": np.arange(3, dtype=np.int32), "b": True, "f": 0.5})
    table["moment"] = pd.Timestamp("2012-01-01")
    same = take_rows(table, np.array([2, 0]))
    assert same.dtypes.equals(table.dtypes) and same["u"].tolist() == [7, 2**64 - 1]
    found = take_rows(table.set_axis([5, 5, 5]), np.array([1, -1, 0]))
    assert [str(kind) for kind in found.dtypes][:4] == ["UInt64", "Int32", "boolean", "float64"]
    assert found["u"].tolist()[::2] == [2**63 + 5, 2**64 - 1] and found.isna().to_numpy()[1].all()


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (np.array(LONG, np.uint64), pd.array([2**64 - 1, None], dtype="UInt64"), [True, False, False]),
        ([-1, 7], np.array(LONG, np.uint64), [True]),  # -1 has the bits of the first one
        ([7, 8], [7.0, np.nan], [True, False]),
        (["7", "x"], [7, 9], [True, False]),
        ([b"x", b"y"], ["x", "z"], [True, False]),
        ([2**62 + 1, 2**62], [2**62 + 1], [True, False]),
    ],
)
def test_identifiers_are_compared_digit_by_digit(one, other, both):
    own, others = comparable(pd.Series(one, name="UID"), pd.Series(other, name="UID"))
    assert own.isin(others).tolist() == both


def test_floats_that_have_lost_digits_are_refused():
    with pytest.raises(InputFileError, match="expected integers in UID, got float64, which has lost"):
        comparable(pd.Series([float(2**60)], name="UID"), pd.Series([1], name="UID"))


@pytest.mark.parametrize("group", [2, 100])
def test_a_table_of_parquet_may_be_changed_in_place(tmp_path, group):
    times = pd.to_datetime(["2020-01-01", "2021-06-30", "2022-12-31"])
    made = pd.DataFrame({"DT": [1.0, 2.0, 3.0], "UID": [7, 8, 9], "datetime": times, "name": ["a", "b", "c"]})
    made.to_parquet(tmp_path / "t.parquet", row_group_size=group)
    table = read_table(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(table, made)
    for name, value in (("DT", 5.0), ("UID", 5), ("datetime", pd.NaT), ("name", "e")):
        table.loc[1, name] = value
        made.loc[1, name] = value
    pd.testing.assert_frame_equal(table, made)


def test_a_large_table_is_written_by_row_groups_as_pandas_writes_it(tmp_path, monkeypatch):
    table = pd.DataFrame({**COLUMNS, "kind": pd.Categorical(["a", "b", "a"])})
    table.loc[:1, "text"] = None  # of which the first group does not tell the type
    table.to_parquet(tmp_path / "pandas.parquet", index=False)
    monkeypatch.setattr(io, "_ROW_GROUP", 1)
    write_table(table, tmp_path / "t.parquet")
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 3
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), read_table(tmp_path / "pandas.parquet"))
    assert pq.read_schema(tmp_path / "t.parquet").equals(pq.read_schema(tmp_path / "pandas.parquet"))
