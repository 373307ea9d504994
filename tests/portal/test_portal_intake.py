"""What the portal takes over the network, against a real server process: who may send, how much, how slowly."""

import contextlib
import io
import json
import socket
import threading
import time

import numpy as np
import psutil
import pytest
from portal_process import Server, answer_of

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from nenya.commands.portal import reached_by
from nenya.errors import OptionError
from nenya.portal import intake

TOKEN = "token-of-the-test"
BODY = bytes(2**20)


def saved(side=16):
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).normal(size=(side, side)).astype("f4"))
    return stream.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("portal"), token=TOKEN, limit_mb=20) as found:
        yield found


def send_much(server, head, megabytes, sent):
    """Send a body in pieces for as long as the server takes them."""
    with server.connect() as one, contextlib.suppress(OSError):
        one.sendall(head)
        for _ in range(megabytes):
            one.sendall(BODY)
            sent.append(1)
        answer_of(one)


@contextlib.contextmanager
def watched(server):
    """Note the most that the server's process takes more than before."""
    stop, found, before = threading.Event(), [0], server.memory

    def look():
        while not stop.wait(0.01):
            found.append(server.memory - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("path", ["upload?key=x&name=x.npy", "login", "", "ws", "download?key=x", "nothing"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.slow
def test_strangers_who_send_much_hold_no_memory(server, path, chunked):
    server.key()
    size, headers = (None, {"Transfer_Encoding": "chunked"}) if chunked else (20 * 2**20, {})
    head = server.head(path, size, Cookie="nenya_portal=guess", **headers)
    if chunked:
        head += b"1400000\r\n"
    sent = []
    with watched(server) as taken:
        threads = [threading.Thread(target=send_much, args=(server, head, 20, sent)) for _ in range(25)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive()
    assert max(taken) < 10e6 and server.ask("login")[0] == 200
    assert len(sent) < 25 * 20  # nobody was heard out


def test_a_body_that_waits_holds_no_memory_either(server):
    head = server.head("upload?key=x&name=x.npy", 20 * 2**20, Cookie="nenya_portal=guess")
    with contextlib.ExitStack() as stack, watched(server) as taken:
        for _ in range(25):
            one = stack.enter_context(server.connect())
            one.sendall(head)
            assert answer_of(one)[0] == 403  # before a byte of the body
    assert max(taken) < 10e6


def test_who_is_inside_sends_an_image_and_hears_of_it(server):
    key = server.key()
    status, text = server.ask(f"upload?key={key}&name=x.npy", saved())
    assert status == 200 and json.loads(text) == {"message": "x.npy is shown under New image.", "taken": True}


def upload(server, key, body=None, **settings):
    status, text = server.ask(f"upload?key={key}&name=x.pkl", body or b"cos\nsystem", **settings)
    return status, json.loads(text)["message"] if text.startswith("{") else text


def eventually(answer, wanted):
    """Ask until the server, which hears of an end a moment later, answers as wanted."""
    end = time.monotonic() + 300
    while (found := answer()) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_what_is_too_large_is_said_and_not_kept(server):
    key = server.key()
    for size, declared in ((21 * 10**6, True), (21 * 10**6, False), (90 * 10**6, True)):
        with watched(server) as taken, server.connect() as one:
            headers = {} if declared else {"Transfer_Encoding": "chunked"}
            one.sendall(server.head(f"upload?key={key}&name=x.npy", size if declared else None, **headers))
            with contextlib.suppress(OSError):
                one.sendall(b"" if declared else f"{size:x}\r\n".encode())
                one.sendall(bytes(size))
                one.sendall(b"" if declared else b"\r\n0\r\n\r\n")
            status, text = answer_of(one)
        assert (status == 413 and "limit 20 MB" in text) or (size > 23e6 and status == 0)
        assert max(taken) < (10e6 if declared else 70e6)
    eventually(lambda: upload(server, key)[0], 200)


def test_slow_senders_keep_no_other_page_out(server):
    keys = [server.key() for _ in range(3)]
    with contextlib.ExitStack() as stack:

        def begin(key):
            one = stack.enter_context(server.connect())
            one.sendall(server.head(f"upload?key={key}&name=x.npy", 1000) + b"x")
            return one

        first = begin(keys[0])
        begin(keys[0]), begin(keys[1]), begin(keys[1])
        eventually(lambda: upload(server, keys[0]), (429, intake._ONE_BY_ONE))
        assert upload(server, keys[2])[0] == 200  # incomplete ones take no place
        first.close()
        eventually(lambda: upload(server, keys[0])[0], 200)


def test_complete_images_take_places_and_the_earliest_incomplete_one_gives_way():
    dropped, held = [], intake.Intake(most=1, of_one=2, most_bytes=100)

    def arrive(key, name):
        arrival = intake.Arrival(key, lambda: dropped.append(name))
        return arrival, held.enter(arrival)

    (slow, one), (second, two), (_, three) = arrive("a", "slow"), arrive("a", "second"), arrive("a", "third")
    assert one is two is None and three == (429, intake._ONE_BY_ONE)
    honest, four = arrive("b", "honest")
    assert four is None
    held.grow(slow, 60), held.grow(second, 40)
    assert dropped == []
    held.grow(honest, 30)
    assert dropped == ["slow"] and held.complete(honest) and not held.complete(second)
    assert arrive("c", "fourth")[1] == (503, intake.BUSY)
    held.grow(second, 60)
    assert dropped == ["slow"]  # a complete one no longer counts among them
    held.leave(honest), held.leave(honest), held.leave(slow)
    assert arrive("a", "again")[1] is None and arrive("a", "more")[1] == (429, intake._ONE_BY_ONE)


def test_an_image_that_gave_way_is_refused_in_a_sentence(tmp_path):
    with Server(tmp_path, limit_mb=101, upload="any", walls=False) as server:  # one place, 101 MB
        keys = [server.key() for _ in range(3)]
        size = 60 * 10**6
        with contextlib.ExitStack() as stack:
            senders = [stack.enter_context(server.connect()) for _ in range(2)]
            for number, one in enumerate(senders):
                one.sendall(server.head(f"upload?key={keys[number]}&name=x.npy", size))
                one.sendall(bytes(size - 1))
            senders[0].sendall(b"x")
            status, text = answer_of(senders[0])
            assert status == 503 and intake.BUSY in text
            assert upload(server, keys[2])[0] == 200


@pytest.mark.slow
def test_unfinished_and_broken_images_leave_their_places(server):
    key = server.key()
    for _ in range(12):
        with server.connect() as one:
            one.sendall(server.head(f"upload?key={key}&name=x.npy", 10**6) + bytes(1000))
    eventually(lambda: upload(server, key)[0], 200)


def test_other_methods_and_foreign_pages_send_no_image(server):
    key = server.key()
    for method in ("GET", "PUT", "DELETE"):
        assert server.ask(f"upload?key={key}", saved(), method=method)[0] == 405
    assert upload(server, key, Origin="http://evil.example")[0] == 403
    assert upload(server, "guess")[0] == 404


def test_a_header_without_end_is_refused(server):
    with watched(server) as taken, server.connect() as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(50):
                one.sendall(bytes(2**20).replace(b"\0", b"x"))
        answer_of(one)
    assert max(taken) < 10e6


def test_bombs_of_visitors_end_outside_the_server(server):
    from test_portal_jail import BOMBS

    key = server.key()
    with watched(server) as taken:
        for bomb in ("h5 of 7.4 GB that were never written", "h5 of a chunk of 3.7 GB", "npz of 160 MB by columns"):
            name, make, _ = BOMBS[bomb]
            status, text = server.ask(f"upload?key={key}&name={name}", make())
            said = json.loads(text)
            assert status == 200 and not said["taken"] and said["message"].startswith("Refused: "), text
    assert max(taken) < 20e6
    children = psutil.Process(server.process.pid).children()
    assert len([c for c in children if c.status() != psutil.STATUS_ZOMBIE]) <= 2
    assert not [c for c in children if c.status() == psutil.STATUS_ZOMBIE]


PROXIED = ({"X_Forwarded_For": "10.0.0.1"}, {"Forwarded": "for=10.0.0.1"}, {"X_Real_IP": "10.0.0.1"}, {"Via": "1.1 a"})


@pytest.mark.parametrize(
    ("policy", "walls", "near", "far"),
    [
        ("auto", False, 200, 403),
        pytest.param("auto", True, 200, 200, marks=pytest.mark.slow),
        pytest.param("local", True, 200, 403, marks=pytest.mark.slow),
        pytest.param("any", False, 200, 200, marks=pytest.mark.slow),
        pytest.param("none", True, 403, 403, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_whose_images_are_taken_and_that_slow_ones_are_ended(tmp_path, policy, walls, near, far):
    host = reached_by("0.0.0.0")
    with Server(tmp_path, token=TOKEN, upload=policy, walls=walls, address="0.0.0.0", grace=2.0) as server:
        status, page = server.ask("")
        assert status == 200 and ('id="upload_form"' in page) == (policy != "none")
        key = server.key()
        assert upload(server, key)[0] == near
        for headers in PROXIED:
            assert upload(server, key, **headers)[0] == far, headers
        try:
            with server.connect(host) as one:
                away = not one.getsockname()[0].startswith("127.")
        except OSError:
            away = False  # there is no network here
        if away:
            status, text = upload(server, server.key(host), host=host)
            assert status == far and (far == 200 or policy == "none" or "own machine only" in text)
        assert drip(server, key) == 408


def drip(server, key):
    """Send an image byte by byte, for a minute at most; return the status of the answer."""
    began = time.monotonic()
    with server.connect() as one:
        one.sendall(server.head(f"upload?key={key}&name=x.npy", 10**6))
        one.settimeout(0.2)
        while time.monotonic() - began < 60:
            one.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if one.recv(1, socket.MSG_PEEK):
                    break
        one.settimeout(300)
        status, text = answer_of(one)
    assert status != 408 or "too slow" in text
    return status


def test_only_this_machine_itself_is_near():
    for address in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "::1%lo"):
        assert intake._is_local(address)
    for address in (
        "10.0.0.7",
        "192.168.1.1",
        "::ffff:10.0.0.7",
        "fe80::1%eth0",
        "",
        "localhost.evil.example",
        "0.0.0.0",
    ):
        assert not intake._is_local(address)


def test_too_many_connections_are_closed_and_room_comes_back():
    class Stream:
        shut = False

        def close(self):
            self.shut = True

        def closed(self):
            return self.shut

    class Http:
        taken: list

        def handle_stream(self, stream, address):
            self.taken.append(stream)

    http = Http()
    http.taken = []
    intake.limit_connections(http, most=12, of_one=5)

    def connect(host, count, *, silent=False):
        streams = [Stream() for _ in range(count)]
        for stream in streams:
            http.handle_stream(stream, (host, 1))
            if not silent:
                intake.HEARD.hear(stream)
        return [stream for stream in streams if not stream.shut]

    first = connect("10.0.0.1", 9)
    assert len(first) == 5 and len(connect("127.0.0.1", 6)) == 6 and len(connect("10.0.0.2", 3)) == 1
    first[0].close()
    assert len(connect("10.0.0.1", 2)) == 1 and len(http.taken) == 13
    intake.HEARD.wait(first[1])  # answered, and waiting for the next request
    assert len(connect("10.0.0.3", 2)) == 1 and first[1].shut and not first[2].shut


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1"])
def test_the_earliest_that_send_nothing_give_way(host):
    http, taken = type("Http", (), {})(), []
    http.handle_stream = lambda stream, _: taken.append(stream)
    intake.limit_connections(http, most=8, of_one=5)

    def connect(host):
        http.handle_stream(Silent(), (host, 1))
        return taken[-1]

    silent = [connect(host) for _ in range(20)]
    assert [one.shut for one in silent] == [True] * 15 + [False] * 5
    spoke = connect(host)
    intake.HEARD.hear(spoke)
    others = [connect(f"10.0.1.{number}") for number in range(10)]
    assert not spoke.shut and sum(not one.shut for one in taken) == 8 and not others[-1].shut


class Silent:
    shut = False

    def close(self):
        self.shut = True

    def closed(self):
        return self.shut


@pytest.mark.parametrize("sent", [pytest.param(b"", marks=pytest.mark.slow), b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_half_open_connections_keep_no_page_out(server, sent):
    with contextlib.ExitStack() as stack:
        for _ in range(520):
            one = stack.enter_context(server.connect())
            with contextlib.suppress(OSError):
                one.sendall(sent)
        for _ in range(3):
            assert server.ask("")[0] == 200


def test_the_option_says_whose_images_are_taken():
    from nenya.commands.compose import compose

    assert compose("portal", ["table=a.parquet"]).upload == "auto"
    assert compose("portal", ["table=a.parquet", "upload=any"]).upload == "any"
    with pytest.raises(OptionError, match="upload"):
        compose("portal", ["table=a.parquet", "upload=everybody"])
