"""Objects of an S3 service: listing, download and upload; a transferred file is complete and verified, or absent."""

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, Interrupted, OptionError, StorageError
from nenya.storage.disk import atomic_path, temporary_folder
from nenya.storage.s3.access import Clients
from nenya.storage.s3.checks import Hashes, hash_file, md5, proof_of
from nenya.storage.s3.client import ENDPOINT_NAMES, head_object
from nenya.storage.s3.conditional import get_tagged, put_if
from nenya.storage.s3.download import AlteredError, ChangedError, Ranges, fetch, verify
from nenya.storage.s3.errors import NotS3Error, disk_errors, explain
from nenya.storage.s3.globs import glob_regex
from nenya.storage.s3.upload import (
    PartsUpload,
    UploadGoneError,
    abort_below,
    new_note,
    read_note,
    sha256_of_object,
    write_note,
)

logger = logging.getLogger(__name__)

PART_SIZE = 8 * 2**20
"""Bytes of one request of a transfer; larger if an upload would need more parts than a service accepts."""

THREADS = 10
"""Concurrent requests of one transfer, as boto3 has."""

_MAX_PARTS = 9000
_UPLOADS = 4
_TRANSFERS = 3  # at the same time
_MAGIC = re.compile(r"[*?[]")


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the key of an s3:// address; the key is empty if only a bucket is named.

    Raises:
        OptionError: It is not an s3:// address, or names no bucket.
    """
    scheme, _, rest = str(url).partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or _MAGIC.search(bucket):
        raise OptionError(f"{url}: expected an S3 address, s3://bucket/name")
    return bucket, key


def join_url(url: str, *names: str) -> str:
    """Return the address of `names`, one below the other, below an s3:// address."""
    parts = [url.rstrip("/") if len(url) > len("s3://") else url, *(name.strip("/") for name in names)]
    return "/".join(part for part in parts if part)


@dataclass(frozen=True)
class S3Object:
    """One object as described by the service; an object from a listing has no metadata and no checksums.

    Args:
        url: The s3:// address.
        size: Length in bytes.
        etag: The service's identifier of this content, without quotes; not always a hash.
        metadata: The user's metadata, with names in lower case.
    """

    url: str
    size: int
    etag: str
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    _answer: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.url.rstrip("/").rpartition("/")[2]


class S3Store:
    """One S3 service, usable by several threads; it connects at its first use.

    Args:
        attempts: How often a request that fails because of the service or the network is made; AWS_MAX_ATTEMPTS, or 8.
        part_size: Bytes of one request of a transfer; default `PART_SIZE`.
    """

    def __init__(self, attempts: int | None = None, part_size: int | None = None) -> None:
        given = os.environ.get("AWS_MAX_ATTEMPTS", "")
        self._attempts = attempts or (int(given) if given.isdecimal() and int(given) else 8)
        self._part_size = part_size or PART_SIZE
        self._clients = Clients(self._attempts, _TRANSFERS * THREADS)

    def head(self, url: str) -> S3Object | None:
        """Return the description of an object, or None if the bucket has no such object.

        Raises:
            StorageError: The bucket is missing, access is denied, or the service does not answer.
        """
        bucket, key = _object_of(url)
        with self._errors(url, "look at it"):
            answer = head_object(self._clients.reader(bucket), bucket, key)
            if answer is None:
                return None
            if "ETag" not in answer:
                raise NotS3Error("an answer without an ETag")
        return S3Object(
            url=url,
            size=answer["ContentLength"],
            etag=answer["ETag"].strip('"'),
            metadata={name.lower(): value for name, value in answer.get("Metadata", {}).items()},
            _answer=answer,
        )

    def find(self, url: str) -> list[S3Object]:
        """Return the objects that an address matches, sorted by key.

        Args:
            url: an object, a glob (`*` and `?` stay within one folder, `**` does not), or a folder, with or without
                a slash at its end, for everything below it.

        Returns:
            The objects, without metadata unless it is the one that the address names; none if nothing matches.
        """
        bucket, key = split_url(url)
        if key and not key.endswith("/") and (exact := self.head(url)):
            return [exact]
        magic = _MAGIC.search(key)
        prefix = key[: magic.start()] if magic else key.rstrip("/") + "/" if key else ""
        one_folder = magic and "/" not in key[magic.start() :] and "**" not in key
        pattern = re.compile(glob_regex(key) if magic else re.escape(prefix) + ".*", re.DOTALL)
        found: list[S3Object] = []
        with self._errors(url, "list it"):
            pages = self._clients.reader(bucket).get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=prefix, **({"Delimiter": "/"} if one_folder else {})):
                if "IsTruncated" not in page:
                    raise NotS3Error("an answer that is no listing")
                for entry in page.get("Contents", []):
                    if pattern.fullmatch(entry["Key"]) and not entry["Key"].endswith("/"):
                        address = f"s3://{bucket}/{entry['Key']}"
                        found.append(S3Object(address, entry["Size"], entry["ETag"].strip('"')))
        return sorted(found, key=lambda item: item.url)

    def read_bytes(self, url: str, limit: int = 16 * 2**20) -> bytes:
        """Return the content of a small object, verified as in `download`.

        Raises:
            StorageError: It cannot be read, or is longer than `limit` bytes.
        """
        found = self._needed(url)
        if found.size > limit:
            raise StorageError(f"{url}: expected at most {limit} bytes, got {found.size}; check the name")
        with temporary_folder("nenya-") as folder:
            self.download(found, folder / "object")
            return (folder / "object").read_bytes()

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from byte `start` on.

        Raises:
            StorageError: It cannot be read, or has fewer bytes.
        """
        bucket, key = _object_of(url)
        part = f"bytes={start}-{start + length - 1}"
        with self._errors(url, "read a part of it"):
            answer = self._clients.reader(bucket).get_object(Bucket=bucket, Key=key, Range=part)
            content: bytes = answer["Body"].read(length + 1)
        if len(content) != length:
            raise StorageError(f"{url}: expected {length} bytes from byte {start} on, got {len(content)}")
        return content

    def download(
        self,
        source: S3Object | str,
        path: Path,
        *,
        cancelled: threading.Event | None = None,
        size: int | None = None,
    ) -> str:
        """Download an object to `path`, which appears only when its content is complete and verified.

        The content must have the size and the checksum that the service holds: the object's `sha256` metadata, else
        an S3 checksum of the complete object, else an ETag that is an MD5, else the ETag of an upload in parts. An
        object that is replaced meanwhile, or arrives altered, is downloaded once more from the start.

        Args:
            source: The object, or its address; its present content is downloaded.
            path: The file; its folder is created if missing.
            cancelled: Once set, the download stops and leaves no file.
            size: Bytes that it must have; otherwise nothing is downloaded.

        Returns:
            The SHA-256 of the file as 64 hexadecimal digits.

        Raises:
            StorageError: The object is missing, denied, unreachable, keeps changing, or arrives altered twice.
            OutputError: The file cannot be written.
            Interrupted: `cancelled` was set.
        """
        url = source if isinstance(source, str) else source.url
        failed: set[type] = set()
        with atomic_path(path) as temporary:
            while True:
                try:
                    found = self._needed(url)
                    if size is not None and found.size != size:
                        raise StorageError(f"{url}: expected {size} bytes, got {found.size}; altered or truncated")
                    return self._fetch(found, path, temporary, cancelled)
                except (ChangedError, AlteredError) as error:
                    temporary.unlink(missing_ok=True)
                    if type(error) in failed:
                        what = "it changed twice during the download; download it when no process writes it"
                        if isinstance(error, AlteredError):
                            what = f"{error}, twice; the object or the network is damaged: upload it again, or ask"
                            what += " the administrator of the service"
                        raise StorageError(f"{url}: {what}") from error
                    failed.add(type(error))
                    logger.debug("%s: fetched again: %s", url, error or "it changed")

    def upload(
        self,
        path: Path,
        url: str,
        *,
        metadata: Mapping[str, str] | None = None,
        cancelled: threading.Event | None = None,
        note: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> S3Object:
        """Upload a file to an address, where it appears only when complete: each part is verified before.

        Args:
            path: The file, which must not change meanwhile.
            url: The address; an existing object is replaced at the end, and kept on an error.
            metadata: ASCII strings to store with the object; `sha256`, of the file, is added.
            cancelled: Once set, the upload stops and leaves no object.
            note: A file that names the upload while it is in progress, so that `drop_upload` finds it after a kill.
            check: Called before each start of an upload, also after the service has dropped one; raises to stop.

        Returns:
            The object as the service describes it.

        Raises:
            StorageError: The service does not accept it, or alters it.
            OutputError: The file cannot be read, or changed during the upload.
            Interrupted: `cancelled` was set.
        """
        bucket, key = _object_of(url)
        with disk_errors(f"read {path} for {url}"):
            size = path.stat().st_size
            part_size = max(self._part_size, -(-size // _MAX_PARTS))
            sha256, digests = hash_file(path, md5, part_size)
        kept = {**(metadata or {}), "sha256": sha256}
        with disk_errors(f"read {path} for {url}"), self._errors(url, "upload it"):
            proven = True
            if size:
                if note is not None:
                    self.drop_upload(note)
                stop = lambda: _stop_if(cancelled, url)  # noqa: E731
                proven = self._upload_parts(path, url, part_size, digests, kept, stop, note, check)
            else:  # there is no part to send or to verify
                _stop_if(cancelled, url)
                self._clients.writer().put_object(Bucket=bucket, Key=key, Body=b"", Metadata=kept)
        found = self._needed(url)
        if found.size != size or found.metadata.get("sha256", sha256) != sha256:
            what = f"{size} bytes were uploaded, but the object has {found.size} bytes"
            raise StorageError(f"{url}: {what}; upload it when no other process writes it")
        if not proven:
            self._read_back(found, sha256)
        return found

    def replace(self, url: str, data: bytes, etag: str | None) -> str:
        """Write a small object if the existing one has this ETag (empty: if there is none; None: unconditionally).

        Returns:
            The new ETag.

        Raises:
            ReplacedError: Another object exists.
            NoConditionsError: The service reports that it does not support conditions; otherwise it writes.
            StorageError: The service does not accept it.
        """
        bucket, key = _object_of(url)
        with self._errors(url, "write it"):
            return put_if(self._clients.writer(), bucket, key, data, {"sha256": hashlib.sha256(data).hexdigest()}, etag)

    def read_tagged(self, url: str, limit: int = 2**16) -> tuple[str, bytes] | None:
        """Return ETag and content (`limit` bytes at most) of one state of an object, None if there is none."""
        with self._errors(url, "read it"):
            return get_tagged(self._clients.reader(split_url(url)[0]), *split_url(url), limit)

    def drop_uploads(self, url: str) -> None:
        """Drop all uploads in progress to addresses below one; their processes start again."""
        bucket, key = split_url(url)
        with self._errors(url, "list its uploads"):
            abort_below(self._clients.writer(), bucket, f"{key.rstrip('/')}/" if key else "")

    def delete(self, url: str) -> None:
        """Delete an object; a missing one is not an error."""
        bucket, key = _object_of(url)
        with self._errors(url, "delete it"):
            self._clients.writer().delete_object(Bucket=bucket, Key=key)

    def check_bucket(self, url: str, *, write: bool = True) -> None:
        """Find out early whether the bucket of an address exists and can be listed.

        Args:
            url: the address.
            write: whether it will be written to, which needs an account.

        Raises:
            StorageError: It does not; the message says why.
        """
        bucket, _ = split_url(url)
        with self._errors(f"s3://{bucket}", "list it"):  # an answer to HEAD would not say what is wrong
            client = self._clients.writer() if write else self._clients.reader(bucket)
            if "IsTruncated" not in client.list_objects_v2(Bucket=bucket, MaxKeys=1):
                raise NotS3Error("an answer that is no listing")

    @contextmanager
    def _errors(self, url: str, doing: str) -> Iterator[None]:
        """Turn the errors of the S3 libraries into nenya's."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, ResponseParserError, RetriesExceededError, NotS3Error) as error:
            raise explain(
                error, self._clients.service(url.removeprefix("s3://").partition("/")[0]), url, doing
            ) from error

    def _needed(self, url: str) -> S3Object:
        found = self.head(url)
        if found is None:
            raise StorageError(f"{url}: the object does not exist; check the name")
        return found

    def _fetch(self, found: S3Object, path: Path, temporary: Path, cancelled: threading.Event | None) -> str:
        """Download an object to `temporary` and verify it; returns its SHA-256."""
        url = found.url
        with disk_errors(f"write {path}", found.size), self._errors(url, "download it"):
            if shutil.disk_usage(temporary.parent).free < found.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _stop_if(cancelled, url)
            proof = proof_of(found._answer, lambda number: self._head_part(url, number))
            hashes = Hashes(proof.hasher, proof.part_size) if proof else Hashes()
            if found.size:
                bucket, key = split_url(url)
                stop = lambda: _stop_if(cancelled, url)  # noqa: E731
                ranges = Ranges(self._clients.reader(bucket), bucket, key, found.etag, self._attempts, stop)
                fetch(ranges, found.size, temporary, hashes, part_size=self._part_size, threads=THREADS)
            else:
                temporary.touch()
            after = self.head(url)  # not every service knows If-Match
            if after is None or after.etag != found.etag:
                raise ChangedError
            return verify(hashes, found.size, proof, url)

    def _head_part(self, url: str, number: int) -> Mapping[str, Any]:
        """Return the answer to HEAD for one part of an object; empty if the service does not support parts."""
        from botocore.exceptions import ClientError

        bucket, key = split_url(url)
        try:
            return dict(self._clients.reader(bucket).head_object(Bucket=bucket, Key=key, PartNumber=number))
        except ClientError as error:
            logger.debug("%s: part %d: %s", url, number, error.response.get("Error", {}).get("Code"))
            return {}

    def _upload_parts(
        self,
        path: Path,
        url: str,
        part_size: int,
        digests: list[bytes],
        kept: dict[str, str],
        stop: Callable[[], None],
        note: Path | None,
        check: Callable[[], None],
    ) -> bool:
        """Send a file in parts and complete the object; returns whether the answers verified it."""
        client, (bucket, key) = self._clients.writer(), split_url(url)
        for _ in range(_UPLOADS):
            check()
            if note is not None:
                write_note(note, bucket, key, None)
            started = client.create_multipart_upload(Bucket=bucket, Key=key, Metadata=kept)
            if "UploadId" not in started:
                raise NotS3Error("an answer that starts no upload")
            upload = PartsUpload(client, bucket, key, started["UploadId"])
            try:
                if note is not None:
                    write_note(note, bucket, key, started["UploadId"])
                parts, proven = upload.send(path, part_size, digests, THREADS, stop)
                stop()
                upload.complete(parts, lambda: self._needed(url).metadata.get("sha256") == kept["sha256"])
                return proven
            except UploadGoneError:
                upload.abort()
                logger.debug("%s: the service dropped the upload; it is started again", url)
            except BaseException:
                upload.abort()
                raise
            finally:
                if note is not None:
                    note.unlink(missing_ok=True)
        what = f"the service dropped the upload {_UPLOADS} times, as some do if a part arrives altered"
        raise StorageError(f"{url}: {what}; nothing was stored, ask the administrator of the service")

    def drop_upload(self, note: Path) -> None:
        """Drop the parts of an upload that a killed process had started; see `upload`.

        If the kill came before its name was known, all uploads to that address are dropped; another process that is
        uploading to it starts again.
        """
        new_note(note).unlink(missing_ok=True)
        try:
            bucket, key, upload = read_note(note)
        except (OSError, InputFileError):  # there is none, or the kill came before anything was started
            note.unlink(missing_ok=True)
            return
        client, uploads = self._clients.writer(), [upload] if upload is not None else []
        if upload is None:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
            found = [item for page in pages for item in page.get("Uploads", [])]
            uploads = [item["UploadId"] for item in found if item["Key"] == key]
        for name in uploads:
            PartsUpload(client, bucket, key, name).abort()
        note.unlink(missing_ok=True)

    def _read_back(self, found: S3Object, sha256: str) -> None:
        """Read an uploaded object back if the answers to its parts verified nothing; delete it if it differs."""
        with self._errors(found.url, "read it back"):
            got = sha256_of_object(self._clients.writer(), *split_url(found.url), attempts=self._attempts)
        if got != sha256:
            self.delete(found.url)
            what = "the service returned other bytes than were uploaded, so the object was deleted"
            raise StorageError(f"{found.url}: {what}; ask the administrator of the service")


_store: tuple[object, S3Store] | None = None
_store_lock = threading.Lock()


def store() -> S3Store:
    """Return the store of this process for the present environment; a changed environment gives a new store."""
    global _store
    now = (
        os.getpid(),
        sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "NENYA_S3_")) or k in ENDPOINT_NAMES),
    )
    with _store_lock:
        if _store is None or _store[0] != now:
            _store = now, S3Store()
        return _store[1]


def _object_of(url: str) -> tuple[str, str]:
    """Return bucket and key of an address that must name an object."""
    bucket, key = split_url(url)
    if not key:
        raise OptionError(f"{url}: expected the address of an object, s3://bucket/name, got a bucket")
    return bucket, key


def _stop_if(cancelled: threading.Event | None, url: str) -> None:
    if cancelled is not None and cancelled.is_set():
        raise Interrupted(f"{url}: the transfer was stopped and left no file; run the same command again")
