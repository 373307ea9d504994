"""Files of references (kerchunk, JSON or Parquet): a Zarr store with chunks that are parts of other files.

Such a file may name any address. So references are followed only within its own folder, or below an address that
`storage.references` names; the metadata are checked as those of any store.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, NenyaError
from nenya.prepare.zarr_stores import CheckedZarr
from nenya.storage.paths import is_s3
from nenya.storage.process import check_memory
from nenya.storage.s3.service import store
from nenya.storage.small_files import is_regular
from nenya.storage.table_files import check_table
from nenya.storage.texts import shown
from nenya.storage.web import is_web, read_web, read_web_range

_MOST = 2**31  # bytes of one chunk
_MOST_FILE = 2**28  # bytes of a file of references
_COPIES = 30  # memory of parsed JSON, in copies of its text
_LONGEST = 4096  # characters of an address
_START = re.compile(rb'\s*\{\s*"(version|refs|templates|gen|\.zgroup|\.zattrs|\.zmetadata|zarr\.json|[^"]*/\.z\w+)"')
_TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def are_references(start: bytes) -> bool:
    """Return whether a file begins as one of references does."""
    return _START.match(start) is not None


class ReferenceZarr(CheckedZarr):
    """A Zarr store in a file of references.

    Args:
        name: the file as the user calls it: a path, or an s3:// or https:// address.
        content: its bytes.
        allowed: addresses below which it may read, besides its own folder.
        allow_external: whether a local file may read other local files.

    Raises:
        InputFileError: It is damaged, has an unknown form, or refers to a place that is not allowed.
    """

    def __init__(self, name: str, content: bytes, *, allowed: Sequence[str] = (), allow_external: bool = False) -> None:
        super().__init__(name)
        self.allowed = [place.rstrip("/") + "/" for place in allowed]
        self.allow_external = allow_external
        self.remote = is_s3(name) or is_web(name)
        self.base = name.rpartition("/")[0] if self.remote else str(Path(name).absolute().parent)
        self._references = _parse(content, name)
        for target in {entry[0] for entry in self._references.values() if isinstance(entry, list)}:
            self._place(target)

    def read(self, key: str) -> bytes | None:
        """See `CheckedZarr`."""
        entry = self.entry(key)
        if entry is None:
            return None
        if isinstance(entry, bytes):
            return entry
        target, start, length = entry
        place = self._place(target)
        if length is not None and not 0 <= length <= _MOST:
            raise InputFileError(f"{self.url}: '{shown(key)}': expected a chunk of at most 2 GB, got {length} bytes")
        if isinstance(place, Path):
            return _read_local(place, start, length)
        if length == 0:
            return b""
        if is_s3(place):
            return store().read_bytes(place, _MOST) if length is None else store().read_range(place, start, length)
        return read_web(place, _MOST) if length is None else read_web_range(place, start, length)

    def has(self, key: str) -> bool:
        """See `CheckedZarr`."""
        return self.entry(key) is not None

    def entry(self, key: str) -> Any:
        """Return bytes, or [target, start, length]; None where there is no such key."""
        return self._references.get(key)

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""
        return iter(self._references)

    def _place(self, target: str) -> Path | str:
        """Return the file or address of a reference.

        Raises:
            InputFileError: It is not allowed.
        """
        scheme = target.partition("://")[0] if "://" in target else ""
        if self.remote and not scheme and not target.startswith("/"):
            target, scheme = f"{self.base}/{target}", self.base.partition("://")[0]
        if scheme in ("", "file"):
            path = Path(self.base, target.removeprefix("file://"))
            if self.remote or not (self.allow_external or path.resolve().is_relative_to(Path(self.base).resolve())):
                hint = "" if self.remote else "; loader.allow_external=true allows it, if you trust the file"
                raise InputFileError(f"{self.url}: refers to {shown(target)}, outside its own folder: refused{hint}")
            return path
        if scheme not in ("s3", "https", "http") or ".." in target.split("/"):
            raise InputFileError(
                f"{self.url}: refers to {shown(target)}; expected s3:// or https:// addresses: refused"
            )
        own = [f"{self.base}/"] if self.remote else []
        if not any(target.startswith(place) for place in (*own, *self.allowed)):
            root = target.rpartition("/")[0] + "/"
            raise InputFileError(
                f"{self.url}: refers to {shown(target)}: refused; storage.references=[{shown(root)}] allows it, if you "
                "trust the file"
            )
        return target


class ParquetReferences(ReferenceZarr):
    """A Zarr store in a folder of references in Parquet; targets are checked when they are read.

    Args:
        folder: the folder.
        allowed: as of `ReferenceZarr`.
        allow_external: as of `ReferenceZarr`.

    Raises:
        InputFileError: Its metadata are damaged.
    """

    def __init__(self, folder: Path, *, allowed: Sequence[str] = (), allow_external: bool = False) -> None:
        content = _read_local(folder / ".zmetadata", 0, None)
        values = json.loads(content)  # the caller has read its record_size
        metadata = json.dumps(values.get("metadata") or {}).encode()
        super().__init__(str(folder), metadata, allowed=allowed, allow_external=allow_external)
        self.folder, self._size = folder, int(values["record_size"])
        self._grids: dict[str, tuple[int, ...]] = {}
        self._tables: dict[Path, list[Any]] = {}

    def entry(self, key: str) -> Any:
        """See `ReferenceZarr`."""
        array, _, chunk = key.rpartition("/")
        if key in self._references or f"{array}/.zarray" not in self._references:
            return self._references.get(key)
        grid = self._grid(array)
        numbers = [int(number) for number in chunk.split(".")] if re.fullmatch(r"\d+(\.\d+)*", chunk) else []
        pairs = list(zip(numbers, grid, strict=False))  # an array without dimensions has one chunk, 0
        if len(numbers) != max(1, len(grid)) or any(number >= count for number, count in pairs):
            return None
        index = 0
        for number, count in pairs:
            index = index * count + number
        rows = self._rows(self.folder / array / f"refs.{index // self._size}.parq")
        return rows[index % self._size] if index % self._size < len(rows) else None

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""
        return iter(self._references)

    def _grid(self, array: str) -> tuple[int, ...]:
        """Return the number of chunks of an array along each dimension."""
        if array not in self._grids:
            values = json.loads(self._references[f"{array}/.zarray"])
            try:
                pairs = zip(values["shape"], values["chunks"], strict=True)
                self._grids[array] = tuple(max(1, -(-int(size) // int(chunk))) for size, chunk in pairs)
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                raise InputFileError(f"{self.url}: '{shown(array)}' has damaged metadata; fetch it again") from error
        return self._grids[array]

    def _rows(self, path: Path) -> list[Any]:
        """Return the references in a file, in the order of their chunks."""
        import pyarrow.parquet as pq

        if path not in self._tables:
            if not path.resolve().is_relative_to(self.folder.resolve()) and not self.allow_external:
                raise InputFileError(f"{path}: leads out of the folder of references: refused")
            if not path.is_file():
                return []
            check_table(path)
            try:
                table = pq.read_table(path)
                names = [name for name in ("path", "offset", "size", "raw") if name in table.column_names]
                columns = {name: table.column(name).to_pylist() for name in names}
                empty = [None] * table.num_rows
                found = zip(*(columns.get(name, empty) for name in ("path", "offset", "size", "raw")), strict=True)
                self._tables = {path: [_row(*values) for values in found]}  # one at a time: they may be many
            except (OSError, ValueError) as error:  # Arrow's errors are among these
                raise InputFileError(f"{path}: damaged references; fetch them again") from error
        return self._tables[path]


def _row(target: Any, start: Any, length: Any, raw: Any) -> Any:
    """Return an entry as of `_entry`.

    Raises:
        ValueError: Start or length are no numbers of bytes.
    """
    if isinstance(raw, str | bytes):
        return raw.encode() if isinstance(raw, str) else raw
    if not isinstance(target, str):
        return None
    if any(type(number) not in (int, type(None)) or (number or 0) < 0 for number in (start, length)):
        raise ValueError("expected a start and a length in bytes")
    return [target, start or 0, length or None]


def _read_local(path: Path, start: int, length: int | None) -> bytes:
    if not is_regular(path):
        raise InputFileError(f"{path}: no such file, or not a regular one; check the references")
    size = path.stat().st_size
    length = size - start if length is None else length
    if start < 0 or length < 0 or start + length > size or length > _MOST:
        raise InputFileError(f"{path}: expected bytes {start} to {start + length}, got a file of {size} bytes")
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _parse(content: bytes, name: str) -> dict[str, Any]:
    """Return key -> bytes, or [target, start, length].

    Raises:
        InputFileError: The file is damaged, or of an unknown form.
    """
    if len(content) > _MOST_FILE:
        raise InputFileError(
            f"{name}: expected at most {_MOST_FILE >> 20} MB of references, got {len(content) >> 20} MB"
        )
    check_memory(len(content), name, copies=_COPIES)
    try:
        return _references_of(json.loads(content), name)
    except NenyaError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{name}: expected references (kerchunk), got damaged JSON; fetch it again") from error


def _references_of(values: Any, name: str) -> dict[str, Any]:
    values = values if isinstance(values, dict) else {}
    if values.get("gen"):
        raise InputFileError(f"{name}: references made by rules ('gen') are not read; write each reference out")
    templates = values.get("templates") or {}
    references = values.get("refs", values if "version" not in values else None)
    if not isinstance(references, dict) or not isinstance(templates, dict):
        raise InputFileError(f"{name}: expected references of kerchunk, a JSON object with 'refs', got other content")
    return {str(key): _entry(value, templates, f"{name}: '{shown(str(key))}'") for key, value in references.items()}


def _entry(value: Any, templates: dict[str, Any], where: str) -> Any:
    if isinstance(value, dict):
        return json.dumps(value).encode()
    if isinstance(value, str):
        if not value.startswith("base64:"):
            return value.encode()
        try:
            return base64.b64decode(value.removeprefix("base64:"), validate=True)
        except binascii.Error as error:
            raise InputFileError(f"{where}: expected base64, got other content; fetch the references again") from error
    if isinstance(value, list) and len(value) in (1, 3) and isinstance(value[0], str):
        start, length = (0, None) if len(value) == 1 else value[1:]
        if type(start) is int and start >= 0 and (length is None or (type(length) is int and length >= 0)):
            return [_filled_in(value[0], templates, where), start, length]
    raise InputFileError(f"{where}: expected text, or [address, start, length], got {shown(value)}")


def _filled_in(address: str, templates: dict[str, Any], where: str) -> str:
    """Return an address with its templates filled in.

    Raises:
        InputFileError: It would be longer than any address.
    """
    if len(address) <= _LONGEST and all(isinstance(t, str) and len(t) <= _LONGEST for t in templates.values()):
        address = _TEMPLATE.sub(lambda found: templates.get(found[1], found[0]), address)
    if len(address) > _LONGEST or "{{" in address:
        raise InputFileError(
            f"{where}: expected an address of at most {_LONGEST} characters from plain templates, got {shown(address)}"
        )
    return address
