"""Writes the index of an archive; rows added but not committed in the manifest are removed."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.archive.commit import changed as changed_by_another
from nenya.archive.folder import Folder, fetch_index_files, read_state
from nenya.archive.manifest import STATES, Index, State
from nenya.errors import InputFileError
from nenya.latents.files import Latents
from nenya.latents.index import ABOUT, lance_errors, open_table, read_about
from nenya.latents.index_build import add_files, build_index, compact, drop_old_states, recall_line, write_about
from nenya.options.commands import UpdateOptions
from nenya.storage.disk import atomic_path, sha256_file, sync
from nenya.storage.small_files import refuse_links

if TYPE_CHECKING:
    import pandas as pd

_HINT = "latest_version_hint.json"  # of LanceDB: changes, and is not needed


@dataclass
class IndexWriter:
    """Adds files to the index of a version.

    Attributes:
        folder: the archive.
        name: of the version.
        state: of the index in the manifest; None before its first file.
    """

    folder: Folder
    name: str
    state: Index | None
    _ready: bool = False
    _rows: int | None = None  # columns of the index, if known
    _rewritten: bool = False  # whether the last build replaced files
    _synced: set[Path] = field(default_factory=set)

    @property
    def place(self) -> Path:
        """The folder of the index."""
        return self.folder.index_folder(self.name)

    def begin(self) -> None:
        """Restore the index to the state of the manifest, after a killed update."""
        refuse_links(self.place)  # LanceDB would follow links
        if self.state is None:
            shutil.rmtree(self.place, ignore_errors=True)
        elif self.folder.url is not None:
            said = self._said()
            self._mirror(said)
            write_about(self.place, said.about)
        else:
            self._restore(self._said().about)
        self._ready = True

    def _said(self) -> State:
        assert self.state is not None
        return read_state(self.folder, self.state.about)

    def _mirror(self, said: State) -> None:
        """Make the local copy of an index on S3 have exactly its files."""
        fetch_index_files(self.folder, said, self.place)
        wanted = {self.place / said.below(entry) for entry in said.files}
        for path in self.place.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()

    def _restore(self, about: dict[str, Any]) -> None:
        """Remove rows added to a local index since the manifest was written."""
        assert self.state is not None
        try:
            with lance_errors(self.place):
                table = open_table(self.place)
                if table.version != self.state.version:
                    table.checkout(self.state.version)
                    table.restore()
        except InputFileError as error:
            raise InputFileError(
                f"{str(error).rpartition(';')[0]}; restore it, or begin another version by version=, which "
                "makes an index of the same cutouts"
            ) from error
        write_about(self.place, about)

    def add(self, latents: Latents, table: "pd.DataFrame") -> list[str]:
        """Add the rows of a file; unless `committed` follows, the next call removes them.

        Returns:
            Columns of the table that the index, with the columns of the first file, does not have.
        """
        if not self._ready:
            self.begin()
        self._ready = False
        self.folder.check()
        added = add_files(self.place, latents, table)
        self._rows = added + (self.state.rows if self.state else 0)
        known = read_about(self.place)["columns"]
        return [str(name) for name in table if name not in known]

    def committed(self, state: Index) -> None:
        """Record that the manifest lists a state."""
        self.state, self._ready = state, True

    def build(self, options: UpdateOptions, *, added: bool) -> bool:
        """Update the vector index if there are enough rows; return whether it changed."""
        assert self.state is not None
        index = self._said().about["index"]
        current = self.state.rows < max(2, options.index_from) or (index and index["rows"] == self.state.rows)
        if current and not added:
            return False
        if not self._ready:
            self.begin()
        self._ready = False
        self.folder.check()
        self._rows = self.state.rows
        changed = compact(self.place)
        if not current:
            build_index(self.place, kind=options.kind, index_from=options.index_from, seed=options.seed)
        now = read_about(self.place)["index"]
        self._rewritten = changed or _written(now) != _written(index)
        self._ready = current and not changed
        return not self._ready

    def tidy(self, before: Index) -> None:
        """Remove files that a committed rebuild has replaced."""
        if self.folder.url is None:
            if self._rewritten:  # otherwise nothing was replaced, and the search for it takes longer in a larger index
                drop_old_states(self.place)
            return
        assert self.state is not None
        now = {entry.name for entry in self._said().files}
        for entry in read_state(self.folder, before.about).files:
            if entry.name not in now:
                self.folder.remove(entry.name)

    def publish(self, work: Path) -> Index:
        """Return the present state, for the manifest; on S3, upload its files first."""
        about = read_about(self.place)
        with lance_errors(self.place):
            table = open_table(self.place)
            version, rows = int(table.version), int(table.count_rows())
        if self._rows is not None and rows != self._rows:
            raise changed_by_another(self.folder.place)
        files: list[list[Any]] = []
        if self.folder.url is None:
            self._persist()
        else:
            files = self._send()
        path = work / f"about-{version}.json"
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"about": about, "files": files}) + "\n")
        entry = self.folder.publish(path, f"{self.name}/{STATES}/{path.name}", keep=True)
        path.unlink()
        return Index(version, rows, entry, recall_line(about))

    def _persist(self) -> None:
        """Wait until the files of LanceDB are on the disk, as the manifest must not precede them."""
        new = {path for path in self.place.rglob("*") if path.is_file()} - self._synced
        for path in (*new, *{path.parent for path in new}):
            sync(path)
        self._synced |= new

    def _send(self) -> list[list[Any]]:
        """Upload files missing on S3; return name, size and hash of all files."""
        known = {entry.name: (entry.size, entry.sha256) for entry in (self._said().files if self.state else [])}
        files: list[list[Any]] = []
        for path in sorted(self.place.rglob("*")):
            if not path.is_file() or path.name in (_HINT, ABOUT, "lock"):
                continue
            name = f"{self.name}/index/{path.relative_to(self.place)}"
            size = path.stat().st_size
            if name not in known or known[name][0] != size or path.suffix == ".manifest":
                sha256 = sha256_file(path)
                if known.get(name) != (size, sha256):
                    self.folder.publish(path, name)
                known[name] = (size, sha256)
            files.append([name, *known[name]])
        return files


def _written(index: dict[str, Any] | None) -> tuple[Any, ...]:
    """Return what of a vector index changes when its files are written."""
    return () if index is None else (index["kind"], index["trained_on"], index.get("indexed", index["rows"]))
