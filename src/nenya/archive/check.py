"""Checks the files of a model version of an archive against `archive.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nenya.archive.folder import Folder, open_entry
from nenya.archive.manifest import CUTOUTS, Manifest, Version
from nenya.errors import InputFileError, StorageError
from nenya.storage.disk import sha256_file
from nenya.storage.names import Entry, inside
from nenya.storage.s3.service import join_url, store


@dataclass
class VersionStatus:
    """The state of one model version.

    Attributes:
        files: number of cutout files.
        rows: partition -> number of cutouts.
        left_out: cutouts without a latent.
        dates: first and last date, where tables have dates.
        bytes: total size of the listed files.
        empty: granules without a cutout.
        indexed: rows in the index.
        searched_by: exact or approximate search, with recall.
        model: name of the model, its options and the hash of its weights.
        made: software versions that began it.
        nenya: versions of nenya that added files.
        last: date of the last addition.
        missing: listed files that do not exist.
        damaged: files that differ in size, or in content if it was read.
    """

    files: int
    rows: dict[str, int]
    left_out: int
    dates: list[str]
    bytes: int
    empty: int
    indexed: int
    searched_by: str
    model: dict[str, Any]
    made: dict[str, str]
    nenya: list[str]
    last: str
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def broken_files(folder: Folder, version: Version) -> list[str]:
    """Return the files of a version that are missing or differ in size from the manifest."""
    status = version_status(folder, version, sizes_of(folder), check=False)
    return [*status.missing, *status.damaged]


def sizes_of(folder: Folder) -> dict[str, int] | None:
    """Return name -> bytes of all objects of an archive on S3."""
    if folder.url is None:
        return None
    start = len(folder.url) + 1
    return {found.url[start:]: found.size for found in store().find(folder.url + "/")}


def unnamed_files(folder: Folder, manifest: Manifest, sizes: dict[str, int] | None) -> list[str]:
    """Return the cutouts, latents and tables in an archive that no version lists.

    A killed update leaves such files, and the next update removes them. A file may also have lost its entry.
    """
    named = {entry.name for version in manifest.values() for entry in version.entries()}
    places = [CUTOUTS, *(f"{name}/{kind}" for name in manifest for kind in ("latents", "tables"))]
    if sizes is None:
        there = [path for place in places for path in (folder.root / place).glob("[!.]*") if path.is_file()]
        found = {str(path.relative_to(folder.root)) for path in there}
    else:
        found = {name for name in sizes if name.rpartition("/")[0] in places}
    return sorted(found - named)


def version_status(folder: Folder, version: Version, sizes: dict[str, int] | None, *, check: bool) -> VersionStatus:
    """Return the state of a version.

    Args:
        folder: the archive.
        version: the version.
        sizes: result of `sizes_of`.
        check: whether to read every file and compare its hash.
    """
    rows: dict[str, int] = {}
    for added in version.files:
        for name, count in added.rows.items():
            rows[name] = rows.get(name, 0) + count
    entries = list(dict.fromkeys(version.entries()))
    dates = sorted(date for added in version.files for date in added.dates)
    status = VersionStatus(
        files=len(version.files),
        rows=rows,
        left_out=sum(added.left_out for added in version.files),
        dates=[dates[0], dates[-1]] if dates else [],
        bytes=sum(entry.size for entry in entries),
        empty=len(version.empty),
        indexed=version.index.rows,
        searched_by=version.index.searched_by,
        model={**version.settings["model"], "weights_sha256": version.weights.sha256},
        made=version.made,
        nenya=sorted({added.nenya for added in version.files}),
        last=max((added.date for added in version.files), default=""),
    )
    for entry in [*entries, *_index_entries(folder, version, status, sizes)]:
        _look_at(folder, entry, sizes, status, check=check)
    return status


def _index_entries(
    folder: Folder, version: Version, status: VersionStatus, sizes: dict[str, int] | None
) -> list[Entry]:
    """Return the files of an index on S3; for a local one, check that it opens in the listed state."""
    name = version.index.about.name.split("/")[0]
    try:
        if sizes is None:
            rows = len(open_entry(folder, name, version).index())
            if rows != version.index.rows:
                status.damaged.append(f"{name}/index: expected {version.index.rows} rows, got {rows}")
            return []
        return open_entry(folder, name, version).said.files
    except (InputFileError, StorageError, OSError) as error:
        status.damaged.append(f"{name}/index: {str(error).splitlines()[0]}")
        return []


def _look_at(folder: Folder, entry: Entry, sizes: dict[str, int] | None, status: VersionStatus, *, check: bool) -> None:
    try:
        path: Path = inside(folder.root, entry.name)
    except InputFileError:  # links are not followed
        status.damaged.append(entry.name)
        return
    size = sizes.get(entry.name) if sizes is not None else path.stat().st_size if path.is_file() else None
    if size is None:
        status.missing.append(entry.name)
    elif size != entry.size or (check and _sha256(folder, entry) != entry.sha256):
        status.damaged.append(entry.name)


def _sha256(folder: Folder, entry: Entry) -> str:
    if folder.url is None:
        return sha256_file(folder.root / entry.name)
    path = folder.work / "checked"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return store().download(join_url(folder.url, entry.name), path, size=entry.size)
    except StorageError:
        return ""
    finally:
        path.unlink(missing_ok=True)
