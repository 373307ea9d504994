"""Images that users bring: read from bytes without executing anything in them, and checked."""

import io
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import inspect_cutouts
from nenya.data.hdf5_open import check_hdf5, open_hdf5
from nenya.errors import InputFileError, NenyaError, OptionError

FloatArray = NDArray[np.float32]
Picked = tuple[NDArray[Any], str]
"""An image, and which of its file's it is."""

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".nc", ".png")
_SIDES = (16, 1024)  # pixels
_MOST_VALUES = 2**26
_MOST = 1e6  # a fill value, and no temperature, from here on


@dataclass(frozen=True)
class Given:
    """One image of a file.

    Attributes:
        image: (H, H) float32, K or degrees C.
        source: which of the file's images it is, `row 3 of the rows 0 to 9`; empty where it is the only one.
    """

    image: FloatArray
    source: str = ""


@dataclass
class Upload:
    """An image that a user brought.

    Attributes:
        name: what the file was called.
        image: (H, H) float32, K or degrees C, in the size of the archive's cutouts.
        latent: (D,) float32.
        place: in the UMAP, by its projector; None without one.
        side: of the image as it was given, pixels.
        source: of `Given`.
    """

    name: str
    image: FloatArray
    latent: FloatArray
    place: tuple[float, float] | None = None
    side: int = 0
    source: str = ""


def read_image(name: str, data: bytes, row: str = "0", scale: Sequence[str] = ("", "")) -> Given:
    """Return the image that a file's bytes hold.

    Args:
        name: of the file; only its suffix counts.
        data: the bytes.
        row: which image, of a file of several: a whole number as text.
        scale: of PNG, what black and white stand for, K, as texts.

    Raises:
        InputFileError: It is no such file, holds no square image of numbers, one with missing pixels, or a constant.
        OptionError: The row is not there, or the scale of a PNG is missing.
    """
    suffix = Path(name).suffix.lower()
    readers = {".npy": _npy, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".nc": _netcdf}
    try:
        if suffix == ".png":
            values, source = _png(data, scale), ""
        elif suffix in readers:
            values, source = readers[suffix](data, _whole(row))
        else:
            raise InputFileError(f"a file ending in {suffix or 'nothing'} came; wanted is one of {', '.join(SUFFIXES)}")
    except NenyaError:
        raise
    except Exception as error:  # readers raise anything for damaged bytes
        kind = suffix.removeprefix(".")
        raise InputFileError(f"this file cannot be read as {kind}: it is damaged, or of another kind") from error
    return Given(_checked(values), source)


def _whole(text: str) -> int:
    try:
        row = int(text or 0)
    except ValueError:
        raise OptionError(f"row {text[:20]} came; wanted is a whole number from 0 on") from None
    if row < 0:
        raise OptionError(f"row {row} came; wanted is a whole number from 0 on")
    return row


def _pick(values: Any, row: int, name: str = "") -> Picked:
    """Return image `row` of (H, W), (N, H, W) or (N, 1, H, W), and which it is."""
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 3 and not len(values):
        raise InputFileError(f"an array {values.shape} came: there is no image in it")
    if values.ndim != 3:
        return np.asarray(values), name
    return np.asarray(values[_known(row, len(values))]), _source(row, len(values), name)


def _known(row: int, rows: int) -> int:
    """Return a row that is there; of a single image any row means that one."""
    if rows == 1:
        return 0
    if row >= rows:
        raise OptionError(f"row {row} came; the file has the rows 0 to {rows - 1}")
    return row


def _source(row: int, rows: int, name: str) -> str:
    return ", ".join(part for part in (f"row {row} of the rows 0 to {rows - 1}" if rows > 1 else "", name) if part)


def _npy(data: bytes, row: int, name: str = "") -> Picked:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    if kind.kind not in "fiu" or not 2 <= len(shape) <= 4 or int(np.prod(shape, dtype=object)) > _MOST_VALUES:
        raise InputFileError(f"an array {shape} of {kind} came; wanted are numbers of shape (H, W) or (N, H, W)")
    return _pick(np.asarray(np.load(io.BytesIO(data), allow_pickle=False)), row, name)


def _npz(data: bytes, row: int) -> Picked:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        if not members:
            raise InputFileError("this npz file holds no array")
        if members[0].file_size > 8 * _MOST_VALUES:
            raise InputFileError("the first array of this npz file is too large: save one image alone")
        name = _first(members[0].filename.removesuffix(".npy"), len(members), "arrays")
        with archive.open(members[0]) as member:
            return _npy(member.read(8 * _MOST_VALUES + 4096), row, name)


def _first(name: str, count: int, kind: str) -> str:
    """Return which of several a file's images were taken from: the first is; empty where there is no other."""
    return f"{name[:60]}, the first of {count} {kind}" if count > 1 else ""


def _hdf5(data: bytes, row: int) -> Picked:
    """Read one cutout by the reader of cutout files, which follows no link out of the file."""
    with tempfile.TemporaryDirectory(prefix="nenya-upload-") as folder:
        path = Path(folder) / "image.h5"
        path.write_bytes(data)
        try:
            check_hdf5(path, links="none")
            if alone := _alone(path):
                return _pick(alone[0], row, alone[1])
            found = inspect_cutouts(path)
            partition = next(iter(found.partitions.values()))
            row = _known(row, partition.rows)
            with found.reader(partition.name) as reader:
                image = np.asarray(reader.read(row, row + 1)[0, 0])
            return image, _source(row, partition.rows, _first(partition.name, len(found.partitions), "partitions"))
        except InputFileError as error:
            if "refused" in str(error):
                raise InputFileError("this HDF5 file leads to other files, which are not followed") from error
            raise InputFileError(str(error).replace(f"{path}: ", "this HDF5 file: ")) from error


def _alone(path: Path) -> tuple[NDArray[Any], str] | None:
    """Return the first array of images of an HDF5 file that is no cutout file, and which it is; None for others.

    Links, and data that lie in other files, do not count.
    """
    import h5py

    with open_hdf5(path, links="none") as file:
        if {"train", "valid"} & set(file):
            return None
        plain = [file[name] for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        arrays = [item for item in plain if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu"]
        images = [item for item in arrays if _is_image(item.shape) and not item.external and not item.is_virtual]
        if not images:
            return None
        name = images[0].name.rpartition("/")[2]
        return images[0][...], _first(name, len(images), "arrays")


def _netcdf(data: bytes, row: int) -> Picked:
    """Return the first variable of two or more dimensions of at least 16 x 16 values."""
    if data[:3] == b"CDF":
        from scipy.io import netcdf_file

        with netcdf_file(io.BytesIO(data), "r", mmap=False) as file:
            return _first_variable({n: v for n, v in file.variables.items() if _is_image(v.shape)}, row)
    import h5netcdf

    with open_hdf5(io.BytesIO(data), links="none") as opened, h5netcdf.File(opened, "r") as file:
        named = {n: v for n, v in file.variables.items() if _is_image(v.shape) and v.dtype.kind in "fiu"}
        return _first_variable(named, row)


def _first_variable(named: dict[str, Any], row: int) -> Picked:
    if not named:
        raise InputFileError("no variable of this NetCDF file holds an image of numbers (..., y, x)")
    name, variable = next(iter(named.items()))
    return _pick(_scaled(variable), row, _first(name, len(named), "variables"))


def _is_image(shape: tuple[int, ...]) -> bool:
    small = int(np.prod(shape, dtype=object)) <= _MOST_VALUES
    return 2 <= len(shape) <= 4 and min(shape[-2:]) >= _SIDES[0] and small


def _scaled(variable: Any) -> NDArray[Any]:
    """Return a variable's values with its fill value, factor and offset applied."""
    raw = np.array(variable[...], dtype=np.float64)
    attrs = getattr(variable, "attrs", None) or {
        name: getattr(variable, name)
        for name in ("_FillValue", "scale_factor", "add_offset")
        if hasattr(variable, name)
    }
    if "_FillValue" in attrs:
        raw[raw == float(np.ravel(attrs["_FillValue"])[0])] = np.nan
    factor, offset = (float(np.ravel(attrs.get(n, d))[0]) for n, d in (("scale_factor", 1.0), ("add_offset", 0.0)))
    return raw * factor + offset


def _png(data: bytes, scale: Sequence[str]) -> NDArray[Any]:
    from PIL import Image

    try:
        low, high = (float(text) for text in scale)
    except ValueError:
        raise OptionError("a PNG holds brightness only: say what black and white stand for, in K") from None
    if not np.isfinite([low, high]).all() or low == high:
        raise OptionError("black and white of a PNG must stand for two different numbers, in K")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if max(image.size) > _SIDES[1]:
            raise InputFileError(f"an image of {image.size[0]} x {image.size[1]} pixels came; at most 1024 are wanted")
        depth = 65535 if image.mode.startswith("I") else 255
        if not image.mode.startswith("I"):
            colours = np.asarray(image.convert("RGB"), np.int16)
            if np.ptp(colours, axis=2).any():
                raise InputFileError(
                    "a picture in colour came, whose colours are no temperatures; wanted is a grey one"
                )
        grey = np.asarray(image if image.mode.startswith("I") else image.convert("L"), np.float64)
    return (low + grey / depth * (high - low))[::-1]  # pictures have their first line at the top


def _checked(values: NDArray[Any]) -> FloatArray:
    """Return an image as float32, or say what is wrong with it."""
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise InputFileError(f"an image of shape {values.shape} came; wanted is a square, (H, H): cut it to one")
    if not _SIDES[0] <= len(values) <= _SIDES[1]:
        raise InputFileError(f"an image of {len(values)} pixels a side came; wanted are {_SIDES[0]} to {_SIDES[1]}")
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
