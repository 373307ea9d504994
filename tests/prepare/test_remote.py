"""Fields wherever they are: Zarr by any name, files of references, https and OPeNDAP; and what is refused."""

import base64
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from nenya.errors import InputFileError, NenyaError, OutputError, StorageError
from nenya.prepare.remote import kind_of
from nenya.prepare.sources import find_fields, identity_of, open_fields
from nenya.storage import web as storage_web
from nenya.storage.web import describe, download_web, read_web, read_web_range


@pytest.fixture(scope="module")
def dataset():
    """Three months on a small grid."""
    values = np.random.default_rng(0).normal(15, 2, (3, 20, 30)).astype("f4")
    return xr.Dataset(
        {"sst": (("time", "lat", "lon"), values, {"units": "degC", "standard_name": "sea_surface_temperature"})},
        coords={
            "time": np.array(["2010-01-16", "2010-02-16", "2010-03-16"], "datetime64[ns]"),
            "lat": ("lat", np.linspace(0, 19, 20), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(0, 29, 30), {"units": "degrees_east"}),
        },
    )


@pytest.fixture(autouse=True)
def forget():
    kind_of.cache_clear()


class _Handler(SimpleHTTPRequestHandler):
    """A server of files that knows ranges, redirects, and counts."""

    asked: list[str]
    moved: dict[str, str]
    denied: set[str]
    whole = False  # whether ranges are unknown to it

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/silent.bin":
            self.close_connection = True
            return
        if self.path in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[self.path])
            self.end_headers()
            return
        if self.path in self.denied:
            self.send_error(403)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, part = path.read_bytes(), None if self.whole else self.headers.get("Range")
        self.send_response(206 if part else 200)
        if part:
            first, last = map(int, part.removeprefix("bytes=").split("-"))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET


@pytest.fixture
def web(tmp_path):
    """A web server of a folder: its address, the folder, the paths asked for, and redirects."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = type("Handler", (_Handler,), {"asked": [], "moved": {}, "denied": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder, handler
    server.shutdown()
    server.server_close()


def same(source, dataset, **more):
    """Whether a source holds the values of the data set."""
    with open_fields(source, **more) as found:
        return np.array_equal(found.sst.values, dataset.sst.values) and (found.time.values == dataset.time.values).all()


def put_tree(service, bucket, folder, prefix):
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            service.client().put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


@pytest.mark.parametrize(("version", "consolidated"), [(2, True), (2, False), (3, False), (3, True)])
def test_a_zarr_store_is_known_by_its_metadata(tmp_path, s3_service, s3_bucket, dataset, version, consolidated):
    local = tmp_path / "ocean_2010"  # without a suffix
    dataset.to_zarr(local, zarr_format=version, consolidated=consolidated)
    assert find_fields(str(local)) == [local] and same(local, dataset)
    assert find_fields(str(tmp_path / "ocean*")) == [local]
    put_tree(s3_service, s3_bucket, local, "deep/ocean.v2")
    url = f"s3://{s3_bucket}/deep/ocean.v2"
    assert find_fields(url) == find_fields(url + "/") == find_fields(f"s3://{s3_bucket}/deep") == [url]
    assert find_fields(f"s3://{s3_bucket}/deep/oc*") == [url] and identity_of(url)
    assert same(url, dataset)


def test_a_zarr_store_on_the_web(web, dataset):
    address, folder, _ = web
    dataset.to_zarr(folder / "ocean", zarr_format=2, consolidated=True)
    assert find_fields(f"{address}/ocean") == [f"{address}/ocean"] and same(f"{address}/ocean", dataset)
    assert identity_of(f"{address}/ocean")


def references_of(dataset, folder, target, **more):
    """Return references (kerchunk) to the bytes of the chunks of a store, all of them in one file."""
    dataset.to_zarr(folder / "store", zarr_format=2, consolidated=False, **more)
    refs, blob = {}, b""
    for path in sorted((folder / "store").rglob("*")):
        if path.is_file():
            key, content = path.relative_to(folder / "store").as_posix(), path.read_bytes()
            if path.name.startswith(".z"):
                refs[key] = content.decode()
            elif key.startswith("lat/"):
                refs[key] = "base64:" + base64.b64encode(content).decode()
            else:
                refs[key] = [target, len(blob), len(content)]
                blob += content
    shutil.rmtree(folder / "store")
    return {"version": 1, "templates": {"u": "blob.bin"}, "refs": refs}, blob


def test_references_within_their_folder(tmp_path, web, s3_service, s3_bucket, dataset):
    refs, blob = references_of(dataset, tmp_path, "{{u}}")
    (tmp_path / "blob.bin").write_bytes(blob)
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    (tmp_path / "older.ref").write_text(json.dumps(references_of(dataset, tmp_path, "blob.bin")[0]["refs"]))
    for name in ("refs.json", "older.ref"):
        assert find_fields(str(tmp_path / name)) == [tmp_path / name] and same(tmp_path / name, dataset)
    address, folder, handler = web
    shutil.copy(tmp_path / "refs.json", folder)
    shutil.copy(tmp_path / "blob.bin", folder)
    assert same(f"{address}/refs.json", dataset) and "/blob.bin" in handler.asked
    for name in ("refs.json", "blob.bin"):
        s3_service.client().put_object(Bucket=s3_bucket, Key=f"d/{name}", Body=(tmp_path / name).read_bytes())
    assert same(f"s3://{s3_bucket}/d/refs.json", dataset)


def write_parquet(place, refs, record_size=3):
    """Write references in Parquet, as kerchunk does."""
    metadata = {key: json.loads(value) for key, value in refs.items() if "/.z" in f"/{key}"}
    place.mkdir()
    (place / ".zmetadata").write_text(json.dumps({"metadata": metadata, "record_size": record_size}))
    for name in {key.partition("/")[0] for key in metadata if "/" in key}:
        array = metadata[f"{name}/.zarray"]
        grid = [-(-size // chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
        rows = []
        for number in np.ndindex(*grid):
            entry = refs[f"{name}/{'.'.join(map(str, number))}"]
            inline = isinstance(entry, str)
            rows.append([None, 0, 0, base64.b64decode(entry[7:])] if inline else [*entry, None])
        (place / name).mkdir()
        for start in range(0, len(rows), record_size):
            some = rows[start : start + record_size]
            kinds = {"path": pa.string(), "offset": pa.int64(), "size": pa.int64(), "raw": pa.binary()}
            columns = {key: pa.array([row[i] for row in some], kind) for i, (key, kind) in enumerate(kinds.items())}
            table = pa.table(columns)
            pq.write_table(table, place / name / f"refs.{start // record_size}.parq")


def test_references_in_parquet(tmp_path, web, dataset):
    address, folder, _ = web
    for name, target in (("own", "blob.bin"), ("web", f"{address}/blob.bin")):
        refs, blob = references_of(dataset, tmp_path, target, encoding={"sst": {"chunks": (1, 5, 30)}})
        place = tmp_path / f"{name}.parq"
        write_parquet(place, refs["refs"])
        (tmp_path / "blob.bin").write_bytes(blob)
        (folder / "blob.bin").write_bytes(blob)
    assert find_fields(str(place)) == [place] and same(place, dataset, references=[address])
    with pytest.raises(InputFileError, match=r"storage\.references="):
        same(place, dataset)
    assert same(tmp_path / "own.parq", dataset), "a file beside it"
    (tmp_path / "inner").mkdir()
    shutil.move(tmp_path / "blob.bin", tmp_path / "other.bin")
    (tmp_path / "inner" / "blob.bin").symlink_to("../other.bin")
    shutil.move(tmp_path / "own.parq", tmp_path / "inner")
    with pytest.raises(InputFileError, match="outside its own folder: refused"):
        same(tmp_path / "inner" / "own.parq", dataset)


def test_references_to_other_places_need_a_word(tmp_path, web, s3_service, s3_bucket, dataset):
    address, folder, handler = web
    s3_service.client().put_object(Bucket=s3_bucket, Key="data/blob.bin", Body=b"")
    for target, root in ((f"{address}/data/blob.bin", f"{address}/data/"), (f"s3://{s3_bucket}/data/blob.bin", "")):
        refs, blob = references_of(dataset, tmp_path, target)
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "blob.bin").write_bytes(blob)
        s3_service.client().put_object(Bucket=s3_bucket, Key="data/blob.bin", Body=blob)
        path = tmp_path / "refs.json"
        path.write_text(json.dumps(refs))
        root = root or f"s3://{s3_bucket}/data/"
        with pytest.raises(InputFileError, match=r"storage\.references=\[") as caught:
            same(path, dataset)
        assert root in str(caught.value) and not handler.asked
        assert "\n" not in str(caught.value)
        with pytest.raises(InputFileError, match="refused"):
            same(path, dataset, references=[root.replace("data/", "dat")])
        assert same(path, dataset, references=[root])
        handler.asked.clear()


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "../outside.bin",
        "link.bin",
        "gs://bucket/a",
        "memory://a",
        "s3://b/../c",
        "ftp://h/a",
    ],
)
def test_hostile_references_are_refused_before_anything_is_read(tmp_path, dataset, target):
    (tmp_path / "outside.bin").write_bytes(bytes(10**5))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.bin").symlink_to("../outside.bin")
    (inner / "refs.json").write_text(json.dumps(references_of(dataset, tmp_path, target)[0]))
    with pytest.raises(InputFileError, match="refused") as caught:
        same(inner / "refs.json", dataset)
    assert "\n" not in str(caught.value)


def test_local_files_are_never_read_for_references_from_elsewhere(tmp_path, web, dataset):
    address, folder, _ = web
    secret = tmp_path / "secret.bin"
    for target in (str(secret), f"file://{secret}", f"{address}/../secret.bin"):
        refs, blob = references_of(dataset, tmp_path, target)
        secret.write_bytes(blob)
        (folder / "refs.json").write_text(json.dumps(refs))
        for more in ({}, {"allow_external": True}):
            with pytest.raises(NenyaError, match="refused"):
                same(f"{address}/refs.json", dataset, **more)


def test_references_are_checked_as_any_store(tmp_path, dataset):
    refs, blob = references_of(dataset, tmp_path, "blob.bin")
    (tmp_path / "blob.bin").write_bytes(blob)
    place = tmp_path / "refs.json"
    array = json.loads(refs["refs"]["sst/.zarray"])
    for change, wanted in (
        ({"sst/.zarray": json.dumps({**array, "compressor": {"id": "pickle"}})}, "codec pickle is refused"),
        ({"sst/0.0.0": ["blob.bin", 0, 10**9]}, "got a file of"),
        ({"sst/0.0.0": ["blob.bin", "0", 1]}, r"expected text, or \[address"),
        ({"sst/0.0.0": "base64:???"}, "expected base64"),
    ):
        place.write_text(json.dumps({**refs, "refs": {**refs["refs"], **change}}))
        with pytest.raises(InputFileError, match=wanted):
            same(place, dataset)
    place.write_text(json.dumps({**refs, "gen": [{"key": "a"}]}))
    with pytest.raises(InputFileError, match="made by rules"):
        same(place, dataset)
    place.write_text('{"version": 1, "refs": ')
    with pytest.raises(InputFileError, match="damaged JSON"):
        same(place, dataset)


def test_a_redirect_of_a_chunk_to_another_host_is_refused(tmp_path, web, dataset):
    address, folder, handler = web
    refs, blob = references_of(dataset, tmp_path, "blob.bin")
    (folder / "refs.json").write_text(json.dumps(refs))
    handler.moved["/blob.bin"] = address.replace("127.0.0.1", "localhost") + "/other.bin"
    (folder / "other.bin").write_bytes(blob)
    with pytest.raises(NenyaError, match="refused"):
        same(f"{address}/refs.json", dataset)
    assert "/other.bin" not in handler.asked


def test_what_a_web_server_does_wrong_is_said_as_it_is(web, tmp_path):
    address, folder, handler = web
    (folder / "a.bin").write_bytes(b"abc")
    handler.moved["/b.bin"] = "http://localhost/b.bin"
    for read in (describe, read_web, lambda url: download_web(url, tmp_path / "b.bin")):
        with pytest.raises(StorageError, match=r"b\.bin: redirected to http://localhost/b\.bin, which is not https"):
            read(f"{address}/b.bin")
    handler.whole = True
    with pytest.raises(StorageError, match=r"a\.bin: the server does not send parts of files"):
        read_web_range(f"{address}/a.bin", 0, 2)
    for read in (describe, read_web):
        with pytest.raises(StorageError, match=r"silent\.bin: the connection broke"):
            read(f"{address}/silent.bin")


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "ftp://127.0.0.1/a", "https://localhost/a", "/.."])
@pytest.mark.parametrize("name", ["store", "a.json", "a.nc", "dodsC/a"])
def test_no_redirect_leads_to_an_inner_network(web, name, target):
    address, _, handler = web
    for end in ("", "/zarr.json", "/.zgroup", "/.zmetadata", ".dds"):
        handler.moved[f"/{name}{end}"] = target
    if target == "/..":  # the same host under another port, where something else may listen
        handler.moved.update(dict.fromkeys(handler.moved, address.rpartition(":")[0] + ":9/a"))
    with pytest.raises(StorageError, match="refused") as caught, open_fields(f"{address}/{name}"):
        pass
    assert "try again" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "inner"),
    [
        ("data.example.org", False),
        ("93.184.216.34", False),
        *((host, True) for host in ("localhost", "a.localhost.", "127.0.0.1", "10.1.2.3", "169.254.169.254", "::1")),
        *((host, True) for host in ("::ffff:10.0.0.1", "fe80::1%eth0", "2130706433", "127.1", "metadata", None)),
        ("metadata.google.internal", True),
    ],
)
def test_hosts_that_no_redirect_leads_to(host, inner):
    assert storage_web.is_inner(host) is inner


RAW = {
    "closed": b"",
    "garbage": b"\x1b[31mgarbage\r\n\r\n",
    "headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(200)) + b"\r\nabc",
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFF\r\nabc",
    "reason": b"HTTP/1.1 500 " + b"x" * 60_000 + b"\r\n\r\n",
    "huge": b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\n\r\nabc",
}


@pytest.mark.parametrize("answer", RAW)
def test_answers_that_are_none_are_one_line(web, tmp_path, answer):
    address, _, handler = web

    def do_get(self):
        self.wfile.write(RAW[answer])
        self.close_connection = True

    handler.do_GET = handler.do_HEAD = do_get
    reads = (lambda url: storage_web.read_web(url), lambda url: storage_web.read_web_range(url, 0, 3))
    for read in (*reads, lambda url: storage_web.download_web(url, tmp_path / "copy")):
        with pytest.raises(NenyaError) as caught:
            read(f"{address}/a.nc")
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*copy*"))


def test_a_server_that_hardly_sends_is_left(web, tmp_path, monkeypatch):
    """Each byte of it comes before any time limit of the connection."""
    address, _, handler = web
    stop = threading.Event()

    def do_get(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.wait(0.01):
            self.wfile.write(b"{")

    handler.do_GET = do_get
    monkeypatch.setattr(storage_web, "_PATIENCE", 0.05)
    for read in (storage_web.read_web, lambda url: storage_web.download_web(url, tmp_path / "copy")):
        with pytest.raises(StorageError, match="bytes per second"):
            read(f"{address}/a.json")
    stop.set()
    assert not list(tmp_path.glob("*copy*"))


def test_a_file_larger_than_the_disk_is_not_begun(web, tmp_path, monkeypatch):
    address, folder, _ = web
    (folder / "a.nc").write_bytes(bytes(100))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(storage_web.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"do not fit into .*loader\.cache_dir"):
        storage_web.download_web(f"{address}/a.nc", tmp_path / "copy.nc")
    assert not list(tmp_path.glob("*copy*"))


def test_references_that_grow_are_refused(tmp_path, dataset):
    """A template in each of many addresses would take all memory."""
    refs, blob = references_of(dataset, tmp_path, "{{u}}")
    (tmp_path / "blob.bin").write_bytes(blob)
    place = tmp_path / "refs.json"
    for templates, target in (
        ({"u": "x" * 10**5}, "{{u}}"),
        ({"u": "x" * 4000}, "{{u}}" * 800),
        ({"u": ["blob.bin"] * 1000}, "{{u}}"),
        ({"u": "blob.bin"}, "{{v}}"),
        ({}, "x" * 10**6),
    ):
        changed = {**refs, "templates": templates, "refs": {**refs["refs"], "sst/0.0.0": [target, 0, 1]}}
        place.write_text(json.dumps(changed))
        with pytest.raises(InputFileError, match="expected an address of at most 4096 characters") as caught:
            same(place, dataset)
        assert len(str(caught.value)) < 500
    place.write_text('{"version": 1, "refs": {"a": ' + '{"a":' * 990 + "1" + "}" * 990 + "}}")
    with pytest.raises(InputFileError):
        same(place, dataset)


@pytest.mark.parametrize("column", ["text", "float", "negative"])
def test_rows_of_references_in_parquet_are_numbers_of_bytes(tmp_path, dataset, column):
    refs, blob = references_of(dataset, tmp_path, "blob.bin")
    (tmp_path / "blob.bin").write_bytes(blob)
    write_parquet(tmp_path / "a.parq", refs["refs"])
    for path in (tmp_path / "a.parq").rglob("*.parq"):
        table = pq.read_table(path)
        values = {"text": ["a"], "float": [float("nan")], "negative": [-5]}[column] * table.num_rows
        pq.write_table(table.set_column(table.column_names.index("size"), "size", pa.array(values)), path)
    with pytest.raises(InputFileError, match="damaged references"):
        same(tmp_path / "a.parq", dataset)


def test_a_file_on_the_web(web, dataset, tmp_path):
    address, folder, handler = web
    dataset.to_netcdf(folder / "a.nc", engine="h5netcdf")
    assert same(f"{address}/a.nc", dataset, cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == [], "the copy goes"
    handler.moved["/b.nc"] = "/a.nc"
    assert same(f"{address}/b.nc", dataset, cache_dir=str(tmp_path / "cache"))
    handler.moved["/c.nc"] = "file:///etc/passwd"
    with pytest.raises(StorageError, match="is not allowed"):
        same(f"{address}/c.nc", dataset)
    with pytest.raises(InputFileError, match="no such file"):
        identity_of(f"{address}/no.nc")
    (folder / "bad.nc").write_bytes(b"not a file of fields")
    with pytest.raises(InputFileError, match=r"http://.*bad\.nc: expected a file of fields") as caught:
        same(f"{address}/bad.nc", dataset)
    assert "copy-" not in str(caught.value)


def test_the_command_reads_the_web(web, dataset, nenya_cli):
    address, folder, _ = web
    dataset.to_netcdf(folder / "a.nc", engine="h5netcdf")
    args = ["sensor=grid", f"data={address}/a.nc", "field_size=8", "out=a_preproc.h5", "workers=1"]
    code, said = nenya_cli("prepare", args)
    assert code == 0, said


def test_opendap_without_its_library_is_one_line(web, monkeypatch):
    address, folder, _ = web
    (folder / "dodsC").mkdir()
    (folder / "dodsC" / "a.nc.dds").write_text("Dataset {\n} a;\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputFileError, match="pip install pydap"), open_fields(f"{address}/dodsC/a.nc"):
        pass


def test_opendap(dataset):
    pytest.importorskip("pydap")
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from pydap.handlers.lib import BaseHandler
    from pydap.model import BaseType, DatasetType, GridType

    served = DatasetType("a")
    days = (dataset.time.values - dataset.time.values[0]) / np.timedelta64(1, "D")
    axes = {"time": days, "lat": dataset.lat.values, "lon": dataset.lon.values}
    units = {"time": "days since 2010-01-16", "lat": "degrees_north", "lon": "degrees_east"}
    served["sst"] = GridType("sst", units="degC", standard_name="sea_surface_temperature")
    served["sst"]["sst"] = BaseType("sst", dataset.sst.values, dims=list(axes), units="degC")
    for name, values in axes.items():
        served["sst"][name] = BaseType(name, values, dims=[name], units=units[name])
        served[name] = BaseType(name, values, dims=[name], units=units[name])
    quiet = type("Quiet", (WSGIRequestHandler,), {"log_message": lambda *_: None})
    server = make_server("127.0.0.1", 0, BaseHandler(served), handler_class=quiet)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/dodsC/a"
        assert kind_of(url) == "dap" and identity_of(url) and same(url, dataset)
    finally:
        server.shutdown()
        server.server_close()


def test_icechunk(tmp_path, dataset, monkeypatch):
    icechunk = pytest.importorskip("icechunk")
    place = tmp_path / "repo"
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(place)))
    session = repository.writable_session("main")
    dataset.to_zarr(session.store, consolidated=False)
    session.commit("all")
    assert find_fields(str(place)) == [place] and identity_of(place) and same(place, dataset)


def test_icechunk_without_its_library_is_one_line(tmp_path, monkeypatch):
    for name in ("snapshots", "refs"):
        (tmp_path / "repo" / name).mkdir(parents=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputFileError, match="pip install icechunk"), open_fields(tmp_path / "repo"):
        pass


def test_a_service_that_hides_which_files_are_missing(web, dataset):
    address, folder, handler = web
    dataset.to_zarr(folder / "ocean", zarr_format=2, consolidated=True)
    handler.denied = {"/ocean/zarr.json"}
    assert kind_of(f"{address}/ocean") == "zarr" and same(f"{address}/ocean", dataset)
    handler.denied = {f"/no/{mark}" for mark in ("zarr.json", ".zgroup", ".zmetadata")}
    with pytest.raises(StorageError, match="403"):
        kind_of(f"{address}/no")
