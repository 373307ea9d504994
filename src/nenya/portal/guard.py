"""Admission of requests: by the token, and from pages of this server only."""

import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bokeh.server.auth_provider import AuthProvider
from tornado.web import RequestHandler

from nenya.errors import OptionError
from nenya.portal import pages

log = logging.getLogger(__name__)

LOCAL = ("127.0.0.1", "localhost", "::1")
_COOKIE = "nenya_portal"
_DAYS = 30


@dataclass(frozen=True)
class Door:
    """Admits requests.

    Attributes:
        token: required of a browser; None admits everyone who reaches the server.
        origins: further host:port names of the server, see `host_names`.
        in_path: whether the token is the first part of every address. This is so in a frame of a notebook, where the
            browser stores no cookies of the server. `nenya.portal.gate.Gate` checks the token, and only pages that know
            it can frame the portal.
    """

    token: str | None = None
    origins: tuple[str, ...] = ()
    in_path: bool = False

    def lets_in(self, asked: Any) -> bool:
        """Return whether a request comes from a page of this server, with the token.

        Without a token, the server's name must also be local: a foreign name that resolves here is an attack (DNS
        rebinding), by which a foreign page reads data of this server.

        Args:
            asked: a `tornado.httputil.HTTPServerRequest`, or a handler of one.
        """
        request = getattr(asked, "request", asked)
        if not self.from_here(request):
            return False
        if self.in_path:
            return True
        host = _plain(request.host)
        if self.token is None:
            return urlsplit(f"//{host}").hostname in LOCAL or host in self.origins
        cookie = request.cookies.get(_COOKIE)
        return hmac.compare_digest((cookie.value if cookie else "").encode(), self.token.encode())

    def from_here(self, request: Any) -> bool:
        """Return whether a request comes from a page of this server, or from no page."""
        origin = request.headers.get("Origin")
        return origin is None or _plain(urlsplit(origin).netloc) in (_plain(request.host), *self.origins)


def _plain(host: str) -> str:
    """Return host:port in lower case, without the default ports that browsers omit."""
    return host.lower().removesuffix(":80").removesuffix(":443")


def host_names(origins: Sequence[str]) -> tuple[str, ...]:
    """Return the host:port names of an option.

    Raises:
        OptionError: One is not such a name; an asterisk would admit any page.
    """
    for name in origins:
        if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?", name):
            raise OptionError(f"origins={name}: expected names such as portal.example.org or 10.0.0.7:5006")
    return tuple(map(_plain, origins))


class Login(RequestHandler):
    """Accepts the token once, by a form or `?token=`, and stores it in a cookie that scripts cannot read."""

    token: str

    def get(self) -> None:
        """Show the form, or accept the token in the address."""
        if self.get_query_argument("token", ""):
            self._take(self.get_query_argument("token"))
        else:
            self._form("")

    def post(self) -> None:
        """Accept the token of the form."""
        self._take(self.get_body_argument("token", ""))

    def _take(self, given: str) -> None:
        if hmac.compare_digest(given.encode(), self.token.encode()):
            self.set_cookie(_COOKIE, self.token, httponly=True, samesite="Strict", expires_days=_DAYS, path="/")
            self.redirect("./")
        else:
            log.warning("portal: a wrong token from %s", self.request.remote_ip)
            self.set_status(403)
            self._form("Wrong token: enter the one that the portal printed at its start.")

    def _form(self, trouble: str) -> None:
        nonce = pages.make_nonce()
        self.set_header("Content-Security-Policy", pages.policy(nonce))
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")  # else browsers send the form without an origin
        self.finish(pages.render("notice.html", nonce=nonce, trouble=trouble, form=True))


class Guard(AuthProvider):  # type: ignore[misc]  # Bokeh's types are not read
    """Bokeh's authentication by the token."""

    def __init__(self, door: Door) -> None:
        self._door = door
        super().__init__()

    @property
    def get_user(self) -> Any:
        """The user; None without the token."""
        return lambda handler: "user" if self._door.lets_in(handler.request) else None

    @property
    def get_user_async(self) -> None:
        """Not used."""
        return None

    @property
    def login_url(self) -> str:
        """The address of the login form."""
        return "/login"

    @property
    def get_login_url(self) -> None:
        """Not used."""
        return None

    @property
    def login_handler(self) -> None:
        """Not used, as it is one of the server's own addresses."""
        return None

    @property
    def logout_url(self) -> None:
        """Not used."""
        return None

    @property
    def logout_handler(self) -> None:
        """Not used."""
        return None
