"""Uploaded images: read from bytes without executing anything, and checked."""

import functools
import io
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.portal.images import (
    SCALING,
    SIDES,
    FloatArray,
    Picked,
    checked,
    choose,
    first_of,
    is_image,
    scaled,
    whole,
)
from nenya.portal.upload_hdf5 import read_hdf5
from nenya.storage.texts import shown

_Reader = Callable[[bytes, int], Picked]

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".nc", ".png")
_MOST_VALUES = 2**26  # of an array
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Given:
    """One image of a file.

    Attributes:
        image: (H, H) float32, K or degrees C.
        source: its location in the file, `row 3 of the rows 0 to 9`; empty for a single image.
    """

    image: FloatArray
    source: str = ""


@dataclass
class Upload:
    """An uploaded image.

    Attributes:
        name: of the file.
        image: (H, H) float32, K or degrees C, in the size of the cutouts.
        latent: (D,) float32.
        place: position in the UMAP by the projector; None without one.
        side: of the uploaded image, pixels.
        source: as in `Given`.
    """

    name: str
    image: FloatArray
    latent: FloatArray
    place: tuple[float, float] | None = None
    side: int = 0
    source: str = ""


def read_image(
    name: str, data: bytes, row: str = "0", scale: Sequence[str] = ("", ""), *, masked: bool = False
) -> Given:
    """Return the image in the bytes of a file.

    Args:
        name: of the file; only its suffix is used.
        data: the bytes.
        row: row of the image in a file of several, an integer as string.
        scale: of PNG, the values of black and white, K, as strings.
        masked: whether pixels may be NaN, or masked by the mask of a cutout file.

    Raises:
        InputFileError: The file is of another kind, or holds no complete, square, non-constant numeric image.
        OptionError: The row does not exist, or the scale of a PNG is missing.
        MemoryError: It needs too much memory.
    """
    suffix = Path(name).suffix.lower()
    cutouts: Callable[[bytes, int], Picked] = functools.partial(read_hdf5, masked=masked)
    readers: dict[str, Callable[[bytes, int], Picked]] = {
        ".npz": _npz,
        ".h5": cutouts,
        ".hdf5": cutouts,
        ".nc": _netcdf,
    }
    try:
        if suffix == ".png":
            values, source = _png(data, scale), ""
        elif suffix == ".npy":
            values, source = _npy(io.BytesIO(data), whole(row))
        elif suffix in readers:
            values, source = readers[suffix](data, whole(row))
        else:
            came = shown(suffix, 20) or "nothing"
            raise InputFileError(f"expected a file ending in {', '.join(SUFFIXES)}, got {came}")
    except (NenyaError, MemoryError):
        raise
    except Exception as error:  # readers raise any exception for damaged bytes
        kind = suffix.removeprefix(".")
        raise InputFileError(f"this file cannot be read as {kind}: it is damaged or of another kind") from error
    return Given(checked(values, masked=masked), source)


def _npy(stream: IO[bytes], row: int, name: str = "") -> Picked:
    """Read one image of an array, and nothing beyond it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(stream)
    if kind.kind not in "fiu" or not 2 <= len(shape) <= 4 or not 0 <= math.prod(shape) <= _MOST_VALUES:
        raise InputFileError(
            f"expected numbers of shape (H, W) or (N, H, W), got {shown(kind, 60)} of shape {shown(shape, 60)}"
        )
    index, source = choose(shape, row, name)
    if by_columns:
        values = np.frombuffer(_exactly(stream, math.prod(shape) * kind.itemsize), kind)
        return values.reshape(shape, order="F")[index], source
    size = math.prod(shape[-2:]) * kind.itemsize
    _skip(stream, (index[0] if index else 0) * size)
    return np.frombuffer(_exactly(stream, size), kind).reshape(shape[-2:]), source


def _skip(stream: IO[bytes], size: int) -> None:
    """Skip bytes of a stream by reading, as zip files verify bytes that are read, but not bytes skipped by seek."""
    while size > 0 and (piece := stream.read(min(size, 2**20))):
        size -= len(piece)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """Return the next bytes of a stream, which must be complete."""
    data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"expected {size} bytes, got {len(data)}")
    return data


def _npz(data: bytes, row: int) -> Picked:
    with zipfile.ZipFile(io.BytesIO(data)) as dataset:
        members = [m for m in dataset.infolist() if m.filename.endswith(".npy")]
        if not members:
            raise InputFileError("this npz file holds no array")
        if members[0].file_size > 8 * _MOST_VALUES:
            raise InputFileError("the first array of this npz file is too large: save one image alone")
        name = first_of(members[0].filename.removesuffix(".npy"), len(members), "arrays")
        with dataset.open(members[0]) as member:
            found = _npy(member, row, name)
            _skip(member, members[0].file_size)  # to the end, where the checksum is verified
            return found


def _netcdf(data: bytes, row: int) -> Picked:
    """Return an image of the first variable with two or more dimensions and at least 16 x 16 values."""
    if data[:3] != b"CDF":
        return read_hdf5(data, row, netcdf=True)
    from scipy.io import netcdf_file

    with netcdf_file(io.BytesIO(data), "r", mmap=False) as file:
        named = {n: v for n, v in file.variables.items() if is_image(v.shape) and v.data.dtype.kind in "fiu"}
        if not named:
            raise InputFileError("no variable of this NetCDF file holds an image of numbers (..., y, x)")
        name, variable = next(iter(named.items()))
        index, source = choose(variable.shape, row, first_of(name, len(named), "variables"))
        attributes: dict[str, Any] = {n: getattr(variable, n) for n in SCALING if hasattr(variable, n)}
        return scaled(variable.data[index], attributes), source


def _png(data: bytes, scale: Sequence[str]) -> NDArray[Any]:
    from PIL import Image

    try:
        if any("_" in text or not text.isascii() for text in scale):  # float() takes 1_0 too
            raise ValueError
        low, high = (float(text) for text in scale)
    except ValueError:
        raise OptionError("a PNG holds brightness only: give the values of black and white, in K") from None
    if not np.isfinite([low, high]).all() or low == high:
        raise OptionError("black and white of a PNG must have two different values, in K")
    if data[: len(_PNG)] == _PNG and len(data) >= 24:
        _check_size(struct.unpack(">II", data[16:24]))  # before Pillow reads it
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        _check_size(image.size)
        depth = 65535 if image.mode.startswith("I") else 255
        if not image.mode.startswith("I"):
            colours = np.asarray(image.convert("RGB"), np.int16)
            if np.ptp(colours, axis=2).any():
                raise InputFileError("expected a greyscale image, got a colour image: its colours are not temperatures")
        grey = np.asarray(image if image.mode.startswith("I") else image.convert("L"), np.float64)
    return (low + grey / depth * (high - low))[::-1]  # PNG images have their first line at the top


def _check_size(size: tuple[int, ...]) -> None:
    if max(size) > SIDES[1]:
        raise InputFileError(f"expected an image of at most {SIDES[1]} pixels per side, got {size[0]} x {size[1]}")
