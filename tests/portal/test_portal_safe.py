"""What the portal's server refuses, without a browser: strangers, foreign pages, large things, paths."""

import asyncio
import contextlib
import json
import socket
import threading

import numpy as np
import pytest
from portal_data import token_of, write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from nenya.errors import OptionError
from nenya.latents.files import Latents
from nenya.portal.dataset import open_dataset
from nenya.portal.holding import Portal
from nenya.portal.server import make_server, make_token

TOKEN = "token-of-the-test"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("portal"))
    return open_dataset(table, Latents([latents]), str(cutouts))


class Never:
    """An encoder that must not be reached."""

    def encode(self, *_):
        raise AssertionError("an upload came through")


def talk(portal, work, origins=()):
    """Serve a portal, and run a coroutine of its port beside it."""

    async def run():
        server = make_server(portal, "127.0.0.1", 0, list(origins))
        server.start()
        try:
            return await work(server.port)
        finally:
            server.stop()
            server.io_loop.close = lambda *_: None

    box = {}

    def main():
        try:
            box["found"] = asyncio.run(run())
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(300)
    assert not thread.is_alive()
    if "error" in box:
        raise box["error"]
    return box["found"]


async def ask(port, path, **settings):
    request = HTTPRequest(f"http://127.0.0.1:{port}/{path}", follow_redirects=False, request_timeout=300, **settings)
    return await AsyncHTTPClient().fetch(request, raise_error=False)


async def connect(port, page, origin, **headers):
    token = token_of(page.body.decode())
    headers = {"Origin": origin, **headers}
    request = HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=headers, request_timeout=300)
    return await websocket_connect(request, subprotocols=["bokeh", token])


def test_the_address_that_is_said_is_one_that_others_reach():
    from nenya.commands.portal import reached_by

    for every in ("0.0.0.0", "::"):
        host = reached_by(every)
        assert host.strip("[]") not in ("0.0.0.0", "::", "")
        assert socket.getaddrinfo(host.strip("[]"), 5006)
    assert reached_by("portal.example.org") == "portal.example.org" and reached_by("2001:db8::7") == "[2001:db8::7]"


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.7", "::", "example.org"])  # nothing listens
def test_no_other_address_is_listened_on_without_a_token(dataset, address):
    with pytest.raises(OptionError, match="a token is required"):
        make_server(Portal(dataset, "a"), address, 0, [])


def test_tokens_are_long_and_different():
    assert len({make_token() for _ in range(50)}) == 50 and len(make_token()) >= 32


def test_a_stranger_gets_nothing_but_the_form(dataset):
    async def work(port):
        paths = ["", "?view=AAAA", "download?key=x&what=rows.csv", "ws", "static/js/bokeh.min.js", "autoload.js"]
        answers = {path: await ask(port, path) for path in paths}
        answers["upload"] = await ask(port, "upload?key=x", method="POST", body=b"x")
        answers["cookie"] = await ask(port, "", headers={"Cookie": "nenya_portal=guess"})
        answers["wrong"] = await ask(port, "login", method="POST", body="token=wrong")
        answers["right"] = await ask(port, "login", method="POST", body=f"token={TOKEN}")
        cookie = answers["right"].headers["Set-Cookie"].split(";")[0]
        answers["inside"] = await ask(port, "", headers={"Cookie": cookie})
        with pytest.raises(HTTPClientError):
            await websocket_connect(f"ws://127.0.0.1:{port}/ws", subprotocols=["bokeh", "x"])
        return answers

    portal = Portal(dataset, "a", Never(), token=TOKEN)
    answers = talk(portal, work)
    for path in ("", "?view=AAAA", "cookie"):
        assert answers[path].code == 302 and "/login" in answers[path].headers["Location"], path
    for path in ("download?key=x&what=rows.csv", "upload", "wrong"):
        assert answers[path].code == 403, path
    assert answers["ws"].code in (400, 401, 403) and answers["autoload.js"].code in (302, 400, 403)
    for answer in answers.values():
        assert b"a.parquet" not in (answer.body or b"") or answer is answers["inside"]
    assert answers["right"].code == 302 and answers["inside"].code == 200
    flags = answers["right"].headers["Set-Cookie"]
    assert "HttpOnly" in flags and "SameSite=Strict" in flags
    assert TOKEN.encode() not in answers["inside"].body


def test_a_foreign_page_cannot_open_the_websocket(dataset):
    async def work(port):
        page = await ask(port, "")
        assert page.code == 200
        for origin in ("http://evil.example", f"http://evil.example:{port}", "null", "http://localhost.evil.example"):
            socket = None
            with contextlib.suppress(HTTPClientError):
                socket = await connect(port, page, origin)
            assert socket is None or "ACK" not in str(await socket.read_message()), origin
            answer = await ask(port, "upload?key=x&name=x.npy", method="POST", body=b"x", headers={"Origin": origin})
            assert answer.code == 403
        for origin in ("https://portal.example", f"http://127.0.0.1:{port}"):
            socket = await connect(port, page, origin)
            assert "ACK" in str(await socket.read_message())
            socket.close()

    talk(Portal(dataset, "a"), work, origins=["Portal.example:443"])


def test_a_foreign_name_that_leads_here_shows_nothing_without_a_token(dataset):
    async def work(port):
        answers = [await ask(port, "", headers={"Host": host}) for host in ("evil.example", f"evil.example:{port}")]
        return answers, await ask(port, "", headers={"Host": "portal.example"})

    foreign, own = talk(Portal(dataset, "a"), work, origins=["portal.example"])
    assert all(answer.code in (302, 403, 404) for answer in foreign) and own.code == 200


def test_with_the_token_the_page_works_by_any_name_of_the_machine(dataset):
    async def work(port):
        headers = {"Host": f"machine.example:{port}", "Cookie": f"nenya_portal={TOKEN}"}
        page = await ask(port, "", headers=headers)
        socket = await connect(port, page, f"http://machine.example:{port}", **headers)
        return str(await socket.read_message())

    assert "ACK" in talk(Portal(dataset, "a", token=TOKEN), work)


@pytest.mark.parametrize("name", ["*", "proxy.example:*", "http://a", "a/b", "", "a:x"])
def test_what_is_no_name_of_a_host_is_one_line(dataset, name):
    with pytest.raises(OptionError, match="origins="):
        make_server(Portal(dataset, "a"), "127.0.0.1", 0, [name])


def test_no_path_of_the_browser_reaches_the_files(dataset, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of the test")
    paths = [
        f"static/../../../../../../..{secret}", f"static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{secret}", str(secret),
        f"static/extensions/panel/..%2f..%2f..%2f..%2f..%2f..%2f..{secret}", "components/nenya/errors.py",
        f"download?key=x&what={secret}", f"?view={secret}", f"login?token={secret}", "static/extensions/nenya/x",
    ]  # fmt: skip

    async def work(port):
        return [await ask(port, path.lstrip("/")) for path in paths]

    for path, answer in zip(paths, talk(Portal(dataset, "a"), work), strict=True):
        assert b"the secret of the test" not in (answer.body or b""), path
        assert answer.code in (200, 400, 403, 404), path


def test_what_is_too_large_is_refused_before_it_is_read(dataset):
    async def work(port):
        page = await ask(port, "")
        assert page.code == 200
        (key,) = portal.sessions
        large = np.zeros(1_100_000, np.uint8).tobytes()
        just = await ask(port, f"upload?key={key}&name=x.npy", method="POST", body=large)
        huge = await ask(port, f"upload?key={key}&name=x.npy", method="POST", body=large * 3)
        stranger = await ask(port, "upload?key=guess&name=x.npy", method="POST", body=b"x")
        token = token_of(page.body.decode())
        socket = await websocket_connect(f"ws://127.0.0.1:{port}/ws", subprotocols=["bokeh", token])
        await socket.read_message()
        await socket.write_message("x" * (2**20 + 10))
        while (message := await socket.read_message()) is not None:
            assert len(message) < 2**20
        return just, huge, stranger

    portal = Portal(dataset, "a", Never(), limit_mb=1)
    just, huge, stranger = talk(portal, work)
    assert just.code == 413 and "limit 1 MB" in json.loads(just.body)["message"]
    assert huge.code in (400, 413, 599)  # the connection ends
    assert stranger.code == 404
