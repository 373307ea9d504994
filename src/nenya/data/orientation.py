"""The order of rows and columns in the cutouts of a file, written in its attribute `row_order`."""

from collections.abc import Collection, Mapping
from typing import Any

from nenya.errors import InputFileError

ROW_ORDER = "row_order"
"""Name of the attribute."""

SOUTH_TO_NORTH = "south_to_north"
"""Rows run from south to north, columns from west to east: a picture with its first row at the bottom has north up."""

SWATH = "swath"
"""Rows are scan lines and columns pixels of a line, as the granule has them."""

_WORDS = {
    SOUTH_TO_NORTH: "rows from south to north (north is up in pictures)",
    SWATH: "rows are the scan lines of a swath, in its own frame (pictures show the first line at the bottom)",
    "": "row order not recorded (pictures show the first row at the bottom)",
}


def row_order(attributes: Mapping[str, Any]) -> str:
    """Return the row order of a cutout file, empty if it does not record one.

    Args:
        attributes: of the file.
    """
    value = attributes.get(ROW_ORDER, "")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def order_text(order: str) -> str:
    """Return a row order in words."""
    return _WORDS.get(order, f"row order '{order}', which this nenya does not know")


def one_order(orders: Collection[str]) -> str:
    """Return the row order of several fields, whose cutouts go into one file.

    Raises:
        InputFileError: They differ.
    """
    if len(orders) > 1:
        raise InputFileError(
            "data= mixes swaths, which keep their own rows, with grids, whose rows run from south to north: "
            "prepare them into two files"
        )
    return next(iter(orders), "")
