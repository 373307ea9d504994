"""Weights that come with nenya: named `nenya://NAME`, and checked against their sha256 before they are used."""

import functools
from pathlib import Path

import nenya
from nenya.errors import CheckpointError, MissingCheckpointError, OptionError
from nenya.storage.disk import sha256_file

PREFIX = "nenya://"
FOLDER = Path(nenya.__file__).parent / "data_files"

SHA256 = {"ocean": "18d4682ed2aab8c6454b508fc2925bc047e79b235aa52d132178c8cdb48048ce"}
"""Name -> sha256 of `data_files/<name>.safetensors`."""

AVAILABLE = "model=ocean has weights that come with nenya, for cutouts of 32 to 128 pixels"
"""What errors on missing weights say beside how to give them."""


def is_shipped(text: object) -> bool:
    """Return whether a string names weights that come with nenya."""
    return str(text).startswith(PREFIX)


def shipped_path(text: str) -> Path:
    """Return the file of weights that come with nenya.

    Args:
        text: such as `nenya://ocean`.

    Raises:
        OptionError: There are none of this name.
        MissingCheckpointError: The installation lacks the file.
        CheckpointError: The file is not the one that was released.
    """
    name = text.removeprefix(PREFIX)
    if name not in SHA256:
        raise OptionError(f"{text}: expected one of {', '.join(PREFIX + known for known in SHA256)}, got {name!r}")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise MissingCheckpointError(f"{text}: {path} does not exist: install nenya again")
    status = path.stat()
    found = _sha256(path, status.st_size, status.st_mtime_ns)
    if found != SHA256[name]:
        raise CheckpointError(
            f"{text}: {path} is damaged: expected sha256 {SHA256[name][:12]}, got {found[:12]}: install nenya again"
        )
    return path


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Return the sha256 of a file; size and time only tell a changed file from the one that was read."""
    return sha256_file(path)
