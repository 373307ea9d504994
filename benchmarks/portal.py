"""The portal at growing sizes: start, first view, selection, look-alikes, thumbnails, time, memory, ten at once.

    python benchmarks/portal.py --rows 200000 5000000 --before OTHER/src

Each size gets a generated table, latents of 256 dimensions (5 GB at five million rows), and the cutouts of its first
20,000 rows, served by `nenya portal`; clients speak to it as a browser does, over its websocket, and act when the page
is idle. With `--before`, the source of another state, both are served at the same time, and act in turn. Figures are
medians, of seconds by the clock and of the server's processor seconds, which other work on the machine disturbs less.
"""

import argparse
import asyncio
import html
import json
import os
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
from common import machine, make_cutouts, write
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

import nenya

IMAGES, SIDE = 20_000, 64
LIFE = 45  # seconds after which a closed page is forgotten
PATIENCE = 3600  # seconds for an answer: on a busy machine ten pages at once take minutes
MOST_CLOSED = 30  # pages that wait to be forgotten: a portal refuses the 41st of an address
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
    with h5py.File(folder / "big_preproc.h5", "w") as file:
        file["valid"] = make_cutouts(min(rows, IMAGES), side=SIDE)


class Client:
    """One page, spoken to as a browser does: the page by HTTP, then Bokeh's protocol over its websocket."""

    @classmethod
    async def open(cls, port, headers=None, query=""):
        self, start = cls(), time.monotonic()
        self.texts, self.sent, self.channels, self.time = {}, 0, {}, 0
        page = await AsyncHTTPClient(max_buffer_size=2**28).fetch(
            HTTPRequest(f"http://127.0.0.1:{port}/{query}", headers=headers, request_timeout=PATIENCE)
        )
        token = re.search(r'"token":"([^"]+)"', page.body.decode())[1]
        self.socket = await websocket_connect(
            HTTPRequest(f"ws://127.0.0.1:{port}/ws", headers=headers, request_timeout=PATIENCE),
            subprotocols=["bokeh", token],
            max_message_size=2**28,
        )
        while '"ACK"' not in str(await self.socket.read_message()):
            pass
        await self.send("PULL-DOC-REQ", {})
        document = await self.until(lambda content: content if "doc" in content else None)
        for model in models_of(document["doc"]["roots"]):
            values = model.get("attributes", {})
            if values.get("name") in ("nenya_channel", "nenya_pointer", "nenya_time"):
                self.channels[values["name"]] = model["id"]
            name = str(values.get("name", "")).removeprefix("text_")
            if name in ("count", "status", "facts", "filters", "card"):  # an empty text is not sent
                self.texts[model["id"]] = name, values.get("text", "")
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

    async def until(self, found, seconds=PATIENCE):
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
                if event.get("attr") == "value" and event["model"]["id"] == self.channels.get("nenya_time"):
                    self.time = json.loads(event["new"])["drawn"]
            if (result := found(content)) is not None:
                return result
        return result

    async def set(self, channel, text):
        value = {"kind": "ModelChanged", "model": {"id": self.channels[channel]}, "attr": "value"}
        await self.send("PATCH-DOC", {"events": [{**value, "new": f"{self.sent}|{text}"}]})

    async def act(self, action):
        """Do one action; return seconds until all of it is drawn."""
        before, start = self.now, time.monotonic()
        seen = "facts" if action.startswith("row:") else "count"
        await self.set("nenya_channel", action)
        await self.until(lambda _: (self.now[seen] != before[seen]) or None)
        if seen == "facts":  # the search for neighbours begins only now
            await self.until(lambda _: "data-busy='1'" in self.now["status"] or None)
        await self.until(lambda _: self.idle or None)
        return time.monotonic() - start

    async def point(self, row):
        """Point at a cutout, and wait for its thumbnail and facts."""
        await self.set("nenya_pointer", f"card:{row}")
        await self.until(lambda _: f"row {row:,}<" in self.now["card"] or None)
        assert "data:image/png" in self.now["card"]

    async def move(self, first, last, frame):
        """Show some months, and wait until they are drawn."""
        await self.set("nenya_channel", f"time:move {first} {last} {frame}")
        await self.until(lambda _: self.time == frame or None)

    def close(self):
        self.socket.close()


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


class Served:
    """A portal of one source, in a process of its own."""

    def __init__(self, folder, source):
        code = "import sys; from nenya.cli import main; sys.exit(main())"
        files = {"table": "big.parquet", "latents": "big_preproc_latents.h5", "images": "big_preproc.h5"}
        given = [f"{name}={folder / file}" for name, file in files.items()]
        self.log = folder / f"server{time.monotonic_ns()}.log"
        start = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(source)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "portal", *given, "port=0"], stderr=self.log.open("w"), env=environment
        )
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", self.log.read_text())):
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.05)
        self.port, self.start_up = int(found[1]), (time.monotonic() - start, self.used())

    def used(self):
        """Return its processor seconds."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def own(self):
        """Return its own memory, GB: latents are mapped, and shared with the system's cache."""
        memory = psutil.Process(self.process.pid).memory_info()
        return (memory.rss - memory.shared) / 1e9

    async def timed(self, coroutine):
        """Return clock seconds and processor seconds of an action, and its result."""
        clock, used = time.monotonic(), self.used()
        result = await coroutine
        return (time.monotonic() - clock, self.used() - used), result

    def end(self):
        self.process.terminate()
        self.process.wait(20)


def measure(rows, dim, sessions, sources, closed):
    """Measure one size: figures by name of the source."""
    with tempfile.TemporaryDirectory(prefix="portal-") as name:
        folder, servers = Path(name), {}
        write_data(folder, rows, dim)
        try:
            for what, source in sources.items():
                servers[what] = Served(folder, source)
            found = asyncio.run(act_alone(servers, rows))
            for what, server in servers.items():
                found[what] |= {"start_up": server.start_up, "own_GB": server.own()}
            print(json.dumps(found), flush=True)  # if one of the longer parts is ended by hand
            server = servers["now"]
            if sessions:
                used = server.used()
                found["now"] |= asyncio.run(act_together(server.port, sessions))
                found["now"] |= {f"cpu_of_{sessions}_s": server.used() - used, f"own_GB_of_{sessions}": server.own()}
            if closed:
                found["now"]["own_MB_after_closed"] = asyncio.run(open_and_close(server, closed))
        except Exception:
            for server in servers.values():
                print(server.log.read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            for server in servers.values():
                server.end()
        return found


async def act_alone(servers, rows):  # noqa: C901  # one action after another
    """Let each server do the same, in turn: medians of clock and processor seconds."""
    times = {what: {} for what in servers}

    async def each(kind, act):
        for what, server in servers.items():
            seconds, clients[what] = await server.timed(act(clients.get(what), server))
            times[what].setdefault(kind, []).append(seconds)

    clients = {}

    def then(act):
        async def work(client, _server):
            await act(client)
            return client

        return work

    for _ in range(3):
        await each("first_view", lambda _, server: Client.open(server.port))
    for action in ACTIONS:
        await each("selection", then(lambda client, action=action: client.act(action)))
    rng = np.random.default_rng(1)
    for row in rng.integers(0, rows, 3):
        await each("look_alikes", then(lambda client, row=row: client.act(f"row:{row}")))
    for row in rng.choice(min(rows, IMAGES), 12, replace=False):
        await each("thumbnail", then(lambda client, row=int(row): client.point(row)))
    await each("", then(lambda client: client.act('range:["DT", 0.4, 1.2]')))
    for found in times.values():
        del found[""]
    server, client = servers["now"], clients["now"]
    if "nenya_time" in client.channels:
        for months, name in ((1, "month"), (12, "year")):
            for k in range(24):
                first = 12 * 33 + 6 * k
                seconds, _ = await server.timed(client.move(first, first + months - 1, 100 * months + k + 1))
                times["now"].setdefault(f"step_of_a_{name}", []).append(seconds)
        await client.set("nenya_channel", "time:stop")
    return {what: {kind: np.median(s, axis=0).tolist() for kind, s in found.items()} for what, found in times.items()}


async def open_and_close(server, count):
    """Open and close pages one by one: the server's own memory, MB, after 10 and after all, once they are forgotten."""
    found = {}
    for number in range(1, count + 1):
        client = await Client.open(server.port)
        await client.act(ACTIONS[number % 3])
        client.close()
        if number in (10, count) or number % MOST_CLOSED == 0:
            await asyncio.sleep(LIFE)
        if number in (10, count):
            found[str(number)] = 1000 * server.own()
    return found


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
    parser.add_argument("--sessions", type=int, default=10, help="pages that act at once; 0: none")
    parser.add_argument("--closed", type=int, default=100, help="pages opened and closed for the memory; 0: none")
    parser.add_argument("--before", type=Path, help="the folder src of another state of nenya, to be measured in turn")
    parser.add_argument("--commit", default="", help="of that state, for the results")
    args = parser.parse_args()
    sources = {"now": Path(nenya.__file__).resolve().parents[1]}
    if args.before is not None:
        sources = {"before": args.before.resolve(), **sources}
    about, results = machine(), []
    for rows in args.rows:
        found = measure(rows, args.dim, args.sessions, sources, args.closed)
        results.append({"rows": rows, **{what: rounded(values) for what, values in found.items()}})
        print(json.dumps(results[-1]), flush=True)
    write("portal", {"dim": args.dim, "before": args.commit, "sizes": results}, about)


def rounded(values):
    """Return figures with three digits after the point, in lists and dictionaries."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return np.round(values, 3).tolist()


if __name__ == "__main__":
    main()
