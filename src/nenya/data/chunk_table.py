"""The positions of the chunks of a data set in its file, and their plausibility."""

import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.data.filters import FLETCHER32, GZIP, LZF, SHUFFLE
from nenya.data.hdf5_links import COPY
from nenya.errors import InputFileError

_LEAST_WRITTEN = 0.1  # of the chunks, if the file marks the missing ones as NaN


def chunk_table(dataset: Any, where: str, end: int, codes: Sequence[int], fill: float, size: int) -> NDArray[np.int64]:
    """Return the positions of the chunks, (chunks, 3), as in `ChunkedPixels`.

    Args:
        dataset: an h5py data set.
        where: file and name, for errors.
        end: bytes of the file.
        codes: filters.
        fill: value of chunks never written; NaN if missing cutouts are intended.
        size: bytes of a chunk unpacked.
    """
    chunks, shape = dataset.chunks, dataset.shape
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    count, found = math.prod(grid), []

    def note(info: Any) -> int | None:
        found.append((*info.chunk_offset, info.byte_offset, info.size, info.filter_mask))
        return len(found) > count or None

    dataset.id.chunk_iter(note)
    undefined = 2**64 - 1
    found = [(*c[:-3], c[-3], c[-2], c[-1]) for c in found if c[-3] is not None and c[-3] != undefined]
    if len(found) > count:
        raise InputFileError(f"{where} has more chunks than the {count} of its shape {shape}; {COPY}")
    if len(found) < count and not (math.isnan(fill) and len(found) >= _LEAST_WRITTEN * count):
        raise _not_written(where, shape[0], count, len(found))
    numbers = np.array(found, dtype=object).reshape(len(found), -1)
    if any(not 0 <= value < 2**62 for value in numbers.flat):
        raise InputFileError(f"{where} has chunks outside the file; {COPY}")
    numbers = numbers.astype(np.int64)
    corners, places = numbers[:, :-3], numbers[:, -3:]
    if (corners % chunks).any() or (corners >= shape).any():
        raise InputFileError(f"{where} has chunks off the grid of its shape {shape}; {COPY}")
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number) for number in range(creation.get_nfilters())]
    loose = sum(1 << i for i, (code, _, values, _) in enumerate(filters) if code == SHUFFLE and not values)
    check_places(where, places, end, codes, size, loose)
    table = np.full((count, 3), -1, np.int64)
    index = np.ravel_multi_index(tuple((corners // chunks).T), tuple(grid))
    if len(np.unique(index)) != len(index):
        raise InputFileError(f"{where} has a duplicate chunk; {COPY}")
    table[index] = places
    return table


def check_places(where: str, places: NDArray[np.int64], end: int, codes: Sequence[int], size: int, loose: int) -> None:
    """Check that chunks lie within the file, do not overlap, and have sizes that their filters can produce.

    Args:
        where: file and name, for errors.
        places: (chunks, 3): first byte, bytes, skipped filters.
        end: bytes of the file.
        codes: filters.
        size: bytes of a chunk unpacked.
        loose: filters that may be skipped, as bits: HDF5 does not shuffle variable-length strings.
    """
    order = places[np.argsort(places[:, 0])]
    stops = order[:, 0] + order[:, 1]
    if (order[:, 1] <= 0).any() or (stops > end).any() or (stops[:-1] > order[1:, 0]).any():
        raise InputFileError(f"{where} has chunks outside the file or overlapping; {COPY}")
    packing = sum(1 << i for i, code in enumerate(codes) if code != SHUFFLE and code != FLETCHER32)
    whole = size + 4 * sum(code == FLETCHER32 for code in codes)
    masks, sizes = places[:, 2], places[:, 1]
    left_out = ((masks & packing) == packing) & (packing > 0)
    sums = np.zeros(len(masks), np.int64)
    for i, code in enumerate(codes):
        sums += 4 * ((code == FLETCHER32) & ~(masks >> i) & 1)
    ratio = 1040 if GZIP in codes else 90 if LZF in codes else 2**31  # largest possible compression ratio
    packed = (sizes > whole + whole // 100 + 1024) | (sizes * ratio + 1024 < size)
    wrong = np.where(left_out | (packing == 0), sizes != size + sums, packed)
    wrong |= ~left_out & ((masks & ~loose) != 0)
    if wrong.any():
        raise InputFileError(f"{where} has chunks of impossible size; {COPY}")


def _not_written(where: str, rows: int, chunks: int, found: int | None = None) -> InputFileError:
    some = "not all" if found is None else f"only {found}"
    return InputFileError(
        f"{where} declares {rows} rows, but {some} of their {chunks} chunks are in the file: the others were never "
        "written; create the file again"
    )


def fill_value(creation: Any, kind: np.dtype[Any]) -> float:
    """Return the value of elements that were never written."""
    if creation.fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
        return 0.0
    value = np.zeros((), kind)
    creation.get_fill_value(value)
    return float(value)


def stored_size(kind: Any) -> int:
    """Return the bytes of a value in the file; in memory variable-length strings are pointers."""
    if isinstance(kind, h5py.h5t.TypeVlenID) or (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        return 16
    size = int(kind.get_size())
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        members = [kind.get_member_type(number) for number in range(kind.get_nmembers())]
        return size + sum(stored_size(member) - int(member.get_size()) for member in members)
    if isinstance(kind, h5py.h5t.TypeArrayID):
        base = kind.get_super()
        return size // int(base.get_size()) * stored_size(base)
    return size
