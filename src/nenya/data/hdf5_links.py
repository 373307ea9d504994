"""Targets of the links of an HDF5 file, and data sets stored in other files: checked before HDF5 follows them.

An HDF5 file can name any file of the machine: as the target of a link, as the source of a virtual data set, as the
external storage of a data set. HDF5 opens these files, and returns their bytes as values of the first file. Whatever
HDF5 says of a damaged file becomes one printable line (`damage_named`).
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py

from nenya.data.filters import FLETCHER32, GZIP, LZF, SHUFFLE
from nenya.errors import InputFileError, NenyaError
from nenya.storage.flock import hdf5_locking
from nenya.storage.small_files import is_regular
from nenya.storage.texts import shown

Links = Literal["folder", "any", "none"]
"""Where data may be stored: in the file's own folder and below, anywhere, or in the file itself only."""

_PLAIN = {GZIP, SHUFFLE, FLETCHER32, LZF}
_MOST_OBJECTS = 100_000
_MOST_DEPTH = 1000
_MOST_FILES = 100
ALLOW = "loader.allow_external=true allows it, if you trust the file"
COPY_IN = "copy its data into the file itself"

COPY = "the file is damaged: copy or create it again"


@dataclass(frozen=True)
class Bounds:
    """Where the data of a file may be stored.

    Attributes:
        path: the file, None for one in memory.
        links: see `Links`.
        advice: what to do about a file that is refused.
    """

    path: Path | None
    links: Links = "folder"
    advice: str = ALLOW

    @property
    def name(self) -> str:
        """The file, for errors."""
        return "this file" if self.path is None else str(self.path)

    def holds(self, place: Path) -> bool:
        """Return whether a place, with its symbolic links resolved, lies in the file's folder."""
        if self.path is None:
            return False
        own = {self.path.resolve().parent, self.path.parent.resolve()}
        return any(place.resolve().is_relative_to(folder) for folder in own)

    def leads_elsewhere(self, where: str) -> InputFileError:
        """Return the error for a linked item, in a file where links are not followed."""
        return InputFileError(
            f"{self.name}: '{where}' uses a link, external storage or a virtual data set, which are not followed: "
            "refused; store the array itself"
        )

    def check(self, places: Iterable[Path], what: str) -> list[Path]:
        """Return which of the paths where HDF5 may look exist.

        Args:
            places: of `candidates`.
            what: what leads there, for errors: `'name' is a link`.

        Raises:
            InputFileError: One of them is out of bounds, or not a regular file, on which HDF5 might block.
        """
        found = [place for place in places if os.path.lexists(place) and not place.is_dir()]
        for place in found if self.links != "any" else []:
            if not self.holds(place):
                where = f"{shown(place.resolve())}, out of the file's own folder"
                raise InputFileError(f"{self.name}: {what} to {where}: refused; {self.advice}")
            if place.exists() and not is_regular(place):
                raise InputFileError(f"{self.name}: {what} to {shown(place)}, which is not a regular file: refused")
        return [place for place in found if place.is_file()]


def candidates(holder: Path, name: str, variable: str) -> list[Path]:
    """Return the paths, in order, where HDF5 or nenya may look for a file that another one names.

    Args:
        holder: the file that contains the name.
        name: of the other file.
        variable: environment variable with further folders.
    """
    folder, tried = Path(os.path.abspath(holder)).parent, [Path(name)] if os.path.isabs(name) else []
    relative, value = os.path.basename(name) if tried else name, os.environ.get(variable, "")
    for prefix in filter(None, dict.fromkeys([*value.split(":"), value])):
        tried.append(Path(prefix.replace("${ORIGIN}", str(folder)), relative))
    tried += [folder / relative, Path.cwd() / relative, holder.resolve().parent / relative]
    return list(dict.fromkeys(tried))


def outside(creation: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the files that a data set names: description, file name, environment variable."""
    for number in range(creation.get_external_count()):
        yield "has its data by a reference", os.fsdecode(creation.get_external(number)[0]), "HDF5_EXTFILE_PREFIX"
    if creation.get_layout() == h5py.h5d.VIRTUAL:
        for name in dict.fromkeys(creation.get_virtual_filename(n) for n in range(creation.get_virtual_count())):
            text = os.fsdecode(name)
            if text != ".":
                yield "is virtual, with a source", text, "HDF5_VDS_PREFIX"


def check_storage(creation: Any, holder: Path, where: str, bounds: Bounds) -> list[Path]:
    """Check the files that a data set names, and return those that exist.

    Args:
        creation: the data set's properties.
        holder: the file that it is in.
        where: its name, for errors.
        bounds: of the first file.

    Raises:
        InputFileError: One is out of bounds.
    """
    found: list[Path] = []
    if bounds.links == "none" and (creation.get_external_count() or creation.get_layout() == h5py.h5d.VIRTUAL):
        raise bounds.leads_elsewhere(where)
    for what, name, variable in outside(creation):
        if "%" in name and variable == "HDF5_VDS_PREFIX" and bounds.links != "any":
            pattern = f"files named by a pattern, '{shown(name)}'"
            raise InputFileError(f"{bounds.name}: '{where}' {what} to {pattern}: refused; {bounds.advice}")
        found += bounds.check(candidates(holder, name, variable), f"'{where}' {what}")
    return found


@dataclass
class _Walk:
    """Visits the objects of a file, each once, and the files that its links lead to.

    Attributes:
        bounds: of the file.
        files: that links lead to, not yet visited.
        known: all of them so far.
        seen: objects (file, address).
    """

    bounds: Bounds
    files: deque[Path] = field(default_factory=deque)
    known: set[Path] = field(default_factory=set)
    seen: set[tuple[int, int]] = field(default_factory=set)

    def file(self, opened: Any, holder: Path) -> None:
        """Visit the objects of one file."""
        groups: deque[tuple[Any, str, int]] = deque([(h5py.h5g.open(opened, b"/"), "", 0)])
        self._is_new(groups[0][0])
        while groups:
            group, path, depth = groups.popleft()
            if depth > _MOST_DEPTH:
                raise InputFileError(f"{self.bounds.name}: more than {depth - 1} levels of groups; {COPY}")
            for key in group:
                name = f"{path}/{shown(key.decode('utf-8', 'replace'))}".lstrip("/")[-300:]
                item = self._item(group, key, name, holder)
                if isinstance(item, h5py.h5g.GroupID):
                    groups.append((item, name, depth + 1))

    def _item(self, group: Any, key: bytes, name: str, holder: Path) -> Any:
        """Check a link; return the object that it leads to, None if that is known or in another file."""
        kind = group.links.get_info(key).type
        if kind == h5py.h5l.TYPE_SOFT:  # within the file, where every link is checked
            if self.bounds.links == "none":
                raise self.bounds.leads_elsewhere(name)
            return None
        if kind == h5py.h5l.TYPE_EXTERNAL:
            self._external(os.fsdecode(group.links.get_val(key)[0]), name, holder)
            return None
        if kind != h5py.h5l.TYPE_HARD:
            raise InputFileError(f"{self.bounds.name}: '{name}' is a link of unknown type ({kind}): refused")
        item = h5py.h5o.open(group, key)
        if not self._is_new(item):
            return None
        if isinstance(item, h5py.h5d.DatasetID):
            creation = item.get_create_plist()
            self.known_files(check_storage(creation, holder, name, self.bounds), virtual=creation)
            self._check_filters(creation, name)
        return item

    def known_files(self, places: list[Path], *, virtual: Any = None) -> None:
        """Add files to be visited: those of links, and the sources of virtual data sets."""
        if virtual is not None and virtual.get_layout() != h5py.h5d.VIRTUAL:
            return
        for place in {place.resolve() for place in places} - self.known:
            self.known.add(place)
            self.files.append(place)
        if len(self.known) > _MOST_FILES:
            raise InputFileError(f"{self.bounds.name}: links to more than {_MOST_FILES} files; repack it into one file")

    def _external(self, file: str, name: str, holder: Path) -> None:
        if self.bounds.links == "none":
            raise self.bounds.leads_elsewhere(name)
        self.known_files(self.bounds.check(candidates(holder, file, "HDF5_EXT_PREFIX"), f"'{name}' is a link"))

    def _check_filters(self, creation: Any, name: str) -> None:
        codes = {creation.get_filter(number)[0] for number in range(creation.get_nfilters())}
        if self.bounds.links == "none" and codes - _PLAIN:
            raise InputFileError(
                f"{self.bounds.name}: '{name}' uses other filters than gzip, shuffle, lzf "
                f"and fletcher32 ({sorted(codes - _PLAIN)}): repack it (h5repack -f GZIP=4)"
            )

    def _is_new(self, item: Any) -> bool:
        info = h5py.h5o.get_info(item)
        key = (int(info.fileno), int(info.addr))
        new = key not in self.seen
        self.seen.add(key)
        if len(self.seen) > _MOST_OBJECTS:
            raise InputFileError(f"{self.bounds.name}: more than {_MOST_OBJECTS} objects; {COPY}")
        return new


def check_links(file: Any, bounds: Bounds) -> None:
    """Check every object of an open file, including all that HDF5 would follow: no link and no data lead out of bounds.

    Args:
        file: an h5py file.
        bounds: where its data may lie.

    Raises:
        InputFileError: A link is out of bounds or of unknown type; the file is damaged, or has more objects than are
            checked.
    """
    walk = _Walk(bounds)
    holder = bounds.path or Path("file")
    if bounds.path is not None:
        walk.known.add(holder.resolve())
    with damage_named(bounds.name):
        walk.file(file.id, holder)
        while walk.files:
            place = walk.files.popleft()
            if h5py.is_hdf5(place):
                with h5py.File(place, "r", locking=hdf5_locking(place)) as other:
                    walk.file(other.id, place)


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn any exception of HDF5 and h5py about a damaged file into an InputFileError of one line."""
    try:
        yield
    except NenyaError:
        raise
    except Exception as error:
        raise InputFileError(f"{where} cannot be read ({one_line(error)}); {COPY}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line."""
    return shown(" ".join(str(error).split()), 300) or type(error).__name__
