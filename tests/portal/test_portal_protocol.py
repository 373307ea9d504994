"""What a visitor sends over the websocket in place of what the page sends."""

import asyncio
import base64
import gzip
import json
import threading
import time

import numpy as np
import pytest
from portal_data import settings_of, token_of, write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from test_portal_safe import ask, talk
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from nenya.latents.files import Latents
from nenya.portal import protocol, routes
from nenya.portal.dataset import open_dataset
from nenya.portal.holding import Portal


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("portal"))
    return open_dataset(table, Latents([latents]), str(cutouts))


class Visitor:
    """A websocket of a page, and the session behind it."""

    def __init__(self, portal, port):
        self.portal, self.port, self.sent = portal, port, 0

    async def enter(self, query=""):
        page = (await ask(self.port, query)).body.decode()
        self.session = self.portal.sessions[settings_of(page)["key"]]
        self.document = self.session.gallery.plot.document
        request = HTTPRequest(f"ws://127.0.0.1:{self.port}/ws", request_timeout=300)
        self.socket = await websocket_connect(request, subprotocols=["bokeh", token_of(page)])
        assert "ACK" in await self.read()
        return self

    async def read(self):
        return await asyncio.wait_for(self.socket.read_message(), 300)

    async def send(self, kind, content, *more, **header):
        self.sent += 1
        text = content if isinstance(content, str) else json.dumps(content)
        for part in (json.dumps({"msgid": str(self.sent), "msgtype": kind, **header}), "{}", text, *more):
            await self.socket.write_message(part, binary=isinstance(part, bytes))

    async def patch(self, *events):
        await self.send("PATCH-DOC", {"events": list(events)})

    async def change(self, model, attr, new):
        await self.patch({"kind": "ModelChanged", "model": {"id": model.id}, "attr": attr, "new": new})

    async def event(self, name, model, **values):
        entries = [["model", {"id": model.id}], *([k, v] for k, v in values.items())]
        data = {"type": "event", "name": name, "values": {"type": "map", "entries": entries}}
        await self.patch({"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": data})

    def one(self, name):
        return self.document.get_model_by_name(name)

    async def still_served(self):
        """Say whether the page still answers: whether an action of the page has its effect."""
        before = self.session.selection.view.row
        row = 5 if before != 5 else 6
        await self.change(self.one("nenya_channel"), "value", f"{time.monotonic()}|row:{row}")
        for _ in range(6000):
            if self.session.selection.view.row == row:
                return True
            await asyncio.sleep(0.05)
        return False


def visit(dataset, work):
    portal = Portal(dataset, "a")

    async def run(port):
        return await work(await Visitor(portal, port).enter(), portal, port)

    return talk(portal, run)


def mapped(**values):
    return {"type": "map", "entries": [[k, v] for k, v in values.items()]}


def test_only_what_the_page_changes_can_be_changed(dataset):
    async def work(visitor, *_):
        session, document = visitor.session, visitor.document
        plane = session.planes["umap"]
        texts = [model for model in document.models if type(model).__name__ == "Div"]
        before = (dict(plane.front.data), plane.hover.tooltips, [text.text for text in texts], len(document.roots))
        script = "<img src=x onerror=alert(1)>"
        for text in texts:
            await visitor.change(text, "text", script)
        for model, attr, new in [
            (plane.hover, "tooltips", script), (plane.front, "data", mapped(image=[])), (plane.plot, "title", script),
            (plane.plot.toolbar, "tools", []), (plane.plot, "tags", [script]), (plane.bar, "title", script),
            (plane.front.selected, "indices", [10**9] * 10**4), (plane.plot.x_range, "bounds", "auto"),
            (visitor.one("nenya_view"), "value", script), (plane.plot, "js_property_callbacks", mapped()),
            (plane.plot, "renderers", [{"type": "object", "name": "CustomJS", "id": "x", "attributes": {"code": "x"}}]),
        ]:  # fmt: skip
            await visitor.change(model, attr, new)
        await visitor.patch(
            {"kind": "RootAdded", "model": {"type": "object", "name": "Div", "id": "z", "attributes": {}}},
            {"kind": "RootRemoved", "model": {"id": document.roots[0].id}},
            {"kind": "TitleChanged", "title": script},
            {"kind": "ColumnDataChanged", "model": {"id": plane.front.id}, "attr": "data", "data": mapped(x=[1])},
            {"kind": "ColumnsStreamed", "model": {"id": plane.front.id}, "attr": "data", "data": mapped(x=[1])},
            {"kind": "ModelChanged", "model": {"type": "object", "name": "Div", "id": "y"}, "attr": "text", "new": "x"},
            {"kind": "MessageSent", "msg_type": "other", "msg_data": script},
            {"kind": "ModelChanged"}, {}, "x", None, [],
        )  # fmt: skip
        assert await visitor.still_served()
        after = (dict(plane.front.data), plane.hover.tooltips, [text.text for text in texts], len(document.roots))
        assert after[0].keys() == before[0].keys() and after[1] == before[1] and after[3] == before[3]
        assert script not in "".join(after[2]) and script not in visitor.session.texts.values()
        assert document.title == "Nenya portal" or script not in document.title
        assert plane.front.selected.indices == [] and visitor.one("nenya_view").value != script

    visit(dataset, work)


def test_values_that_no_browser_sends_are_left_out(dataset):
    async def work(visitor, *_):
        session, plane = visitor.session, visitor.session.planes["map"]
        extent, size = plane.extent, session.gallery.columns
        for end in ("start", "end"):
            for value in ("7", None, [1], 1e300, -(10**300), True, {"type": "number", "value": "nan"}, mapped()):
                await visitor.change(plane.plot.x_range, end, value)
        for value in (10**9, -5, "x", 1e300, None):
            await visitor.change(session.gallery.plot, "inner_width", value)
        for value in (10**6, None, 7, ["a"], "x" * 10**5):
            await visitor.change(visitor.one("nenya_channel"), "value", value)
        select = next(m for m in visitor.document.models if type(m).__name__ == "CustomSelect")
        known = select.value
        for value in ("<script>", 7, None, ["count"]):
            await visitor.change(select, "value", value)
        assert await visitor.still_served()
        assert plane.extent == extent and session.gallery.columns == size and select.value == known

    visit(dataset, work)


TAPS = [
    {"x": 1e300, "y": 0}, {"x": "a", "y": "b"}, {"x": None, "y": None}, {}, {"x": [1], "y": [2]},
    {"x": 10**400, "y": 1},
    {"x": {"type": "number", "value": "nan"}, "y": {"type": "number", "value": "+inf"}}, {"x": mapped(a=1), "y": 0},
]  # fmt: skip
SHAPES = [
    {"type": "rect", "x0": 1e15, "x1": -1e15, "y0": 0, "y1": 1}, {"type": "rect"}, {"type": "rect", "x0": "a"},
    {"type": "poly", "x": [1e15, -1e15, 0], "y": [0, 1, 2]}, {"type": "poly", "x": [1], "y": [1]}, {"type": "x"},
    {"type": "poly", "x": [0] * 50_000, "y": [0] * 50_000}, {"type": "poly", "x": "abc", "y": "abc"},
    {"type": "poly", "x": [0, 1, 2], "y": [0, 1]}, {}, {"type": "poly", "x": [None] * 3, "y": [None] * 3},
    {"type": "rect", "x0": 0, "x1": 1, "y0": 10**400, "y1": 1},
]  # fmt: skip


def test_events_of_places_that_are_none_do_nothing(dataset):
    async def work(visitor, *_):
        session = visitor.session
        figures = [plane.plot for plane in session.planes.values()]
        figures += [chart.plot for chart in session.histograms.values()] + [session.gallery.plot, session.near.plot]
        filters = session.selection.view.filters
        for figure in figures:
            for values in TAPS:
                await visitor.event("tap", figure, **values)
            for shape in SHAPES:
                await visitor.event("selectiongeometry", figure, geometry=mapped(**shape), final=True)
            await visitor.event("rangesupdate", figure, x0="a", x1=None, y0=1e300, y1=[])
        assert await visitor.still_served()
        return filters == (), {type(item).__name__ for item in session.selection.view.filters}

    assert visit(dataset, work) == (True, {"Range"})  # a range may go far beyond its histogram


def test_events_that_do_not_fit_their_model_are_dropped_without_a_traceback(dataset, caplog):
    def array(name, kind="float64"):
        return {
            "type": "typed_array",
            "array": {"type": "bytes", "data": {"id": name}},
            "order": "little",
            "dtype": kind,
        }

    async def work(visitor, *_):
        plot, channel = visitor.session.planes["umap"].plot, visitor.one("nenya_channel")
        drawn = mapped(type="poly", x=array("none"), y=array("none"))
        await visitor.event("tap", channel, x=1, y=2)
        await visitor.event("button_click", plot)
        await visitor.event("tap", plot, x=1, y=2, foo=3)
        await visitor.event("rangesupdate", plot, foo=3)
        await visitor.event("rangesupdate", channel, x0=1)
        await visitor.event("document_ready", plot)
        await visitor.event("selectiongeometry", channel, geometry=mapped(type="rect"), final=True)
        await visitor.event("selectiongeometry", plot, geometry=drawn, final=True)
        ready = {"type": "event", "name": "document_ready", "values": mapped(x=1)}
        await visitor.patch({"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": ready})
        entries = [["model", {"id": plot.id}], ["geometry", mapped(type="poly", x=array("a"), y=array("a"))]]
        values = {"type": "map", "entries": [*entries, ["final", True]]}
        event = {"type": "event", "name": "selectiongeometry", "values": values}
        content = {"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": event}]}
        await visitor.send("PATCH-DOC", content, json.dumps({"id": "a"}), b"1234567", num_buffers=1)  # of no float64
        assert await visitor.still_served()
        return visitor.session.selection.view.filters

    assert visit(dataset, work) == ()
    assert not [one for one in caplog.records if one.exc_info and one.name.startswith("nenya.portal.routes")]


def test_many_events_are_refused_and_only_the_last_change_of_each_kind_is_applied():
    class TextInput:
        id, name = "c", "nenya_channel"

    def change(text):
        return {"kind": "ModelChanged", "model": {"id": "c"}, "attr": "value", "new": text}

    def of(events):
        return protocol.allowed({"events": events}, lambda _: TextInput())

    assert of([change("1|row:1"), change("2|row:2")]) == [change("2|row:2")]
    with pytest.raises(protocol.Foreign):
        of([change(f"{number}|row:1") for number in range(21)])


def test_an_address_waits_until_its_time_is_paid_back_whichever_connection_it_uses(monkeypatch):
    from nenya.portal import fair

    slept, clock = [], [0.0]

    async def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    async def spend(seconds):
        clock[0] += seconds
        return "done"

    async def work():
        rooms = routes.Rooms()
        assert await rooms.purse("one").pay_for(spend(fair._BURST)) == "done"
        await rooms.purse("one").ready()
        assert slept == [0]  # what may be taken at once
        await rooms.purse("one").pay_for(spend(3.0))
        await rooms.purse("other").ready()
        assert slept == [0, 0]  # another address does not wait
        await rooms.purse("one").ready()
        assert sum(slept) == pytest.approx((3.0 - fair._BURST) / fair._SHARE)

    monkeypatch.setattr(fair.asyncio, "sleep", sleep)
    monkeypatch.setattr(fair.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(fair.time, "thread_time", lambda: clock[0])
    asyncio.run(work())


def test_work_is_paid_by_its_own_steps_and_can_be_cancelled():
    from nenya.portal.fair import Purse

    async def wait(ended):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main():
        purse, ended = Purse(), []
        task = asyncio.ensure_future(run(purse, wait(ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ZeroDivisionError):
            await purse.pay_for(fail())
        return ended

    async def run(purse, work):
        return await purse.pay_for(work)

    async def fail():
        await asyncio.sleep(0)
        return 1 / 0

    assert asyncio.run(main()) == [True]


def test_pages_of_one_address_open_with_pauses_in_which_another_address_comes_first(monkeypatch):
    pauses, order, let = [], [], []
    real = asyncio.sleep

    async def sleep(seconds):
        if seconds == 0:
            return await real(0)
        pauses.append(seconds)
        let.append(asyncio.Event())
        return await let[-1].wait()

    async def opens(rooms, address):
        async with rooms.turn(address) as able:
            assert able
            order.append(address)
            await real(0)

    async def main():
        rooms = routes.Rooms()
        tasks = [asyncio.ensure_future(opens(rooms, "many")) for _ in range(3)]
        for _ in range(20):
            await real(0)
        assert order == ["many"] and len(pauses) == 1  # the second waits, though few have opened
        await opens(rooms, "honest")
        assert order == ["many", "honest"]
        for _ in range(60):
            for event in let:
                event.set()
            await real(0)
        await asyncio.gather(*tasks)
        assert order == ["many", "honest", "many", "many"]
        waiting = [asyncio.ensure_future(opens(rooms, "many")) for _ in range(routes._WAITING_EACH)]
        await real(0)
        async with rooms.turn("many") as able:
            assert not able
        async with rooms.turn("honest") as able:
            assert able
        for task in waiting:
            task.cancel()

    monkeypatch.setattr(routes.asyncio, "sleep", sleep)
    asyncio.run(main())


def test_what_the_mouse_draws_still_selects(dataset):
    async def work(visitor, *_):
        session = visitor.session
        ends = {"type": "rect", "greedy": False, "sx0": 9.5, "x0": -3.0, "x1": 4.0, "y0": -3.0, "y1": 5.0}
        await visitor.event("selectiongeometry", session.planes["umap"].plot, geometry=mapped(**ends), final=True)
        drawn = {"type": "poly", "x": [-100.0, 120.0, 0.0], "y": [-50.0, -50.0, 60.0]}
        await visitor.event("selectiongeometry", session.planes["map"].plot, geometry=mapped(**drawn), final=True)
        assert await visitor.still_served()
        return [type(item).__name__ for item in session.selection.view.filters]

    assert visit(dataset, work) == ["Box", "Lasso"]


ACTIONS = [
    "range:[\"DT\", " + "9" * 400 + ", 1]", 'range:["DT", 1e999, 1]', 'range:["DT", "1", "2"]', 'range:["DT", [], {}]',
    "range:" + "[" * 4000, 'range:["nope", 1, 2]', 'range:["lon", 1e30, -1e30]', "range:{}", "range:", "category:[]",
    'category:["region", ["<script>"]]', 'category:["region", 7]', 'category:["nope", ["here"]]',
    'category:["region", []]',
    'category:["region", ' + json.dumps(["x"] * 500) + "]", "row:" + "9" * 4000, "row:\u00b2", "row:-1", "row:1e3",
    "page:7", "sheet:9", "step:x", "tab:" + "x" * 4000, "list:" + "[" * 99, "remove:" + "x" * 4000,
    "nothing", "", ":", "undo:x" * 9,
]  # fmt: skip


def test_actions_that_no_button_sends_are_refused_or_do_nothing(dataset):
    async def work(visitor, *_):
        for number, action in enumerate(ACTIONS):
            await visitor.change(visitor.one("nenya_channel"), "value", f"a{number}|{action}")
        assert await visitor.still_served()
        return visitor.session.selection.view.filters

    assert visit(dataset, work) == ()


async def _ends(visitor, *parts):
    for part in parts:
        await visitor.socket.write_message(part, binary=isinstance(part, bytes))
    try:
        while await visitor.read() is not None:
            pass
    except TimeoutError:
        return False
    return True


HEADER = json.dumps({"msgid": "1", "msgtype": "PATCH-DOC"})
BAD = {
    "no json": ("x", "{}", "{}"),
    "deep json": (HEADER, "{}", '{"events": ' + "[" * 300_000),
    "a number of a million digits": (HEADER, "{}", '{"events": [' + "9" * 900_000 + "]}"),
    "a document of one's own": (json.dumps({"msgid": "1", "msgtype": "PUSH-DOC"}), "{}", '{"doc": {"roots": []}}'),
    "versions asked for": (json.dumps({"msgid": "1", "msgtype": "SERVER-INFO-REQ"}), "{}", "{}"),
    "an unknown kind": (json.dumps({"msgid": "1", "msgtype": "__class__"}), "{}", "{}"),
    "no kind": ("[]", "{}", "{}"),
    "bytes": (b"\x00" * 100, b"", b""),
    "many events": (HEADER, "{}", json.dumps({"events": [{}] * 100_000})),
    "events that are none": (HEADER, "{}", json.dumps({"events": {"a": 1}})),
    "many buffers": (
        json.dumps({"msgid": "1", "msgtype": "PATCH-DOC", "num_buffers": 10**9}), "{}", '{"events": []}',
        *[json.dumps({"id": "0"}), b"x"] * 20,
    ),
    "large buffers": (
        json.dumps({"msgid": "1", "msgtype": "PATCH-DOC", "num_buffers": 4}), "{}", '{"events": []}',
        *[json.dumps({"id": "0"}), b"x" * 600_000] * 2,
    ),
    "the whole page again and again": (json.dumps({"msgid": "1", "msgtype": "PULL-DOC-REQ"}), "{}", "{}") * 12,
}  # fmt: skip


@pytest.mark.slow
def test_messages_that_are_none_end_their_connection_and_no_other(dataset, monkeypatch):
    monkeypatch.setattr(routes, "_AT_ONCE", 50)  # without pauses between the pages

    async def work(other, portal, port):
        for name, parts in BAD.items():
            visitor = await Visitor(portal, port).enter()
            assert await _ends(visitor, *parts), name
        return await other.still_served()

    assert visit(dataset, work)


def test_packed_bytes_are_not_unpacked(dataset):
    bomb = base64.b64encode(gzip.compress(b"\0" * 10**8)).decode()
    array = {"type": "typed_array", "array": {"type": "bytes", "data": bomb}, "order": "little", "dtype": "float64"}

    async def work(visitor, *_):
        geometry = mapped(type="poly", x=array, y=array)
        plot = visitor.session.planes["umap"].plot
        await visitor.event("selectiongeometry", plot, geometry=geometry, final=True)
        shape = {**array, "type": "ndarray", "shape": [10**7]}
        await visitor.event("selectiongeometry", plot, geometry=mapped(type="poly", x=shape, y=shape), final=True)
        await visitor.change(plot.x_range, "start", array)
        assert await visitor.still_served()
        return visitor.session.selection.view.filters

    assert visit(dataset, work) == ()


def test_a_flood_of_one_visitor_leaves_room_for_another(dataset):
    """The flood's messages are read one after the other, with pauses; the other's are answered in between."""

    async def work(visitor, portal, port):
        other = await Visitor(portal, port).enter()
        plot = visitor.session.planes["umap"].plot

        async def flood():
            for number in range(400):
                await visitor.change(plot.x_range, "start", -9 - number / 1000)
                await visitor.event("rangesupdate", plot, x0=-9, x1=9, y0=-9, y1=9)

        task = asyncio.ensure_future(flood())
        assert await other.still_served()
        task.cancel()
        return True

    assert visit(dataset, work)


def test_sessions_take_turns_and_none_takes_all_threads():
    from nenya.portal.jobs import Jobs, Pools

    pools, go, order = Pools(), threading.Event(), []
    begun = threading.Semaphore(0)

    def held(_ticket):
        begun.release()
        go.wait(300)

    def jobs():
        return Jobs(pools, lambda function: function(), lambda text, busy: None)

    greedy, honest = jobs(), jobs()
    for number in range(10):
        greedy.start(f"a{number}", held, lambda _: None)
    assert begun.acquire(timeout=300) and begun.acquire(timeout=300)
    assert not begun.acquire(timeout=0.3)  # two of four threads are its share
    done = threading.Event()
    honest.start("selection", lambda _: order.append("honest"), lambda _: done.set())
    assert done.wait(300) and order == ["honest"]
    go.set()
    pools.shutdown()


def test_who_used_least_comes_first():
    from nenya.portal.fair import FairPool

    class Owner:
        pass

    pool, go, order, done = FairPool(1, 1, "test"), threading.Event(), [], threading.Event()
    heavy, light, first = Owner(), Owner(), Owner()
    pool.submit_for(heavy, lambda: True, lambda: time.sleep(0.2))
    pool.submit_for(first, lambda: True, lambda: go.wait(300))
    for number in range(3):
        pool.submit_for(heavy, lambda: True, lambda n=number: order.append(f"heavy {n}"))
    pool.submit_for(light, lambda: True, lambda: order.append("light"))
    pool.submit_for(light, lambda: False, lambda: order.append("unwanted"))
    pool.submit_for(heavy, lambda: True, done.set)
    go.set()
    assert done.wait(300)
    pool.shutdown()
    assert order == ["light", "heavy 0", "heavy 1", "heavy 2"]


def test_work_that_takes_too_long_is_stopped_and_said(monkeypatch):
    from nenya.portal import jobs

    monkeypatch.setitem(jobs._LONGEST, "quick", 0.2)
    pools, said, ended = jobs.Pools(), [], threading.Event()
    mine = jobs.Jobs(pools, lambda function: function(), lambda text, busy: said.append(text))

    def endless(ticket):
        while True:
            ticket.tick(0.5)
            time.sleep(0.01)

    mine.start("selection", endless, lambda _: None, title="selecting", ended=lambda _: ended.set())
    assert ended.wait(300) and not mine.busy
    assert any("took too long" in text for text in said)
    pools.shutdown()


def test_a_lasso_that_fills_the_map_can_be_ended():
    from nenya.portal.dataset import Cancelled
    from nenya.portal.polygon import inside

    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 200_000)).astype(np.float32)
    corners = rng.uniform(-1, 1, (400, 2))
    calls = []

    def tick():
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        inside(x, y, corners, tick)
    assert len(calls) == 3


def test_a_link_that_no_page_makes_shows_the_whole_table_and_says_so(dataset):
    import zlib

    far = [["lasso", {"plane": "map", "points": [[-1e15, 0], [1e15, 1], [0, 2]]}]]
    huge = [["range", {"column": "DT", "low": 10**400, "high": 1}]]

    async def work(port):
        for filters in (far, huge, huge * 30):
            values = json.dumps({"f": filters, "r": None, "c": "count", "s": "shared"}).encode()
            view = base64.urlsafe_b64encode(zlib.compress(values)).decode().rstrip("=")
            visitor = await Visitor(portal, port).enter(f"?view={view}")
            assert visitor.session.selection.view.filters == ()
            for _ in range(6000):
                if visitor.session.shown is not None:
                    break
                await asyncio.sleep(0.05)
            assert "the view in this link is incomplete or of another table" in visitor.session.texts["news"]
            assert await visitor.still_served()
        return dataset.columns.rows, [len(session.ordered) for session in portal.sessions.values()]

    portal = Portal(dataset, "a")
    rows, shown = talk(portal, work)
    assert shown == [rows] * 3
