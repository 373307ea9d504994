"""`nenya status`: what is in an archive, what is missing or unfinished, and what made it."""

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nenya.analysis_options import StatusOptions
from nenya.archive_folder import Entry, Folder, Version, open_entry
from nenya.errors import InputFileError, OptionError, StorageError
from nenya.extraction.lock import is_held
from nenya.s3 import join_url, store
from nenya.storage import sha256_file
from nenya.update.lease import Lease

log = logging.getLogger(__name__)


@dataclass
class VersionStatus:
    """What there is of one model version.

    Attributes:
        files: number of cutout files.
        rows: partition -> number of cutouts.
        left_out: cutouts without a latent.
        dates: first and last, where tables have them.
        bytes: of all that is named.
        empty: granules without a cutout.
        indexed: rows in the index.
        searched_by: how it answers.
        model: name of the model, its options and the hash of its weights.
        made: what began it.
        nenya: versions of nenya that files were added by.
        last: when the last file was added.
        missing: files that are named, and not there.
        damaged: files of another size or, where they were read, content.
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


@dataclass
class Status:
    """What there is of an archive.

    Attributes:
        place: the archive.
        versions: name -> what there is.
        unfinished: version -> number of files that an update has begun and not finished.
        holder: who is updating it now; empty for nobody.
    """

    place: str
    versions: dict[str, VersionStatus]
    unfinished: dict[str, int]
    holder: str

    @property
    def good(self) -> bool:
        """Whether all is whole and finished."""
        return not self.unfinished and not any(v.missing or v.damaged for v in self.versions.values())


def run(options: StatusOptions) -> int:
    """Say what is in an archive.

    Args:
        options: of `scripts/status.py`.

    Returns:
        0 if all is whole, 1 if something is unfinished or damaged.

    Raises:
        NenyaError: There is no archive, or it cannot be read.
    """
    if not options.archive_dir:
        raise OptionError("archive= is needed: the archive's folder or s3:// address")
    status = status_of(options.archive_dir, options.version, options.loader.cache_dir, check=options.check)
    if options.json:
        sys.stdout.write(json.dumps({**asdict(status), "good": status.good}, indent=1) + "\n")
    else:
        _say(status)
    return 0 if status.good else 1


def status_of(place: str, version: str | None = None, cache_dir: str | None = None, *, check: bool = False) -> Status:
    """Return what there is of an archive.

    Args:
        place: a folder or an s3:// address.
        version: one model version; None for all.
        cache_dir: of unfinished work for an archive on S3.
        check: read every file and compare its hash.

    Raises:
        InputFileError: There is no archive.
        OptionError: There is no such version.
        StorageError: An S3 service does not answer.
    """
    folder = Folder(place, cache_dir)
    manifest = folder.read()
    unfinished = {name: count for name, count in _unfinished(folder).items() if version in (None, name)}
    if not manifest and not unfinished:
        raise InputFileError(f"{place}: no archive; nenya update archive={place} new=... makes one")
    if version is not None and version not in manifest:
        raise OptionError(f"version={version}: {place} has {', '.join(manifest) or 'none yet'}")
    sizes = _sizes(folder)
    found = {
        name: _version(folder, about, sizes, check=check) for name, about in manifest.items() if version in (None, name)
    }
    return Status(place, found, unfinished, _holder(folder))


def _unfinished(folder: Folder) -> dict[str, int]:
    """Return version -> files in work; 0 for a version whose first file is not begun."""
    found: dict[str, int] = {}
    for path in folder.work.glob("*"):
        if path.is_dir() and path.name != "uploads":
            count = sum(inner.is_dir() and inner.name != "begin" for inner in path.iterdir())
            found[path.name] = count
    return found


def _holder(folder: Folder) -> str:
    """Return who is updating an archive."""
    lock = folder.work / "lock"
    said: dict[str, Any] = {}
    if folder.url is not None:
        said = Lease(folder).holder()
    elif is_held(lock):  # that of a killed process lies there, held by nobody
        try:
            said = json.loads(lock.read_bytes())
        except ValueError:  # nobody, whose name is empty
            said = {}
    return f"process {said.get('pid')} on {said.get('host')} since {said.get('since')}" if said else ""


def _sizes(folder: Folder) -> dict[str, int] | None:
    """Return name -> bytes of all objects of an archive on S3."""
    if folder.url is None:
        return None
    start = len(folder.url) + 1
    return {found.url[start:]: found.size for found in store().find(folder.url + "/")}


def _version(folder: Folder, version: Version, sizes: dict[str, int] | None, *, check: bool) -> VersionStatus:
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
    """Return the files of an index on S3; look whether a local one opens in the state that is named."""
    name = version.index.about.name.split("/")[0]
    try:
        if sizes is None:
            rows = len(open_entry(folder, name, version).index())
            if rows != version.index.rows:
                status.damaged.append(f"{name}/index: {rows} rows instead of {version.index.rows}")
            return []
        files = json.loads(folder.local(version.index.about).read_bytes())["files"]
        return [Entry(*file) for file in files]
    except (InputFileError, StorageError, OSError, ValueError, KeyError) as error:
        status.damaged.append(f"{name}/index: {str(error).splitlines()[0]}")
        return []


def _look_at(folder: Folder, entry: Entry, sizes: dict[str, int] | None, status: VersionStatus, *, check: bool) -> None:
    path: Path = folder.root / entry.name
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
        return store().download(join_url(folder.url, entry.name), path)
    except StorageError:
        return ""
    finally:
        path.unlink(missing_ok=True)


def _say(status: Status) -> None:
    for name, version in status.versions.items():
        rows = ", ".join(f"{partition} {count:,}" for partition, count in version.rows.items())
        model = version.model
        log.info("%s, version %s", status.place, name)
        log.info("  there       %d files, %s cutouts, %.1f MB", version.files, rows or "no", version.bytes / 1e6)
        if version.dates:
            log.info("  dates       %s to %s", *version.dates)
        if version.left_out:
            log.info("  left out    %d cutouts with missing pixels have no latent", version.left_out)
        if version.empty:
            log.info("  empty       %d granules without a cutout", version.empty)
        log.info("  index       %d rows, %s", version.indexed, version.searched_by)
        log.info(
            "  model       %s: %s, %d numbers, weights %s",
            model["name"], model["ssl_model"], model["feat_dim"], model["weights_sha256"][:16],
        )  # fmt: skip
        made = ", ".join(f"{key} {value}" for key, value in version.made.items() if key != "date" and value)
        log.info("  begun       %s by %s", version.made.get("date"), made)
        log.info("  last added  %s; files by nenya %s", version.last, ", ".join(version.nenya))
        for what, names in (("MISSING", version.missing), ("DAMAGED", version.damaged)):
            for file in names:
                log.error("  %-11s %s", what, file)
    for name, count in status.unfinished.items():
        log.warning("unfinished: version %s, %d files begun; the same nenya update again does the rest", name, count)
    if status.holder:
        log.info("being updated by %s", status.holder)
    log.info("%s", "all is whole" if status.good else "not all is whole")
