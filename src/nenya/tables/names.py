"""Matching of file names in tables: folder, separator and suffix are ignored unless two files share a name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nenya.errors import InputFileError
from nenya.storage.paths import Folder, key_of, split_name


@dataclass(frozen=True)
class NamedFile:
    """A file, and the cutout files to which it may belong.

    Attributes:
        label: its path, for messages.
        names: keys (see `split_name`) of the cutout file; several if its own name is ambiguous.
        folders: folders that may distinguish files of the same name.
    """

    label: str
    names: tuple[str, ...]
    folders: tuple[Folder, ...]


def latents_names(cutouts: str) -> tuple[str, ...]:
    """Return the possible names of the latents file of a cutout file: nenya's, then the original's."""
    key = key_of(cutouts)
    older = key.replace("_preproc", "_latents")
    return tuple(dict.fromkeys((f"{key}_latents.h5", *((f"{older}.h5",) if older != key else ()))))


def cutout_names(latents: str) -> tuple[str, ...]:
    """Return the keys of the possible cutout files of a latents file, from its own name, the likelier one first.

    nenya appends `_latents`; the original replaced `_preproc` by `_latents` wherever it stood.
    """
    key = key_of(latents).removesuffix("_debug")
    ours = key.removesuffix("_latents")
    if "_preproc" in key or "_latents" not in key:
        return (ours,)
    older = key.replace("_latents", "_preproc")
    return (ours, older) if ours != key else (older, ours)


def cutouts_of(latents: str, sources: Sequence[Any], names: Sequence[str] = ()) -> Any:
    """Return the cutout file of a latents file among several, None if it is not among them.

    Args:
        latents: path of the latents file.
        sources: paths or addresses of cutout files.
        names: of the cutout file, if recorded in the latents file; default those that its own name allows.

    Raises:
        InputFileError: Several files match, and the folder does not decide.
    """
    file = NamedFile(latents, tuple(map(key_of, names)) or cutout_names(latents), (folder_of(latents),))
    found = [
        s for s, number in zip(sources, match_names([str(s) for s in sources], [file]), strict=True) if number == 0
    ]
    if len(found) > 1:
        raise InputFileError(
            f"{found[0]} and {found[1]} both have the name of the cutout file of {latents}: give one of them"
        )
    return found[0] if found else None


def folder_of(path: str) -> Folder:
    """Return the folders of a path."""
    return split_name(path)[0]


def one_folder(folders: Iterable[Folder]) -> bool:
    """Return whether folders can be the same one, given in full or by their last parts; an empty one matches any."""
    ordered = sorted(set(folders), key=len)
    return all(not folder or ordered[-1][-len(folder) :] == folder for folder in ordered)


def match_names(texts: Sequence[str], files: Sequence[NamedFile]) -> list[int]:
    """Return for each name of a table the index of its file, -1 for none.

    Args:
        texts: different values of `pp_file`.
        files: the candidate files.

    Raises:
        InputFileError: A name matches several files, or several names match one file, and the folder does not decide.
    """
    by_key: dict[str, list[int]] = {}
    by_last: dict[tuple[str, str], list[int]] = {}  # of many files of one name, few share the last folder
    for number, file in enumerate(files):
        for key in file.names:
            by_key.setdefault(key, []).append(number)
            for last in {folder[-1] for folder in file.folders if folder}:
                by_last.setdefault((key, last), []).append(number)
    split = [split_name(text) for text in texts]
    found = []
    for text, (folder, key) in zip(texts, split, strict=True):
        near = by_last.get((key, folder[-1])) if folder else None
        found.append(_file_of(text, folder, near or by_key.get(key, []), files))
    own: dict[int, list[int]] = {}
    for place, number in enumerate(found):
        own.setdefault(number, []).append(place)
    for number, places in own.items():
        if number >= 0 and len(places) > 1:
            for place in _strangers(places, texts, split, files[number]):
                found[place] = -1
    return found


def _file_of(text: str, folder: Folder, candidates: Sequence[int], files: Sequence[NamedFile]) -> int:
    if len(candidates) < 2:
        return candidates[0] if candidates else -1
    scores = [_shared(folder, files[number]) for number in candidates]
    best = [number for number, score in zip(candidates, scores, strict=True) if score == max(scores)]
    if len(best) > 1:
        first, second = (files[number].label for number in best[:2])
        raise InputFileError(
            f"pp_file {text} matches two files, {first} and {second}, and its folder does not distinguish them: give "
            "one of the two, or the folder in pp_file"
        )
    return best[0]


def _strangers(
    places: Sequence[int], texts: Sequence[str], split: Sequence[tuple[Folder, str]], file: NamedFile
) -> list[int]:
    """Return which of the names that match a file belong to another one by their folder."""
    keys = {split[place][1] for place in places}
    folders = {split[place][0] for place in places}
    if len(keys) == 1 and one_folder(folders):
        return []
    scores = {place: _shared(split[place][0], file) for place in places}
    best = max(scores.values())
    ours = [place for place in places if scores[place] == best]
    others = [place for place in places if scores[place] < best]
    clear = len(keys) == 1 and best > 0 and one_folder(split[p][0] for p in ours) and all(split[p][0] for p in others)
    if not clear:
        first, other = next(
            (a, b)
            for a, b in combinations(places, 2)
            if split[a][1] != split[b][1] or not one_folder((split[a][0], split[b][0]))
        )
        raise InputFileError(
            f"pp_file {texts[first]} and {texts[other]} both match {file.label}, and the folder does not "
            "distinguish them: give the files of both, or a table of one of the two"
        )
    return others


def _shared(folder: Folder, file: NamedFile) -> int:
    """Return how many folders, from the last one up, a name shares with a file."""
    most = 0
    for other in file.folders:
        count = 0
        while count < min(len(folder), len(other)) and folder[-1 - count] == other[-1 - count]:
            count += 1
        most = max(most, count)
    return most
