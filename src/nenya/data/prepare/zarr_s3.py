"""A Zarr store on S3, read chunk by chunk through the same verified requests as everything else there."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from nenya.s3 import join_url, store

_MOST = 2**31  # bytes of one chunk


class S3Zarr(Store):
    """A read-only Zarr store.

    Args:
        url: its s3:// address.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, url: str) -> None:
        super().__init__(read_only=True)
        self.url = url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Zarr) and other.url == self.url

    def __str__(self) -> str:
        return self.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return an object's bytes, None where there is no such object."""
        content = await asyncio.to_thread(self._read, key)
        if content is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            content = content[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            content = content[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):
            content = content[-byte_range.suffix :]
        return prototype.buffer.from_bytes(content)

    def _read(self, key: str) -> bytes | None:
        found = store().head(join_url(self.url, key))
        return None if found is None else store().read_bytes(found.url, limit=_MOST)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several objects."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        return await asyncio.to_thread(store().head, join_url(self.url, key)) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: the store is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Give all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Give the keys that begin with a prefix."""
        for found in await asyncio.to_thread(store().find, self.url + "/"):
            key = found.url.removeprefix(self.url + "/")
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Give the names directly below a prefix."""
        start = prefix.rstrip("/") + "/" if prefix else ""
        seen: dict[str, Any] = {}
        async for key in self.list_prefix(start):
            seen[key.removeprefix(start).partition("/")[0]] = None
        for name in seen:
            yield name
