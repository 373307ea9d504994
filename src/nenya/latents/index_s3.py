"""An index on S3: each version is a folder that never changes, and a pointer names the current one."""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, OutputError
from nenya.latents.index import ABOUT
from nenya.storage.disk import sha256_file
from nenya.storage.names import MOST_BYTES, Entry, entry_of, inside, parse_json, refuse_overlaps
from nenya.storage.paths import fetch_checked, own_place, scratch_folder
from nenya.storage.s3.replace import replace_if_same
from nenya.storage.s3.service import join_url, store

log = logging.getLogger(__name__)

POINTER = "current.json"
_FOLDER = "index"
_VERSION = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Pointer:
    """The content of a pointer.

    Attributes:
        version: the current version.
        files: its files, below its folder.
    """

    version: str
    files: list[Entry]


def state_of(url: str) -> str:
    """Return the tag of the current state of an index, empty if there is none."""
    found = store().head(join_url(url, POINTER))
    return found.etag if found else ""


def publish(folder: Path, url: str, before: str | None = None, *, safe: bool = True) -> str:
    """Upload an index as a new version and let the pointer name it.

    A reader finds the old version or the new one. Older versions stay.

    Args:
        folder: a finished index.
        url: s3:// address of the index.
        before: `state_of` the index that this one extends; None replaces any index.
        safe: whether the service supports conditional writes.

    Returns:
        The name of the version.

    Raises:
        OutputError: Another run has published a version in the meantime, which stays.
        StorageError: The upload fails; the pointer then names the previous version.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("lock", "base")]
    entries: list[dict[str, Any]] = [
        {"name": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    ]
    mark = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:8]
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{mark}"
    for path, entry in zip(files, entries, strict=True):
        store().upload(path, join_url(url, "versions", version, str(entry["name"])))
    data = json.dumps({"version": version, "files": entries}, indent=1).encode()
    error = OutputError(f"{url} was changed by another run in the meantime: run the same command again")
    replace_if_same(join_url(url, POINTER), data, state_of(url) if before is None else before, error, safe=safe)
    log.info("%s: version %s, %d files, %.1f MB", url, version, len(files), sum(e["size"] for e in entries) / 1e6)
    return version


def fetch_index(url: str, cache_dir: str | None) -> Path | None:
    """Return a local copy of the current version, kept for later runs; None if there is no index.

    Raises:
        StorageError: The download fails, or a file arrives altered.
        InputFileError: The object is not an index.
    """
    pointer = _pointer(url)
    if pointer is None:
        return None
    place = _place(url, cache_dir, pointer.version)
    if not (place / ABOUT).is_file():
        part = _place(url, cache_dir, f".{pointer.version}.part")  # its complete files are kept if this is interrupted
        for entry in pointer.files:
            path = inside(part, entry.name)
            if path.is_file() and path.stat().st_size == entry.size and sha256_file(path) == entry.sha256:
                continue
            fetch_checked(join_url(url, "versions", pointer.version), entry, path, POINTER)
        try:
            os.replace(part, place)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror}; set loader.cache_dir") from error
    return place


def work_copy(url: str, cache_dir: str | None, *, fresh: bool) -> Path:
    """Return a local folder for building the next version of an index; that of an interrupted run is resumed.

    Args:
        url: s3:// address of the index.
        cache_dir: of local copies.
        fresh: start without the present rows.
    """
    base = None if fresh else fetch_index(url, cache_dir)
    name = base.name if base else "new"
    work = _place(url, cache_dir, f"work-{name}")
    if base is not None and not work.exists():
        part = _place(url, cache_dir, f".{work.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            shutil.copytree(base, part)
            os.replace(part, work)
        except OSError as error:
            raise OutputError(f"cannot copy the index to {work}: {error.strerror}; set loader.cache_dir") from error
    return work


def shards_folder(url: str, cache_dir: str | None) -> Path:
    """Return the folder of the shards of an index, which all workers must see."""
    return _place(url, cache_dir, "shards")


def keep(work: Path, version: str) -> Path:
    """Rename a published working copy to the local copy of its version."""
    place = work.with_name(version)
    os.replace(work, place)
    return place


def _pointer(url: str) -> Pointer | None:
    if store().head(join_url(url, POINTER)) is None:
        return None
    place = join_url(url, POINTER)
    data = store().read_bytes(place, limit=MOST_BYTES)
    try:
        found = parse_json(data, place, "publish the index again")
        found.object(("version", "files"))
        if not _VERSION.fullmatch(found["version"].text()):
            found["version"].refuse("the name of a version of an index")
        files = [entry_of(item) for item in found["files"].items()]
        refuse_overlaps(files, found["files"])
        return Pointer(found["version"].text(), files)
    except InputFileError as error:
        what = str(error).removeprefix(f"{place}: ")
        raise InputFileError(f"{url}: its {POINTER} is not that of an index of nenya ({what})") from error


def _place(url: str, cache_dir: str | None, name: str) -> Path:
    mark = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return own_place(scratch_folder(cache_dir), f"{_FOLDER}/{mark}/{name}")
