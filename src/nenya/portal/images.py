"""Which array of a file is an image, which of its images is wanted, and whether it can be looked up.

Letters: N images in an array, H x W pixels each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.storage.texts import shown

FloatArray = NDArray[np.float32]
Picked = tuple[NDArray[Any], str]
"""An image, and which of its file's it is."""

SIDES = (16, 1024)  # pixels
SCALING = ("_FillValue", "scale_factor", "add_offset")
_MOST = 1e6  # a fill value, and no temperature, from here on


def whole(text: str) -> int:
    """Return the row that a text names.

    Raises:
        OptionError: It names none.
    """
    try:
        row = int(text or 0)
    except ValueError:
        row = -1
    if row < 0:
        raise OptionError(f"row {shown(text, 20)} came; wanted is a whole number from 0 on")
    return row


def choose(shape: tuple[int, ...], row: int, name: str = "") -> tuple[tuple[int, ...], str]:
    """Find an image in an array, before a value of it is read.

    Args:
        shape: of the array: (H, W), (N, H, W) or (N, 1, H, W).
        row: which image; of a single one any row means that one.
        name: of the array.

    Returns:
        The indices that lead to the image of shape (H, W), and which of the file's images it is.

    Raises:
        InputFileError: The array holds no image, or none that is square and of a possible size.
        OptionError: The row is not there.
    """
    rows = shape[0] if len(shape) == 3 or (len(shape) == 4 and shape[1] == 1) else None
    if rows == 0:
        raise InputFileError(f"an array {shape} came: there is no image in it")
    check_shape(shape if rows is None else shape[-2:])
    if rows is None:
        return (), name
    if row >= rows > 1:
        raise OptionError(f"row {row} came; the file has the rows 0 to {rows - 1}")
    row = row if rows > 1 else 0
    source = f"row {row} of the rows 0 to {rows - 1}" if rows > 1 else ""
    return (row, 0)[: len(shape) - 2], ", ".join(part for part in (source, name) if part)


def first_of(name: str, count: int, kind: str) -> str:
    """Return which of several a file's images were taken from: the first is; empty where there is no other."""
    return f"{shown(name, 60)}, the first of {count} {kind}" if count > 1 else ""


def is_image(shape: tuple[int, ...]) -> bool:
    """Say whether an array can hold images."""
    return 2 <= len(shape) <= 4 and min(shape[-2:]) >= SIDES[0]


def scaled(values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return values with a NetCDF variable's fill value, factor and offset applied; what is missing is NaN."""
    raw = np.array(values, dtype=np.float64)
    if "_FillValue" in attributes:
        raw[raw == _number(attributes["_FillValue"])] = np.nan
    return raw * _number(attributes.get("scale_factor", 1.0)) + _number(attributes.get("add_offset", 0.0))


def _number(attribute: Any) -> float:
    return float(np.ravel(attribute)[0])


def check_shape(shape: tuple[int, ...]) -> None:
    """Check that a shape is that of an image which can be looked up.

    Raises:
        InputFileError: It is not square, too small, or too large.
    """
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputFileError(f"an image of shape {shape} came; wanted is a square, (H, H): cut it to one")
    if not SIDES[0] <= shape[0] <= SIDES[1]:
        raise InputFileError(f"an image of {shape[0]} pixels a side came; wanted are {SIDES[0]} to {SIDES[1]}")


def checked(values: NDArray[Any]) -> FloatArray:
    """Return an image as float32, or say what is wrong with it.

    Raises:
        InputFileError: It is no square of a possible size, has missing pixels, or is no field of temperatures.
    """
    check_shape(values.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        image = values.astype(np.float32)
    if missing := int((~np.isfinite(image)).sum()):
        raise InputFileError(
            f"{missing} pixels of the image are missing (NaN or infinite): fill them, or choose another square"
        )
    if abs(image).max() > _MOST:
        raise InputFileError(f"values up to {abs(image).max():.3g} came; wanted are temperatures in K or degrees C")
    if image.min() == image.max():
        raise InputFileError(
            f"all pixels of the image are {image[0, 0]:.6g}: a constant field has no structure to compare"
        )
    return image
