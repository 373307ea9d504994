"""Whole numbers keep their digits, where rows are missing too: a UID has more of them than a float holds."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError

if TYPE_CHECKING:
    import pandas as pd

_EXACT = 2**53  # below which a float holds every whole number


def take_rows(table: "pd.DataFrame", source: NDArray[np.integer]) -> "pd.DataFrame":
    """Return rows of a table in another order, with empty ones where `source` is -1.

    Where a row is missing, columns of whole numbers become Int64, UInt64 ... and those of truths `boolean`.

    Args:
        table: any.
        source: (M,), rows of it, -1 for none.
    """
    table = table.reset_index(drop=True)
    if not (source < 0).any():
        return table.iloc[source].reset_index(drop=True)
    kinds = {name: _nullable(kind) for name, kind in table.dtypes.items() if kind.kind in "iub" and _is_plain(kind)}
    whole = table.astype(kinds)
    return whole.reindex(np.where(source < 0, len(table), source)).reset_index(drop=True)


def from_arrow(table: Any) -> "pd.DataFrame":
    """Return a `pyarrow.Table` as pandas, whole numbers with gaps as Int64 or the like, not as floats."""
    found: pd.DataFrame = table.to_pandas()
    return restore_integers(found, table.select, table.schema)


def restore_integers(table: "pd.DataFrame", read: Callable[[list[str]], Any], schema: Any) -> "pd.DataFrame":
    """Return a table in which whole numbers that gaps have made floats of are whole again.

    Args:
        table: as pandas made it.
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
    """Return a table of a CSV file with whole numbers read again where gaps made floats or texts of them.

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
    """Say whether a column of a CSV file may be one of whole numbers with gaps."""
    if column.dtype.kind == "f":
        finite = column.to_numpy()[np.isfinite(column.to_numpy())]
        return bool(len(finite) and np.abs(finite).max() < 2**64 and (finite == np.trunc(finite)).all())
    return column.dtype.kind == "O" and _are_integers(column.iloc[:100].astype("string"))


def _are_integers(texts: "pd.Series[Any]") -> bool:
    known = texts.fillna("")
    return bool(known.str.fullmatch(r"(0|-?[1-9]\d*)?").all() and (known != "").any())


def comparable(one: "pd.Series[Any]", other: "pd.Series[Any]") -> tuple["pd.Series[Any]", "pd.Series[Any]"]:
    """Return two columns of identifiers without their missing values, so that equal ones compare equal digit by digit.

    Raises:
        InputFileError: One holds floats, which have lost digits.
    """
    found = [_whole(column.dropna()) for column in (one, other)]
    if not all(column.dtype.kind in "iu" for column in found):
        texts = [column.map(_text).astype("str") for column in found]
        return texts[0], texts[1]
    if any(column.dtype.kind == "u" for column in found):
        found = [column[column >= 0].astype(np.uint64) for column in found]
    return found[0].astype(found[1].dtype.name.lower()), found[1].astype(found[1].dtype.name.lower())


def _whole(column: "pd.Series[Any]") -> "pd.Series[Any]":
    if column.dtype.kind != "f":
        return column
    values = column.to_numpy(np.float64)
    if (values != np.trunc(values)).any() or (np.abs(values) >= _EXACT).any():
        raise InputFileError(
            f"expected {column.name} of whole numbers, got {column.dtype}, which has lost their digits"
        )
    return column.astype(np.int64)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, np.dtype)


def _nullable(kind: "np.dtype[Any]") -> str:
    """Return pandas' name of the kind that holds missing values besides these numbers."""
    return "boolean" if kind.kind == "b" else kind.name.replace("uint", "UInt").replace("int", "Int")
