"""What the portal's server answers at all, by attacks on a server in a process of its own."""

import asyncio
import contextlib
import json
import signal
import socket
import time

import pytest
from portal_data import token_of, write_archive
from portal_server import Server

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from nenya.latents.files import Latents
from nenya.portal import gate, routes
from nenya.portal.dataset import open_dataset
from nenya.portal.holding import Portal
from nenya.portal.server import make_server

TOKEN = "a-token-of-the-test"
COOKIE = {"Cookie": f"nenya_portal={TOKEN}"}
SERVED = {
    "/", "/ws", "/download", "/upload", "/favicon.ico", "/page/page.css", "/page/page.js", "/page/pointer.js",
    "/page/longitudes.js", "/page/layout.js", "/page/access.js", "/page/time.js", "/page/touch.js",
    "/static/js/bokeh.min.js", "/static/js/bokeh-widgets.min.js", "/static/js/bokeh-tables.min.js",
    "/static/extensions/panel/panel.min.js", "/static/extensions/panel/bundled/theme/default.css",
    "/static/extensions/panel/bundled/theme/native.css",
    "/static/extensions/panel/bundled/theme/dark.css", "/static/extensions/panel/css/button.css",
    "/static/extensions/panel/css/listpanel.css", "/static/extensions/panel/css/loading.css",
    "/static/extensions/panel/css/select.css",
}  # fmt: skip
STRANGE = [
    "/components/unittest.__main__/a/b/c", "/components/nenya/a/b/c", "/components/os/a/b/c", "/liveness",
    "/metadata", "/autoload.js?bokeh-autoload-element=x", "/session_info", "/rest/session_info", "/admin",
    "/index", "/static/js/x", "/static/js/bokeh.js", "/static/", "/static",
    "/static/extensions/panel/package.json", "/static/js/../js/bokeh.min.js",
    "/static/js/%2e%2e/js/bokeh.min.js", "/static/js/..%2fjs/bokeh.min.js", "/static/js//bokeh.min.js", "//",
    "//components/unittest.__main__/a/b/c", "/./components/unittest.__main__/a/b/c",
    "/%63omponents/unittest.__main__/a/b/c", "/x/../components/unittest.__main__/a/b/c",
    "/components/unittest.__main__/a/b/c?x=/login", "/login/../components/os/a/b/c", "/page/page.html",
    "/page/../app.py", "/page/notice.html", "/ws/", "/download/", "/upload/x", "/favicon.icox", "/%00",
    "/static/js/bokeh.min.js%00", "/page/page\\.js", "/logout", "/static/js/bokeh-mathjax.min.js", "/\u00e9",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("portal"))


@pytest.fixture(scope="module")
def server(files):
    """A portal that wants a token."""
    server = Server(f"table={files[0]}", f"token={TOKEN}")
    yield server
    server.stop()
    assert "Traceback" not in "".join(server.lines), "".join(server.lines)[-3000:]
    assert server.process.returncode == 0, "Ctrl-C did not end it in order"


def test_the_routes_are_those_on_the_list_and_no_others(files):
    """A newer Panel or Bokeh that brings another route fails here."""

    async def served(token):
        portal = Portal(open_dataset(files[0], None, None), "a", token=token)
        server = make_server(portal, "127.0.0.1", 0, [])
        application, handled = server._tornado, server._http.request_callback
        assert isinstance(handled, gate.Gate) and handled.application is application
        (rule,) = application.default_router.rules
        assert rule.target is application.wildcard_router
        found = {rule.matcher.regex.pattern.removesuffix("$").replace("\\", "") for rule in rule.target.rules}
        kinds = {type(one).__name__ for one in rule.target.rules}
        kinds |= {kind.__module__ for one in rule.target.rules for kind in one.target.__mro__[:2]}
        server.stop()
        return found, set(handled.addresses), kinds

    for token in (None, TOKEN):
        before = signal.getsignal(signal.SIGINT)
        found, answered, kinds = asyncio.run(served(token))
        assert signal.getsignal(signal.SIGINT) == before, "a later Ctrl-C would call a server that has ended"
        assert found == answered == SERVED | ({"/login"} if token else set())
        bases = {"tornado.web", "panel.io.server"}  # of our own handlers, which are of these modules
        assert "URLSpec" in kinds and all(kind.startswith("nenya.portal.") for kind in kinds - bases - {"URLSpec"}), (
            kinds
        )


def test_what_visitors_send_neither_controls_nor_floods_the_terminal_of_the_server(server):
    cookie = COOKIE["Cookie"].encode()
    targets = [b"/download?key=\x9b2J\xc2\x9b31mEVIL", b"/download?key=" + b"A" * 60_000, b"/?map=%1b%0aEVIL"]
    for target in targets:
        head = b"Host: 127.0.0.1:%d\r\nConnection: close\r\nCookie: %b\r\n\r\n" % (server.port, cookie)
        assert server.raw(b"GET %b HTTP/1.1\r\n%b" % (target, head))[0] in (200, 302, 400, 403, 404)
    for _ in range(6000):  # until the lines have come through the pipe
        if any("A" * 3000 in line for line in server.lines):
            break
        time.sleep(0.05)
    assert any("x9b2J" in line for line in server.lines)
    for line in server.lines:
        assert line.rstrip("\n").isprintable() and len(line) < 5000, line[:200]


def test_the_files_of_the_page_are_there():
    for path, file in routes.FILES.items():
        assert file.is_file(), path


@pytest.mark.parametrize("target", STRANGE)
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_no_address_is_not_found_and_the_server_lives(server, target, inside):
    status, headers, body = server.ask(target, **(COOKIE if inside else {}))
    assert status in (400, 403, 404) if not inside else status in (400, 404), (status, body)
    assert server.lives and "traceback" not in body.decode(errors="replace").lower()
    if status != 400:
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'none'" in headers["content-security-policy"]
        )


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "FOO"]
)
@pytest.mark.parametrize("target", ["/", "/ws", "/download?key=x", "/login", "/page/page.js"])
def test_odd_methods_get_nothing(server, method, target):
    assert server.ask(target, method)[0] in (400, 403, 405)
    assert server.ask(target, method, **COOKIE)[0] in (400, 405)
    assert server.lives


def test_without_the_token_every_address_is_closed_but_the_login(server):
    for path in SERVED - {"/"}:
        for method in ("GET", "POST"):
            assert server.ask(path, method)[0] in (403, 405), path
    status, headers, _ = server.ask("/")
    assert status == 302 and headers["location"] == "./login"
    assert server.ask("/login")[0] == 200
    for path in SERVED - {"/ws", "/download", "/upload"}:
        assert server.ask(path, **COOKIE)[0] == 200, path


def test_foreign_origins_and_names_reach_no_address(server, files):
    for path in [*SERVED, "/login"]:
        assert server.ask(path, Origin="http://evil.example", **COOKIE)[0] == 403, path
    open_one = Server(f"table={files[0]}")
    try:
        for path in SERVED:
            assert open_one.ask(path, Host="evil.example")[0] == 403, path
        twice = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert open_one.raw(twice.encode())[0] in (400, 403)
        assert open_one.raw(b"GET / HTTP/1.0\r\n\r\n")[0] in (400, 403)  # a browser always says a name
        absolute = f"GET http://127.0.0.1:{open_one.port}/components/unittest.__main__/a/b/c HTTP/1.1\r\nHost: x\r\n"
        assert open_one.raw(absolute.encode() + b"Connection: close\r\n\r\n")[0] in (400, 403, 404)
        assert open_one.ask("/components/unittest.__main__/a/b/c")[0] == 404 and open_one.lives
        assert open_one.ask("/")[0] == 200
    finally:
        open_one.stop()


def test_a_body_without_the_token_is_not_read(server):
    """The refusal comes with the headers: nothing of what is announced needs to be sent."""
    for target, status in (("/upload?key=x", 403), ("/login", 413), ("/", 302), ("/components/os/a", 403)):
        head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 15000000\r\n\r\n"
        found, headers, _ = server.raw(head.replace("POST /", "GET /", 1).encode() if target == "/" else head.encode())
        assert found == status and headers["connection"] == "close", target
    chunked = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.raw(chunked)[0] == 413
    assert server.ask("/", body=b"x" * 10, **COOKIE)[0] == 400


def test_every_answer_carries_the_headers(server):
    targets = [
        ("/", {}),
        ("/", COOKIE),
        ("/login", {}),
        ("/page/page.js", COOKIE),
        ("/download?key=x", COOKIE),
        ("/x", {}),
    ]
    for target, cookie in targets:
        _, headers, _ = server.ask(target, **cookie)
        for name in gate.HEADERS:
            assert name.lower() in headers, (target, name)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-eval" not in policy and "frame-ancestors 'none'" in policy
        assert "base-uri 'none'" in policy and "object-src 'none'" in policy
        scripts = next((part for part in policy.split(";") if "script-src" in part), "")
        assert "unsafe-inline" not in scripts and "http" not in policy and "*" not in policy
        assert headers["referrer-policy"] == ("same-origin" if target == "/login" else "no-referrer")
        assert headers["x-frame-options"] == "deny"
    nonces = {server.ask("/login")[1]["content-security-policy"] for _ in range(3)}
    assert len(nonces) == 3


def test_the_pages_own_token_does_not_hold_the_one_of_the_login(server):
    import base64
    import zlib

    page = server.ask("/", **COOKIE)[2].decode()
    payload = token_of(page).split(".")[0]
    payload += "=" * (-len(payload) % 4)
    assert TOKEN not in page
    inner = json.loads(base64.urlsafe_b64decode(payload))
    packed = inner.get("__bk__zlib_", "")
    text = zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))).decode() if packed else ""
    assert "session_id" in inner and TOKEN not in text + json.dumps(inner)


def test_sessions_are_those_that_the_server_named(server):
    """Nobody makes a page by a name of his own, neither by address nor by websocket."""
    assert server.ask("/?bokeh-session-id=mine", **COOKIE)[0] == 403
    assert server.ask("/", Bokeh_Session_Id="mine", **COOKIE)[0] == 403
    for target in ("/?bokeh-token=abc.def", "/?bokeh%2Dtoken=e30", "/?x=1&bokeh-token=", "/?bokeh-session-id="):
        status, _, body = server.ask(target, **COOKIE)
        assert status == 403 and b"Sessions are named by the server only." in body, target

    async def connect():
        import base64

        forged = base64.urlsafe_b64encode(b'{"session_id": "mine", "session_expiry": 9999999999}').decode().rstrip("=")
        request = HTTPRequest(f"ws://127.0.0.1:{server.port}/ws", headers=COOKIE, request_timeout=300)
        socket = await websocket_connect(request, subprotocols=["bokeh", forged])
        return await socket.read_message()

    with contextlib.suppress(HTTPClientError):
        assert asyncio.run(connect()) is None
    assert server.lives


def test_connections_that_say_nothing_hold_nobody_up(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for stream in idle:
        stream.sendall(b"POST /upload?key=x HTTP/1.1\r\nHost: ")
    assert server.ask("/login")[0] == 200
    for stream in idle:
        stream.close()


def test_one_address_opens_no_more_pages_than_it_may(files, monkeypatch):
    from test_portal_safe import ask, talk

    monkeypatch.setattr(routes, "MOST_EACH", 3)

    async def work(port):
        return [await ask(port, "") for _ in range(4)]

    dataset = open_dataset(files[0], Latents([files[1]]), str(files[2]))
    portal = Portal(dataset, "a")
    answers = talk(portal, work)
    assert [answer.code for answer in answers] == [200, 200, 200, 503]
    assert b"3 pages of this portal are open from your address" in answers[3].body and len(portal.sessions) == 3


def test_a_page_that_nobody_waits_for_any_more_is_not_opened(files, monkeypatch):
    from test_portal_safe import ask, talk

    made = []

    class Rooms(routes.Rooms):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(routes, "Rooms", Rooms)

    async def until(holds):
        while not holds():
            await asyncio.sleep(0.01)

    async def work(port):
        (rooms,) = made
        async with rooms._turn:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            await until(lambda: any(line.waiting for line in rooms._lines.values()))
            writer.close()
            await asyncio.sleep(0.2)
        await until(lambda: not any(line.waiting for line in rooms._lines.values()))
        assert not portal.sessions
        return (await ask(port, "")).code

    portal = Portal(open_dataset(files[0], Latents([files[1]]), str(files[2])), "a")
    assert talk(portal, work) == 200 and len(portal.sessions) == 1
