"""Integer columns keep all their digits, even with missing rows: a UID has more digits than a float holds."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError

if TYPE_CHECKING:
    import pandas as pd

_EXACT = 2**53  # below which a float64 represents every integer


def take_rows(table: "pd.DataFrame", source: NDArray[np.integer]) -> "pd.DataFrame":
    """Return rows of a table in another order, with missing values where `source` is -1.

    If a row is missing, integer columns become Int64, UInt64 ... and bool columns `boolean`.

    Args:
        table: any.
        source: (M,), row numbers, -1 for none.
    """
    table = table.reset_index(drop=True)
    if len(source) == len(table) and np.array_equal(source, np.arange(len(table))):
        return table  # without a copy
    if not (source < 0).any():
        return table.iloc[source].reset_index(drop=True)
    kinds = {name: _nullable(kind) for name, kind in table.dtypes.items() if kind.kind in "iub" and _is_plain(kind)}
    whole = table.astype(kinds)
    return whole.reindex(np.where(source < 0, len(table), source)).reset_index(drop=True)


def from_arrow(table: Any) -> "pd.DataFrame":
    """Return a `pyarrow.Table` as pandas, integers with missing values as Int64 or similar, not as floats."""
    found: pd.DataFrame = table.to_pandas()
    return restore_integers(found, table.select, table.schema)


def restore_integers(table: "pd.DataFrame", read: Callable[[list[str]], Any], schema: Any) -> "pd.DataFrame":
    """Return a table in which integers that pandas turned into floats because of missing values are integers.

    Args:
        table: as read by pandas.
        read: returns columns of the same table as a `pyarrow.Table`.
        schema: of that.
    """
    import pandas as pd
    import pyarrow as pa

    kinds = {field.name: field.type for field in schema if pa.types.is_integer(field.type)}
    lossy = [name for name in kinds if name in table and table[name].dtype.kind == "f"]
    for name, column in zip(lossy, read(lossy).columns if lossy else [], strict=True):
        kind: Any = pd.api.types.pandas_dtype(_nullable(np.dtype(kinds[name].to_pandas_dtype())))
        table[name] = pd.Series(kind.__from_arrow__(column), index=table.index)
    return table


def integers_of_texts(path: Any, table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table of a CSV file; integer columns with missing values are read again as integers.

    Args:
        path: the file.
        table: as pandas read it.
    """
    import pandas as pd

    for name in [name for name in table if _may_be_integers(table[name])]:
        texts = pd.read_csv(path, usecols=[name], dtype="string")[name]
        if _are_integers(texts):
            for kind in ("Int64", "UInt64"):
                with suppress(ValueError, OverflowError, TypeError):
                    table[name] = pd.read_csv(path, usecols=[name], dtype={name: kind})[name]
                    break
    return table


def _may_be_integers(column: "pd.Series[Any]") -> bool:
    """Return whether a column of a CSV file may hold integers with missing values."""
    if column.dtype.kind == "f":
        finite = column.to_numpy()[np.isfinite(column.to_numpy())]
        return bool(len(finite) and np.abs(finite).max() < 2**64 and (finite == np.trunc(finite)).all())
    return column.dtype.kind == "O" and _are_integers(column.iloc[:100].astype("string"))


def _are_integers(texts: "pd.Series[Any]") -> bool:
    known = texts.fillna("")
    return bool(known.str.fullmatch(r"(0|-?[1-9]\d*)?").all() and (known != "").any())


def comparable(one: "pd.Series[Any]", other: "pd.Series[Any]") -> tuple["pd.Series[Any]", "pd.Series[Any]"]:
    """Return two columns of identifiers without missing values, in types that compare equal digit by digit.

    Raises:
        InputFileError: One column holds floats, which have lost digits.
    """
    found = [_whole(column.dropna()) for column in (one, other)]
    if not all(column.dtype.kind in "iu" for column in found):
        texts = [column.map(_text).astype("str") for column in found]
        return texts[0], texts[1]
    if any(column.dtype.kind == "u" for column in found):
        found = [column[column >= 0].astype(np.uint64) for column in found]
    else:
        found = [column.astype(np.int64) for column in found]
    return found[0], found[1]


def _whole(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if column.dtype.kind != "f":
        return column
    values = column.to_numpy(np.float64)
    if (values != np.trunc(values)).any() or (np.abs(values) >= _EXACT).any():
        raise InputFileError(
            f"expected integers in {column.name}, got {column.dtype}, which has lost digits: write integers"
        )
    return column.astype(np.int64)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, np.dtype)


def _nullable(kind: "np.dtype[Any]") -> str:
    """Return the pandas dtype that holds these numbers and missing values."""
    return "boolean" if kind.kind == "b" else kind.name.replace("uint", "UInt").replace("int", "Int")
