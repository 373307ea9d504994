"""Opening HDF5 files that users hand over: what is wrong with one is said in one line."""

from pathlib import Path
from typing import Any

import h5py

from nenya.errors import InputFileError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path: Path, **settings: Any) -> Any:
    """Open an HDF5 file for reading.

    Args:
        path: The file.
        settings: Further arguments of `h5py.File`.

    Raises:
        InputFileError: If it does not open: it does not exist, is a folder, is not HDF5, is cut short.
    """
    if path.is_dir():
        raise InputFileError(f"{path}: this is a folder; wanted is an HDF5 file of cutouts: name a file in it")
    if not path.exists():
        raise InputFileError(f"{path}: no such file; check the path")
    try:
        return h5py.File(path, "r", locking="best-effort", **settings)
    except OSError as error:
        raise InputFileError(f"{path}: {_why_closed(path, error)}") from error


def list_datasets(file: Any, most: int = 12) -> str:
    """Name the data sets of an open file with their shapes, at most `most` of them."""
    found: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.shape}")

    file.visititems(note)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return (", ".join(found[:most]) + more) or "no data set at all"


def one_line(error: BaseException) -> str:
    """Word an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _why_closed(path: Path, error: OSError) -> str:
    """Find out why a file that exists does not open."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SIGNATURE))
    except OSError as refused:
        return f"cannot be read ({refused.strerror}); check its permissions"
    if not head:
        return "the file is empty; copy or make it again"
    if head != _SIGNATURE:
        return f"not an HDF5 file (it begins with {head!r}); wanted is an HDF5 file of cutouts"
    return f"the HDF5 file is truncated or damaged ({one_line(error)}); copy or make it again"
