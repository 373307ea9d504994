"""Limits on data from the network: uploaded images, and small requests of other kinds."""

import ipaddress
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
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


class Heard:
    """The connections from which a request came that is not answered yet, or that became a websocket."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()

    def hear(self, stream: Any) -> None:
        """Note that the head of a request came."""
        self._streams.add(stream)

    def wait(self, stream: Any) -> None:
        """Note that a connection waits for its next request."""
        self._streams.discard(stream)

    def __contains__(self, stream: Any) -> bool:
        return stream in self._streams


HEARD = Heard()
"""Of all servers of this process."""


class _Connections:
    """Open connections by address, in order of arrival; those without a request give way."""

    def __init__(self, most: int, of_one: int) -> None:
        self._most, self._of_one = most, of_one
        self._streams: dict[str, dict[Any, None]] = {}

    def _prune(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            self._streams[host] = {stream: None for stream in self._streams.get(host, ()) if not stream.closed()}
            if not self._streams[host]:
                del self._streams[host]

    def admit(self, stream: Any, host: str) -> bool:
        """Count a new connection; False if there is no room for it, which those that wait silently leave to it."""
        self._prune([host])
        if self._full():
            self._prune(list(self._streams))
        own = self._streams.get(host, {})
        silent = [one for one in own if one not in HEARD]
        over = len(silent) >= self._of_one or (len(own) >= self._of_one and not _is_local(host))
        if over or self._full():
            crowd = own if over else max(self._streams.values(), key=lambda those: sum(o not in HEARD for o in those))
            first = next((one for one in crowd if one not in HEARD), None)
            if first is None:
                return False
            first.close()
            del crowd[first]
        self._streams.setdefault(host, {})[stream] = None
        return True

    def _full(self) -> bool:
        return sum(map(len, self._streams.values())) >= self._most


def limit_connections(server: Any, most: int = _MOST_CONNECTIONS, of_one: int = _OF_ONE) -> None:
    """Limit the connections to a Tornado server: the earliest that waits for a request gives way to a new one.

    Args:
        server: its `HTTPServer`.
        most: largest number of connections.
        of_one: largest number per address; a proxy on this machine serves many users and may have all, but only so
            many without a request.
    """
    connections, serve = _Connections(most, of_one), server.handle_stream

    def handle(stream: Any, address: tuple[Any, ...]) -> Any:
        if not connections.admit(stream, str(address[0]) if address else ""):
            stream.close()
            return None
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
    """Counts the uploads in progress, as each takes memory.

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
