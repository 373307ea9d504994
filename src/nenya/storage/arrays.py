"""Arrays of NumPy's files, .npy and .npz, whose stated sizes are compared with the files before anything is made."""

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
    """Read a .npy file, or arrays of a .npz file; no pickle is read.

    Args:
        path: the file.
        names: of the arrays of a .npz that are wanted; default all.

    Returns:
        The arrays by their names; that of a .npy has an empty one.

    Raises:
        InputFileError: It is missing, damaged, no ordinary file, or states sizes that it does not have.
    """
    check_regular(path, "arrays of numbers")
    try:
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
            if packed:
                return _members(path, names)
            file.seek(0)
            return {"": _array(file, os.fstat(file.fileno()).st_size)}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, zipfile.BadZipFile) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputFileError(f"{path}: no array of numbers in it ({str(said).splitlines()[0][:200]})") from error


def _members(path: Path, names: Sequence[str] | None) -> dict[str, NDArray[Any]]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        wanted = None if names is None else {f"{name}.npy" for name in names}
        members = [
            m for m in archive.infolist() if m.filename.endswith(".npy") and (not wanted or m.filename in wanted)
        ]
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"{len(members)} arrays, at most {_MOST_MEMBERS:,} are read")
        whole = sum(member.file_size for member in members)
        if whole > max(_LEAST, _RATIO * path.stat().st_size):
            raise ValueError(f"it would unpack to {whole / 1e6:.0f} MB, more than {_RATIO} times its size")
        for member in members:
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
    return found


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read one array whose header must fit the bytes that there are."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind.hasobject:
        raise ValueError("it holds objects, which are pickles and never read")
    wanted = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or not kind.itemsize or wanted > size:
        raise ValueError(f"an array {shape} of {kind} is stated, the file has {size:,} bytes")
    data = file.read(wanted)
    return np.frombuffer(data, kind, math.prod(shape)).reshape(shape, order="F" if by_columns else "C").copy()
