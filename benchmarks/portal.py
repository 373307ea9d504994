"""The portal at growing sizes: start-up, first view, selection, neighbours, memory, and ten sessions at once.

    python benchmarks/portal.py --rows 200000 1000000 5000000

Each size gets a generated table and latents of 256 numbers (5 GB at five million rows), served by `nenya portal`;
clients speak to it as a browser does, over its websocket, and act when the page is idle. Times are medians.
"""

import argparse
import asyncio
import html
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common import machine, write
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

ACTIONS = (
    'range:["DT", 0.4, 1.2]',
    'range:["month", 3, 8]',
    'range:["lat", -30, 50]',
    "undo",
    "reset",
    'range:["US0", -3, 4]',
    'range:["LL", 100, 250]',
    "reset",
)


def write_data(folder, rows, dim):
    """Write a table of the published columns, and latents, block by block."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, rows)
    centres = rng.normal(0, 6, (12, 2))
    granule = rng.integers(0, max(1, rows // 40), rows)
    names = pa.array([f"A2003{i:07d}.L2_LAC_SST.nc" for i in range(granule.max() + 1)])
    mean = rng.uniform(-1, 30, rows)
    values = {
        "US0": (centres[kind, 0] + rng.normal(0, 1.2, rows)).astype("f4"),
        "US1": (centres[kind, 1] + rng.normal(0, 1.2, rows)).astype("f4"),
        "lat": np.clip(rng.normal(5, 35, rows), -78, 78),
        "lon": rng.uniform(-180, 180, rows),
        "datetime": np.datetime64("2003-01-01", "us") + (granule * 37 % 6500).astype("timedelta64[D]"),
        "clear_fraction": rng.beta(20, 1, rows),
        "mean_temperature": mean,
        "T10": mean - rng.gamma(2, 0.3, rows),
        "T90": mean + rng.gamma(2, 0.3, rows),
        "LL": rng.normal(200, 120, rows),
        "zonal_slope": rng.normal(-2, 0.4, rows),
        "filename": pa.DictionaryArray.from_arrays(pa.array(granule.astype("i4")), names),
        "UID": rng.integers(0, 2**62, rows),
        "pp_type": np.zeros(rows, "i8"),
        "pp_idx": np.arange(rows),
    }
    values["DT"] = values["T90"] - values["T10"]
    pq.write_table(pa.table(values), folder / "big.parquet")
    with h5py.File(folder / "big_preproc_latents.h5", "w") as file:
        out = file.create_dataset("valid", (rows, dim), "f4")
        for start in range(0, rows, 100_000):
            block = rng.standard_normal((min(100_000, rows - start), dim), dtype=np.float32)
            out[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)


class Client:
    """One page, spoken to as a browser does: the page by HTTP, then Bokeh's protocol over its websocket."""

    @classmethod
    async def open(cls, port, headers=None, query=""):
        self, start = cls(), time.monotonic()
        self.texts, self.sent, self.drawn = {}, 0, False
        page = await AsyncHTTPClient(max_buffer_size=2**28).fetch(
            HTTPRequest(f"http://127.0.0.1:{port}/{query}", headers=headers, request_timeout=300)
        )
        token = re.search(r'"token":"([^"]+)"', page.body.decode())[1]
        self.socket = await websocket_connect(
            HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=headers, request_timeout=300),
            subprotocols=["bokeh", token],
            max_message_size=2**28,
        )
        while '"ACK"' not in str(await self.socket.read_message()):
            pass
        await self.send("PULL-DOC-REQ", {})
        document = await self.until(lambda content: content if "doc" in content else None)
        for model in models_of(document["doc"]["roots"]):
            values = model.get("attributes", {})
            if values.get("name") == "nenya_channel":
                self.channel = model["id"]
            if values.get("name") in ("count", "status", "facts", "filters"):  # an empty text is not sent
                self.texts[model["id"]] = values["name"], values.get("text", "")
        await self.until(lambda _: self.idle or None)
        self.first_view = time.monotonic() - start
        return self

    @property
    def now(self):
        return {name: html.unescape(text) for name, text in self.texts.values()}

    @property
    def idle(self):
        return "data-busy='0'" in self.now["status"] and "data-selected" in self.now["count"] and self.now["facts"]

    async def send(self, kind, content):
        self.sent += 1
        for part in ({"msgid": str(self.sent), "msgtype": kind}, {}, content):
            await self.socket.write_message(json.dumps(part))

    async def until(self, found, seconds=300):
        """Take messages until one, with what is known after it, is what was waited for."""
        end = time.monotonic() + seconds
        while (result := found({})) is None:
            frame = await asyncio.wait_for(self.socket.read_message(), max(0.1, end - time.monotonic()))
            if frame is None:
                raise ConnectionError("the server closed the connection")
            if isinstance(frame, bytes) or not frame.startswith(('{"doc"', '{"events"')):
                continue
            content = json.loads(frame)
            for event in content.get("events", []):
                if event.get("attr") == "text" and event["model"]["id"] in self.texts:
                    self.texts[event["model"]["id"]] = self.texts[event["model"]["id"]][0], event["new"]
            if (result := found(content)) is not None:
                return result
        return result

    async def act(self, action):
        """Do one action; return seconds until all of it is drawn."""
        before, start = self.now, time.monotonic()
        seen = "facts" if action.startswith("row:") else "count"
        value = {"kind": "ModelChanged", "model": {"id": self.channel}, "attr": "value", "new": f"{self.sent}|{action}"}
        await self.send("PATCH-DOC", {"events": [value]})
        await self.until(lambda _: (self.now[seen] != before[seen]) or None)
        if seen == "facts":  # the search for neighbours begins only now
            await self.until(lambda _: "data-busy='1'" in self.now["status"] or None)
        await self.until(lambda _: self.idle or None)
        return time.monotonic() - start


def models_of(value):
    """Yield all models of a document in JSON."""
    if isinstance(value, dict):
        if "id" in value and "attributes" in value:
            yield value
        for part in value.values():
            yield from models_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from models_of(part)


def measure(rows, dim, sessions):
    with tempfile.TemporaryDirectory(prefix="portal-") as name:
        folder = Path(name)
        write_data(folder, rows, dim)
        start = time.monotonic()
        command = [
            *(sys.executable, "-m", "nenya.cli", "portal", f"table={folder / 'big.parquet'}"),
            *(f"latents={folder / 'big_preproc_latents.h5'}", "port=0"),
        ]
        command[1:3] = ["-c", "import sys; from nenya.cli import main; sys.exit(main())"]
        log = folder / "server.log"
        server = subprocess.Popen(command, stderr=log.open("w"))
        try:
            while not (found := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
                time.sleep(0.05)
            port = int(found[1])
            result = {"rows": rows, "start_up_s": time.monotonic() - start}
            result |= asyncio.run(act_alone(port, rows))
            memory = psutil.Process(server.pid).memory_info()  # latents are mapped: pages of the file, shared
            result["own_GB"], result["resident_GB"] = (memory.rss - memory.shared) / 1e9, memory.rss / 1e9
            before = psutil.Process(server.pid).cpu_times()
            result |= asyncio.run(act_together(port, sessions))
            after = psutil.Process(server.pid).cpu_times()
            result[f"cpu_of_{sessions}_s"] = after.user + after.system - before.user - before.system
            memory = psutil.Process(server.pid).memory_info()
            result[f"own_GB_of_{sessions}"] = (memory.rss - memory.shared) / 1e9
        except Exception:
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(20)
        return result


async def act_alone(port, rows):
    client = await Client.open(port)
    selections = [await client.act(action) for action in ACTIONS]
    numbers = np.random.default_rng(1).integers(0, rows, 3)
    neighbours = [await client.act(f"row:{number}") for number in numbers]
    return {
        "first_view_s": client.first_view,
        "selection_s": statistics.median(selections),
        "neighbours_s": statistics.median(neighbours),
    }


async def act_together(port, sessions):
    """Open pages at once and let them act, a second of looking between two actions: median and largest waits."""
    clients = await asyncio.gather(*(Client.open(port) for _ in range(sessions)))

    async def work(number):
        client, times = clients[number], []
        for place in np.random.default_rng(number).permutation(3):
            await asyncio.sleep(1)
            times.append(await client.act(ACTIONS[place]))
        return times

    times = [t for some in await asyncio.gather(*map(work, range(sessions))) for t in some]
    views = [client.first_view for client in clients]
    return {
        f"first_view_of_{sessions}_s": [statistics.median(views), max(views)],
        f"selection_of_{sessions}_s": [statistics.median(times), max(times)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--sessions", type=int, default=10)
    args = parser.parse_args()
    about, results = machine(), []
    for rows in args.rows:
        found = measure(rows, args.dim, args.sessions)
        results.append({k: np.round(v, 2).tolist() for k, v in found.items()})
        print(json.dumps(results[-1]), flush=True)
    write("portal", {"dim": args.dim, "sizes": results}, about)


if __name__ == "__main__":
    main()
