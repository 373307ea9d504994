"""A portal in a process of its own, for attacks: what it answers to raw bytes, and whether it still lives."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

COMMAND = "import sys; from nenya.cli import run_command; sys.exit(run_command('portal', sys.argv[1:]))"


class Server:
    """A portal that runs in a process of its own."""

    def __init__(self, *args):
        command = [sys.executable, "-c", COMMAND, *(str(arg) for arg in args), "port=0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
        self.lines, found = [], threading.Event()

        def read():
            for line in self.process.stderr:
                self.lines.append(line)
                if match := re.search(r"open http://[^/]*:(\d+)/", line):
                    self.port = int(match[1])
                    found.set()
            found.set()

        threading.Thread(target=read, daemon=True).start()
        found.wait(600)
        assert hasattr(self, "port"), "".join(self.lines)

    @property
    def lives(self):
        return self.process.poll() is None

    def raw(self, data, timeout=300):
        """Send bytes, and return the answer's status, headers in small letters, and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as stream:
            stream.sendall(data)
            answer = b""
            with contextlib.suppress(ConnectionError, TimeoutError):
                while piece := stream.recv(2**16):
                    answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return (int(lines[0].split()[1]) if lines[0] else 0), headers, body

    def ask(self, target, method="GET", body=b"", **headers):
        """Send a request, whose target is put as it is."""
        given = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            given["Content-Length"] = str(len(body))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return self.raw(head.encode() + b"\r\n" + body)

    def stop(self):
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(300)
        if self.lives:
            self.process.kill()
            self.process.wait(300)
