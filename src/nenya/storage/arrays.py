"""Arrays of NumPy files, .npy and .npz; declared sizes are checked against the file before memory is allocated."""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.storage.small_files import check_regular

_RATIO = 200  # times its packed size that a member of a .npz may have
_LEAST = 2**26  # bytes that it may have in any case
_MOST_MEMBERS = 10_000


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read a .npy file, or arrays of a .npz file; pickles are refused.

    Args:
        path: the file.
        names: arrays of a .npz to read; default all.

    Returns:
        The arrays by name; the name of a .npy array is empty.

    Raises:
        InputFileError: It is missing, damaged, not a regular file, or declares sizes that it does not have.
    """
    check_regular(path, "numeric arrays")
    try:
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
            if packed:
                return _members(path, names)
            file.seek(0)
            return {"": _array(file, os.fstat(file.fileno()).st_size)}
    except Exception as error:  # zlib, zipfile and tokenize each raise errors of their own for a damaged file
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputFileError(
            f"{path}: cannot be read as a numeric array ({str(said).splitlines()[0][:200]})"
        ) from error


def _members(path: Path, names: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        wanted = None if names is None else {f"{name}.npy" for name in names}
        members = [
            m for m in archive.infolist() if m.filename.endswith(".npy") and (not wanted or m.filename in wanted)
        ]
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"expected at most {_MOST_MEMBERS:,} arrays, got {len(members)}")
        whole = sum(member.file_size for member in members)
        if whole > max(_LEAST, _RATIO * path.stat().st_size):
            raise ValueError(f"unpacked size {whole / 1e6:.0f} MB is more than {_RATIO} times the file size")
        for member in members:
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
    return found


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read one array; its header must agree with the number of bytes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind.hasobject:
        raise ValueError("it contains pickled objects, which are refused")
    wanted = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or not kind.itemsize or wanted > size:
        raise ValueError(f"the header declares {shape} of {kind}, the file has {size:,} bytes")
    data = file.read(wanted)
    return np.frombuffer(data, kind, math.prod(shape)).reshape(shape, order="F" if by_columns else "C").copy()
