"""Images of uploaded HDF5 and NetCDF 4 files, read from memory without external links and decompressed here."""

import io
import itertools
import math
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.filters import undo_filters
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError
from nenya.portal.images import SCALING, Picked, choose, first_of, is_image, scaled
from nenya.storage.texts import shown

_PARTITIONS = ("train", "valid")
_MOST_ITEMS = 10_000  # objects of a file, searched for images
_MOST_CHUNK = 2**27  # bytes, decompressed
_KIND = "this HDF5 file"


def read_hdf5(data: bytes, row: int, *, netcdf: bool = False, masked: bool = False) -> Picked:
    """Return one image of a file, from its partition of cutouts, else from its first array of images.

    Args:
        data: the file.
        row: row of the image in the array.
        netcdf: whether to apply the scaling attributes of NetCDF.
        masked: whether to set pixels of the mask `<name>_mask` to NaN.

    Raises:
        InputFileError: It holds no numeric image, links out of the file, or uses unusual filters.
        OptionError: The row does not exist.
    """
    with open_hdf5(io.BytesIO(data), links="none") as file:
        found = {name: file[name] for name in _names(file)}
        arrays = {n: item for n, item in found.items() if isinstance(item, h5py.Dataset) and is_image(item.shape or ())}
        numbers = {n: i for n, i in arrays.items() if i.dtype.kind in "fiu" and not _is_mask(n, arrays)}
        cutouts = {} if netcdf else {name: numbers[name] for name in _PARTITIONS if name in numbers}
        if not numbers:
            raise InputFileError(_nothing(found, netcdf))
        name, dataset = next(iter((cutouts or numbers).items()))
        kind = "partitions" if cutouts else "variables" if netcdf else "arrays"
        index, source = choose(dataset.shape, row, first_of(name, len(cutouts or numbers), kind))
        values = read_one(dataset, index, len(data))
        mask = found.get(f"{name}_mask")
        if masked and isinstance(mask, h5py.Dataset) and mask.dtype.kind in "bu" and mask.shape == dataset.shape:
            values = np.where(read_one(mask, index, len(data)) > 0, np.nan, values)
        attributes = {n: dataset.attrs[n] for n in SCALING if netcdf and n in dataset.attrs}
        return scaled(values, attributes) if netcdf else values, source


def _names(file: Any) -> list[str]:
    """Return the objects of a file, in order."""
    return list(itertools.islice(file, _MOST_ITEMS))


def _is_mask(name: str, arrays: dict[str, Any]) -> bool:
    """Return whether an array is the mask of another."""
    return name.endswith("_mask") and name.removesuffix("_mask") in arrays


def _nothing(found: dict[str, Any], netcdf: bool) -> str:
    """Return why a file has no image."""
    if netcdf:
        return "no variable of this NetCDF file holds an image of numbers (..., y, x)"
    shapes = [f"{shown(n, 40)} {item.shape}" for n, item in found.items() if isinstance(item, h5py.Dataset)]
    return (
        f"expected numeric images in {_KIND}, (N, H, W) or (H, W) of at least 16 x 16; "
        f"got {shown(', '.join(shapes[:6]), 200) or 'no data set'}"
    )


def _codes(plan: Any) -> list[int]:
    return [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]


def read_one(dataset: Any, index: tuple[int, ...], end: int) -> NDArray[Any]:
    """Return one image of a data set; chunks are decompressed into buffers of their nominal size.

    Args:
        dataset: of a file opened by `open_hdf5` without links.
        index: of the image of shape (H, W).
        end: size of the file in bytes.

    Raises:
        InputFileError: It has an unusual type, its chunks are too large, or are damaged.
    """
    kind, where = dataset.dtype, shown(dataset.name, 60)
    if not dataset.id.get_type().equal(h5py.h5t.py_create(kind)):
        raise InputFileError(f"'{where}' of {_KIND} has an unusual type of numbers: convert it to float32")
    if dataset.chunks is None:
        return np.asarray(dataset[index])
    size = math.prod(dataset.chunks) * kind.itemsize
    if size > _MOST_CHUNK:
        raise InputFileError(
            f"'{where}' of {_KIND} has chunks of {size:,} bytes, expected at most {_MOST_CHUNK:,}: save one image alone"
        )
    try:
        return _unpacked(dataset, index, end, size)
    except (NenyaError, MemoryError):
        raise
    except Exception as error:
        raise InputFileError(f"'{where}' of {_KIND} is damaged: a chunk has the wrong content") from error


def _unpacked(dataset: Any, index: tuple[int, ...], end: int, size: int) -> NDArray[Any]:
    """Return one image of a data set of chunks of `size` bytes each, as `read_one` does."""
    chunks, kind, plan = dataset.chunks, dataset.dtype, dataset.id.get_create_plist()
    codes = _codes(plan)
    image = np.full(dataset.shape[-2:], _fill_value(plan, kind), kind)
    leading = [place // chunk * chunk for place, chunk in zip(index, chunks, strict=False)]
    within = tuple(place % chunk for place, chunk in zip(index, chunks, strict=False))
    for y, x in itertools.product(*(range(0, n, c) for n, c in zip(image.shape, chunks[-2:], strict=True))):
        corner = (*leading, y, x)
        info = dataset.id.get_chunk_info_by_coord(corner)
        if info.byte_offset is None:  # never written
            continue
        plain = all(info.filter_mask >> number & 1 for number in range(len(codes)))
        if not 0 < info.size <= end or (plain and info.size != size):  # HDF5 fills the rest with whatever memory holds
            raise ValueError("a chunk has a stored size that cannot be right")
        mask, packed = dataset.id.read_direct_chunk(corner)
        raw = np.frombuffer(undo_filters(packed, codes, mask, size, kind.itemsize), kind).reshape(chunks)[within]
        part = image[y : y + chunks[-2], x : x + chunks[-1]]
        part[...] = raw[: part.shape[0], : part.shape[1]]
    return image


def _fill_value(plan: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the fill value of chunks that were never written."""
    value = np.zeros((), kind)
    if plan.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED:
        plan.get_fill_value(value)
    return value
