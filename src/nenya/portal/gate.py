"""The check in front of all handlers of the portal: a fixed list of addresses, and the guard.

A request is checked by its first line and headers, before its body is read and before any handler exists, so that
a refusal costs the server little. Every response gets headers that keep a browser from running
foreign code.
"""

import hmac
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

from tornado.escape import parse_qs_bytes
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)

from nenya.portal.guard import Door
from nenya.portal.intake import HEARD

log = logging.getLogger(__name__)

_FORM = 4096  # bytes of a login request
_SESSION_NAMES = ("bokeh-token", "bokeh-session-id")  # of arguments and headers
_TARGET = re.compile(r"/[A-Za-z0-9._/-]*")
_FRAMES = "; frame-ancestors 'none'"
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
HEADERS = {
    "Content-Security-Policy": _NOTHING,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",  # an address may contain the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response without its own."""


@dataclass(frozen=True)
class Address:
    """The requests allowed at a path.

    Attributes:
        methods: allowed methods.
        body: whether a request has a body.
        open: whether it is accessible without the token.
        most: largest body, bytes; None if the handler counts them.
    """

    methods: tuple[str, ...] = ("GET",)
    body: bool = False
    open: bool = False
    most: int | None = None


PAGE, SOCKET = "/", "/ws"
ADDRESSES = {
    PAGE: Address(),
    SOCKET: Address(),
    "/download": Address(),
    "/upload": Address(("POST",), body=True),
    "/login": Address(("GET", "POST"), body=True, open=True, most=_FORM),
}
"""All addresses of the portal beside the files of its page; `/login` only with a token."""


class Refusal(Exception):
    """A refused request.

    Args:
        status: of HTTP.
        text: for the user.
        location: of a redirect.
    """

    def __init__(self, status: int, text: str, location: str = "") -> None:
        super().__init__(text)
        self.status, self.text, self.location = status, text, location


class Gate(HTTPServerConnectionDelegate):
    """Filters requests between the connections and the application.

    Args:
        application: handles accepted requests.
        door: decides on admission.
        files: paths of the page's files.
    """

    def __init__(self, application: Any, door: Door, files: frozenset[str] = frozenset()) -> None:
        self.application, self.door = application, door
        self.addresses = {**ADDRESSES, **{path: Address() for path in files}}
        if door.token is None or door.in_path:
            del self.addresses["/login"]

    def start_request(self, server_conn: object, request_conn: Any) -> "_Visit":
        """Return the delegate that reads the request."""
        HEARD.wait(request_conn.stream)
        write = request_conn.write_headers

        def write_headers(line: ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None) -> Any:
            for name, value in HEADERS.items():
                if name not in headers:
                    headers[name] = value
            if "Server" in headers:
                del headers["Server"]
            if self.door.in_path:  # shown in a frame of a notebook
                headers["Content-Security-Policy"] = headers["Content-Security-Policy"].replace(_FRAMES, "")
                headers.pop("X-Frame-Options", None)
            return write(line, headers, chunk)

        request_conn.write_headers = write_headers
        return _Visit(self, server_conn, request_conn)

    def within(self, line: RequestStartLine) -> RequestStartLine:
        """Return the first line of a request without the token in its path.

        Raises:
            Refusal: The path does not begin with it.
        """
        if not self.door.in_path:
            return line
        first, slash, rest = line.path[1:].partition("/")
        if not slash or not hmac.compare_digest(first.encode(), str(self.door.token).encode()):
            raise Refusal(403, "This address lacks the token of the view.")
        return line._replace(path=f"/{rest}")

    def on_close(self, server_conn: object) -> None:
        """Notify the application of a closed connection."""
        self.application.on_close(server_conn)

    def check(self, line: RequestStartLine, headers: HTTPHeaders) -> None:
        """Check a request.

        Raises:
            Refusal: It is refused.
        """
        path = line.path.partition("?")[0]
        if not _TARGET.fullmatch(path) or "//" in path or "/." in path:
            raise Refusal(404, "Not found.")
        address = self.addresses.get(path)
        here, inside = self._judged(line, headers)
        if not inside and not (here and address is not None and address.open):
            if here and path == PAGE and line.method == "GET" and self.door.token is not None:
                raise Refusal(302, "Log in first.", "./login")
            raise Refusal(403, "Log in first.")
        if address is None:
            raise Refusal(404, "Not found.")
        if line.method not in address.methods:
            raise Refusal(405, f"{path} takes {' and '.join(address.methods)} only.")
        _check_body(headers, address, line.method)
        if path == PAGE and _names_a_session(line, headers):
            raise Refusal(403, "Sessions are named by the server only.")
        if path == SOCKET and headers.get("Upgrade", "").lower() != "websocket":
            raise Refusal(400, "This address accepts only the websocket of the page.")

    def _judged(self, line: RequestStartLine, headers: HTTPHeaders) -> tuple[bool, bool]:
        """Return whether a request comes from a page of this server, and whether it is admitted."""
        if len(headers.get_list("Host")) != 1 or len(headers.get_list("Origin")) > 1:
            return False, False
        try:
            request = HTTPServerRequest(start_line=line, headers=headers)
            return self.door.from_here(request), self.door.lets_in(request)
        except (HTTPInputError, ValueError):  # not a host name
            return False, False


def _names_a_session(line: RequestStartLine, headers: HTTPHeaders) -> bool:
    """Return whether a request tells Bokeh which session to open; pages do so over their websocket only."""
    asked = parse_qs_bytes(line.path.partition("?")[2], keep_blank_values=True)
    return any(name in asked or name in headers for name in _SESSION_NAMES)


def _check_body(headers: HTTPHeaders, address: Address, method: str) -> None:
    length = headers.get("Content-Length", "0")
    if not (address.body and method == "POST"):
        if length != "0" or "Transfer-Encoding" in headers:
            raise Refusal(400, "This address accepts no request body.")
    elif address.most is not None and (
        "Transfer-Encoding" in headers or not length.isdecimal() or len(length) > 9 or int(length) > address.most
    ):
        raise Refusal(413, f"The request is too large: at most {address.most} bytes are accepted.")


class _Visit(HTTPMessageDelegate):
    """One request, passed to the application or refused."""

    def __init__(self, gate: Gate, server_conn: object, request_conn: Any) -> None:
        self._gate, self._server, self._connection = gate, server_conn, request_conn
        self._inner: Any = None

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Any:
        """Pass the request on, or refuse it before its body is read."""
        HEARD.hear(self._connection.stream)
        try:
            start_line = self._gate.within(start_line)
            self._gate.check(start_line, headers)
        except Refusal as refusal:
            self._refuse(refusal, with_body=start_line.method != "HEAD")
            return None
        self._inner = self._gate.application.start_request(self._server, self._connection)
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        """Pass a piece of the body on."""
        return self._inner.data_received(chunk) if self._inner is not None else None

    def finish(self) -> None:
        """Signal that the request is complete."""
        if self._inner is not None:
            self._inner.finish()

    def on_connection_close(self) -> None:
        """Signal that the connection is closed."""
        if self._inner is not None:
            self._inner.on_connection_close()

    def _refuse(self, refusal: Refusal, *, with_body: bool) -> None:
        body = json.dumps({"message": refusal.text}).encode()
        headers = HTTPHeaders({"Content-Type": "application/json", "Content-Length": str(len(body))})
        headers["Cache-Control"], headers["Connection"] = "no-store", "close"
        if refusal.location:
            headers["Location"] = refusal.location
        self._connection.write_headers(
            ResponseStartLine("HTTP/1.1", refusal.status, ""), headers, body if with_body else None
        )
        self._connection.finish()
