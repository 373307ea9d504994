"""Zarr stores, on S3 and in folders: read-only, with their metadata checked before a codec is created.

Those on S3 are read chunk by chunk through the same verified requests as other objects.
"""

import asyncio
import importlib
import importlib.util
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from nenya.errors import InputFileError, StorageError
from nenya.prepare.zarr_check import MARKS, arrays_of, check_metadata, is_metadata
from nenya.prepare.zarr_chunks import Packing, check_packed, packing_of
from nenya.storage.s3.service import join_url, store
from nenya.storage.small_files import is_regular
from nenya.storage.web import describe, read_web

_MOST = 2**31  # bytes of one chunk


class CheckedZarr(Store):
    """A read-only Zarr store; its metadata must name nothing that could run code.

    Args:
        url: its place, for errors.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, url: str) -> None:
        super().__init__(read_only=True)
        self.url = url
        self._packed: dict[str, Packing] = {}  # path of an array -> how
        self._whole: set[str] = set()  # keys of chunks that are read in parts, checked

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, CheckedZarr) and other.url == self.url

    def __str__(self) -> str:
        return self.url

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a key, None where there is none."""
        raise NotImplementedError

    def keys(self) -> Iterator[str]:
        """Yield all keys."""
        raise NotImplementedError

    def read_part(self, key: str, part: ByteRequest) -> bytes | None:
        """Return some of the bytes of a key, None where there is none."""
        content = self.read(key)
        if content is None:
            return None
        return content[slice(*_span(part, len(content)))]

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a key's bytes, None where there is no such key."""
        if byte_range is not None and not is_metadata(key):
            if key not in self._whole and any(p.codec or p.shards for p in self._packings(key)):
                whole = await asyncio.to_thread(self.read, key)
                if whole is not None:
                    await asyncio.to_thread(self._check, key, whole)
                self._whole.add(key)
            content = await asyncio.to_thread(self.read_part, key, byte_range)
        else:
            content = await asyncio.to_thread(self.read, key)
            if content is not None:
                await asyncio.to_thread(self._check, key, content)
        return None if content is None else prototype.buffer.from_bytes(content)

    def _check(self, key: str, content: bytes) -> None:
        """Check metadata, and chunks by the metadata of their array."""
        where, (folder, _, name) = f"{self.url}: {key}", key.rpartition("/")
        if is_metadata(key):
            for path, values in arrays_of(check_metadata(content, where), folder):
                if packing := packing_of(values, where):
                    self._packed[path] = packing
        elif not name.startswith("."):
            for packing in self._packings(key):
                check_packed(content, packing, where)

    def _packings(self, key: str) -> list[Packing]:
        """Return those of all arrays that a key lies in."""
        folders = key.split("/")[:-1]
        paths = ("/".join(folders[:n]) for n in range(len(folders) + 1))
        return [self._packed[path] for path in paths if path in self._packed]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several objects."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such a key."""
        return await asyncio.to_thread(self.has, key)

    def has(self, key: str) -> bool:
        """Return whether there is such a key."""
        raise NotImplementedError

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix."""
        for key in await asyncio.to_thread(lambda: list(self.keys())):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        seen: dict[str, Any] = {}
        async for key in self.list_prefix(start):
            seen[key.removeprefix(start).partition("/")[0]] = None
        for name in seen:
            yield name


def _span(part: ByteRequest, size: int) -> tuple[int, int]:
    """Return the first byte and the end of a part of an object of `size` bytes."""
    if isinstance(part, RangeByteRequest):
        first, end = part.start, part.end
    elif isinstance(part, OffsetByteRequest):
        first, end = part.offset, size
    else:
        first, end = size - part.suffix, size
    first = min(max(first, 0), size)
    return first, min(max(end, first), size)


def _hidden(key: str) -> AbstractContextManager[None]:
    """Take the file that marks a store of some version as missing if access is denied, as where files are not listed.

    Without all of these there is no store, so that nothing is lost in silence.
    """
    return suppress(StorageError) if key in MARKS else nullcontext()


class S3Zarr(CheckedZarr):
    """A Zarr store on S3.

    Args:
        url: its s3:// address.
    """

    def read(self, key: str) -> bytes | None:
        """See `CheckedZarr`."""
        with _hidden(key):
            found = store().head(join_url(self.url, key))
            return None if found is None else store().read_bytes(found.url, limit=_MOST)
        return None

    def has(self, key: str) -> bool:
        """See `CheckedZarr`."""
        return store().head(join_url(self.url, key)) is not None

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""
        for found in store().find(self.url + "/"):
            yield found.url.removeprefix(self.url + "/")


class WebZarr(CheckedZarr):
    """A Zarr store at an https:// address; as servers list no files, its metadata must be consolidated.

    Args:
        url: its address.
    """

    def read(self, key: str) -> bytes | None:
        """See `CheckedZarr`."""
        with _hidden(key):
            return read_web(f"{self.url}/{key}", _MOST)
        return None

    def has(self, key: str) -> bool:
        """See `CheckedZarr`."""
        return describe(f"{self.url}/{key}") is not None

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""
        return iter(())


class IcechunkZarr(CheckedZarr):
    """The main branch of an Icechunk repository in a folder; chunks in other files are not read.

    Args:
        folder: the repository.

    Raises:
        InputFileError: The package icechunk is missing, or cannot open it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        if importlib.util.find_spec("icechunk") is None:
            raise InputFileError(f"{folder}: an Icechunk store needs the package icechunk: pip install icechunk")
        icechunk: Any = importlib.import_module("icechunk")
        try:
            repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder.absolute())))
            self._inner: Store = repository.readonly_session("main").store
        except Exception as error:  # of types of its own
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputFileError(f"{folder}: the Icechunk store cannot be opened ({first})") from error

    def read(self, key: str) -> bytes | None:
        """See `CheckedZarr`."""
        found = asyncio.run(self._inner.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def has(self, key: str) -> bool:
        """See `CheckedZarr`."""
        return asyncio.run(self._inner.exists(key))

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""

        async def collect() -> list[str]:
            return [key async for key in self._inner.list()]

        return iter(asyncio.run(collect()))


class LocalZarr(CheckedZarr):
    """A Zarr store in a folder.

    Args:
        folder: the folder.
        allow_external: whether symbolic links in it may lead out of the folder that it is in.
    """

    def __init__(self, folder: Path, *, allow_external: bool = False) -> None:
        super().__init__(str(folder))
        self.folder, self.allow_external = folder, allow_external

    def read(self, key: str) -> bytes | None:
        """See `CheckedZarr`."""
        path = self._path(key)
        if not path.is_file():
            return None
        if path.stat().st_size > _MOST:
            raise InputFileError(f"{path}: expected a chunk of at most 2 GB, got {path.stat().st_size / 1e9:.1f} GB")
        return path.read_bytes()

    def read_part(self, key: str, part: ByteRequest) -> bytes | None:
        """See `CheckedZarr`."""
        path = self._path(key)
        if not path.is_file():
            return None
        first, end = _span(part, path.stat().st_size)
        with path.open("rb") as file:
            file.seek(first)
            return file.read(end - first)

    def has(self, key: str) -> bool:
        """See `CheckedZarr`."""
        return self._path(key).is_file()

    def keys(self) -> Iterator[str]:
        """See `CheckedZarr`."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                yield Path(folder, name).relative_to(self.folder).as_posix()

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below a prefix, without reading the folders there."""
        folder = self.folder / prefix
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            yield name

    def _path(self, key: str) -> Path:
        """Return the file of a key.

        Raises:
            InputFileError: It lies outside the store's own folder, or is not a regular file.
        """
        path = self.folder / key
        if not self.allow_external and not path.resolve().is_relative_to(self.folder.resolve().parent):
            raise InputFileError(
                f"{path} leads to {path.resolve()}, outside the store's own folder: refused; "
                "loader.allow_external=true allows it, if you trust the store"
            )
        if path.exists() and not path.is_dir() and not is_regular(path):
            raise InputFileError(f"{path}: not a regular file: refused")
        return path
