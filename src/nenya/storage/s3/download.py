"""Download of an object from an S3 service to a file, and verification against the service's checksum."""

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nenya.storage.s3.checks import Hashes, Proof

logger = logging.getLogger(__name__)


_BLOCK = 2**18  # bytes after which a download may be stopped


class ChangedError(Exception):
    """The object was replaced during the download."""


class AlteredError(Exception):
    """The downloaded bytes differ from the object; the message says how."""


class _EndedError(Exception):
    """Another range of the same download failed."""


@dataclass(frozen=True)
class Ranges:
    """Requests for ranges of bytes of one object.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key of the object.
        etag: The ETag of the content that is wanted.
        attempts: How often a request is made if the connection breaks.
        stop: Called with each block that arrives; raises to stop.
    """

    client: Any
    bucket: str
    key: str
    etag: str
    attempts: int
    stop: Callable[[], None]

    def read(self, first: int, length: int) -> bytes:
        """Return a range.

        Raises:
            ChangedError: The object is another one by now.
            AlteredError: Other bytes came than were requested.
        """
        from s3transfer.exceptions import RetriesExceededError
        from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS

        for left in range(self.attempts - 1, -1, -1):
            try:
                return self._ask(first, length)
            except S3_RETRYABLE_DOWNLOAD_ERRORS as error:
                self.stop()
                if not left:
                    raise RetriesExceededError(error) from error
                logger.debug("s3://%s/%s from byte %d: %s; asked again", self.bucket, self.key, first, error)
        raise AssertionError("at least one attempt is made")

    def _ask(self, first: int, length: int) -> bytes:
        from botocore.exceptions import ClientError

        part = f"bytes={first}-{first + length - 1}"
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key, Range=part, IfMatch=f'"{self.etag}"')
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("PreconditionFailed", "412", "InvalidRange", "416"):
                raise ChangedError from error
            raise
        blocks = []
        with contextlib.closing(answer["Body"]) as body:
            if answer["ContentLength"] != length:
                raise AlteredError(f"expected {length} bytes from byte {first} on, got {answer['ContentLength']}")
            for block in body.iter_chunks(_BLOCK):
                self.stop()
                blocks.append(block)
        return b"".join(blocks)


def fetch(ranges: Ranges, size: int, path: Path, hashes: Hashes, *, part_size: int, threads: int) -> None:
    """Download a non-empty object to a file, several ranges of bytes at a time.

    The ranges are written in the order of the file, so that it is hashed meanwhile. As many as there are threads are
    kept in memory.

    Args:
        ranges: Of the object.
        size: Its bytes.
        path: The file, which must not exist.
        hashes: Of the file; all of its bytes are added.
        part_size: Bytes of one request.
        threads: Concurrent requests.

    Raises:
        ChangedError: The object was replaced during the download.
        AlteredError: Other bytes came than were requested.
    """
    failed = threading.Event()

    def stop() -> None:
        ranges.stop()
        if failed.is_set():
            raise _EndedError

    own = replace(ranges, stop=stop)
    starts = iter(range(0, size, part_size))
    with path.open("xb") as file, ThreadPoolExecutor(threads) as pool:

        def begin(first: int) -> Future[bytes]:
            return pool.submit(own.read, first, min(part_size, size - first))

        coming = deque(begin(first) for first in itertools.islice(starts, threads))
        try:
            while coming:
                block = coming.popleft().result()
                coming.extend(begin(first) for first in itertools.islice(starts, 1))
                hashes.update(block)
                file.write(block)
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise


def verify(hashes: Hashes, wanted: int, proof: Proof | None, url: str) -> str:
    """Compare a downloaded file with the size and the strongest checksum that the service holds of the object.

    Args:
        hashes: Of the file, by the hasher and the size of parts of the proof.
        wanted: Its size according to the service.
        proof: The checksum; None if the service holds none.
        url: The object, for the log.

    Returns:
        The SHA-256 of the file in hexadecimal.

    Raises:
        AlteredError: They differ.
    """
    if hashes.size != wanted:
        raise AlteredError(f"expected {wanted} bytes, got {hashes.size}")
    sha256, digests = hashes.result()
    if proof is None:
        logger.debug("%s: the service holds no checksum of it; only its size was verified", url)
        return sha256
    got = proof.form(sha256, digests)
    if got != proof.expected:
        raise AlteredError(f"expected the {proof.name} {proof.expected}, got {got}")
    return sha256
