"""Download of an object from an S3 service to a file, and verification against the service's checksum."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nenya.storage.s3.checks import hash_file, proof_of

logger = logging.getLogger(__name__)


class ChangedError(Exception):
    """The object was replaced during the download."""


class AlteredError(Exception):
    """The downloaded bytes differ from the object; the message says how."""


def fetch(
    client: Any,
    bucket: str,
    key: str,
    path: Path,
    *,
    part_size: int,
    threads: int,
    attempts: int,
    stop: Callable[[], None],
) -> None:
    """Download a non-empty object to a file, by requests for ranges of bytes.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key of the object.
        path: The file, which must not exist.
        part_size: Bytes of one request.
        threads: Concurrent requests.
        attempts: How often a request is made if the connection breaks.
        stop: Called with each block that arrives; raises to stop.

    Raises:
        ChangedError: The object was replaced during the download.
        AlteredError: The libraries found a checksum mismatch.
    """
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import ChecksumError, FlexibleChecksumError
    from s3transfer.exceptions import S3DownloadFailedError

    config = TransferConfig(
        multipart_threshold=part_size,
        multipart_chunksize=part_size,
        max_concurrency=threads,
        max_io_queue=16 * threads,  # of 256 KiB each: a slow disk slows the download instead of filling memory
        num_download_attempts=attempts,
        preferred_transfer_client="classic",
    )
    try:
        client.download_file(bucket, key, str(path), Callback=lambda _: stop(), Config=config)
    except S3DownloadFailedError as error:
        raise ChangedError from error
    except (ChecksumError, FlexibleChecksumError) as error:
        raise AlteredError("its checksum differs from that of the downloaded bytes") from error


def verify(path: Path, answer: Mapping[str, Any], ask_part: Callable[[int], Mapping[str, Any]], url: str) -> str:
    """Compare a file with the size and the strongest checksum that the service holds of the object.

    Args:
        path: The file.
        answer: The answer to HEAD for the object.
        ask_part: Returns the answer to HEAD for the part with that number.
        url: The object, for the log.

    Returns:
        The SHA-256 of the file in hexadecimal.

    Raises:
        AlteredError: They differ.
    """
    wanted, size = answer["ContentLength"], path.stat().st_size
    if size != wanted:
        raise AlteredError(f"expected {wanted} bytes, got {size}")
    proof = proof_of(answer, ask_part)
    if proof is None:
        logger.debug("%s: the service holds no checksum of it; only its size was verified", url)
        return hash_file(path)[0]
    sha256, digests = hash_file(path, proof.hasher, proof.part_size)
    got = proof.form(sha256, digests)
    if got != proof.expected:
        raise AlteredError(f"expected the {proof.name} {proof.expected}, got {got}")
    return sha256
