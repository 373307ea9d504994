"""Manifests: names of files, hashes, sizes and JSON written by others, each checked before it is used.

A manifest (`archive.json`, the pointer of an index, a journal of unfinished work) may come from anybody. So its names
must be plain paths below one root, its hashes and sizes valid, and links are not followed where nenya writes or
removes. Anything else raises an error of one line that names the file and the key.
"""

import hashlib
import re
import shutil
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nenya.errors import InputFileError, NenyaError
from nenya.storage.small_files import read_small, strict_json
from nenya.storage.texts import quoted, visible

MOST_BYTES = 2**28
"""Largest manifest that is read, bytes; one of a hundred thousand files has half as many."""

MOST_DEPTH = 32
"""Levels of nesting in a manifest."""

MOST_SIZE = 2**62
"""Largest size or count."""

_NAME = 1024  # characters of a name
_PART = 255  # bytes of a part of a name
_TEXT = 2**16  # characters of a string that is not a name
_HASH = re.compile("[0-9a-f]{64}")
_DRIVE = re.compile("[A-Za-z]:")
_BIDI = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # reverse the direction of the rest of a line


def why_not_plain(text: object) -> str:
    """Return why a value is not the name of a file below a root; an empty string if it is one."""
    if not isinstance(text, str):
        return f"a {_kind(text)}"
    if not text or len(text) > _NAME:
        return "empty" if not text else f"longer than {_NAME} characters"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI for c in text):
        return "with control characters"
    if text.startswith("/") or "\\" in text or _DRIVE.match(text):
        return "an absolute path, or with a backslash or a drive"
    parts = text.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "with a part that is empty, . or .."
    return "with a part that is too long" if any(len(part.encode()) > _PART for part in parts) else ""


def is_plain(text: object, *, one: bool = False) -> bool:
    """Return whether a value is the name of a file below a root; with `one`, of one directly in it."""
    return not why_not_plain(text) and not (one and "/" in str(text))


def local_name(text: str) -> str:
    """Return a name for a local copy: the text itself where it is plain, else one of our own with its suffix."""
    if is_plain(text, one=True) and len(text.encode()) <= _PART - 64:  # room for what temporary names add
        return text
    suffix = re.search(r"\.[A-Za-z0-9]{1,12}$", text)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16] + (suffix[0] if suffix else "")


def inside(root: Path, name: str) -> Path:
    """Return the path of a name below a root, where no part of it is a link.

    Args:
        root: a folder, which may itself be reached by a link.
        name: below it.

    Raises:
        InputFileError: The name is not plain, or leads over a link.
    """
    if why := why_not_plain(name):
        raise InputFileError(f"{root}: expected the name of a file in this folder, got {quoted(name)}: {why}")
    path = root
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise InputFileError(f"{path}: is a link, and links are not followed in {root}; put the file itself there")
    return path


def remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@dataclass(frozen=True)
class Json:
    """A value of a JSON file with its position, so that errors name the file and the key.

    Attributes:
        value: as `json` gives it.
        place: the file, for messages.
        key: its path of keys in the file.
        hint: what to do about an invalid one.
    """

    value: Any
    place: str
    key: str = ""
    hint: str = "take an undamaged copy of it"

    def refuse(self, wanted: str) -> NoReturn:
        """Raise InputFileError that says what was expected here."""
        where = f" {self.key}:" if self.key else ""
        got = quoted(self.value) if isinstance(self.value, str | int | float | None) else f"a {_kind(self.value)}"
        raise InputFileError(f"{self.place}: damaged:{where} expected {wanted}, got {got}; {self.hint}")

    def __getitem__(self, key: str) -> "Json":
        """Return a value that must exist."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        at = f"{self.key}.{key}" if self.key else key
        if key not in self.value:
            raise InputFileError(f"{self.place}: damaged: {at} is missing; {self.hint}")
        return Json(self.value[key], self.place, at, self.hint)

    def get(self, key: str) -> "Json | None":
        """Return a value that may be missing or null."""
        there = not isinstance(self.value, dict) or self.value.get(key) is not None
        return self[key] if there else None

    def object(self, known: Collection[str] | None = None) -> "dict[str, Json]":
        """Return the values of an object that has only known keys."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        unknown = [key for key in self.value if known is not None and key not in known]
        if unknown:
            at = f"{self.key}: " if self.key else ""
            raise InputFileError(f"{self.place}: damaged: {at}unknown key {quoted(unknown[0])}; {self.hint}")
        start = f"{self.key}." if self.key else ""
        return {k: Json(v, self.place, start + quoted(k).strip("'"), self.hint) for k, v in self.value.items()}

    def items(self) -> "list[Json]":
        """Return the values of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [Json(v, self.place, f"{self.key}[{i}]", self.hint) for i, v in enumerate(self.value)]

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str) or len(self.value) > _TEXT:
            self.refuse("a string")
        return self.value

    def name(self, *, one: bool = False) -> str:
        """Return the name of a file below the manifest's root; with `one`, of one directly in it."""
        if not is_plain(self.value, one=one):
            self.refuse(f"a plain relative name{' without folders' if one else ''}")
        return str(self.value)

    def sha256(self) -> str:
        """Return a SHA-256 as 64 hexadecimal digits."""
        if not isinstance(self.value, str) or not _HASH.fullmatch(self.value):
            self.refuse("a sha256 of 64 hexadecimal digits")
        return self.value

    def count(self, most: int = MOST_SIZE) -> int:
        """Return an integer from 0 to `most`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not 0 <= self.value <= most:
            self.refuse("a non-negative integer" if most == MOST_SIZE else f"an integer from 0 to {most}")
        return self.value

    def number(self) -> float:
        """Return a finite number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            self.refuse("a number")
        return float(self.value)

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def texts(self) -> dict[str, str]:
        """Return an object of strings."""
        return {key: value.text() for key, value in self.object().items()}

    def counts(self) -> dict[str, int]:
        """Return an object of integers."""
        return {key: value.count() for key, value in self.object().items()}


@dataclass(frozen=True)
class Entry:
    """A file that never changes.

    Attributes:
        name: its path below the root of what names it.
        size: bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str


def entry_of(found: Json) -> Entry:
    """Return a file that a manifest names, as an object or as a list of name, size and sha256.

    Raises:
        InputFileError: The name is not plain, or the size or hash is invalid.
    """
    if isinstance(found.value, list):
        if len(found.value) != 3:
            found.refuse("name, size and sha256")
        name, size, sha256 = found.items()
    else:
        found.object(("name", "size", "sha256"))
        name, size, sha256 = found["name"], found["size"], found["sha256"]
    return Entry(name.name(), size.count(), sha256.sha256())


def refuse_overlaps(entries: Sequence[Entry], found: Json) -> None:
    """Check that no file is listed twice, and none is a folder of another.

    Args:
        entries: the files.
        found: the list that they were read from, for messages.

    Raises:
        InputFileError: One is.
    """
    names = [entry.name for entry in entries]
    known = set(names)
    folders = {"/".join(parts[:i]) for parts in (name.split("/") for name in names) for i in range(1, len(parts))}
    if len(known) < len(names) or known & folders:
        found.refuse("files of different names, none of them a folder of another")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes; see `nenya.storage.small_files.read_small`.

    Raises:
        OSError: The file cannot be read.
        InputFileError: It is a folder, pipe or device, or too long.
    """
    try:
        return read_small(path, most)
    except NenyaError:
        raise
    except ValueError as error:
        raise InputFileError(f"{path}: {error}; check the path") from error


def parse_json(data: bytes | str, place: str, hint: str = "take an undamaged copy of it") -> Json:
    """Return the value of a JSON text; see `nenya.storage.small_files.strict_json`.

    Args:
        data: the text.
        place: the file, for messages.
        hint: what to do about a damaged one.

    Raises:
        InputFileError: It is anything else.
    """
    try:
        value = strict_json(data, MOST_DEPTH)
    except ValueError as error:
        what = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputFileError(f"{place}: damaged ({visible(what)}); {hint}") from error
    return Json(value, place, hint=hint)


def read_json(path: Path, hint: str = "take an undamaged copy of it", most: int = MOST_BYTES) -> Json:
    """Return the value of a local JSON file; see `parse_json` and `read_bytes` for what is raised."""
    return parse_json(read_bytes(path, most), str(path), hint)


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "list", bool: "boolean", int: "number", float: "number", str: "string"}
    return kinds.get(type(value), type(value).__name__)
