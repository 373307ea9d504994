"""Conditions on the rows of a table, such as `DT > 2 and lat < 0`: parsed, never executed."""

import ast
import datetime
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.options import suggest

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]

_MOST = 2000  # characters
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_WANTED = "wanted are columns, numbers, texts, < <= > >= == != in, and, or, not, such as DT > 2 and lat < 0"
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?)?)?)?")


def rows_where(condition: str, table: "pd.DataFrame") -> BoolArray:
    """Say which rows of a table fulfil a condition: (len(table),) bool.

    A condition compares columns with numbers, texts, dates (`datetime < '2012-03-01'`, in UTC) or other columns, also
    in chains (`0 < lat <= 30`) and lists (`cluster in [1, 5]`), and joins comparisons by `and`, `or`, `not` and
    parentheses; `&`, `|`, `~` do as well between parentheses. Nothing else is understood: no calls, no attributes, no
    arithmetic. A missing value fulfils no comparison but `!=` and `not in`.

    Args:
        condition: the text.
        table: with the columns that it names.

    Raises:
        OptionError: It is no such condition, names a column that is not there, or compares a column with a value of
            another kind.
    """
    try:
        if len(condition) > _MOST:
            raise OptionError(f"it has {len(condition)} characters, at most {_MOST} are wanted")
        tree = ast.parse(condition.strip(), mode="eval")
        return _condition(tree.body, table)
    except SyntaxError as error:
        hint = "; equality is ==" if re.search(r"[^=<>!]=[^=]", condition) else ""
        raise OptionError(f"condition {_short(condition)!r} does not parse ({error.msg}){hint}: {_WANTED}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise OptionError(f"condition {_short(condition)!r} does not parse: {_WANTED}") from error
    except OptionError as error:
        raise OptionError(f"condition {_short(condition)!r}: {error}") from error


def _condition(node: ast.expr, table: "pd.DataFrame") -> BoolArray:
    """Evaluate what stands where a truth value is wanted."""
    if isinstance(node, ast.BoolOp):
        parts = [_condition(value, table) for value in node.values]
        joined: BoolArray = (np.logical_and if isinstance(node.op, ast.And) else np.logical_or).reduce(parts)
        return joined
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        left, right = _condition(node.left, table), _condition(node.right, table)
        return left & right if isinstance(node.op, ast.BitAnd) else left | right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        return ~_condition(node.operand, table)
    if isinstance(node, ast.Compare):
        found = np.ones(len(table), bool)
        sides = [node.left, *node.comparators]
        for left_side, sign, right_side in zip(sides[:-1], node.ops, sides[1:], strict=True):
            found &= _comparison(left_side, sign, right_side, table)
        return found
    if isinstance(node, ast.Name):
        column = _column(node.id, table)
        if column.dtype.kind == "b":
            return np.asarray(column, bool)
        raise OptionError(f"the column {node.id} is no truth value: compare it, such as {node.id} > 0")
    raise _refused(node)


def _comparison(left: ast.expr, sign: ast.cmpop, right: ast.expr, table: "pd.DataFrame") -> BoolArray:
    if isinstance(sign, ast.In | ast.NotIn):
        found = _member(left, right, table)
        return ~found if isinstance(sign, ast.NotIn) else found
    if type(sign) not in _COMPARE:
        raise OptionError(f"'is' is not understood: {_WANTED}")
    first, second = _value(left, table), _value(right, table)
    names = [side.id for side in (left, right) if isinstance(side, ast.Name)]
    if not names:
        raise OptionError(f"a comparison without a column: {_WANTED}")
    if isinstance(left, ast.Name) and not isinstance(right, ast.Name):
        second = _like(first, second, names[0])
    elif isinstance(right, ast.Name) and not isinstance(left, ast.Name):
        first = _like(second, first, names[0])
    try:
        return _truth(_COMPARE[type(sign)](_plain(first), _plain(second)))
    except (TypeError, ValueError) as error:
        raise OptionError(f"{' and '.join(names)} cannot be compared so ({error})") from error


def _member(left: ast.expr, right: ast.expr, table: "pd.DataFrame") -> BoolArray:
    if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple | ast.Set):
        raise OptionError("'in' wants a column on its left and a list on its right, such as cluster in [1, 5]")
    column = _column(left.id, table)
    items = [_value(item, table) for item in right.elts]
    if any(isinstance(item, ast.Name) for item in right.elts):
        raise OptionError("a list of 'in' holds numbers or texts, not columns")
    return _truth(column.isin([_like(column, item, left.id) for item in items]))


def _value(node: ast.expr, table: "pd.DataFrame") -> Any:
    """Return a column, a number or a text."""
    if isinstance(node, ast.Name):
        return _column(node.id, table)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub | ast.UAdd)
        and isinstance(node.operand, ast.Constant)
        and type(node.operand.value) in (int, float)
    ):
        number: Any = node.operand.value
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        raise OptionError("& and | bind before comparisons: write 'and', 'or', or (DT > 2) & (lat < 0)")
    raise _refused(node)


def _column(name: str, table: "pd.DataFrame") -> "pd.Series[Any]":
    if name not in table.columns:
        known = [str(column) for column in table.columns]
        raise OptionError(f"no column {name}{suggest(name, known)} (the table has {', '.join(known)})")
    column: pd.Series[Any] = table[name]
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return column


def _like(column: "pd.Series[Any]", value: Any, name: str) -> Any:
    """Return a constant as the column can be compared with it."""
    kind = column.dtype.kind
    if kind == "M":
        return _date(value, name)
    if kind in "iufb" and isinstance(value, str):
        raise OptionError(f"{name} holds numbers, {value!r} is a text")
    if kind not in "iufb" and not isinstance(value, str) and not _holds_numbers(column):
        raise OptionError(f"{name} holds texts, {value!r} is a number: write {str(value)!r} in quotes")
    return value


def _date(value: Any, name: str) -> np.datetime64:
    if isinstance(value, str) and _DATE.fullmatch(value):
        full = value + "-01-01"[3 * value.count("-") :] if len(value) < len("2012-01-01") else value
        try:
            moment = datetime.datetime.fromisoformat(full)
        except ValueError:
            pass
        else:
            if moment.tzinfo is not None:
                moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
            return np.datetime64(moment)
    raise OptionError(f"{name} holds dates, {value!r} is none: wanted is '2012-03-01' or '2012-03-01T12:00'")


def _holds_numbers(column: "pd.Series[Any]") -> bool:
    import pandas as pd

    inner = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return bool(pd.api.types.is_numeric_dtype(inner))


def _plain(value: Any) -> Any:
    """Return a column of plain numbers or dates as an array, which compares faster."""
    return value.to_numpy() if isinstance(getattr(value, "dtype", None), np.dtype) and value.ndim else value


def _truth(found: Any) -> BoolArray:
    """Return an outcome as (N,) bool; what is neither true nor false is false."""
    if hasattr(found, "fillna"):
        found = found.fillna(False)
    return np.asarray(found, dtype=bool)


def _refused(node: ast.expr) -> OptionError:
    what: Sequence[tuple[Any, str]] = (
        (ast.Call, "a call"),
        (ast.Attribute, "an attribute"),
        (ast.Subscript, "an index"),
        (ast.BinOp, "arithmetic"),
        (ast.Lambda, "a function"),
        (ast.Constant, "a value alone"),
    )
    name = next((text for kind, text in what if isinstance(node, kind)), type(node).__name__)
    return OptionError(f"{name} is not understood: {_WANTED}")


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
