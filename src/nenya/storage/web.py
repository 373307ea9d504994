"""Files at https:// addresses: read in parts or downloaded; nothing but the web is ever asked."""

import contextlib
import errno
import http.client
import ipaddress
import logging
import shutil
import time
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

from nenya.errors import InputFileError, NenyaError, OutputError, StorageError
from nenya.storage.disk import atomic_path
from nenya.storage.texts import shown

log = logging.getLogger(__name__)

_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 3
_SMALL = 16 * 2**20  # bytes
_PIECE = 2**18  # bytes
_PATIENCE, _PACE = 120.0, 1000  # after these seconds, the least bytes per second on average
_MOST_DIGITS = 18  # of a length


def is_web(text: object) -> bool:
    """Return whether a string is an https:// or http:// address."""
    return str(text).startswith(("https://", "http://"))


def is_own_machine(url: str) -> bool:
    """Return whether an address is of this machine itself, where nothing needs encryption."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
    """Follows redirects within https; those to other hosts are reported, or refused; none leads to an inner network."""

    def __init__(self, *, other_hosts: bool) -> None:
        self.other_hosts = other_hosts

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        """Return the next request."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != "https" and not (new.scheme == old.scheme == "http" and new.netloc == old.netloc):
            raise StorageError(f"{req.full_url}: redirected to {shown(newurl)}, which is not https: refused")
        if new.netloc != old.netloc:
            if not self.other_hosts or is_inner(new.hostname):
                raise StorageError(f"{req.full_url}: redirected to another host, {shown(new.netloc)}: refused")
            log.warning("%s: redirected to another host, %s", req.full_url, shown(new.netloc))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_inner(host: str | None) -> bool:
    """Return whether a host is this machine, or an address of a network that the web does not reach."""
    name = (host or "localhost").rstrip(".").lower()
    try:
        return not ipaddress.ip_address(name.partition("%")[0]).is_global
    except ValueError:  # a name; of numbers in unusual forms too
        return (
            "." not in name or name.replace(".", "").isdigit() or name.endswith((".localhost", ".internal", ".local"))
        )


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
        except (_RefusedError, _BrokenError) as error:  # not every server knows HEAD
            if method == "GET":
                raise StorageError(str(error)) from error
    return None


def _describe(headers: Message, *, part: bool) -> WebFile:
    length = headers.get("Content-Range", "").rpartition("/")[2] if part else headers.get("Content-Length", "")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    known = length.isdecimal() and len(length) <= _MOST_DIGITS
    return WebFile(int(length) if known else None, str(tag))


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
    for attempt in range(_ATTEMPTS):
        try:
            with _answer(url, "GET", headers, other_hosts=other_hosts) as answer:
                if headers and answer.status != 206:
                    raise StorageError(f"{url}: the server does not send parts of files: download the file")
                return b"".join(_pieces(answer, url, limit))
        except FileNotFoundError:
            return None
        except _RefusedError as error:
            raise StorageError(str(error)) from error
        except _BrokenError as error:
            if attempt == _ATTEMPTS - 1:
                raise StorageError(str(error)) from error
    return None


def _pieces(answer: Any, url: str, limit: int) -> Iterator[bytes]:
    """Yield the body of an answer, as long as it comes at a fair pace.

    Raises:
        StorageError: It is longer than `limit` bytes, or too slow.
        _BrokenError: It is shorter or longer than the server said.
    """
    start, size, wanted = time.monotonic(), 0, _describe(answer.headers, part=False).size
    while piece := answer.read1(_PIECE):
        size += len(piece)
        if size > limit:
            raise StorageError(f"{url}: expected at most {limit} bytes; check the address")
        spent = time.monotonic() - start
        if spent > _PATIENCE and size < _PACE * spent:
            raise StorageError(f"{url}: the server sends less than {_PACE} bytes per second; try again later")
        yield piece
    if wanted is not None and size != wanted:
        raise _BrokenError(f"{url}: expected {wanted} bytes, got {size}; try again")


def download_web(url: str, path: Path, most: int | None = None) -> None:
    """Download a file, which appears only when it is complete.

    Args:
        url: its address.
        path: where it will be.
        most: largest size in bytes, if less than the free space.

    Raises:
        InputFileError: There is no such file.
        StorageError: The server does not answer, refuses, or breaks the connection several times.
        OutputError: The file cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with atomic_path(path) as temporary, _answer(url, "GET", {}) as answer, temporary.open("wb") as file:
                said = _describe(answer.headers, part=False)
                limit = _room(url, path.parent, said)
                if most is not None and most < min(limit, said.size or 0):
                    raise StorageError(f"{url}: expected at most {most / 1e6:.0f} MB, got more; check the address")
                file.writelines(_pieces(answer, url, min(limit, most or limit)))
            return
        except FileNotFoundError as error:
            raise InputFileError(f"{url}: no such file; check the address") from error
        except _RefusedError as error:
            raise StorageError(str(error)) from error
        except _BrokenError as error:
            if attempt == _ATTEMPTS - 1:
                raise StorageError(str(error)) from error


def _room(url: str, folder: Path, said: WebFile) -> int:
    """Return the bytes that a download may have: most of the free space.

    Raises:
        OutputError: The file is larger.
    """
    most = shutil.disk_usage(folder).free * 9 // 10
    if said.size is not None and said.size > most:
        raise OutputError(
            f"{url}: {said.size / 1e9:.2f} GB do not fit into {folder} ({most / 1e9:.2f} GB): free some space, or "
            "set loader.cache_dir"
        )
    return most


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
    except NenyaError:
        raise
    except HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(url) from error
        login = "; the server wants a login: download the file" if error.code in (401, 403) else ""
        raise _RefusedError(f"{url}: the server answers {error.code} ({shown(error.reason)}){login}") from error
    except URLError as error:
        raise StorageError(f"{url}: the server cannot be reached ({shown(error.reason)}); check the address") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = shown(str(error) or type(error).__name__)
        raise _BrokenError(f"{url}: the connection broke ({why}); try again") from error
