"""An archive folder: cutouts, tables, latents, UMAP, clusters and index of model versions, listed in one small file.

`archive.json` is the only file that changes and the only commit point: what it does not list does not exist.
Every listed file is written once, under a unique name, before it is listed. The folder is on a disk or on
S3; from S3, files are fetched into `loader.cache_dir` when needed, named by their hash.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nenya.archive.commit import fingerprint, replace_file, replace_object
from nenya.archive.manifest import CUTOUTS, INDEX, MANIFEST, WORK, Manifest, State, Version, parse, parse_state, render
from nenya.errors import InputFileError, NenyaError, OptionError, OutputError, StorageError
from nenya.latents.files import Latents
from nenya.latents.index import IndexSearcher
from nenya.storage.disk import move_synced, sha256_file, temporary_name
from nenya.storage.names import MOST_BYTES, Entry, inside, read_bytes
from nenya.storage.paths import fetch_checked, is_s3, local_path, own_place, scratch_folder
from nenya.storage.s3.service import join_url, store
from nenya.storage.small_files import refuse_links
from nenya.storage.table_files import check_arrow, check_table
from nenya.storage.table_integers import from_arrow

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Folder:
    """The location of an archive.

    Args:
        place: a folder or an s3:// address.
        cache_dir: folder of files fetched from S3 or made for it.

    Attributes:
        url: the s3:// address, None for a local folder.
        root: the folder; for S3, that of local copies.
        work: folder of files before they are published, on the file system of `root`.
        check: called before each publication; raises if this process no longer holds the archive.
        safe: whether the S3 service supports conditional writes.
    """

    def __init__(self, place: str, cache_dir: str | None = None) -> None:
        self.place = place
        self.url = place.rstrip("/") if is_s3(place) else None
        if self.url is None:
            self.root = local_path(place).absolute()
        else:
            mark = hashlib.sha256(self.url.encode()).hexdigest()[:16]
            self.root = own_place(scratch_folder(cache_dir), f"archive/{mark}").absolute()
        self.work = self.root / WORK
        self._before = ""  # of the manifest that was read: a hash, on S3 its ETag
        self.check: Callable[[], None] = lambda: None
        self.safe = True

    def read(self) -> Manifest:
        """Return the manifest of the archive; an empty one if there is no archive.

        Raises:
            InputFileError: `archive.json` is damaged or of a newer nenya.
            StorageError: The S3 service does not return it.
        """
        if self.url is None:
            path = self.root / MANIFEST
            try:
                data = read_bytes(path) if path.is_file() else b""
            except NenyaError:
                raise
            except OSError as error:
                raise InputFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
            self._before = fingerprint(data)
        else:
            found = store().head(join_url(self.url, MANIFEST))
            self._before = found.etag if found else ""
            data = store().read_bytes(found.url, limit=MOST_BYTES) if found else b""
        return parse(data, f"{self.place}/{MANIFEST}") if data else {}

    def commit(self, manifest: Manifest) -> None:
        """Commit a manifest; readers see either the old or the new state.

        Raises:
            LockLostError: Another process took the archive over.
            OutputError: It cannot be written, or another update has committed since `read`.
            StorageError: The S3 service refuses it.
        """
        data = render(manifest)
        if self.url is None:
            replace_file(self.root / MANIFEST, data, self._before, self.check, self.place)
            self._before = fingerprint(data)
        else:
            url = join_url(self.url, MANIFEST)
            self._before = replace_object(url, data, self._before, self.check, self.place, self.safe)

    def publish(self, path: Path, name: str, *, keep: bool = False) -> Entry:
        """Copy a finished file to its place in the archive; readers ignore it until the manifest lists it.

        Args:
            path: in `work`; it is kept there, so that a killed update need not make it again.
            name: relative to the archive.
            keep: whether to keep a local copy of an S3 object for later runs.
        """
        entry = Entry(name, path.stat().st_size, sha256_file(path))
        self.check()
        target = self._object(entry) if self.url else inside(self.root, name)
        if self.url is not None:
            try:
                store().upload(path, join_url(self.url, name), note=self._note(name), check=self.check)
            except StorageError:
                self.check()  # the process that took over has aborted the upload
                raise
            if not keep:
                return entry
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_name(target)
            try:
                try:
                    os.link(path, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(path, temporary)
                self.check()
                move_synced(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        except NenyaError:
            raise
        except OSError as error:
            self.check()  # the process that took over has removed unpublished files
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
        return entry

    def local(self, entry: Entry) -> Path:
        """Return a local file of the archive, fetched from S3 if needed.

        Raises:
            InputFileError: It is missing, or its size differs from the manifest.
            StorageError: The S3 service does not return it.
        """
        if self.url is None:
            path = inside(self.root, entry.name)
            if not path.is_file() or path.stat().st_size != entry.size:
                raise InputFileError(
                    f"{path}: missing or truncated, but listed in {MANIFEST}; run nenya status for details"
                )
            return path
        path = self._object(entry)
        if not path.is_file() or path.stat().st_size != entry.size:
            self.fetch(entry, path)
        return path

    def fetch(self, entry: Entry, path: Path) -> None:
        """Fetch a file of an archive on S3 to a local path, where it appears once it agrees with the manifest."""
        assert self.url is not None
        fetch_checked(self.url, entry, path, MANIFEST)

    def check_links(self, versions: Sequence[str]) -> None:
        """Check that the folders that an update writes to and removes from are folders without links.

        Args:
            versions: their names.

        Raises:
            OutputError: One of them, or an entry, is a link.
        """
        for name in (WORK, CUTOUTS, *versions):
            refuse_links(self.root / name)

    def remove(self, name: str) -> None:
        """Remove a file that the manifest does not list, and the rest of its upload."""
        self.check()
        if self.url is None:
            inside(self.root, name).unlink(missing_ok=True)
        else:
            store().drop_upload(self._note(name))
            store().delete(join_url(self.url, name))

    def drop_uploads(self) -> None:
        """Abort unfinished uploads of killed updates to S3."""
        for note in list((self.work / "uploads").glob("*")):
            store().drop_upload(note.with_name(note.name.removesuffix(".new")))

    def _note(self, name: str) -> Path:
        folder = self.work / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / hashlib.sha256(name.encode()).hexdigest()[:16]

    def _object(self, entry: Entry) -> Path:
        return inside(self.root, f"objects/{entry.sha256[:16]}/{PurePosixPath(entry.name).name}")

    def index_folder(self, version: str, *, reading: bool = False) -> Path:
        """Return the path of the index of a version; on S3, that of its copy for readers or updates."""
        return inside(self.root, f"{version}/{INDEX}-read" if reading and self.url else f"{version}/{INDEX}")


@dataclass
class Opened:
    """One model version of an archive, as opened; later updates do not change it.

    Attributes:
        folder: the archive.
        name: of the version.
        version: its entry in the manifest.
        said: the state of its index.
    """

    folder: Folder
    name: str
    version: Version
    said: State

    def paths(self, kind: str) -> list[Path]:
        """Return the local files of a kind: `cutouts`, `latents` or `table`."""
        return [self.folder.local(getattr(added, kind)) for added in self.version.files]

    def latents(self, least_cosine: float | None = None) -> Latents:
        """Return the latents of all files; see `Latents` for what is left out."""
        return Latents(self.paths("latents"), least_cosine=least_cosine)

    def table(self) -> "pd.DataFrame":
        """Return the rows of all tables; columns that a table lacks are empty there."""
        return from_arrow(read_tables(self.paths("table")))

    def index(self) -> IndexSearcher:
        """Return the index."""
        place = self.folder.index_folder(self.name, reading=True)
        if self.folder.url is not None:
            fetch_index_files(self.folder, self.said, place)
        return IndexSearcher(place, self.said.about, self.version.index.version)

    def weights(self) -> Path:
        """Return the weights."""
        return self.folder.local(self.version.weights)

    def with_settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return options as plain values, with the settings of the version."""
        own = {key: found for key, found in self.version.settings.items() if key in ("model", "preprocess", "trainer")}
        return {**values, **{key: {**values[key], **found} for key, found in own.items()}}


def open_version(place: str, version: str | None = None, cache_dir: str | None = None) -> Opened:
    """Open one model version of an archive for reading.

    Args:
        place: a folder or an s3:// address.
        version: its name; needed only if there are several.
        cache_dir: folder of files fetched from S3.

    Raises:
        InputFileError: There is no archive.
        OptionError: There is no such version, or there are several and none is given.
    """
    folder = Folder(place, cache_dir)
    manifest = folder.read()
    if not manifest:
        raise InputFileError(f"{place}: no archive ({MANIFEST}); nenya update archive={place} new=... creates one")
    known = ", ".join(manifest)
    if version is None and len(manifest) > 1:
        raise OptionError(f"{place} has several model versions: give version=, one of {known}")
    name = version or next(iter(manifest))
    if name not in manifest:
        raise OptionError(f"version={name}: {place} has {known}")
    return open_entry(folder, name, manifest[name])


def open_chosen(options: Any) -> Opened | None:
    """Return the archive given by `archive=`; None if `table=` is given instead.

    Raises:
        OptionError: Neither is given, or both are.
        InputFileError: There is no archive.
    """
    if options.table and options.archive_dir:
        raise OptionError(f"table={options.table} and archive={options.archive_dir}: give one of them")
    if not options.table and not options.archive_dir:
        raise OptionError(
            "expected table=, the table of the cutouts (.parquet, .csv or .feather), or archive=, an archive of nenya "
            "update"
        )
    if not options.archive_dir:
        return None
    return open_version(options.archive_dir, options.version, options.loader.cache_dir)


def open_entry(folder: Folder, name: str, version: Version) -> Opened:
    """Open a version listed in a manifest."""
    return Opened(folder, name, version, read_state(folder, version.index.about))


def read_state(folder: Folder, entry: Entry) -> State:
    """Return the state of the index of a version.

    Raises:
        InputFileError: It is missing or damaged, or names files outside the folder of the index.
        StorageError: The S3 service does not return it.
    """
    try:
        return parse_state(read_bytes(folder.local(entry)), f"{folder.place}/{entry.name}", entry)
    except NenyaError:
        raise
    except OSError as error:
        raise InputFileError(f"{folder.place}/{entry.name}: cannot be read ({error.strerror})") from error


def read_tables(paths: Sequence[Path]) -> Any:
    """Return several .parquet tables as one Arrow table; columns that a table lacks are empty there.

    Raises:
        InputFileError: One is damaged, or a column has incompatible types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for path in paths:
            check_table(path)
        tables = [check_arrow(pq.read_table(path), path) for path in paths]
        return pa.concat_tables(tables, promote_options="permissive")
    except NenyaError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputFileError(f"{paths[0].parent}: its tables cannot be combined ({first})") from error


def fetch_index_files(folder: Folder, state: State, place: Path) -> None:
    """Fetch the missing files of an index on S3 to a local folder."""
    for entry in state.files:
        path = inside(place, state.below(entry))
        if not path.is_file() or path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
            folder.fetch(entry, path)
