"""The portal under attack: what its honest users wait for, and what it holds afterwards.

    python benchmarks/portal_attack.py --rows 200000 --seconds 60 --ckpt weights.pth

A portal with a token shows generated rows. Honest users select while others open links that no page makes and lassos
that fill the map, send what no page sends over their websockets, upload files that unpack to gigabytes, and hold
connections without the token. Printed are the honest users' waits (p50, p99, largest) before and during it, and the
server's own memory before and after.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import psutil
from common import machine, write
from portal import ACTIONS, Client, write_data
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

TOKEN = "token-of-the-benchmark"
COOKIE = {"Cookie": f"nenya_portal={TOKEN}"}


def link(filters):
    """Return the address of a view."""
    packed = zlib.compress(json.dumps({"f": filters, "r": None, "c": "count", "s": "shared"}).encode())
    return "?view=" + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def links(rng):
    """Return links that no page makes, and some of the dearest that one could."""
    full, angle = {"umap": 12.0, "map": 80.0}, np.linspace(0, 2 * np.pi, 400, endpoint=False)
    around = np.column_stack([np.cos(angle), np.sin(angle)]) * (0.6 + 0.3 * np.sin(9 * angle))[:, None]
    dear = [
        ["lasso", {"plane": plane, "points": (most * (around + rng.uniform(-0.02, 0.02, (400, 2)))).tolist()}]
        for plane, most in full.items()
    ]
    filling = [["lasso", {"plane": "map", "points": rng.uniform(-80, 80, (400, 2)).tolist()}]]
    far = [["lasso", {"plane": "map", "points": [[-1e15, 0], [1e15, 1], [0, 2]]}]]
    huge = [["range", {"column": "DT", "low": 10**400, "high": 1}]]
    many = [["range", {"column": "DT", "low": 0, "high": n}] for n in range(5000)]
    return [
        link(item)
        for item in (far, huge, many, dear, filling, [["box", {"plane": "map", "x": [1e15, 0], "y": [0, 1]}]])
    ]


def bombs():
    """Return files of a few kilobytes to megabytes that unpack to gigabytes: (name, bytes)."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        data = file.create_dataset("valid", (30_000, 1, 256, 256), "f4", chunks=(1000, 1, 256, 256), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(4 * 1000 * 256 * 256), 9))
    zipped = io.BytesIO()
    np.savez_compressed(zipped, a=np.zeros((8192, 8192), np.float32))
    return [("a.h5", stream.getvalue()), ("a.nc", stream.getvalue()), ("a.npz", zipped.getvalue())]


async def attack_by_links(port, end, seen):
    """Open hostile links, some with their websocket, and leave."""
    rng = np.random.default_rng(1)
    while time.monotonic() < end:
        for query in links(rng):
            with contextlib.suppress(Exception):
                client = await asyncio.wait_for(Client.open(port, COOKIE, query), 20)
                seen["pages"] += 1
                for number in range(20):
                    value = {"kind": "ModelChanged", "model": {"id": client.channels["nenya_channel"]}, "attr": "value"}
                    await client.send("PATCH-DOC", {"events": [{**value, "new": f"{number}|range:[{'9' * 400}]"}] * 50})
                client.socket.close()
            await asyncio.sleep(0.1)


async def attack_by_uploads(port, end, seen, files):
    """Upload what unpacks to gigabytes, as someone who knows the token."""
    page = (await AsyncHTTPClient().fetch(HTTPRequest(f"http://127.0.0.1:{port}/", headers=COOKIE))).body.decode()
    key = re.search(r'"key":"([^"]+)"', page)[1]
    while time.monotonic() < end:
        for name, body in files:
            with contextlib.suppress(Exception):
                url = f"http://127.0.0.1:{port}/upload?key={key}&name={name}"
                request = HTTPRequest(url, method="POST", body=body, headers=COOKIE, request_timeout=60)
                await AsyncHTTPClient().fetch(request, raise_error=False)
                seen["uploads"] += 1
        await asyncio.sleep(0.1)


async def attack_without_token(port, end, seen):
    """Announce a large body without the token, and send it as far as the server takes it."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /upload?key=x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 19000000\r\n\r\n")
            for _ in range(190):
                writer.write(bytes(100_000))
                await writer.drain()
                await asyncio.sleep(0.02)
            writer.close()
        seen["strangers"] += 1
        await asyncio.sleep(0.05)


async def select(port, seconds, number, times):
    """Act as a user does, a second between two selections."""
    client, place = await Client.open(port, COOKIE), number
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(await client.act(ACTIONS[place % len(ACTIONS)]))
        place += 1
        await asyncio.sleep(0.5)
    client.socket.close()


async def measure(port, process, seconds, users):
    """Return the waits before and during the attack, and the memory before and after."""

    def own():
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 1e6

    calm, busy, seen = [], [], {"pages": 0, "uploads": 0, "strangers": 0}
    await asyncio.gather(*(select(port, min(seconds, 20), n, calm) for n in range(users)))
    await asyncio.sleep(45)  # pages that were left are given up
    before, end = own(), time.monotonic() + seconds
    attacks = [*(attack_by_links(port, end, seen) for _ in range(4)), attack_by_uploads(port, end, seen, bombs())]
    attacks += [attack_without_token(port, end, seen) for _ in range(25)]
    peak = [before]

    async def watch():
        while time.monotonic() < end:
            peak.append(own())
            await asyncio.sleep(0.2)

    await asyncio.gather(*(select(port, seconds, n, busy) for n in range(users)), watch(), *attacks)
    await asyncio.sleep(60)
    waits = {
        name: [float(np.quantile(times, share)) for share in (0.5, 0.99, 1.0)]
        for name, times in (("calm_s", calm), ("attacked_s", busy))
    }
    memory = {"before_MB": before, "peak_MB": max(peak), "after_MB": own()}
    return {**waits, "selections": len(busy), **memory, **seen}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--ckpt", help="weights, without which uploads are refused at once")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="portal-") as name:
        folder = Path(name)
        write_data(folder, args.rows, args.dim)
        command = [
            *(sys.executable, "-c", "import sys; from nenya.cli import main; sys.exit(main())", "portal", "port=0"),
            *(f"table={folder / 'big.parquet'}", f"latents={folder / 'big_preproc_latents.h5'}", f"token={TOKEN}"),
            *([f"ckpt={args.ckpt}"] if args.ckpt else []),
        ]
        log = folder / "server.log"
        with subprocess.Popen(command, stderr=log.open("w")) as server:
            try:
                while not (found := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
                    if server.poll() is not None:
                        sys.exit(log.read_text())
                    time.sleep(0.05)
                result = asyncio.run(measure(int(found[1]), psutil.Process(server.pid), args.seconds, args.users))
                result["lives"] = server.poll() is None
                result["log_MB"] = log.stat().st_size / 1e6
            finally:
                server.terminate()
    result = {name: value if isinstance(value, bool) else np.round(value, 2).tolist() for name, value in result.items()}
    print(json.dumps(result))
    write("portal_attack", {"rows": args.rows, "seconds": args.seconds, **result}, machine())


if __name__ == "__main__":
    main()
