"""From the `data` option to files."""

import glob
import os
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, OptionError

LATENTS_SUFFIXES = ("_latents.h5", "_latents_debug.h5")
"""Ends of the names of extraction's outputs, which a glob of cutout files leaves out."""


def local_path(text: str) -> Path:
    """Return the local path that a text names, with `~` and `$NAMES` of the environment filled in.

    Raises:
        OptionError: It is an s3:// address, or names an environment variable that is not set.
    """
    if text.startswith("s3://"):
        raise OptionError(f"{text}: only local files are read so far; download it and give the local path")
    path = os.path.expandvars(os.path.expanduser(text))
    if "$" in path:
        name = path.split("$", 1)[1].split("/")[0].strip("{}")
        raise OptionError(f"{text}: the environment variable {name} is not set; set it to the folder of your data")
    return Path(path)


def find_files(data: Any) -> list[Path]:
    """Return the files that `data=` stands for, in order, each once.

    Args:
        data: a path, a glob, or a list of them; a glob leaves latents files out.

    Raises:
        OptionError: Nothing is given.
        InputFileError: A glob matches nothing.
    """
    entries = [data] if isinstance(data, str) else list(data or [])
    if not entries:
        raise OptionError("data= is needed: a cutout file, such as data=/path/to/cutouts_preproc.h5, a glob or a list")
    found: dict[Path, None] = {}
    for entry in entries:
        path = local_path(str(entry))
        if path.exists() or not glob.has_magic(str(path)):
            found[path] = None
            continue
        matches = sorted(p for p in glob.glob(str(path), recursive=True) if not p.endswith(LATENTS_SUFFIXES))
        if not matches:
            raise InputFileError(f"{entry}: no file matches; check the folder and the pattern")
        found.update((Path(match), None) for match in matches)
    return list(found)
