"""Transfer of one file from and to an S3 service: nenya's store, boto3's own transfer and the AWS CRT, in turn.

`python benchmarks/s3_transfer.py` serves files from memory in a process of its own (`--serve`), which speaks as much of
S3 as a transfer needs, and measures in turn, medians of `--repeats`:

- complete: download and upload by nenya's store (parts in parallel, verified by size and checksum, synced to the disk).
- bare: the same bytes by boto3's own transfer (`classic`) with 4 and with 10 threads, which is boto3's default, and by
  the AWS CRT if `awscrt` is installed; none of them verifies the file.

In two regimes: `loopback`, bound by the processors, which the server shares; and `connections` of `--per_connection`
MB/s and an answer after `--latency` ms, as real services have, where parts in parallel count. Wall and processor
seconds of the client are given. `sha256` and `copy` are the limits of the machine: hashing the file, and copying it to
the same disk.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from common import interleave, machine, medians, write

REGIMES = {"loopback": (0.0, 0.0), "connections": (1.0, 1.0)}  # share of the limit of a connection, of the latency
PART = 8 * 2**20
BLOCK = 2**18


class _Handler(BaseHTTPRequestHandler):
    """As much of S3 as transfers need; objects are files of a folder."""

    protocol_version = "HTTP/1.1"
    folder: Path
    rate: float  # bytes per second and connection; 0: no limit
    latency: float  # seconds

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _path(self) -> Path:
        return self.folder / Path(urlsplit(self.path).path).name

    def _answer(self, body: bytes = b"", code: int = 200, **headers: str) -> None:
        self.send_response_only(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pace(self, start: float, done: int) -> None:
        if self.rate:
            time.sleep(max(0.0, start + done / self.rate - time.monotonic()))

    def do_HEAD(self) -> None:
        """Describe an object."""
        self._get(head=True)

    def do_GET(self) -> None:
        """Send an object or a part of it."""
        self._get(head=False)

    def _get(self, *, head: bool) -> None:
        time.sleep(self.latency)
        if not self._path().is_file():
            self._answer(b"<Error><Code>NoSuchKey</Code></Error>", 404)
            return
        size, note = self._path().stat().st_size, json.loads(self._path().with_suffix(".json").read_text())
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(match[1]), min(size - 1, int(match[2] or size - 1))) if match else (0, size - 1)
        self.send_response_only(206 if match else 200)
        headers = {"ETag": f'"{note["etag"]}"', "x-amz-meta-sha256": note["sha256"], "Accept-Ranges": "bytes"}
        if match:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        for name, value in {**headers, "Content-Length": str(last - first + 1)}.items():
            self.send_header(name, value)
        self.end_headers()
        if head:
            return
        self.wfile.flush()
        start, at = time.monotonic(), first
        with self._path().open("rb") as file:
            while at <= last:
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, min(BLOCK, last + 1 - at))
                self._pace(start, at - first)

    def _body(self) -> bytes:
        left, start, blocks, total = int(self.headers.get("Content-Length", 0)), time.monotonic(), [], 0
        while left:
            blocks.append(self.rfile.read(min(BLOCK, left)))
            total, left = total + len(blocks[-1]), left - len(blocks[-1])
            self._pace(start, total)
        return b"".join(blocks)

    def do_PUT(self) -> None:
        """Take a part, which is checked by its MD5 as S3 does, or an object."""
        time.sleep(self.latency)
        if "100-continue" in self.headers.get("Expect", ""):
            self.send_response_only(100)
            self.end_headers()
        self._answer(ETag=f'"{hashlib.md5(self._body(), usedforsecurity=False).hexdigest()}"')

    def do_POST(self) -> None:
        """Begin or complete an upload."""
        time.sleep(self.latency)
        self._body()
        if "uploads" in parse_qs(urlsplit(self.path).query, keep_blank_values=True):
            note = {"etag": "0" * 32 + "-2", "sha256": self.headers.get("x-amz-meta-sha256", "")}
            self._path().with_suffix(".json").write_text(json.dumps(note))
            bucket, key = "<Bucket>b</Bucket>", f"<Key>{self._path().name}</Key>"
            words = (
                f"<InitiateMultipartUploadResult>{bucket}{key}<UploadId>u</UploadId></InitiateMultipartUploadResult>"
            )
        else:
            shutil.copyfile(self.folder / "in.h5", self._path())
            words = '<CompleteMultipartUploadResult><ETag>"0-2"</ETag></CompleteMultipartUploadResult>'
        self._answer(words.encode(), Content_Type="application/xml")

    def do_DELETE(self) -> None:
        """Forget an upload."""
        self._answer(code=204)


def serve(folder: Path, rate: float, latency: float) -> None:
    """Run the server until it is ended; its port is the first line of the output."""
    handler = type("Handler", (_Handler,), {"folder": folder, "rate": rate, "latency": latency})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


@contextmanager
def service(folder: Path, rate: float, latency: float) -> Iterator[str]:
    """Run the server in a process of its own; gives its address, which the environment names too."""
    command = [
        sys.executable,
        __file__,
        "--serve",
        str(folder),
        "--per_connection",
        str(rate),
        "--latency",
        str(latency),
    ]
    keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        try:
            with mock.patch.dict(os.environ, {**keys, "AWS_ENDPOINT_URL": address}):
                yield address
        finally:
            process.terminate()


def contenders(address: str, source: Path, folder: Path) -> dict[str, Callable[[], None]]:
    """Return name -> what transfers the file once."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    from nenya.storage.s3.service import S3Store

    nenya, target = S3Store(), folder / "down.h5"
    plain = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", config=plain)

    def classic(threads: int) -> Any:
        return TransferConfig(PART, threads, PART, preferred_transfer_client="classic")

    found: dict[str, Callable[[], None]] = {
        "sha256": lambda: hashlib.sha256(source.read_bytes()).digest() and None,
        "copy": lambda: _copy(source, folder / "copy.h5"),
        "download, nenya": lambda: nenya.download("s3://b/in.h5", target) and None,
        "upload, nenya": lambda: nenya.upload(source, "s3://b/up.h5") and None,
    }
    for threads in (4, 10):
        config = classic(threads)
        found[f"download, boto3 with {threads} threads"] = lambda config=config: client.download_file(
            "b", "in.h5", str(target), Config=config
        )
        found[f"upload, boto3 with {threads} threads"] = lambda config=config: client.upload_file(
            str(source), "b", "up.h5", Config=config
        )
    if (manager := crt_manager(address)) is not None:
        found["download, AWS CRT"] = lambda: manager.download("b", "in.h5", str(target)).result()
        found["upload, AWS CRT"] = lambda: manager.upload(str(source), "b", "up.h5").result()
    return found


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def crt_manager(address: str) -> Any:
    """Return s3transfer's manager on the AWS CRT; None if awscrt is not installed."""
    import importlib.util

    if importlib.util.find_spec("awscrt") is None:
        return None
    import botocore.session
    from s3transfer.crt import (
        BotocoreCRTCredentialsWrapper,
        BotocoreCRTRequestSerializer,
        CRTTransferManager,
        create_s3_crt_client,
    )

    session = botocore.session.Session()
    wrapper = BotocoreCRTCredentialsWrapper(session.get_credentials())
    crt = create_s3_crt_client("us-east-1", wrapper.to_crt_credentials_provider(), part_size=PART, use_ssl=False)
    serializer = BotocoreCRTRequestSerializer(session, {"region_name": "us-east-1", "endpoint_url": address})
    return CRTTransferManager(crt, serializer)


def timed(work: Callable[[], None], size: int, cpu: list[float]) -> float:
    """Do the work; return MB/s, and add its processor seconds to `cpu`."""
    start, used = time.perf_counter(), time.process_time()
    work()
    cpu.append(time.process_time() - used)
    return size / 1e6 / (time.perf_counter() - start)


def measure(regime: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one regime."""
    limit, wait = REGIMES[regime]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as there, tempfile.TemporaryDirectory(dir=args.folder) as here:
        source, size = Path(here) / "source.h5", args.mb * 2**20
        source.write_bytes(os.urandom(size))
        shutil.copyfile(source, Path(there) / "in.h5")
        note = {"etag": "1" * 32 + "-2", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
        (Path(there) / "in.json").write_text(json.dumps(note))
        with service(Path(there), limit * args.per_connection, wait * args.latency) as address:
            found, cpu = contenders(address, source, Path(here)), {}
            runs = {
                name: lambda work=work, name=name: timed(work, size, cpu.setdefault(name, []))
                for name, work in found.items()
            }
            speeds = interleave(runs, args.repeats)
            assert (Path(here) / "down.h5").read_bytes() == source.read_bytes(), "what was downloaded differs"
    middle, seconds = medians(speeds), medians(cpu)
    print(f"\n{regime}, {args.mb} MiB, load {os.getloadavg()[0]:.1f}\n{'':32s}{'MB/s':>8s}{'CPU s':>8s}")
    for name in sorted(middle):
        print(f"{name:32s}{middle[name]:8.0f}{seconds[name]:8.2f}")
    return {"regime": regime, "MB/s": middle, "cpu_s": seconds, "all": speeds, "load": os.getloadavg()}


def main() -> None:
    """Measure, print and write the result; with `--serve`, be the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=256, help="MiB of the file")
    parser.add_argument("--per_connection", type=float, default=60.0, help="MB/s of a connection, where it is limited")
    parser.add_argument("--latency", type=float, default=20.0, help="ms before an answer, where there is one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="of the files of the client; default that of the system")
    parser.add_argument("--serve", type=Path, default=None, help="serve this folder")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.per_connection * 1e6, args.latency / 1e3)
        return
    about = machine()
    write("s3_transfer", {"results": [measure(regime, args) for regime in REGIMES]}, about)


if __name__ == "__main__":
    main()
