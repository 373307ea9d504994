"""An index on S3: each version is a folder that never changes, and a pointer names the one that holds now."""

import hashlib
import json
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nenya.archive import ABOUT
from nenya.archive_commit import replace_if_same
from nenya.data.files import scratch_folder
from nenya.errors import InputFileError, OutputError
from nenya.s3 import join_url, store
from nenya.storage import sha256_file
from nenya.temporaries import temporary_folder

log = logging.getLogger(__name__)

POINTER = "current.json"
_FOLDER = "index"


def state_of(url: str) -> str:
    """Return what tells one state of an index from another, empty where there is none."""
    found = store().head(join_url(url, POINTER))
    return found.etag if found else ""


def publish(folder: Path, url: str, before: str | None = None) -> str:
    """Upload an index as a new version and let the pointer name it.

    A reader finds the old version or the new one. Older versions stay.

    Args:
        folder: a finished index.
        url: s3:// address of the index.
        before: `state_of` the index that this one goes on from; None replaces whatever is there.

    Returns:
        The name of the version.

    Raises:
        OutputError: Another run has published a version meanwhile, which stays.
        StorageError: The service does not take it; the pointer then names the version before.
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
    error = OutputError(f"{url} was changed by another run meanwhile: give the same command again")
    replace_if_same(join_url(url, POINTER), data, state_of(url) if before is None else before, error)
    log.info("%s: version %s, %d files, %.1f MB", url, version, len(files), sum(e["size"] for e in entries) / 1e6)
    return version


def fetch_index(url: str, cache_dir: str | None) -> Path | None:
    """Return a local copy of the version that holds now, kept for later runs; None where there is no index.

    Raises:
        StorageError: The service does not give it, or a file arrives altered.
        InputFileError: What is there is no index.
    """
    pointer = _pointer(url)
    if pointer is None:
        return None
    place: Path = _place(url, cache_dir) / pointer["version"]
    if not (place / ABOUT).is_file():
        part = place.with_name(f".{place.name}.part")  # whole files in it are kept if this is stopped
        for entry in pointer["files"]:
            path = part / entry["name"]
            if not path.resolve().is_relative_to(part.resolve()):
                raise InputFileError(f"{url}: names a file outside of itself: {entry['name']}")
            if path.is_file() and path.stat().st_size == entry["size"] and sha256_file(path) == entry["sha256"]:
                continue
            found = store().download(join_url(url, "versions", pointer["version"], entry["name"]), path)
            if found != entry["sha256"]:
                raise InputFileError(f"{url}: {entry['name']} is not as it was published; publish the index anew")
        os.replace(part, place)
    return place


def work_copy(url: str, cache_dir: str | None, *, fresh: bool) -> Path:
    """Return a local folder in which the next version of an index is made; that of a run before goes on.

    Args:
        url: s3:// address of the index.
        cache_dir: of local copies.
        fresh: start without the rows that are there.
    """
    base = None if fresh else fetch_index(url, cache_dir)
    name = base.name if base else "new"
    work = _place(url, cache_dir) / f"work-{name}"
    if base is not None and not work.exists():
        part = work.with_name(f".{work.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            shutil.copytree(base, part)
            os.replace(part, work)
        except OSError as error:
            raise OutputError(f"cannot copy the index to {work}: {error.strerror}; set loader.cache_dir") from error
    return work


def keep(work: Path, version: str) -> Path:
    """Let a published working copy be the local copy of its version."""
    place = work.with_name(version)
    os.replace(work, place)
    return place


def _pointer(url: str) -> dict[str, Any] | None:
    if store().head(join_url(url, POINTER)) is None:
        return None
    with temporary_folder("nenya-") as temporary:
        path = temporary / POINTER
        store().download(join_url(url, POINTER), path)
        try:
            pointer: dict[str, Any] = json.loads(path.read_text())
            names = [pointer["version"], *(entry["name"] for entry in pointer["files"])]
        except (ValueError, KeyError, TypeError) as error:
            raise InputFileError(f"{url}: {POINTER} there is not that of an index of nenya") from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names) or "/" in names[0]:
        raise InputFileError(f"{url}: {POINTER} there is not that of an index of nenya")
    return pointer


def _place(url: str, cache_dir: str | None) -> Path:
    return scratch_folder(cache_dir) / _FOLDER / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
