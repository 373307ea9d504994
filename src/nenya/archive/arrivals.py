"""New files: the files named by `new=`, and which of them an archive already has."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nenya.archive.manifest import Added, Manifest, Version
from nenya.errors import InputFileError
from nenya.prepare.remote import kind_of
from nenya.prepare.sources import SUFFIXES, find_fields, identity_of, is_zarr
from nenya.storage.paths import HDF5_SUFFIXES, entries_of, find_sources, is_s3
from nenya.storage.s3.service import store

_CUTOUTS_END = "_preproc"


@dataclass(frozen=True)
class Arrival:
    """The source of one cutout file of the archive.

    Attributes:
        stem: name of the cutout file in the archive, without suffix.
        place: its name in messages.
        sources: the cutout file, or granules; empty for cutouts that the archive has for another version.
        marks: [name, bytes, mark] of each source.
        granules: whether the sources are granules.
        known: the entry of the same cutouts in another version.
    """

    stem: str
    place: str
    sources: Sequence[Path | str]
    marks: list[list[Any]] = field(hash=False)
    granules: bool = False
    known: Added | None = None

    @property
    def uid(self) -> str:
        """The name of its folder of unfinished work, which changes when a source changes."""
        return hashlib.sha256(json.dumps([self.stem, self.marks]).encode()).hexdigest()[:16]


@dataclass
class Arrivals:
    """The work of an update.

    Attributes:
        wanted: files to add, in order.
        there: number of files that the archive already has.
        failed: place -> reason why it cannot be added.
    """

    wanted: list[Arrival] = field(default_factory=list)
    there: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def find_new(new: Any) -> tuple[list[Path | str], list[Path | str]]:
    """Return the cutout files (HDF5) and the granules (all else) named by `new=`, each once.

    Raises:
        OptionError: Nothing is given.
        InputFileError: An entry matches nothing.
    """
    cutouts: dict[Path | str, None] = {}
    granules: dict[Path | str, None] = {}
    for entry in entries_of(new, "granules or cutout files, such as new=/path/to/day/, a glob or a list"):
        one = entry.endswith(HDF5_SUFFIXES)
        found = [*_try(find_sources, entry), *([] if one else _try(find_fields, entry))]
        fields = [place for place in found if _is_granule(place)]
        images = [place for place in found if str(place).endswith(HDF5_SUFFIXES)]
        if not fields and not images:
            raise InputFileError(
                f"new={entry}: expected cutout files (.h5) or granules (.nc, .zarr ...), found none; check the path"
            )
        cutouts.update(dict.fromkeys(images))
        granules.update(dict.fromkeys(fields))
    return list(cutouts), list(granules)


def _try(find: Any, entry: str) -> list[Path | str]:
    try:
        return list(find(entry))
    except InputFileError:
        return []


def arrivals_of(
    cutouts: Sequence[Path | str], granules: Sequence[Path | str], version: Version | None, most: int
) -> Arrivals:
    """Return the files to add to a version.

    A cutout file is identified by path, size and time, else by its content when it is copied; a granule by its name
    and size. Granules are grouped in the order of `new=`, whatever the archive already has, so that a killed update
    makes the same files when it runs again.
    """
    found = Arrivals()
    known = {json.dumps(mark) for added in (version.files if version else []) for mark in added.sources}
    for place in cutouts:
        mark = _mark(place, str(place.absolute() if isinstance(place, Path) else place), found)
        if mark is None:
            continue
        if json.dumps(mark) in known:
            found.there += 1
        else:
            found.wanted.append(Arrival(Path(str(place)).stem, str(place), [place], [mark]))
    sizes = _granule_sizes(version)
    for start in range(0, len(granules), most):
        group, marks = [], []
        for place in granules[start : start + most]:
            mark = _mark(place, Path(str(place)).name, found)
            if mark is None:
                continue
            if mark[0] not in sizes:
                group.append(place)
                marks.append(mark)
            elif sizes[mark[0]] == mark[1]:
                found.there += 1
            else:
                found.failed[str(place)] = (
                    "the archive has a granule of this name with another size; rename the new one"
                )
        if group:
            found.wanted.append(_group(group, marks))
    return found


def _is_granule(place: Path | str) -> bool:
    """Return whether a source is a granule by its name, or a Zarr store by its content."""
    if str(place).endswith((*SUFFIXES, *HDF5_SUFFIXES)):
        return not str(place).endswith(HDF5_SUFFIXES)
    return is_zarr(place) if isinstance(place, Path) else kind_of(place) == "zarr"


def _mark(place: Path | str, name: str, found: Arrivals) -> list[Any] | None:
    """Return name, size and mark of a source; if it does not exist, note the reason and return None."""
    try:
        if is_s3(place) and kind_of(str(place)) != "zarr":
            place = str(place)
            head = store().head(place)
            if head is None:
                raise InputFileError("no such object; check bucket and key")
            return [name, head.size, head.etag]
        identity = identity_of(place)
        return [name, int(identity.split()[0]), identity]
    except InputFileError as error:
        found.failed[str(place)] = str(error).removeprefix(f"{place}: ")
        return None


def _granule_sizes(version: Version | None) -> dict[str, int]:
    if version is None:
        return {}
    marks = [mark for added in version.files for mark in added.sources] + version.empty
    return {mark[0]: mark[1] for mark in marks}


def _group(group: Sequence[Path | str], marks: list[list[Any]]) -> Arrival:
    """Return granules as one arrival, named after the first one and a hash of all names."""
    first = Path(str(group[0])).name
    for suffix in SUFFIXES:
        first = first.removesuffix(suffix)
    digest = hashlib.sha256(json.dumps([mark[:2] for mark in marks]).encode()).hexdigest()[:8]
    place = str(group[0]) if len(group) == 1 else f"{group[0]} and {len(group) - 1} more"
    return Arrival(f"{first}_{digest}{_CUTOUTS_END}", place, group, marks, granules=True)


def from_others(manifest: Manifest, name: str) -> Arrivals:
    """Return the cutouts that other versions of the archive have and this one lacks."""
    found, seen = Arrivals(), {added.stem for added in (manifest[name].files if name in manifest else [])}
    for added in _all_files(manifest):
        if added.stem not in seen:
            seen.add(added.stem)
            found.wanted.append(Arrival(added.stem, added.cutouts.name, [], added.sources, known=added))
    return found


def _all_files(manifest: Manifest) -> Iterable[Added]:
    return (added for version in manifest.values() for added in version.files)


def same_stem(manifest: Manifest, stem: str) -> Added | None:
    """Return the entry of a cutout file by name, in any version."""
    return next((added for added in _all_files(manifest) if added.stem == stem), None)
