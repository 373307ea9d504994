"""Selection of an image in the arrays of a file, and checks of its shape and values.

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
"""An image and its location in the file."""

SIDES = (16, 1024)  # pixels
SCALING = ("_FillValue", "scale_factor", "add_offset")
_MOST = 1e6  # values from here on are fill values, not temperatures


def whole(text: str) -> int:
    """Return the row given as a string.

    Raises:
        OptionError: It is not a row.
    """
    text = text or "0"
    row = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1  # int() takes 1_0 too
    if row < 0:
        raise OptionError(f"expected a row, an integer from 0 on, got {shown(text, 20)}")
    return row


def choose(shape: tuple[int, ...], row: int, name: str = "") -> tuple[tuple[int, ...], str]:
    """Find an image in an array, before any value is read.

    Args:
        shape: of the array: (H, W), (N, H, W) or (N, 1, H, W).
        row: row of the image; ignored for a single image.
        name: of the array.

    Returns:
        The index of the image of shape (H, W), and its description among the images of the file.

    Raises:
        InputFileError: The array holds no image, or none that is square and of an accepted size.
        OptionError: The row does not exist.
    """
    rows = shape[0] if len(shape) == 3 or (len(shape) == 4 and shape[1] == 1) else None
    if rows == 0:
        raise InputFileError(f"expected an array of images, (H, W) or (N, H, W), got shape {shape}")
    check_shape(shape if rows is None else shape[-2:])
    if rows is None:
        return (), name
    if row >= rows > 1:
        raise OptionError(f"expected a row from 0 to {rows - 1}, got {row}")
    row = row if rows > 1 else 0
    source = f"row {row} of the rows 0 to {rows - 1}" if rows > 1 else ""
    return (row, 0)[: len(shape) - 2], ", ".join(part for part in (source, name) if part)


def first_of(name: str, count: int, kind: str) -> str:
    """Return the name of the first of several arrays, which is used; empty if there is only one."""
    return f"{shown(name, 60)}, the first of {count} {kind}" if count > 1 else ""


def is_image(shape: tuple[int, ...]) -> bool:
    """Return whether an array can hold images."""
    return 2 <= len(shape) <= 4 and min(shape[-2:]) >= SIDES[0]


def scaled(values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return values with the fill value, scale and offset of a NetCDF variable applied; missing values are NaN."""
    raw = np.array(values, dtype=np.float64)
    if "_FillValue" in attributes:
        raw[raw == _number(attributes["_FillValue"])] = np.nan
    return raw * _number(attributes.get("scale_factor", 1.0)) + _number(attributes.get("add_offset", 0.0))


def _number(attribute: Any) -> float:
    return float(np.ravel(attribute)[0])


def check_shape(shape: tuple[int, ...]) -> None:
    """Check the shape of an image.

    Raises:
        InputFileError: It is not square, too small, or too large.
    """
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputFileError(f"expected a square image (H, H), got shape {shape}: crop it")
    if not SIDES[0] <= shape[0] <= SIDES[1]:
        raise InputFileError(f"expected an image of {SIDES[0]} to {SIDES[1]} pixels per side, got {shape[0]}")


def checked(values: NDArray[Any], *, masked: bool = False) -> FloatArray:
    """Return an image as float32 after checks of its values.

    Args:
        values: (H, H).
        masked: whether some pixels may be NaN.

    Raises:
        InputFileError: It is not a square of an accepted size, has missing pixels, or is not a field of temperatures.
    """
    check_shape(values.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        image = values.astype(np.float32)
    if masked and np.isnan(image).all():
        raise InputFileError("the image has no clear pixel: all are NaN")
    if missing := int((~np.isfinite(image) & ~(masked & np.isnan(image))).sum()):
        raise InputFileError(
            f"{missing} pixels of the image are missing (NaN or infinite): fill them, or choose another image"
        )
    low, high = np.nanmin(image), np.nanmax(image)
    if (largest := max(abs(low), abs(high))) > _MOST:
        raise InputFileError(f"expected temperatures in K or degrees C, got values up to {largest:.3g}")
    if low == high:
        raise InputFileError(f"all pixels of the image are {low:.6g}: a constant field has no structure to compare")
    return image
