"""Limits on data from the network: uploaded images, and small requests of other kinds."""

import ipaddress
import logging
from collections import Counter
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

_BUSY = "Other images are being read: send this one again in a moment."
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


class Intake:
    """Counts the uploads in progress, each of which takes memory.

    Args:
        most: largest number.
        of_one: largest number per session.
    """

    def __init__(self, most: int = 4, of_one: int = 2) -> None:
        self._most, self._of_one = most, of_one
        self._open: Counter[str] = Counter()

    def enter(self, key: str) -> tuple[int, str] | None:
        """Count an upload of a session, or return status and sentence of a refusal."""
        if self._open[key] >= self._of_one:
            return 429, _ONE_BY_ONE
        if self._open.total() >= self._most:
            return 503, _BUSY
        self._open[key] += 1
        return None

    def leave(self, key: str) -> None:
        """Remove an upload from the count."""
        self._open[key] -= 1
        self._open += Counter()  # drops zero counts
