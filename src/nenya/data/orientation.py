"""The order of rows and columns in the cutouts of a file, written in its attribute `row_order`."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError
from nenya.storage.texts import quoted

ROW_ORDER = "row_order"
"""Name of the attribute."""

SOUTH_TO_NORTH = "south_to_north"
"""Rows run from south to north, columns from west to east: a picture with its first row at the bottom has north up."""

SWATH = "swath"
"""Rows are scan lines and columns pixels of a line, as the granule has them."""

_LONGEST = 40  # letters of an attribute that are read

_WORDS = {
    SOUTH_TO_NORTH: "rows from south to north",
    SWATH: "rows along a swath, in its own frame",
    "": "rows in an order that is not recorded",
}


def read_row_order(path: str | os.PathLike[str]) -> str:
    """Return the row order of a cutout file, empty if it does not record one.

    Raises:
        InputFileError: The file cannot be read.
    """
    with open_hdf5(Path(path)) as file:
        value = file.attrs.get(ROW_ORDER, "") if ROW_ORDER in file.attrs else ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:_LONGEST]


def order_text(order: str) -> str:
    """Return a row order in words."""
    return _WORDS.get(order, f"rows in the unknown order {quoted(order)}")


def picture_text(orders: Iterable[str]) -> str:
    """Return how pictures show cutouts of files, in words; empty if north is up in all of them.

    Pictures have the first row of pixels at the bottom.

    Args:
        orders: row orders of the files.
    """
    others = sorted(set(orders) - {SOUTH_TO_NORTH})
    return "; ".join(f"{order_text(order)}: the first row of pixels is at the bottom" for order in others)


class MixedOrders(InputFileError):
    """Fields of different row orders, for one file."""


def check_orders(orders: Collection[str]) -> None:
    """Check that several fields have the same row order, as their cutouts go into one file.

    Raises:
        MixedOrders: They differ.
    """
    if len(orders) > 1:
        raise MixedOrders(
            "data= mixes swaths, which keep their own rows, with grids, whose rows run from south to north: "
            "prepare them into two files"
        )
