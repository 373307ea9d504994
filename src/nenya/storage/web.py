"""Files at https:// addresses: read in parts or downloaded; nothing but the web is ever asked."""

import contextlib
import errno
import http.client
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from nenya.errors import InputFileError, NenyaError, StorageError
from nenya.storage.disk import atomic_path

log = logging.getLogger(__name__)

_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 3
_SMALL = 16 * 2**20  # bytes


def is_web(text: object) -> bool:
    """Return whether a string is an https:// or http:// address."""
    return str(text).startswith(("https://", "http://"))


@dataclass(frozen=True)
class WebFile:
    """A file as its server describes it.

    Attributes:
        size: length in bytes, None if the server does not say.
        tag: its ETag or date; empty if the server says neither.
    """

    size: int | None
    tag: str


class _Redirects(HTTPRedirectHandler):
    """Follows redirects within https; those to other hosts are said, or refused."""

    def __init__(self, *, other_hosts: bool) -> None:
        self.other_hosts = other_hosts

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        """Return the next request."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and not (new.scheme == old.scheme == "http" and new.hostname == old.hostname):
            raise StorageError(f"{req.full_url}: redirected to {newurl}, which is not https: refused")
        if new.hostname != old.hostname:
            if not self.other_hosts:
                raise StorageError(f"{req.full_url}: redirected to another host, {new.hostname}: refused")
            log.warning("%s: redirected to another host, %s", req.full_url, new.hostname)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def describe(url: str) -> WebFile | None:
    """Return what the server says of a file, None if there is none.

    Raises:
        StorageError: The server does not answer, or refuses.
    """
    for method, more in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        try:
            with _answer(url, method, more) as answer:
                return _describe(answer.headers, part=answer.status == 206)
        except FileNotFoundError:
            return None
        except _RefusedError as error:  # not every server knows HEAD
            if method == "GET":
                raise StorageError(str(error)) from error
    return None


def _describe(headers: Message, *, part: bool) -> WebFile:
    length = headers.get("Content-Range", "").rpartition("/")[2] if part else headers.get("Content-Length", "")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    return WebFile(int(length) if length.isdecimal() else None, str(tag))


def read_web(url: str, limit: int = _SMALL) -> bytes | None:
    """Return the content of a small file, None if there is none.

    Raises:
        StorageError: The server does not answer, refuses, or sends more than `limit` bytes.
    """
    return _read(url, {}, limit, other_hosts=True)


def read_web_range(url: str, start: int, length: int) -> bytes:
    """Return some bytes of a file; redirects to other hosts are refused.

    Raises:
        StorageError: The server does not answer, refuses, or sends something else.
    """
    content = _read(url, {"Range": f"bytes={start}-{start + length - 1}"}, length, other_hosts=False)
    if content is None:
        raise StorageError(f"{url}: no such file; check the address")
    if len(content) != length:
        raise StorageError(f"{url}: expected {length} bytes from byte {start} on, got {len(content)}")
    return content


def _read(url: str, headers: dict[str, str], limit: int, *, other_hosts: bool) -> bytes | None:
    try:
        with _answer(url, "GET", headers, other_hosts=other_hosts) as answer:
            if headers and answer.status != 206:
                raise StorageError(f"{url}: the server does not send parts of files: download the file")
            content: bytes = answer.read(limit + 1)
    except FileNotFoundError:
        return None
    except _RefusedError as error:
        raise StorageError(str(error)) from error
    if len(content) > limit:
        raise StorageError(f"{url}: expected at most {limit} bytes; check the address")
    return content


def download_web(url: str, path: Path) -> None:
    """Download a file, which appears only when it is complete.

    Raises:
        InputFileError: There is no such file.
        StorageError: The server does not answer, refuses, or breaks the connection several times.
        OutputError: The file cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with atomic_path(path) as temporary, _answer(url, "GET", {}) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file, 2**20)
                file.flush()
                wanted, got = _describe(answer.headers, part=False).size, temporary.stat().st_size
                if wanted is not None and got != wanted:
                    raise _BrokenError(f"{url}: expected {wanted} bytes, got {got}; try again")
            return
        except FileNotFoundError as error:
            raise InputFileError(f"{url}: no such file; check the address") from error
        except _RefusedError as error:
            raise StorageError(str(error)) from error
        except _BrokenError as error:
            if attempt == _ATTEMPTS - 1:
                raise StorageError(str(error)) from error


class _RefusedError(Exception):
    """The server refuses; the message says why."""


class _BrokenError(StorageError):
    """The connection broke."""


@contextmanager
def _answer(url: str, method: str, headers: dict[str, str], *, other_hosts: bool = True) -> Iterator[Any]:
    """Yield the answer to a request.

    Raises:
        FileNotFoundError: There is no such file.
        _RefusedError: The server refuses.
        _BrokenError: The connection broke.
        StorageError: The server cannot be reached.
    """
    opener = OpenerDirector()  # without the handlers of other schemes, such as file:
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor):
        opener.add_handler(handler())
    opener.add_handler(_Redirects(other_hosts=other_hosts))
    try:
        request = Request(url, method=method, headers={"User-Agent": "nenya", "Accept-Encoding": "identity", **headers})
        with contextlib.closing(opener.open(request, timeout=_TIMEOUT)) as answer:
            yield answer
    except HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(url) from error
        login = "; the server wants a login: download the file" if error.code in (401, 403) else ""
        raise _RefusedError(f"{url}: the server answers {error.code} ({error.reason}){login}") from error
    except URLError as error:
        raise StorageError(f"{url}: the server cannot be reached ({error.reason}); check the address") from error
    except NenyaError:
        raise
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _BrokenError(f"{url}: the connection broke ({str(error) or type(error).__name__}); try again") from error
