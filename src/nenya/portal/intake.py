"""What the portal takes over the network, and how much of it at once: images of users, all else in small pieces."""

import ipaddress
import logging
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from nenya.portal.guard import LOCAL

log = logging.getLogger(__name__)

_SMALL = 2**16  # bytes of a request's body, other than an image
_MESSAGE = 2**21  # bytes of a connection's buffer: a message of the page has up to 2**20
BODY_SECONDS = 30
"""Within which a request's body is to come."""

_IDLE = 60  # seconds
_MOST_CONNECTIONS, _OF_ONE = 500, 100
_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via")

_BUSY = "Other images are being read: send this one again in a moment."
_ONE_BY_ONE = "Your other images are being read: send this one when they are done."


def http_limits() -> dict[str, Any]:
    """Return what Tornado's server takes from anybody: little, and not for ever. `TakesImages` takes more."""
    return {
        "max_buffer_size": _MESSAGE,
        "max_body_size": _SMALL,
        "max_header_size": _SMALL,
        "idle_connection_timeout": _IDLE,
        "body_timeout": BODY_SECONDS,
    }


def limit_connections(server: Any, most: int = _MOST_CONNECTIONS, of_one: int = _OF_ONE) -> None:
    """Close new connections to a Tornado server while there are too many.

    Args:
        server: its `HTTPServer`.
        most: connections in all.
        of_one: of one address; a proxy on this machine, which stands for all its users, may have all.
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
    """Say whether an address is this machine's own, by which it reaches itself only."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)


def from_here(request: Any) -> bool:
    """Say whether a request comes from this machine itself, and not by way of a proxy on it."""
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
    """Counts the images that are on their way: each of them takes memory.

    Args:
        most: in all.
        of_one: of one session.
    """

    def __init__(self, most: int = 4, of_one: int = 2) -> None:
        self._most, self._of_one = most, of_one
        self._open: Counter[str] = Counter()

    def enter(self, key: str) -> tuple[int, str] | None:
        """Count one of a session, or return the status and the sentence of a refusal."""
        if self._open[key] >= self._of_one:
            return 429, _ONE_BY_ONE
        if self._open.total() >= self._most:
            return 503, _BUSY
        self._open[key] += 1
        return None

    def leave(self, key: str) -> None:
        """Count one no more."""
        self._open[key] -= 1
        self._open += Counter()  # without those at zero
