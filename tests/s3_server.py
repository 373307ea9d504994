"""A real S3 service for the tests, and a proxy before it that does to requests what networks and services do.

As a program it serves benchmarks: `python tests/s3_server.py --rate 20e6` prints the endpoint as one JSON line.
"""

import argparse
import contextlib
import functools
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

BLOCK = 64 * 1024
ENV = {
    "AWS_ACCESS_KEY_ID": "test-key-id-7Q",
    "AWS_SECRET_ACCESS_KEY": "test-secret-93kd",
    "AWS_DEFAULT_REGION": "us-east-1",
}
ISOLATION = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
}
MOTO = """
import moto.server
from moto.s3.models import FakeKey
from werkzeug import serving
create = FakeKey.__init__
def create_with_etag(self, *args, **more):  # moto computes it at the first need, while other threads read the object
    create(self, *args, **more)
    self.etag
FakeKey.__init__ = create_with_etag
make = serving.make_server
def say(*args, **more):
    server = make(*args, **more)
    print(server.socket.getsockname()[1], flush=True)  # which the system has chosen, so that nobody else has it
    return server
serving.make_server = say
moto.server.main(["-H", "127.0.0.1", "-p", "0"])
"""
OTHERS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "ENDPOINT_URL", "AWS_REGION", "AWS_MAX_ATTEMPTS")


@contextlib.contextmanager
def start_moto(min_part: int = 1) -> Iterator[str]:
    """Run moto's S3 service as a process of its own; gives its endpoint.

    `min_part` is the smallest part, but for the last, of an upload in parts; 5 MiB in the real service.
    """
    env = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": str(min_part)}
    process = subprocess.Popen([sys.executable, "-c", MOTO], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "moto did not start"
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Action:
    """What happens to a request: at most one of these."""

    answer: tuple[int, str, dict[str, str], bytes | None] | None = None
    cut_response_after: int | None = None
    cut_request_after: int | None = None
    flip_response_at: int | None = None
    flip_request_at: int | None = None
    call: Callable[[], object] | None = None
    delay: float = 0.0


def status(code: int, error: str, headers: dict[str, str] | None = None) -> Action:
    """Answer with an error of S3 instead of asking the service."""
    return Action(answer=(code, error, headers or {}, None))


def page(code: int, body: bytes) -> Action:
    """Answer with a web page instead of asking the service."""
    return Action(answer=(code, "", {"Content-Type": "text/html"}, body))


def cut_response(after_bytes: int) -> Action:
    """Close the connection after that many bytes of the body of the answer."""
    return Action(cut_response_after=after_bytes)


def cut_request(after_bytes: int) -> Action:
    """Close the connection after that many bytes of the body of the request, which the service gets."""
    return Action(cut_request_after=after_bytes)


def flip_response(byte_index: int) -> Action:
    """Alter one byte of the body of the answer."""
    return Action(flip_response_at=byte_index)


def flip_request(byte_index: int) -> Action:
    """Alter one byte of the body of the request before the service gets it."""
    return Action(flip_request_at=byte_index)


def call(function: Callable[[], object]) -> Action:
    """Run a function before the request is passed on."""
    return Action(call=function)


def delay(seconds: float) -> Action:
    """Wait before the request is passed on."""
    return Action(delay=seconds)


@dataclass
class Rule:
    """An action for the requests that match: skips the first `skip`, then acts `times` times."""

    method: str
    pattern: re.Pattern[str]
    action: Action
    times: float
    skip: int
    acted: int = 0


class _Rate:
    """Spreads bytes over time."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._lock, self._next = rate, threading.Lock(), 0.0

    def wait(self, count: int) -> None:
        if self._rate:
            with self._lock:
                self._next = max(time.monotonic(), self._next) + count / self._rate
                until = self._next
            time.sleep(max(0.0, until - time.monotonic()))


@dataclass
class FaultProxy:
    """A proxy on 127.0.0.1 before an S3 service, with rules for what goes wrong."""

    service: str
    rate: float | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    guard: Callable[[str, Mapping[str, str]], "Action | None"] = lambda *_: None
    """What to do with a request by its method and headers; None leaves that to the rules."""

    def __post_init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.upward, self.downward = _Rate(self.rate), _Rate(self.rate)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rule(self, method: str, pattern: str, action: Action, *, times: float = 1, skip: int = 0) -> Rule:
        """Add a rule for requests whose path and query match `pattern`; the first one that acts is taken."""
        rule = Rule(method, re.compile(pattern), action, times, skip)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Drop all rules and forget the requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def count(self, method: str, pattern: str = "") -> int:
        """Return how many such requests came."""
        with self._lock:
            return sum(m == method and bool(re.search(pattern, path)) for m, path in self.requests)

    def take(self, method: str, path: str) -> Action:
        """Return what to do with a request."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self._rules:
                if rule.method == method and rule.pattern.search(path):
                    if rule.skip > 0:
                        rule.skip -= 1
                    elif rule.acted < rule.times:
                        rule.acted += 1
                        return rule.action
        return Action()


class _CutError(Exception):
    """The connection is to be closed now."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(_CutError, ConnectionError, http.client.HTTPException):
            super().handle()

    def _serve(self) -> None:
        action = self.proxy.guard(self.command, self.headers) or self.proxy.take(self.command, self.path)
        if action.call:
            action.call()
        time.sleep(action.delay)
        if action.answer:
            self._drain()
            self._answer(*action.answer)
            return
        target = urlsplit(self.proxy.service)
        upstream = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=300)
        try:
            self._send_on(upstream, action)
            self._send_back(upstream.getresponse(), action)
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # the names that http.server looks for

    def _body(self) -> Iterator[bytes]:
        """Yield the body of the request, without the framing of a chunked one."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read1(min(BLOCK, left))
            if not block:
                raise _CutError
            left -= len(block)
            yield block

    def _drain(self) -> None:
        for _ in self._body():
            pass

    def _answer(self, code: int, error: str, headers: dict[str, str], body: bytes | None) -> None:
        if body is None:
            text = (
                f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{error}</Code><Message>{error}</Message></Error>'
            )
            body, headers = text.encode(), {"Content-Type": "application/xml", **headers}
        self.send_response_only(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_on(self, upstream: http.client.HTTPConnection, action: Action) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.putheader("Connection", "close")
        upstream.endheaders()
        for block in _flipped(self._body(), action.flip_request_at, action.cut_request_after):
            if block is None:
                self._cut()
            self.proxy.upward.wait(len(block))
            upstream.send(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
        if chunked:
            upstream.send(b"0\r\n\r\n")

    def _send_back(self, answer: http.client.HTTPResponse, action: Action) -> None:
        self.send_response_only(answer.status, answer.reason)
        sized = answer.getheader("Content-Length") is not None or self.command == "HEAD" or answer.status in (204, 304)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if not sized:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        blocks = iter(lambda: answer.read1(BLOCK), b"")
        for block in _flipped(blocks, action.flip_response_at, action.cut_response_after):
            if block is None:
                self._cut()
            self.proxy.downward.wait(len(block))
            self.wfile.write(block if sized else b"%x\r\n%s\r\n" % (len(block), block))
        if not sized:
            self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        raise _CutError


class _Forgetful(_Handler):
    """Passes requests on without their conditions, as a service that does not know them would take them."""

    def _serve(self) -> None:
        for name in ("If-Match", "If-None-Match"):
            del self.headers[name]
        super()._serve()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # the names that http.server looks for


def forget_conditions(proxy: FaultProxy) -> None:
    """Make a proxy that of a service which ignores If-Match and If-None-Match."""
    proxy._server.RequestHandlerClass = type("Handler", (_Forgetful,), {"proxy": proxy})


def _flipped(blocks: Iterator[bytes], flip_at: int | None, cut_after: int | None) -> Iterator[bytes | None]:
    """Yield blocks with one byte altered, or None in place of what is to be cut."""
    position = 0
    for block in blocks:
        if cut_after is not None and position + len(block) > cut_after:
            yield block[: cut_after - position]
            yield None
        if flip_at is not None and position <= flip_at < position + len(block):
            at = flip_at - position
            block = block[:at] + bytes([block[at] ^ 0x5A]) + block[at + 1 :]
        position += len(block)
        yield block
    if cut_after is not None:
        yield None


@dataclass(frozen=True)
class Service:
    """The S3 service that the environment of a test names."""

    endpoint: str
    is_moto: bool

    @functools.cache  # noqa: B019 - there is one service, and a client takes 0.1 s to make
    def client(self):
        """Return a plain boto3 client that asks the service itself, not a proxy."""
        import boto3
        from botocore.config import Config

        config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", config=config)


def pending_uploads(client, bucket: str) -> list[dict]:
    """Return the uploads in parts that were neither completed nor aborted."""
    with contextlib.suppress(client.exceptions.NoSuchUpload):  # so some services say that there are none
        return client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return []


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Service]:
    """A running service: moto, or the one that NENYA_TEST_S3 names, whose credentials are in the environment."""
    if other := os.environ.get("NENYA_TEST_S3"):
        yield Service(other, is_moto=False)
        return
    with start_moto() as endpoint:
        yield Service(endpoint, is_moto=True)


@pytest.fixture
def s3_service(s3_server, monkeypatch) -> Service:
    """The service, with the environment set so that this test's process and its children use it."""
    for name, value in {**ISOLATION, **(ENV if s3_server.is_moto else {})}.items():
        monkeypatch.setenv(name, value)
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    return s3_server


@pytest.fixture
def s3_bucket(s3_service) -> Iterator[str]:
    """The name of an empty bucket, which goes with all that is in it."""
    client, name = s3_service.client(), f"nenya-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    yield name
    for upload in pending_uploads(client, name):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    for page_ in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        if keys := [{"Key": entry["Key"]} for entry in page_.get("Contents", [])]:
            client.delete_objects(Bucket=name, Delete={"Objects": keys})
    client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_proxy(s3_service, monkeypatch) -> Iterator[FaultProxy]:
    """A proxy before the service, which the environment now names instead."""
    with FaultProxy(s3_service.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def main() -> None:
    """Run service and proxy until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=None, help="bytes per second in each direction")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with start_moto() as endpoint, FaultProxy(endpoint, rate=args.rate) as proxy:
        sys.stdout.write(json.dumps({"endpoint": proxy.endpoint, "service": endpoint, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
