"""Who is let in: by the token, and from pages of this server only."""

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
    """Lets requests in.

    Attributes:
        token: that a browser must know; None for everyone who reaches the server.
        origins: further host:port names that pages may be opened by, see `host_names`.
    """

    token: str | None = None
    origins: tuple[str, ...] = ()

    def lets_in(self, asked: Any) -> bool:
        """Say whether a request comes from a page of this server, and from someone who knows the token.

        Without a token the server's name must be a local one too: a foreign name that leads here is a trick (DNS
        rebinding), by which a foreign page reads what is not its own.

        Args:
            asked: a `tornado.httputil.HTTPServerRequest`, or a handler of one.
        """
        request = getattr(asked, "request", asked)
        if not self.from_here(request):
            return False
        host = _plain(request.host)
        if self.token is None:
            return urlsplit(f"//{host}").hostname in LOCAL or host in self.origins
        cookie = request.cookies.get(_COOKIE)
        return hmac.compare_digest((cookie.value if cookie else "").encode(), self.token.encode())

    def from_here(self, request: Any) -> bool:
        """Say whether a request comes from a page of this server, or from none."""
        origin = request.headers.get("Origin")
        return origin is None or _plain(urlsplit(origin).netloc) in (_plain(request.host), *self.origins)


def _plain(host: str) -> str:
    """Return host:port in small letters, without the ports that browsers leave out."""
    return host.lower().removesuffix(":80").removesuffix(":443")


def host_names(origins: Sequence[str]) -> tuple[str, ...]:
    """Return host:port names that an option gives.

    Raises:
        OptionError: One is no such name; an asterisk would let any page in.
    """
    for name in origins:
        if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\](:\d{1,5})?", name):
            raise OptionError(f"origins={name}: wanted are names such as portal.example.org or 10.0.0.7:5006")
    return tuple(map(_plain, origins))


class Login(RequestHandler):
    """Takes the token once, by a form or `?token=`, and keeps it in a cookie that scripts cannot read."""

    token: str

    def get(self) -> None:
        """Show the form, or take the token of the address."""
        if self.get_query_argument("token", ""):
            self._take(self.get_query_argument("token"))
        else:
            self._form("")

    def post(self) -> None:
        """Take the token of the form."""
        self._take(self.get_body_argument("token", ""))

    def _take(self, given: str) -> None:
        if hmac.compare_digest(given.encode(), self.token.encode()):
            self.set_cookie(_COOKIE, self.token, httponly=True, samesite="Strict", expires_days=_DAYS, path="/")
            self.redirect("./")
        else:
            log.warning("portal: a wrong token from %s", self.request.remote_ip)
            self.set_status(403)
            self._form("This is not the token that the portal printed when it was started.")

    def _form(self, trouble: str) -> None:
        nonce = pages.make_nonce()
        self.set_header("Content-Security-Policy", pages.policy(nonce))
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")  # else browsers send the form without its origin
        self.finish(pages.render("notice.html", nonce=nonce, trouble=trouble, form=True))


class Guard(AuthProvider):  # type: ignore[misc]  # Bokeh's types are not read
    """Lets in who has the token."""

    def __init__(self, door: Door) -> None:
        self._door = door
        super().__init__()

    @property
    def get_user(self) -> Any:
        """Who asks; None for someone without the token."""
        return lambda handler: "user" if self._door.lets_in(handler.request) else None

    @property
    def get_user_async(self) -> None:
        """There is none."""
        return None

    @property
    def login_url(self) -> str:
        """Where the token is taken."""
        return "/login"

    @property
    def get_login_url(self) -> None:
        """There is none."""
        return None

    @property
    def login_handler(self) -> None:
        """It is one of the server's own addresses."""
        return None

    @property
    def logout_url(self) -> None:
        """There is none."""
        return None

    @property
    def logout_handler(self) -> None:
        """There is none."""
        return None
