"""The portal's server: pages of sessions, downloads, uploads and the token."""

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import panel as pn
from panel.io.server import get_server
from tornado.ioloop import PeriodicCallback
from tornado.iostream import StreamClosedError
from tornado.routing import AnyMatches, Rule
from tornado.web import RequestHandler

from nenya.errors import NenyaError, OptionError
from nenya.portal import downloads, routes
from nenya.portal.dataset import Cancelled
from nenya.portal.gate import Gate
from nenya.portal.guard import LOCAL, Door, Guard, Login, host_names
from nenya.portal.holding import Portal
from nenya.portal.intake import http_limits, limit_connections
from nenya.portal.jobs import FAILED
from nenya.portal.session import Session
from nenya.portal.takes_images import TakesImages
from nenya.runtime.signals import on_interrupt

log = logging.getLogger(__name__)

_CHUNK = 2**20
_SILENT = 60.0  # seconds within which a connection must send a request
_MOST_DOWNLOADS = 2  # per page at a time
_NUMBERS = itertools.count()
T = TypeVar("T")


class _Handler(RequestHandler):
    """Addresses beside the page; they identify sessions by secret key only."""

    portal: Portal

    def _session(self) -> Session | None:
        """Return the requested session, or send a refusal."""
        if not self.portal.door.lets_in(self):
            self._refuse(403, "Log in first.")
            return None
        session = self.portal.sessions.get(self.get_query_argument("key", ""))
        if session is None:
            self._refuse(404, "This page is no longer open: reload it.")
        return session

    def _refuse(self, status: int, text: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"message": text}))


async def _in_page(session: Session, function: Callable[[], T]) -> T:
    """Return the result of a function run in the page's own thread."""
    found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    session.jobs.call(lambda: found.set_result(function()))
    return await found


class _Download(_Handler):
    """Serves the selected rows or the gallery as a file."""

    async def get(self) -> None:
        """Serve the download given by `what=`."""
        session = self._session()
        if session is None:
            return
        what = self.get_query_argument("what", "")
        if what not in downloads.KINDS:
            return self._refuse(404, "There is no such download.")
        if session.downloads >= _MOST_DOWNLOADS:
            return self._refuse(429, f"{session.downloads} downloads of this page are running: wait until one ends.")
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="nenya_{quote(what)}"')
        self.set_header("X-Content-Type-Options", "nosniff")
        kind = f"download {next(_NUMBERS)}"
        ticket = await _in_page(session, lambda: session.jobs.open(kind, f"sending {what}"))
        session.downloads += 1
        loop, trouble = asyncio.get_running_loop(), ""
        pieces: Iterator[bytes] = downloads.KINDS[what](session, ticket.tick)
        try:
            while (piece := await loop.run_in_executor(self.portal.pools.files, next, pieces, None)) is not None:
                for start in range(0, len(piece), _CHUNK):
                    self.write(piece[start : start + _CHUNK])
                    await self.flush()
            await self.finish()
        except Cancelled:
            self._break_off()
        except StreamClosedError:
            trouble = f"{what} was not sent completely: the browser ended the download"
        except Exception:
            log.exception("portal: download")
            trouble = FAILED
            self._break_off()
        finally:
            session.downloads -= 1
        session.jobs.call(lambda: session.jobs.close(kind, ticket, trouble))
        return None

    def _break_off(self) -> None:
        """Close the connection, so that the browser notices an incomplete file."""
        if self._headers_written:
            self.detach().close()
        else:
            self._refuse(409, "stopped")


_HANDLERS = {"download": _Download, "upload": TakesImages}


def _guard(server: Any, door: Door, handlers: dict[str, Any]) -> None:
    """Serves only the routes of `nenya.portal.routes`, and every request passes the gate first."""
    application = server._tornado
    application.wildcard_router.rules = []
    application.default_router.rules = [Rule(AnyMatches(), application.wildcard_router)]
    application.wildcard_router.add_rules(routes.rules(application, handlers))
    server._http.conn_params.header_timeout = _SILENT
    server._http.request_callback = Gate(application, door, frozenset(routes.FILES))


def make_server(portal: Portal, address: str, port: int, origins: list[str], *, in_path: bool = False) -> Any:
    """Return a server that listens but is not started.

    Args:
        portal: the state to serve.
        address: 127.0.0.1, or another one, which requires a token.
        port: 0 for any free port.
        origins: further host:port names of the server.
        in_path: whether the token is the first part of every address, as for a notebook; see `Door`.

    Raises:
        OptionError: The address is not local and there is no token, it cannot be used, or an origin is not a name.
    """
    if address not in LOCAL and not portal.token:
        raise OptionError(f"address={address} admits other machines: a token is required")
    pn.config.notifications = False  # pn.extension would print its scripts into a notebook
    handlers: dict[str, Any] = {f"/{name}": type(name, (kind,), {"portal": portal}) for name, kind in _HANDLERS.items()}
    if portal.token and not in_path:
        handlers["/login"] = type("login", (Login,), {"token": portal.token})
    portal.door = Door(portal.token, host_names(origins), in_path)
    allowlist = logging.getLogger(
        "bokeh.server.util"
    )  # its warning of the asterisk does not apply, as `lets_in` checks origins
    before = allowlist.level
    allowlist.setLevel(logging.ERROR)
    try:
        with on_interrupt():  # Panel leaves a handler behind, which fails once its loop is closed
            server = get_server(
                {"/": portal.page},
                port=port,
                address=address,
                websocket_origin=["*"],
                title="Nenya portal",
                start=False,
                show=False,
                auth_provider=Guard(portal.door),
                websocket_max_message_size=2**20,
                http_server_kwargs=http_limits(),
                session_token_expiration=3600,
                sign_sessions=True,  # admitted users get sessions named by the server only
                secret_key=secrets.token_urlsafe(32),
                include_headers=[],  # sessions need none of these, and they contain the token
                include_cookies=[],
                check_unused_sessions_milliseconds=10_000,
                unused_session_lifetime_milliseconds=30_000,
            )
        _guard(server, portal.door, handlers)
        limit_connections(server._http)
        if portal.takes_images:
            portal.jail.start()
        if portal.reopen is not None:
            PeriodicCallback(portal.look, 1000 * portal.look_every).start()
    except NenyaError:
        raise
    except OSError as error:
        raise OptionError(
            f"port {port} of {address} cannot be used ({error.strerror}): choose another by port="
        ) from error
    finally:
        allowlist.setLevel(before)
    return server


def make_token() -> str:
    """Return a new token."""
    return secrets.token_urlsafe(24)
