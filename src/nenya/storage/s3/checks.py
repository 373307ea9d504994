"""Checksums that an S3 service holds of an object, and the same checksums of a file."""

import hashlib
import re
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MD5 = re.compile(r"[0-9a-f]{32}")
BLOCK = 2**22
"""Bytes read from a file at a time."""


class _Crc32:
    """CRC-32 with the interface of a hashlib object."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, block: bytes) -> None:
        self._value = zlib.crc32(block, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def md5(block: bytes = b"") -> Any:
    """Return a hashlib MD5 object for S3's checksums, which are not used for security."""
    return hashlib.md5(block, usedforsecurity=False)


def may_be_md5(answer: Mapping[str, Any]) -> bool:
    """Return whether the ETag in an answer may be a hash of the content; with a user's encryption key it is not."""
    return not answer.get("SSECustomerAlgorithm") and "kms" not in answer.get("ServerSideEncryption", "")


class Hashes:
    """The SHA-256 of bytes that come in order, and the digests of their parts.

    Args:
        hasher: Creates the hash of one part; without it there are no digests of parts.
        part_size: Bytes of each part but the last; no bytes are one empty part.

    Attributes:
        size: Number of bytes so far.
    """

    def __init__(self, hasher: Callable[[], Any] | None = None, part_size: int = 2**62) -> None:
        self.size = 0
        self._whole, self._hasher, self._part_size = hashlib.sha256(), hasher, part_size
        self._parts = [hasher()] if hasher else []

    def update_whole(self, block: bytes) -> None:
        """Add a block to the SHA-256."""
        self._whole.update(block)

    def update_parts(self, block: bytes) -> None:
        """Add a block to the parts."""
        position, self.size = self.size, self.size + len(block)
        view = memoryview(block)
        while len(view) and self._hasher:
            if position and position % self._part_size == 0:
                self._parts.append(self._hasher())
            piece = view[: self._part_size - position % self._part_size]
            self._parts[-1].update(piece)
            position, view = position + len(piece), view[len(piece) :]

    def update(self, block: bytes) -> None:
        """Add a block."""
        self.update_whole(block)
        self.update_parts(block)

    def result(self) -> tuple[str, list[bytes]]:
        """Return the SHA-256 in hexadecimal, and the digests of the parts."""
        return self._whole.hexdigest(), [part.digest() for part in self._parts]


def hash_file(path: Path, hasher: Callable[[], Any] | None = None, part_size: int = 2**62) -> tuple[str, list[bytes]]:
    """Return the SHA-256 of a file in hexadecimal, and the digests of its parts, in one reading by two threads.

    Args:
        path: The file.
        hasher: Creates the hash of one part; without it there are no digests of parts.
        part_size: Bytes of each part but the last; an empty file has one empty part.
    """
    found = Hashes(hasher, part_size)
    with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        while block := file.read(BLOCK):
            parts = pool.submit(found.update_parts, block)
            found.update_whole(block)
            parts.result()
    return found.result()


@dataclass(frozen=True)
class Proof:
    """A checksum that a service holds of an object, and how to compute it for a file.

    Args:
        name: Its name in messages.
        expected: Its value.
        form: Computes the value from the SHA-256 of a file and the digests of its parts.
        hasher: Creates the hash of one part, if needed.
        part_size: Bytes of each part but the last.
    """

    name: str
    expected: str
    form: Callable[[str, list[bytes]], str]
    hasher: Callable[[], Any] | None = None
    part_size: int = 2**62


def proof_of(answer: Mapping[str, Any], ask_part: Callable[[int], Mapping[str, Any]]) -> Proof | None:
    """Return the strongest checksum of a complete object that an answer to HEAD holds; None if it holds none.

    An ETag that is neither an MD5 nor that of an upload in parts of equal size proves nothing; nor do S3's checksums
    of the checksums of parts.

    Args:
        answer: The answer, asked for with ChecksumMode=ENABLED.
        ask_part: Returns the answer to HEAD for the part with that number.
    """
    kept = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}.get("sha256", "").lower()
    if re.fullmatch(r"[0-9a-f]{64}", kept):
        return Proof("sha256", kept, lambda sha256, _: sha256)
    in_parts = "-" in answer.get(
        "ETag", ""
    )  # then checksums are of the parts' checksums unless the answer says otherwise
    if answer.get("ChecksumType", "COMPOSITE" if in_parts else "FULL_OBJECT") == "FULL_OBJECT":
        if (value := answer.get("ChecksumSHA256", "-")) and "-" not in value:
            return Proof("SHA256", value, lambda sha256, _: b64encode(bytes.fromhex(sha256)).decode())
        for name, hasher in (("SHA1", hashlib.sha1), ("CRC32", _Crc32)):
            if (value := answer.get(f"Checksum{name}", "-")) and "-" not in value:
                return Proof(name, value, lambda _, digests: b64encode(digests[0]).decode(), hasher)
    etag = answer.get("ETag", "").strip('"')
    if may_be_md5(answer) and MD5.fullmatch(etag):
        return Proof("MD5 (its ETag)", etag, lambda _, digests: digests[0].hex(), md5)
    if may_be_md5(answer) and (part_size := _part_size(etag, answer["ContentLength"], ask_part)):
        return Proof("MD5 of parts (its ETag)", etag, _etag_of_parts, md5, part_size)
    return None


def _etag_of_parts(_: str, digests: list[bytes]) -> str:
    return f"{md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _part_size(etag: str, size: int, ask_part: Callable[[int], Mapping[str, Any]]) -> int | None:
    """Return the size of the parts of an upload, all equal except the last; None if unknown."""
    match = re.fullmatch(f"{MD5.pattern}-([1-9][0-9]*)", etag)
    if not match:
        return None
    count = int(match[1])
    first = ask_part(1)
    last = ask_part(count) if first.get("PartsCount") == count else {}
    if last.get("PartsCount") != count:
        return None
    a, z = int(first["ContentLength"]), int(last["ContentLength"])
    return a if a * (count - 1) + z == size and 0 < z <= a else None
