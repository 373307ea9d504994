"""Columns of a table as variables of arrays: their names, types and attributes.

Letters in shapes: N rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.index_rows import VECTOR
from nenya.publish.encoding import SCALE
from nenya.tables.conditions import ROW
from nenya.tables.quantities import quantity_of

ROWS, DIMENSION = "row", "dimension"
"""Names of the dimensions."""

COORDINATES = {ROW: ROWS, "lat": "latitude", "lon": "longitude", "datetime": "time"}
"""Column -> coordinate."""

_ATTRIBUTES = {
    ROWS: {"long_name": "number of the latent among all latents of its source"},
    "latitude": {"standard_name": "latitude", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east"},
    "time": {"standard_name": "time", "long_name": "time (UTC)"},
    VECTOR: {"long_name": "latent of the cutout"},
    SCALE: {"long_name": "number with which the integers of a latent are multiplied"},
}
_EXACT = 2**53  # below which a float64 represents every integer


def variable_names(columns: Sequence[str]) -> dict[str, str]:
    """Return column -> variable; a column with the name of a coordinate or of the latent becomes `<name>_column`."""
    taken = {VECTOR, SCALE, DIMENSION, *(COORDINATES[name] for name in columns if name in COORDINATES)}
    found = {}
    for name in columns:
        variable = COORDINATES.get(name, name)
        while variable == name and variable in taken:
            variable = f"{variable}_column"
        found[name] = variable
        taken.add(variable)
    return found


def attributes_of(name: str) -> dict[str, Any]:
    """Return the attributes of a variable."""
    if name in _ATTRIBUTES:
        return dict(_ATTRIBUTES[name])
    quantity = quantity_of(name)
    return {"long_name": quantity.title, **({"units": quantity.unit} if quantity.unit else {})}


def kind_of(column: Any) -> "np.dtype[Any]":
    """Return the NumPy type that holds an Arrow column; integers with missing values are float64 or, if large, texts.

    Texts have a fixed length, that of the longest; missing ones are empty.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_timestamp(kind):
        return np.dtype("datetime64[us]")
    if pa.types.is_floating(kind):
        found: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return found
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if not column.null_count:
            found = np.dtype(kind.to_pandas_dtype())
            return found
        if pa.types.is_boolean(kind) or _small(column):
            return np.dtype(np.float64)
        column = column.cast(pa.string())
    longest = pc.max(pc.utf8_length(column)).as_py() or 1
    return np.dtype(f"U{max(1, longest)}")


def _small(column: Any) -> bool:
    import pyarrow.compute as pc

    ends = pc.min_max(column)
    values = [ends[end].as_py() or 0 for end in ("min", "max")]
    return bool(max(map(abs, values)) < _EXACT)


def values_of(column: Any, kind: "np.dtype[Any]") -> NDArray[Any]:
    """Return an Arrow column as an array of a type of `kind_of`, (N,)."""
    import pyarrow as pa

    if kind.kind == "M":
        plain = column.cast(pa.timestamp("us"))
        return np.asarray(plain.to_numpy(), kind)
    if kind.kind == "U":
        texts = column.cast(pa.string()).fill_null("")
        return np.asarray(texts.to_numpy(zero_copy_only=False) if hasattr(texts, "buffers") else texts.to_numpy(), kind)
    if column.null_count:
        column = column.cast(pa.float64()).fill_null(float("nan"))
    return np.asarray(column.to_numpy(), kind)
