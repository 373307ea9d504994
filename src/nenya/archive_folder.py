"""An archive folder: cutouts, tables, latents, map, groups and index of model versions, described by one small file.

`archive.json` is the only thing in it that changes, and the only commit point: what it does not name is not there.
Everything that it names is written once, under a name of its own, before it is named. The folder lies on a disk or on
S3; there, files are fetched into `loader.cache_dir` as they are needed, under their hash.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nenya.archive import IndexArchive
from nenya.archive_commit import fingerprint, replace_file, replace_object
from nenya.data.files import local_path, scratch_folder
from nenya.errors import InputFileError, OptionError, OutputError, StorageError
from nenya.latents import Latents
from nenya.s3 import is_s3, join_url, store
from nenya.storage import move_synced, sha256_file
from nenya.temporaries import temporary_name

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MANIFEST = "archive.json"
WORK = ".work"
FORMAT = 1
CUTOUTS = "cutouts"
"""Folder of the cutouts, which all versions share."""


@dataclass(frozen=True)
class Entry:
    """A file that never changes.

    Attributes:
        name: its path below the archive.
        size: bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The state of the index that belongs to the files listed.

    Attributes:
        version: of LanceDB's table.
        rows: in it.
        about: what the index says of itself, and on S3 the files that it consists of.
        searched_by: the vector index and its recall in words.
    """

    version: int
    rows: int
    about: Entry
    searched_by: str = ""


@dataclass(frozen=True)
class Added:
    """A cutout file that is in the archive, with all that was made of it.

    Attributes:
        stem: name of the cutout file without suffix.
        sources: what it was made of: [name, bytes, mark] each; a granule by its name, a cutout file by its place.
        cutouts: the file.
        latents: of its cutouts.
        table: a row a cutout, with US0, US1 and cluster.
        rows: partition -> cutouts.
        left_out: cutouts without a latent, as they have missing pixels.
        dates: first and last datetime, where the table has them.
        nenya: the version that made it.
        date: when it was added.
    """

    stem: str
    sources: list[list[Any]]
    cutouts: Entry
    latents: Entry
    table: Entry
    rows: dict[str, int]
    left_out: int
    dates: list[str]
    nenya: str
    date: str


@dataclass
class Version:
    """All of one model version.

    Attributes:
        settings: section -> key -> value: what decides what the numbers are.
        made: versions of nenya and the libraries that began it.
        weights: the network.
        projector: the map.
        clusters: the centres of the groups.
        index: of all files.
        files: in the order in which they were added.
        empty: granules without a cutout, as `Added.sources`.
    """

    settings: dict[str, Any]
    made: dict[str, str]
    weights: Entry
    projector: Entry
    clusters: Entry
    index: Index
    files: list[Added] = field(default_factory=list)
    empty: list[list[Any]] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """Yield all files that are named."""
        yield from (self.weights, self.projector, self.clusters, self.index.about)
        for added in self.files:
            yield from (added.cutouts, added.latents, added.table)


Manifest = dict[str, Version]
"""Version name -> what there is of it."""


class Folder:
    """The place of an archive.

    Args:
        place: a folder or an s3:// address.
        cache_dir: of what is fetched from S3 and made for it.

    Attributes:
        url: the address, None for a local folder.
        root: the folder; for S3 where its copies lie.
        work: where files are made before they are published; on the same file system as `root`.
        check: called before anything is published; raises if the archive is held no longer.
        safe: whether the S3 service compares what is replaced.
    """

    def __init__(self, place: str, cache_dir: str | None = None) -> None:
        self.place = place
        self.url = place.rstrip("/") if is_s3(place) else None
        if self.url is None:
            self.root = local_path(place).absolute()
        else:
            mark = hashlib.sha256(self.url.encode()).hexdigest()[:16]
            self.root = scratch_folder(cache_dir).absolute() / "archive" / mark
        self.work = self.root / WORK
        self._before = ""  # the state of the manifest that was read: a hash, on S3 its ETag
        self.check: Callable[[], None] = lambda: None
        self.safe = True

    def read(self) -> Manifest:
        """Return what is in the archive; nothing where there is none.

        Raises:
            InputFileError: `archive.json` is damaged or of a newer nenya.
            StorageError: An S3 service does not give it.
        """
        if self.url is None:
            path = self.root / MANIFEST
            data = path.read_bytes() if path.is_file() else b""
            self._before = fingerprint(data)
        else:
            found = store().head(join_url(self.url, MANIFEST))
            self._before = found.etag if found else ""
            data = store().read_bytes(found.url, limit=2**30) if found else b""
        return parse(data, f"{self.place}/{MANIFEST}") if data else {}

    def commit(self, manifest: Manifest) -> None:
        """Let the archive be what a manifest says; readers find the old state or the new one.

        Raises:
            LockLostError: Another process has taken the archive over.
            OutputError: It cannot be written, or another update has committed since `read`.
            StorageError: An S3 service does not take it.
        """
        data = render(manifest)
        if self.url is None:
            replace_file(self.root / MANIFEST, data, self._before, self.check, self.place)
            self._before = fingerprint(data)
        else:
            url = join_url(self.url, MANIFEST)
            self._before = replace_object(url, data, self._before, self.check, self.place, self.safe)

    def publish(self, path: Path, name: str, *, keep: bool = False) -> Entry:
        """Bring a finished file to its place in the archive, where nobody looks until the manifest names it.

        Args:
            path: in `work`; it stays there, so that a killed update need not make it again.
            name: below the archive.
            keep: on S3, keep a local copy for later runs.
        """
        entry = Entry(name, path.stat().st_size, sha256_file(path))
        self.check()
        target = self._object(entry) if self.url else self.root / name
        if self.url is not None:
            try:
                store().upload(path, join_url(self.url, name), note=self._note(name), check=self.check)
            except StorageError:
                self.check()  # whoever has taken the archive over has dropped the upload
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
        except OSError as error:
            self.check()  # whoever has taken the archive over has removed what was about to be published
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
        return entry

    def local(self, entry: Entry) -> Path:
        """Return a local file of the archive, fetched from S3 where it is not here.

        Raises:
            InputFileError: It is missing, or of another size than the manifest says.
            StorageError: An S3 service does not give it.
        """
        if self.url is None:
            path = self.root / entry.name
            if not path.is_file() or path.stat().st_size != entry.size:
                raise InputFileError(
                    f"{path}: missing or cut short, though {MANIFEST} names it; nenya status says more"
                )
            return path
        path = self._object(entry)
        if not path.is_file():
            self.fetch(entry, path)
        return path

    def fetch(self, entry: Entry, path: Path) -> None:
        """Bring a file of an archive on S3 to a local path."""
        assert self.url is not None
        part = temporary_name(path)
        found = store().download(join_url(self.url, entry.name), part)
        if found != entry.sha256:
            part.unlink()
            raise StorageError(f"{self.url}/{entry.name}: is not what {MANIFEST} says it is (sha256)")
        os.replace(part, path)

    def remove(self, name: str) -> None:
        """Remove a file that the manifest does not name, and what is left of its upload."""
        self.check()
        if self.url is None:
            (self.root / name).unlink(missing_ok=True)
        else:
            store().drop_upload(self._note(name))
            store().delete(join_url(self.url, name))

    def drop_uploads(self) -> None:
        """Drop what killed updates have left of uploads to S3."""
        for note in list((self.work / "uploads").glob("*")):
            store().drop_upload(note.with_name(note.name.removesuffix(".new")))

    def _note(self, name: str) -> Path:
        folder = self.work / "uploads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / hashlib.sha256(name.encode()).hexdigest()[:16]

    def _object(self, entry: Entry) -> Path:
        return self.root / "objects" / entry.sha256[:16] / PurePosixPath(entry.name).name

    def index_folder(self, version: str, *, reading: bool = False) -> Path:
        """Return where the index of a version is; on S3, where its copy for readers or for updates is."""
        return self.root / version / ("index-read" if reading and self.url else "index")


@dataclass
class Opened:
    """One model version of an archive, as it was when it was opened; later updates do not change it.

    Attributes:
        folder: the archive.
        name: of the version.
        version: what there is.
        said: what its index says of itself, and on S3 its files.
    """

    folder: Folder
    name: str
    version: Version
    said: dict[str, Any]

    def paths(self, kind: str) -> list[Path]:
        """Return the local files of a kind: `cutouts`, `latents` or `table`."""
        return [self.folder.local(getattr(added, kind)) for added in self.version.files]

    def latents(self) -> Latents:
        """Return the latents of all files."""
        return Latents(self.paths("latents"))

    def table(self) -> "pd.DataFrame":
        """Return the rows of all tables, columns that only some have with gaps."""
        import pandas as pd
        import pyarrow as pa

        whole = read_tables(self.paths("table"))
        gaps = any(pa.types.is_integer(column.type) and column.null_count for column in whole.columns)
        # Whole numbers such as UID would lose digits as floats.
        found: pd.DataFrame = whole.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get if gaps else None)
        return found

    def index(self) -> IndexArchive:
        """Return the index."""
        place = self.folder.index_folder(self.name, reading=True)
        if self.folder.url is not None:
            fetch_index(self.folder, self.said["files"], place)
        return IndexArchive(place, self.said["about"], self.version.index.version)

    def weights(self) -> Path:
        """Return the weights."""
        return self.folder.local(self.version.weights)

    def with_settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return options as plain values, with those that the version was made with."""
        own = {key: found for key, found in self.version.settings.items() if key in ("model", "preprocess", "trainer")}
        return {**values, **{key: {**values[key], **found} for key, found in own.items()}}


def open_version(place: str, version: str | None = None, cache_dir: str | None = None) -> Opened:
    """Open one model version of an archive for reading.

    Args:
        place: a folder or an s3:// address.
        version: its name; may be left out where there is one only.
        cache_dir: of what is fetched from S3.

    Raises:
        InputFileError: There is no archive.
        OptionError: There is no such version, or several and none is named.
    """
    folder = Folder(place, cache_dir)
    manifest = folder.read()
    if not manifest:
        raise InputFileError(f"{place}: no archive ({MANIFEST}); nenya update archive={place} new=... makes one")
    known = ", ".join(manifest)
    if version is None and len(manifest) > 1:
        raise OptionError(f"{place} has several model versions: version= names one of {known}")
    name = version or next(iter(manifest))
    if name not in manifest:
        raise OptionError(f"version={name}: {place} has {known}")
    return open_entry(folder, name, manifest[name])


def open_chosen(options: Any) -> Opened | None:
    """Return the archive that `archive=` of a command names; None where `table=` is given instead.

    Raises:
        OptionError: Neither is given, or both are.
        InputFileError: There is no archive.
    """
    if options.table and options.archive_dir:
        raise OptionError(f"table={options.table} and archive={options.archive_dir}: give one of them")
    if not options.table and not options.archive_dir:
        raise OptionError(
            "table= is needed: the table of the cutouts, .parquet, .csv or .feather; or archive=, an archive of nenya "
            "update"
        )
    if not options.archive_dir:
        return None
    return open_version(options.archive_dir, options.version, options.loader.cache_dir)


def open_entry(folder: Folder, name: str, version: Version) -> Opened:
    """Open what a manifest names."""
    return Opened(folder, name, version, json.loads(folder.local(version.index.about).read_bytes()))


def read_tables(paths: Sequence[Path]) -> Any:
    """Return several .parquet tables as one of Arrow; columns that only some have are empty in the others.

    Raises:
        InputFileError: One is damaged, or a column is of kinds that do not fit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputFileError(f"{paths[0].parent}: its tables cannot be read as one ({first})") from error


def fetch_index(folder: Folder, files: list[list[Any]], place: Path) -> None:
    """Bring the files of an index on S3 to a local folder, as far as they are not there."""
    for name, size, sha256 in files:
        entry, path = Entry(name, size, sha256), place / name.partition("/index/")[2]
        if not path.is_file() or path.stat().st_size != size or sha256_file(path) != sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.fetch(entry, path)


def render(manifest: Manifest) -> bytes:
    """Return `archive.json`: a line for each setting and each file."""
    lines = ["{", f' "format": {FORMAT},', ' "about": "an archive of nenya: nenya status says what is in it",']
    lines.append(' "versions": {')
    for number, (name, version) in enumerate(manifest.items()):
        rows = {key: getattr(version, key) for key in ("files", "empty")}
        values = {key: value for key, value in vars(version).items() if key not in rows}
        lines.append(f"  {json.dumps(name)}: {{")
        lines += [f"   {json.dumps(key)}: {json.dumps(value, default=vars)}," for key, value in values.items()]
        for key, items in rows.items():
            inner = ",\n".join(f"    {json.dumps(item, default=vars)}" for item in items)
            lines.append(f'   "{key}": [' + (f"\n{inner}\n   ]" if items else "]") + ("," if key == "files" else ""))
        lines.append("  }" + ("," if number < len(manifest) - 1 else ""))
    return ("\n".join([*lines, " }", "}"]) + "\n").encode()


def parse(data: bytes, place: str) -> Manifest:
    """Return the manifest that `archive.json` is.

    Raises:
        InputFileError: It is damaged, of a newer nenya, or names files outside of the archive.
    """
    try:
        values = json.loads(data)
        if int(values["format"]) > FORMAT:
            raise InputFileError(f"{place}: of a newer nenya (format {values['format']}); this one reads {FORMAT}")
        manifest = {name: _version(found) for name, found in values["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputFileError(
            f"{place}: damaged ({' '.join(str(error).split())[:100]}); put back a copy of it"
        ) from error
    for name, version in manifest.items():
        for path in (name, *(entry.name for entry in version.entries())):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise InputFileError(f"{place}: names a file outside of the archive: {path}")
    return manifest


def _version(values: dict[str, Any]) -> Version:
    entries = {key: Entry(**values[key]) for key in ("weights", "projector", "clusters")}
    index = Index(**{**values["index"], "about": Entry(**values["index"]["about"])})
    files = [
        Added(**{**added, **{key: Entry(**added[key]) for key in ("cutouts", "latents", "table")}})
        for added in values["files"]
    ]
    return Version(**{**values, **entries, "index": index, "files": files})
