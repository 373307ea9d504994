"""Files that ask for more than they have, each of a few kilobytes."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.function, self.values = function, values

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.values


class Storage(tuple):
    """Pickles as a reference to numbers in the file."""

    __slots__ = ()


class Pickler(pickle.Pickler):
    """Writes storages by reference, as torch.save does."""

    def persistent_id(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, Storage) else None


def tensor(size: tuple[int, ...], stride: tuple[int, ...], numbers: int = 100) -> Call:
    """Return what pickles as a tensor on a storage of float32 numbers."""
    storage = Storage(("storage", torch.FloatStorage, "0", "cpu", numbers))
    return Call(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, OrderedDict())


def write_checkpoint(path: Path, content: Any, numbers: int = 100, *, packed: bool = False) -> Path:
    """Write a file like torch.save's, whose pickle and records are our own."""
    made = io.BytesIO()
    Pickler(made, 2).dump(content)
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", made.getvalue())
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(4 * numbers))
        archive.writestr("a/.data/serialization_id", "0")
    return path


def shared(value: Any, times: int = 60) -> Any:
    """Return a value within lists (or tuples, of a tuple) that name the one before twice: 2^60 of it, written out."""
    for _ in range(times):
        value = type(value)([value, value])
    return value


def cyclic() -> list[Any]:
    """Return a list that contains itself."""
    found: list[Any] = []
    found.append(found)
    return found
