"""Limits on data from the network: uploaded images, and small requests of other kinds."""

import ipaddress
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nenya.portal.guard import LOCAL

log = logging.getLogger(__name__)

_SMALL = 2**16  # bytes of a request's body, other than an image
_MESSAGE = 2**21  # bytes of a connection's buffer: messages of the page have up to 2**20
BODY_SECONDS = 30
"""Within which the body of a request must arrive."""

_IDLE = 60  # seconds
_MOST_CONNECTIONS, _OF_ONE = 500, 100
_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")

BUSY = "Other images are being read: send this one again in a moment."
_ONE_BY_ONE = "Your other images are being read: send this one when they are done."


def http_limits() -> dict[str, Any]:
    """Return the limits of Tornado's server for any client; `TakesImages` accepts larger bodies."""
    return {
        "max_buffer_size": _MESSAGE,
        "max_body_size": _SMALL,
        "max_header_size": _SMALL,
        "idle_connection_timeout": _IDLE,
        "body_timeout": BODY_SECONDS,
    }


def limit_connections(server: Any, most: int = _MOST_CONNECTIONS, of_one: int = _OF_ONE) -> None:
    """Close new connections to a Tornado server above the limits.

    Args:
        server: its `HTTPServer`.
        most: largest number of connections.
        of_one: largest number per address; a proxy on this machine serves many users and may have all.
    """
    streams: dict[str, set[Any]] = {}
    serve = server.handle_stream

    def handle(stream: Any, address: tuple[Any, ...]) -> Any:
        host = str(address[0]) if address else ""
        for other in [host] if sum(map(len, streams.values())) < most else list(streams):
            streams[other] = {stream for stream in streams.get(other, ()) if not stream.closed()}
            if not streams[other]:
                del streams[other]
        here = len(streams.get(host, ()))
        if sum(map(len, streams.values())) >= most or (here >= of_one and not _is_local(host)):
            stream.close()
            return None
        streams.setdefault(host, set()).add(stream)
        return serve(stream, address)

    server.handle_stream = handle


def _is_local(address: str) -> bool:
    """Return whether an address is a loopback address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)


def from_here(request: Any) -> bool:
    """Return whether a request comes from this machine, and not through a proxy on it."""
    names = [urlsplit(f"//{request.host}").hostname]
    if origin := request.headers.get("Origin"):
        names.append(urlsplit(origin).hostname)
    peer = request.connection.context.address
    return (
        isinstance(peer, tuple)
        and _is_local(str(peer[0]))
        and all(name in LOCAL for name in names)
        and not any(name in request.headers for name in _PROXIED)
    )


@dataclass(eq=False)
class Arrival:
    """An upload in progress.

    Attributes:
        key: of its session.
        give_way: drops its bytes and refuses it.
        size: bytes that came.
    """

    key: str
    give_way: Callable[[], None]
    size: int = 0


class Intake:
    """Counts the uploads in progress, each of which takes memory.

    Only complete ones take a place, so that slow senders keep nobody out; the bytes of those on their way are limited.

    Args:
        most: largest number of complete ones, which are read and encoded.
        of_one: largest number per session, complete or not.
        most_bytes: of all incomplete ones; beyond it, the earliest gives way.
    """

    def __init__(self, most: int = 4, of_one: int = 2, most_bytes: int = 80_000_000) -> None:
        self._most, self._of_one, self._most_bytes = most, of_one, most_bytes
        self._open: Counter[str] = Counter()
        self._coming: dict[Arrival, None] = {}  # in order of their start
        self._whole: set[Arrival] = set()

    def enter(self, arrival: Arrival) -> tuple[int, str] | None:
        """Count an upload, or return status and sentence of a refusal."""
        if self._open[arrival.key] >= self._of_one:
            return 429, _ONE_BY_ONE
        if len(self._whole) >= self._most:
            return 503, BUSY
        self._open[arrival.key] += 1
        self._coming[arrival] = None
        return None

    def grow(self, arrival: Arrival, size: int) -> None:
        """Count bytes that came; the earliest uploads may have to give way, this one too."""
        arrival.size += size
        while sum(other.size for other in self._coming) > self._most_bytes:
            first = next(iter(self._coming))
            self.leave(first)
            first.give_way()

    def complete(self, arrival: Arrival) -> bool:
        """Take a place for a complete upload; return False if there is none."""
        if len(self._whole) >= self._most:
            return False
        del self._coming[arrival]
        self._whole.add(arrival)
        return True

    def leave(self, arrival: Arrival) -> None:
        """Remove an upload from the count."""
        if arrival in self._coming or arrival in self._whole:
            self._coming.pop(arrival, None)
            self._whole.discard(arrival)
            self._open[arrival.key] -= 1
            self._open += Counter()  # drops zero counts
