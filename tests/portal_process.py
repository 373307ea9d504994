"""A portal in a process of its own, for tests of what strangers can do to it: python portal_process.py <settings>."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from portal_data import SIDE, latents_of, write_archive


class PlainEncoder:
    """Makes latents as the archive's were made, without a network."""

    masked = False

    def encode(self, name, given, archive, tick):
        from nenya.analyze_image import resized
        from nenya.portal.upload import Upload

        image = resized(given.image, SIDE)
        return Upload(name, image, latents_of(image[None])[0], side=len(given.image), source=given.source)


def main(settings):
    """Serve until the process is ended; say the port."""
    from nenya.latents.files import Latents
    from nenya.portal import jobs, takes_images
    from nenya.portal.dataset import open_dataset
    from nenya.portal.holding import Portal
    from nenya.portal.jail import Jail
    from nenya.portal.server import make_server

    asyncio.set_event_loop(asyncio.new_event_loop())
    walls, address, takes_images._GRACE = (settings.pop(name) for name in ("walls", "address", "grace"))
    table, latents, cutouts = write_archive(Path(settings.pop("folder")))
    portal = Portal(open_dataset(table, Latents([latents]), str(cutouts)), "a", PlainEncoder(), **settings)
    portal.jail = Jail(512 + 3 * portal.limit_mb, 600, walls=walls)
    jobs._LONGEST.update(quick=600.0, slow=600.0)  # no test is of these limits, which a busy machine would reach
    server = make_server(portal, address, 0, [])
    server._tornado._unused_session_lifetime_milliseconds = 3_600_000  # pages that the tests open have no websocket
    server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.io_loop.start()


class Server:
    """A portal's process, seen from outside."""

    def __init__(self, folder, *, walls=True, address="127.0.0.1", grace=600.0, **settings):
        given = {"folder": str(folder), "walls": walls, "address": address, "grace": grace, **settings}
        self.token = settings.get("token")
        self.log = Path(folder) / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(given)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.port = int(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    @property
    def memory(self):
        """What the server's process takes, bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def connect(self, host="127.0.0.1"):
        return socket.create_connection((host, self.port), timeout=300)

    def ask(self, path, body=b"", *, host="127.0.0.1", method="", **headers):
        """Send one request, whole; return the status and the text of the answer."""
        with self.connect(host) as one:
            one.sendall(self.head(path, len(body), method or ("POST" if body else "GET"), host=host, **headers))
            try:
                one.sendall(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was refused before
            return answer_of(one)

    def head(self, path, size, method="POST", *, host="127.0.0.1", **headers):
        lines = [f"{method} /{path} HTTP/1.1", f"Host: {host}:{self.port}", "Connection: close"]
        if size is not None:
            lines.append(f"Content-Length: {size}")
        if self.token and "Cookie" not in headers:
            lines.append(f"Cookie: nenya_portal={self.token}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
        return "\r\n".join([*lines, "", ""]).encode()

    def key(self, host="127.0.0.1"):
        """Open a page, and return the key of its session."""
        status, text = self.ask("", host=host)
        assert status == 200, text
        return re.search(r"download\?key=([\w-]+)", text)[1]


def answer_of(one):
    """Return the status and the text of an answer; 0 where the connection ended without one."""
    data = b""
    try:
        while piece := one.recv(2**16):
            data += piece
    except ConnectionResetError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body.decode(errors="replace")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
