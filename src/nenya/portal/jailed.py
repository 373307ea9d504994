"""The process that reads one untrusted image in a sandbox (`nenya.portal.walls`).

It inherits nothing of the server: no memory, no environment, no files but two pipes. It loads its readers, reads
a sample of each kind of file, so that nothing is loaded later, enters the sandbox, reports it, and reads one file.
"""

import contextlib
import importlib
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from nenya.errors import NenyaError, OptionError
from nenya.portal.walls import close_doors, live_no_longer_than_parent

LENGTH = struct.Struct(">I")
MOST_HEADER = 4096  # bytes
_MOST_MESSAGE = 500  # characters


def main() -> None:
    """Read one image: `jailed <module of read_image> <bytes of memory> <seconds> <walls: 0 or 1>`."""
    module, memory, seconds, walls = sys.argv[1:5]
    live_no_longer_than_parent()
    reader = importlib.import_module(module)
    rehearse(reader.read_image, getattr(reader, "SUFFIXES", ()))
    _send({"closed": close_doors(int(memory), int(seconds), walls=walls == "1")})
    asked = json.loads(_take(LENGTH.unpack(_take(LENGTH.size))[0]))
    try:
        how = {"masked": True} if asked.get("masked") else {}
        found = reader.read_image(asked["name"], _take(asked["size"]), asked["row"], asked["scale"], **how)
        image = np.ascontiguousarray(found.image, "<f4")
        _send({"side": len(image), "source": found.source}, image.tobytes())
    except MemoryError:
        _send({"error": "memory", "text": ""})
    except OptionError as error:
        _send({"error": "option", "text": str(error)[:_MOST_MESSAGE]})
    except NenyaError as error:
        _send({"error": "input", "text": str(error)[:_MOST_MESSAGE]})
    os._exit(0)


def _take(size: int) -> bytes:
    """Return the next bytes of the request; if the stream ends, no answer is needed."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = os.readv(0, [view[got : got + 2**20]])
        if not count:
            os._exit(0)
        got += count
    return bytes(data)


def _send(header: dict[str, Any], body: bytes = b"") -> None:
    """Write a frame: length of the header, header as JSON, and body."""
    text = json.dumps(header).encode()
    left = memoryview(LENGTH.pack(len(text)) + text + body)
    while left:
        left = left[os.write(1, left) :]


def rehearse(read: Any, suffixes: Sequence[str]) -> None:
    """Read a sample of each kind of file, as modules loaded on demand cannot be loaded in the sandbox.

    Args:
        read: function that reads a file.
        suffixes: of readable files.
    """
    for name, data in _samples() if suffixes else ():
        with contextlib.suppress(NenyaError):
            read(name, data, "0", ("0", "1"))
        with contextlib.suppress(NenyaError):
            read(name, data[: len(data) // 2], "0", ("0", "1"))
    "".encode("cp437")  # of names in zip files
    with contextlib.suppress(MemoryError):
        np.empty(2**62, np.uint8)


def _samples() -> list[tuple[str, bytes]]:
    import h5py
    from PIL import Image
    from scipy.io import netcdf_file

    field = np.arange(256, dtype=np.float32).reshape(16, 16)
    array, zipped, picture, hdf5, old = (io.BytesIO() for _ in range(5))
    np.save(array, field)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as dataset:
        dataset.writestr("a.npy", array.getvalue())
    Image.fromarray(field.astype(np.uint8)).save(picture, "PNG")
    with h5py.File(hdf5, "w") as file:
        file.create_dataset("a", data=field, chunks=(8, 8), compression="lzf", shuffle=True, fletcher32=True)
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        file.create_dataset("a", data=field, chunks=(8, 8), compression="gzip").attrs["scale_factor"] = 1.0
    written = netcdf_file(old, "w")
    for name in ("y", "x"):
        written.createDimension(name, 16)
    written.createVariable("a", "f4", ("y", "x"))[:] = field
    written.flush()
    kinds = {"a.npy": array, "a.npz": zipped, "a.png": picture, "a.h5": hdf5, "b.nc": packed, "a.nc": old}
    return [(name, stream.getvalue()) for name, stream in kinds.items()]
