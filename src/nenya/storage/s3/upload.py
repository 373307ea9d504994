"""Upload of a file to an S3 service in parts, each verified before the object is completed."""

import hashlib
import json
import logging
import os
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nenya.errors import OutputError, StorageError
from nenya.storage.names import read_json
from nenya.storage.s3.checks import BLOCK, MD5, may_be_md5, md5
from nenya.storage.s3.errors import NotS3Error

logger = logging.getLogger(__name__)

_SENDS = 4
_ALTERED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}


class UploadGoneError(Exception):
    """The service dropped an upload in progress: some do so when a part arrives altered."""


@dataclass(frozen=True)
class PartsUpload:
    """An upload that was started at a service.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key that the object will have.
        upload_id: The service's name of the upload.
    """

    client: Any
    bucket: str
    key: str
    upload_id: str

    @property
    def url(self) -> str:
        """The s3:// address of the object."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def _target(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.key, "UploadId": self.upload_id}

    def send(
        self, path: Path, part_size: int, digests: list[bytes], threads: int, stop: Callable[[], None]
    ) -> tuple[list[dict[str, Any]], bool]:
        """Send all parts of a file, several at a time.

        Args:
            path: The file.
            part_size: Bytes of each part but the last.
            digests: The MD5 of each part.
            threads: Concurrent parts.
            stop: Called before each part; raises to stop.

        Returns:
            The parts as `complete` takes them, and whether the answers verified all of them.

        Raises:
            StorageError: A part keeps arriving altered.
            UploadGoneError: The service no longer knows the upload.
            OutputError: The file changed since the digests were computed.
        """
        with path.open("rb") as file, ThreadPoolExecutor(threads) as pool:

            def send(number: int, digest: bytes) -> tuple[str, bool]:
                stop()
                body = os.pread(file.fileno(), part_size, (number - 1) * part_size)
                return self._send_part(number, body, digest, path)

            sent = [pool.submit(send, number, digest) for number, digest in enumerate(digests, 1)]
            try:
                wait(sent, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(
                    cancel_futures=True
                )  # waits for running requests: a part sent after the abort would remain
        answers = [part.result() for part in sent if not part.cancelled()]
        parts = [{"PartNumber": number, "ETag": etag} for number, (etag, _) in enumerate(answers, 1)]
        return parts, all(proven for _, proven in answers)

    def _send_part(self, number: int, body: bytes, digest: bytes, path: Path) -> tuple[str, bool]:
        """Send one part until the service has received it unaltered; returns its ETag and whether that verifies it.

        The service hashes the part, so it is hashed here only if the service has another hash.
        """
        from botocore.exceptions import ClientError

        for _ in range(_SENDS):
            try:
                answer = self.client.upload_part(
                    **self._target, PartNumber=number, Body=body, ContentMD5=b64encode(digest).decode()
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "NoSuchUpload":
                    raise UploadGoneError from error
                if code not in _ALTERED:
                    raise
            else:
                if "ETag" not in answer:
                    raise NotS3Error("an answer without an ETag")
                etag = answer["ETag"].strip('"')
                if not may_be_md5(answer) or not MD5.fullmatch(etag):
                    return answer["ETag"], False
                if etag == digest.hex():
                    return answer["ETag"], True
            if md5(body).digest() != digest:
                raise OutputError(f"{path} changed during its upload; upload it when no process writes it")
            logger.debug("%s: part %d arrived altered and is sent again", self.url, number)
        what = f"part {number} arrived altered {_SENDS} times, and nothing was stored"
        raise StorageError(f"{self.url}: {what}; the network to the service alters data: ask its administrator")

    def complete(self, parts: list[dict[str, Any]], done: Callable[[], bool]) -> None:
        """Complete the object from the parts that were sent.

        Args:
            parts: What `send` returned.
            done: Checks whether the object exists: an earlier attempt may have succeeded and its answer been lost.
        """
        from botocore.exceptions import ClientError

        try:
            answer = self.client.complete_multipart_upload(**self._target, MultipartUpload={"Parts": parts})
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload" or not done():
                raise
        else:
            if "ETag" not in answer:
                raise NotS3Error("an answer that ends no upload")

    def abort(self) -> None:
        """Drop the parts that were sent."""
        try:
            self.client.abort_multipart_upload(**self._target)
        except self.client.exceptions.NoSuchUpload:
            logger.debug("%s: the upload no longer exists", self.url)
        except Exception as error:
            logger.debug("%s: %s", self.url, type(error).__name__)
            logger.warning(
                "%s: parts of the failed upload may remain; `aws s3api list-multipart-uploads` shows them", self.url
            )


def abort_below(client: Any, bucket: str, prefix: str) -> None:
    """Drop all uploads in progress to keys with a prefix, so that their processes cannot complete them."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    for item in [item for page in pages for item in page.get("Uploads", [])]:
        PartsUpload(client, bucket, item["Key"], item["UploadId"]).abort()


def sha256_of_object(client: Any, bucket: str, key: str, *, attempts: int) -> str:
    """Return the SHA-256 of the bytes that a service returns for an object, in hexadecimal; nothing is kept on disk.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key of the object.
        attempts: How often it is read if the connection breaks.
    """
    from botocore.exceptions import BotoCoreError

    for attempt in range(1, attempts + 1):
        whole = hashlib.sha256()
        try:
            for block in client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(BLOCK):
                whole.update(block)
            break
        except BotoCoreError:
            if attempt == attempts:
                raise
    return whole.hexdigest()


def write_note(note: Path, bucket: str, key: str, upload: str | None) -> None:
    """Write a note of an upload; after a kill either the old or the new one exists. Links are not followed."""
    new_note(note).unlink(missing_ok=True)
    with new_note(note).open("x") as file:
        file.write(json.dumps([bucket, key, upload]))
    new_note(note).replace(note)


def read_note(note: Path) -> tuple[str, str, str | None]:
    """Return bucket, key and the service's name of an upload, if that was known.

    Raises:
        OSError: There is no note.
        InputFileError: It is damaged.
    """
    found = read_json(note, most=2**16)
    if len(items := found.items()) != 3:
        found.refuse("bucket, key and upload")
    return items[0].text(), items[1].text(), None if items[2].value is None else items[2].text()


def new_note(note: Path) -> Path:
    """Return the name under which a note is written."""
    return note.with_name(note.name + ".new")
