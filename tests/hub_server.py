"""A stand-in for the Hugging Face Hub: a web server of its own process on 127.0.0.1, run as a script with a folder.

    <folder>/<owner>/<name>/<commit>/...     the files of a commit
    <folder>/<owner>/<name>/refs.json        branch or tag -> commit
    <folder>/faults.json                     what goes wrong, read for each request
    <folder>/asked.txt                       the requests, a line each

It answers what `huggingface_hub` asks for a download. Files above a size lie "elsewhere", as the Hub's large files do:
the answer redirects to another host. Faults: `down`, `private`, `gated`; `short`, `long`, `cut`, `slow` (a file);
`insecure` (redirects to plain http elsewhere); `etag`, `commit` and `length` (headers that lie); `other` (no hub).
"""

import contextlib
import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 2000  # bytes


class Hub(BaseHTTPRequestHandler):
    """Answers for one folder."""

    root: Path

    def log_message(self, *_):
        pass

    def do_GET(self):
        with (self.root / "asked.txt").open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Authorization', '')}\n")
        faults = self.root / "faults.json"
        self.faults = json.loads(faults.read_text()) if faults.exists() else {}
        if self.faults.get("down"):
            return self.fail(503, "")
        if self.path.startswith("/elsewhere/"):
            path = self.root / self.path.removeprefix("/elsewhere/").partition("?")[0]
            return self.send_file(path) if path.is_file() else self.fail(404, "")
        parts = self.path.lstrip("/").split("/", 4)
        if len(parts) != 5 or parts[2] != "resolve" or self.faults.get("other"):
            return self.fail(200 if self.faults.get("other") else 404, "")
        owner, name, _, revision, file = parts
        folder = self.root / owner / name
        if not folder.is_dir() or self.faults.get("private"):
            return self.fail(401, "RepoNotFound")
        if self.faults.get("gated"):
            return self.fail(403, "GatedRepo")
        refs = json.loads((folder / "refs.json").read_text())
        commit = refs.get(revision.replace("%2F", "/"), revision)
        if not (folder / commit).is_dir():
            return self.fail(404, "RevisionNotFound")
        path, head = folder / commit / file, {"X-Repo-Commit": self.faults.get("commit", commit)}
        if not path.is_file():
            return self.fail(404, "EntryNotFound", head)
        if path.stat().st_size <= LARGE:
            return self.send_file(path, head)
        self.send_response(302)
        digest = self.faults.get("etag", hashlib.sha256(path.read_bytes()).hexdigest())
        host = "example.org" if self.faults.get("insecure") else f"localhost:{self.server.server_port}"
        head["Location"] = f"http://{host}/elsewhere/{path.relative_to(self.root)}"
        head |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(self.faults.get("length", path.stat().st_size))}
        for key, value in {**head, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    do_HEAD = do_GET

    def fail(self, code, why, head=()):
        self.send_response(code)
        for key, value in {**dict(head), "X-Error-Code": why, "Content-Length": "0"}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_file(self, path, head=()):
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path.name == self.faults.get("short"):
            content = content[: len(content) // 2]
        part = self.headers.get("Range")
        self.send_response(206 if part else 200)
        body = content
        if part:
            first = int(part.removeprefix("bytes=").partition("-")[0])
            body = content[first:]
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        long = path.name == self.faults.get("long") and self.command == "GET"
        length = {} if long else {"Content-Length": str(len(body))}
        for key, value in {"ETag": f'"{git}"', **dict(head), **length}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path.name == self.faults.get("cut"):
            body = body[: len(body) // 2]
        with contextlib.suppress(OSError):
            if path.name == self.faults.get("slow"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                (self.root / "half").touch()
                time.sleep(60)
            self.wfile.write(body)
            while long:  # for ever
                self.wfile.write(bytes(2**20))
        self.close_connection = True


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.05)
