"""What others wrote and nenya acts on: manifests with hostile names, wrong types and links."""

import contextlib
import copy
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from botocore.exceptions import ClientError
from conftest import red_noise, write_cutouts
from granules import write_swath

from nenya.archive.folder import Folder, fetch_index_files, open_version
from nenya.archive.manifest import State, parse, parse_publishing, parse_state
from nenya.errors import InputFileError, OutputError, StorageError
from nenya.latents.index import read_about
from nenya.options.files import config_dir
from nenya.storage.names import Entry, Json, inside, is_plain, local_name, parse_json, read_bytes, remove
from nenya.storage.paths import fetch, fetch_checked, temporary_copy
from nenya.storage.s3.service import store
from nenya.storage.small_files import refuse_links

HASH = "0123456789abcdef" * 4
QUICK = ["trainer.accelerator=cpu", "model.backend=eager", "workers=1"]

# What leads out of a folder, or is no name.
BAD_NAMES = [
    *("", ".", "..", "/", "/etc/passwd", "//etc/passwd", "../x", "a/../../x", "a/..", "a/../b", "./a", "a/.", "a//b"),
    *("a/", "..\\x", "a\\b", "\\\\host\\x", "C:/x", "c:x", "a\0b", "a\nb", "a\rb", "a\x1b[2Jb", "a\x7fb", "a\x85b"),
    *("a\u2028b", "a\u202eb", "\ud800", "a" * 256, "é" * 128, "a/" * 600 + "b", None, True, 3, 1.5, ["a"], {"a": "b"}),
]
GOOD_NAMES = [
    "a",
    "a.h5",
    "v5/index/latents.lance/data/0f.lance",
    "a b",
    "été.h5",
    "2012-01-01T12:00.nc",
    "..a",
    "a..b",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:40])
def test_a_name_that_leads_elsewhere_is_none(name, tmp_path):
    assert not is_plain(name)
    with pytest.raises(InputFileError) as refused:
        Json(name, "here", "files[0].name").name()
    assert str(refused.value).startswith("here: damaged: files[0].name: expected a plain relative name")
    assert str(refused.value).isprintable() and len(str(refused.value)) < 250
    with pytest.raises(InputFileError):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_plain_name_is_one(name, tmp_path):
    assert is_plain(name) and inside(tmp_path, name) == tmp_path / name
    assert is_plain(name, one=True) == ("/" not in name)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if isinstance(name, str)], ids=lambda n: ascii(n)[:40])
def test_a_local_copy_has_a_name_of_its_own_kind(name):
    assert is_plain(local_name(name), one=True) and len(local_name(name).encode()) < 200
    assert local_name(f"{name}.h5").endswith(".h5") and local_name("a b.nc") == "a b.nc"


def test_no_link_is_followed(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "a").mkdir(parents=True)
    other.mkdir()
    (root / "a" / "link").symlink_to(other)
    (root / "a" / "broken").symlink_to(other / "gone")
    for name in ("a/link", "a/link/x", "a/broken"):
        with pytest.raises(InputFileError, match="is a link"):
            inside(root, name)
    with pytest.raises(OutputError, match="is a link to"):
        refuse_links(root)
    (tmp_path / "alias").symlink_to(root)
    assert inside(tmp_path / "alias", "a/x") == tmp_path / "alias/a/x"  # the root is the user's to name
    with pytest.raises(OutputError, match="is a link to"):
        refuse_links(tmp_path / "alias")
    remove(root / "a" / "link")
    remove(root / "a" / "broken")
    assert other.is_dir() and refuse_links(root) == root
    os.mkfifo(root / "a" / "pipe")
    with pytest.raises(OutputError, match="is a pipe"):
        refuse_links(root)
    with pytest.raises(InputFileError, match="expected a regular file"):
        read_bytes(root / "a" / "pipe")
    (root / "long").write_bytes(bytes(100))
    with pytest.raises(InputFileError, match="at most 99 bytes"):
        read_bytes(root / "long", 99)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "levels of nesting"),
        ("[" * 100_000 + "]" * 100_000, "levels of nesting"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "levels of nesting"),
        ('[{"a":' * 50_000 + "1" + "}]" * 50_000, "levels of nesting"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key a"),
        ('{"a": {"b": NaN}}', "NaN is not a JSON number"),
        ("-Infinity", "not a JSON number"),
        ("1e999", "finite number"),
        ("9" * 5000, "digits"),
        ('["\\"', "levels of nesting|Unterminated"),
        ("", "damaged"),
        (b"\xff\xfe[\x00]\x00", "damaged"),
        ("\x1b[2J", "damaged"),
    ],
)
def test_json_that_is_none_or_too_deep(text, said):
    with pytest.raises(InputFileError, match=said) as refused:
        parse_json(text, "here")
    assert str(refused.value).isprintable()


def test_json_is_read_as_the_library_reads_it():
    value = {"a": ["[[[[", '\\"{', {"b": [1, -2.5, None, True]}], "é\u2028": {}, "": [[[[[]]]]]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode(), json.dumps(value, indent=1)):
        assert parse_json(text, "here").value == value


# A manifest of each kind, and all of its values replaced


def entry(name, data=b""):
    import hashlib

    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


ABOUT = {
    "format": 1, "dim": 4, "provenance": {"checkpoint_sha256": HASH}, "columns": {"pp_file": "string"},
    "sources": [
        {"stem": "a", "partition": "train", "start": 0, "rows": 3, "sha256": HASH, "done": True, "left_out": 0}
    ],
    "index": {"kind": "IVF_FLAT", "parts": 2, "rows": 3, "trained_on": 3, "probes": 2},
    "recall": {"at": 10, "value": 1.0, "queries": 3, "seed": 1, "rows": 3},
}  # fmt: skip
SETTINGS = {
    "model": {"name": "v", "ssl_model": "resnet18", "feat_dim": 4, "nchannels": 1, "width": 1, "latent": "projection"},
    "preprocess": {"file": "none", "image": "demean", "dt_crop": 40},
    "loader": {"train_key": "train", "valid_key": "valid", "batch_size_valid": 64},
    "trainer": {"precision": "32-true"},
    "seed": 1,
    "map": {"ntrain": 10, "n_neighbors": 5, "min_dist": 0.1, "metric": "euclidean", "projector_sha256": None},
    "clusters": {"k": 4, "passes": 1, "sample": None},
    "sensor": {"recipe": "modis", "field_size": 64, "demean": True},
}
STATE = {"about": ABOUT, "files": [["v/index/latents.lance/data/x.lance", 3, HASH]]}
VERSION = {
    "settings": SETTINGS, "made": {"nenya": "1"}, "weights": entry("v/weights.pth"),
    "projector": entry("v/projector.h5"), "clusters": entry("v/clusters.h5"),
    "index": {"version": 1, "rows": 3, "about": entry("v/index-states/about-1.json"), "searched_by": "exactly"},
    "files": [
        {
            "stem": "a", "sources": [["a.nc", 3, "3 4"]], "cutouts": entry("cutouts/a.h5"),
            "latents": entry("v/latents/a_latents.h5"), "table": entry("v/tables/a.parquet"), "rows": {"train": 3},
            "left_out": 0, "dates": ["2012-01-01", "2012-01-02"], "nenya": "1", "date": "2024-01-01",
        }
    ],
    "empty": [["b.nc", 3, "3 4"]],
}  # fmt: skip
MANIFEST = {"format": 1, "about": "an archive", "versions": {"v": VERSION}}
POINTER = {"version": "20240101T000000-01234567", "files": [entry("nenya.json"), entry("latents.lance/data/x.lance")]}
KINDS = {
    "archive": (MANIFEST, lambda data: parse(data, "here")),
    "state": (STATE, lambda data: parse_state(data, "here", Entry("v/index-states/about-1.json", 1, HASH))),
    "publishing": (
        ["v/weights.pth", "v/latents/a.h5", "cutouts/a.h5"],
        lambda data: parse_publishing(data, "here", "v"),
    ),
}
WRONG = [None, True, 3, -1, 2**70, 1.5, "", "x", "../x", "/x", "a\0b", [], {}, [[]], {"name": "../x"}, [1, 2, 3, 4]]


def places_in(value, at=()):
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places_in(item, (*at, key))


def replaced(value, at, new):
    whole = [copy.deepcopy(value)]
    spot, last = whole, 0
    for key in at:
        spot, last = spot[last], key
    spot[last] = new
    return whole[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_anywhere_ends_in_one_line(kind):
    good, read = KINDS[kind]
    read(json.dumps(good).encode())
    refused = 0
    for at in places_in(good):
        for wrong in WRONG:
            data = json.dumps(replaced(good, at, wrong)).encode()
            try:
                read(data)
            except InputFileError as error:
                refused += 1
                assert str(error).startswith("here: ") and str(error).isprintable() and len(str(error)) < 600, (
                    at,
                    wrong,
                )
    assert refused > 10 * len(list(places_in(good))) * len(WRONG) / 20


def test_names_of_an_archive_lie_in_its_own_folders():
    for at in places_in(MANIFEST):
        if at[-1:] == ("name",) and "settings" not in at:
            for name in (*BAD_NAMES, "archive.json", ".work/lock", "w/weights.pth", "v/index/a/b", "cutouts/a/b"):
                with pytest.raises(InputFileError):
                    parse(json.dumps(replaced(MANIFEST, at, name)).encode(), "here")
        if at[-1:] == ("sha256",):
            for value in ("", HASH[:63], HASH.upper(), HASH + "0", "g" * 64, "../" + HASH[3:]):
                with pytest.raises(InputFileError, match="64 hexadecimal"):
                    parse(json.dumps(replaced(MANIFEST, at, value)).encode(), "here")
    for version in (*BAD_NAMES[:12], ".work", "cutouts", "objects", "a/b", ".hidden"):
        with pytest.raises(InputFileError, match="outside"):
            parse(json.dumps({**MANIFEST, "versions": {version: VERSION}}).encode(), "here")


def test_an_archive_sets_no_option_but_its_own():
    for section, key, value in (
        *(("model", "weights", "x"), ("loader", "allow_external", True), ("loader", "cache_dir", "/"), ("x", "y", 1)),
        *(
            ("sensor", "dask", "tcp://host:1"),
            ("sensor", "clobber", True),
            ("sensor", "out", "x"),
            ("sensor", "data", "x"),
        ),
    ):
        settings = {**SETTINGS, section: {**SETTINGS.get(section, {}), key: value}}
        data = json.dumps(replaced(MANIFEST, ("versions", "v", "settings"), settings)).encode()
        with pytest.raises(InputFileError, match="unknown key"):
            parse(data, "here")


def test_what_an_index_says_of_itself_is_checked(tmp_path, nenya_cli):
    for at in places_in(ABOUT):
        for wrong in WRONG:
            (tmp_path / "nenya.json").write_text(json.dumps(replaced(ABOUT, at, wrong)))
            try:
                read_about(tmp_path)
            except InputFileError as error:
                assert str(error).startswith(str(tmp_path)) and str(error).isprintable(), (at, wrong)
    for text in ("[" * 100_000, "[]", '{"format": 1}', '{"format": 1, "format": 1}', "", "null"):
        (tmp_path / "nenya.json").write_text(text)
        code, said = nenya_cli("search", [f"index={tmp_path}", "like=0"])
        assert code == 2 and said.count("\n") == 1 and "nenya.json: damaged" in said, said


# An archive on S3 that is made to write elsewhere


def put(service, bucket, objects):
    for key, data in objects.items():
        with contextlib.suppress(ClientError):  # some services take no such keys
            service.client().put_object(Bucket=bucket, Key=key, Body=data)


def hostile(names, manifest=MANIFEST, data=b"import os\n"):
    """Return the objects of an archive whose index names such files."""
    files = [[name, len(data), entry("x", data)["sha256"]] for name in names]
    state = json.dumps({"about": ABOUT, "files": files}).encode()
    about = entry("v/index-states/about-1.json", state)
    whole = replaced(manifest, ("versions", "v", "index", "about"), about)
    objects = {"archive.json": json.dumps(whole).encode(), about["name"]: state}
    return objects | {name: data for name in names}


def tree(folder, *but):
    return {str(path) for path in folder.rglob("*") if not any(place in (path, *path.parents) for place in but)}


READERS = {
    "search": ("search", ["like=0"]),
    "statistics": ("statistics", ["box=[0,1,0,1]"]),
    "portal": ("portal", ["export=page"]),
    "update": ("update", QUICK),
}


@pytest.mark.parametrize("command", READERS)
def test_an_archive_on_s3_writes_nothing_outside_the_cache(command, nenya_cli, s3_bucket, s3_service, tmp_path):
    target, cache = tmp_path / "site-packages", tmp_path / "deep" / "down" / "cache"
    target.mkdir()
    up = "../" * 12
    names = [
        f"v/index/{target}/evil.pth", f"v/index/{up}{target}/evil.pth", "v/index/../../../../../../evil.pth",
        "v/index/a/../../../../evil.pth", f"{target}/evil.pth", "evil.pth", "v/latents/evil.pth", "v/index/..",
        "v/index/a\\..\\evil.pth", "v/index/\nevil.pth",
    ]  # fmt: skip
    name, args = READERS[command]
    for number, evil in enumerate(names):
        put(s3_service, s3_bucket, {f"{number}/{key}": data for key, data in hostile([evil]).items()})
        before = tree(tmp_path, cache)
        code, said = nenya_cli(name, [f"archive=s3://{s3_bucket}/{number}", *args, f"loader.cache_dir={cache}"])
        assert code == 2 or command == "statistics", said
        assert said.count("\n") == 1 or command == "statistics", said
        assert command == "statistics" or "about-1.json" in said, said
        new = tree(tmp_path, cache) - before
        assert not new - {str(cache), str(cache.parent), str(cache.parent.parent)}, new
        assert not [path for path in cache.rglob("*") if "evil" in path.name]


def test_the_status_of_a_hostile_archive(nenya_cli, s3_bucket, s3_service, tmp_path):
    put(s3_service, s3_bucket, hostile([f"v/index/{tmp_path}/evil.pth"]))
    code, said = nenya_cli("status", [f"archive=s3://{s3_bucket}", "check=true"])
    assert code == 1 and "expected a plain relative name" in said and not (tmp_path / "evil.pth").exists(), said


def test_an_index_of_an_archive_goes_where_it_belongs(s3_bucket, s3_service, tmp_path):
    data = b"piece"
    put(s3_service, s3_bucket, hostile(["v/index/latents.lance/data/x.lance"], data=data))
    opened = open_version(f"s3://{s3_bucket}", cache_dir=str(tmp_path / "cache"))
    place = opened.folder.index_folder("v", reading=True)
    fetch_index_files(opened.folder, opened.said, place)
    path = place / "latents.lance" / "data" / "x.lance"
    assert path.read_bytes() == data
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name.endswith((".part", ".tmp"))]
    # A link in the copy is not followed.
    shutil.rmtree(path.parent)
    (tmp_path / "other").mkdir()
    path.parent.symlink_to(tmp_path / "other")
    with pytest.raises(InputFileError, match="is a link"):
        fetch_index_files(opened.folder, opened.said, place)
    assert not list((tmp_path / "other").iterdir())
    assert isinstance(opened.said, State)


def test_an_object_of_another_size_or_content_gets_no_name(s3_bucket, s3_service, tmp_path):
    put(s3_service, s3_bucket, {"a/x": b"x" * 100})
    right = entry("x", b"x" * 100)["sha256"]
    for size, sha256, said in ((99, right, "expected 99 bytes, got 100"), (100, HASH, "sha256")):
        with pytest.raises(StorageError, match=said):
            fetch_checked(f"s3://{s3_bucket}/a", Entry("x", size, sha256), tmp_path / "new" / "x", "archive.json")
        assert not tree(tmp_path) - {str(tmp_path / "new")}
    fetch_checked(f"s3://{s3_bucket}/a", Entry("x", 100, right), tmp_path / "new" / "x", "archive.json")
    assert tree(tmp_path) == {str(tmp_path / "new"), str(tmp_path / "new" / "x")}


def test_the_pointer_of_an_index_on_s3(nenya_cli, s3_bucket, s3_service, tmp_path):
    cache, latents = tmp_path / "deep" / "cache", tmp_path / "a_latents.h5"
    write_cutouts(latents, train=np.eye(4, dtype=np.float32))
    (tmp_path / "evil").mkdir()
    wrong = [replaced(POINTER, ("files", 1, "name"), name) for name in (*BAD_NAMES, f"{tmp_path}/evil/x.pth")]
    wrong += [replaced(POINTER, ("version",), name) for name in (*BAD_NAMES, "work-new", "../../evil", "new")]
    wrong += [replaced(POINTER, ("files", 0, "size"), size) for size in ("1", -1, True, None, 2**80)]
    wrong += [[], {}, {"version": POINTER["version"]}, None]
    before = tree(tmp_path)
    for number, pointer in enumerate(wrong):
        key = "i/current.json" if number % 8 == 0 else None
        if key is None:
            continue
        put(s3_service, s3_bucket, {key: json.dumps(pointer).encode()})
        for command, args in (("search", [f"index=s3://{s3_bucket}/i", "like=0"]),
                              ("index", ["add", f"data={latents}", f"out=s3://{s3_bucket}/i"])):  # fmt: skip
            code, said = nenya_cli(command, [*args, f"loader.cache_dir={cache}"])
            assert code == 2 and said.count("\n") == 1 and "is not that of an index of nenya" in said, said
    assert not tree(tmp_path, cache) - before - {str(cache), str(cache.parent)}


@pytest.mark.parametrize("key", ["a/..", "a/.", "a/b\\..\\c", "a/\x7f", "a/" + "n" * 250, "a/\u202e.h5"])
def test_a_key_is_no_local_path(key, s3_bucket, s3_service, tmp_path):
    put(s3_service, s3_bucket, {key: b"data"})
    cache = tmp_path / "deep" / "cache"
    listed = {found.url for found in store().find(f"s3://{s3_bucket}/a/*")}
    assert listed == {f"s3://{s3_bucket}/{key}"}
    (copied,) = fetch([f"s3://{s3_bucket}/{key}"], str(cache))
    with temporary_copy(f"s3://{s3_bucket}/{key}", str(cache)) as path:
        assert path.read_bytes() == copied.read_bytes() == b"data"
        assert cache in path.resolve().parents and cache in copied.resolve().parents
        assert copied.parent.parent == cache / "s3" and path.parent.parent == cache
    assert not tree(tmp_path, cache) - {str(cache.parent)}


@pytest.mark.parametrize(
    "note", ["", "[" * 10_000, "[1, 2, 3]", '["b"]', '["b", "k", {}]', "{}", "null", "[null, null, null]"]
)
def test_a_note_of_an_upload_that_is_none_says_nothing(note, s3_bucket, s3_service, tmp_path):
    (tmp_path / "note").write_text(note)
    store().drop_upload(tmp_path / "note")
    assert not tree(tmp_path)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "note.new").symlink_to(tmp_path / "mine")
    (tmp_path / "file").write_bytes(b"data")
    store().upload(tmp_path / "file", f"s3://{s3_bucket}/a", note=tmp_path / "note")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "note.new").is_symlink()


# An archive folder that was received


@pytest.fixture
def received(tmp_path):
    """An archive folder of a hostile sender, beside a file and a folder of the victim's."""
    folder, victim = tmp_path / "received", tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years of work")
    for name in ("cutouts", "v/latents", "v/tables", "v/index-states", "v/index", ".work/v/begin"):
        (folder / name).mkdir(parents=True)
    state = json.dumps({**STATE, "files": []}).encode()
    about = entry("v/index-states/about-1.json", state)
    (folder / about["name"]).write_bytes(state)
    whole = replaced(MANIFEST, ("versions", "v", "index", "about"), about)
    (folder / "archive.json").write_text(json.dumps(whole))
    for found in ("v/weights.pth", "v/projector.h5", "v/clusters.h5", "cutouts/a.h5", "v/latents/a_latents.h5"):
        (folder / found).touch()
    (folder / "v/tables/a.parquet").touch()
    yield folder
    assert (victim / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in victim.iterdir()] == ["thesis.tex"]


def test_an_update_removes_no_file_but_its_own(received, nenya_cli, tmp_path):
    victim = tmp_path / "victim" / "thesis.tex"
    for name in (
        *(
            str(victim),
            "../victim/thesis.tex",
            "v/../../victim/thesis.tex",
            "cutouts/../../victim/thesis.tex",
            "..",
            "",
        ),
        *("archive.json", ".work/lock", "v/index/nenya.json", "v/index-states/about-1.json", 3, None, ["x"]),
    ):
        journal = received / ".work/v/begin/publishing.json"
        journal.write_text(json.dumps([name]))
        before = tree(received)
        code, said = nenya_cli("update", [f"archive={received}", *QUICK])
        assert code == 2 and said.count("\n") == 1 and "publishing.json" in said, said
        assert before - {str(received / ".work" / "lock")} <= tree(received)
    # What the archive names stays, and what it does not name in its own folders goes.
    (received / "v/latents/b_latents.h5").touch()
    journal.write_text(json.dumps(["v/latents/b_latents.h5", "v/latents/a_latents.h5", "cutouts/a.h5"]))
    nenya_cli("update", [f"archive={received}", *QUICK])
    assert not (received / "v/latents/b_latents.h5").exists() and not journal.exists()
    assert (received / "v/latents/a_latents.h5").exists() and (received / "cutouts/a.h5").exists()


@pytest.mark.parametrize("name", ["cutouts", "v", "v/latents", "v/tables", "v/index", ".work", ".work/v", ".work/lock"])
def test_links_in_an_archive_lead_nowhere(received, nenya_cli, tmp_path, name):
    victim = tmp_path / "victim"
    (received / ".work/v/begin/publishing.json").write_text(json.dumps(["cutouts/thesis.tex", "v/latents/thesis.tex"]))
    shutil.rmtree(received / name, ignore_errors=True)
    (received / name).symlink_to(victim / "thesis.tex" if name.endswith("lock") else victim)
    before = {path: path.stat().st_mtime_ns for path in (victim, victim / "thesis.tex")}
    code, said = nenya_cli("update", [f"archive={received}", *QUICK])
    assert code == 2 and said.count("\n") == 1 and " is a link to " in said, said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    folder = Folder(str(received))
    if not name.startswith(".work"):
        with pytest.raises((InputFileError, OutputError)):
            folder.publish(victim / "thesis.tex", f"{name}/new")
        with pytest.raises(InputFileError, match="link"):
            folder.remove(f"{name}/thesis.tex")


def test_a_version_has_a_plain_name(nenya_cli, tmp_path, tiny_weights):
    write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(4))
    for version in ("../out", "/tmp/out", "a/b", ".work", "cutouts", "objects"):
        args = ["archive=there", "model=demo", f"ckpt={tiny_weights}", "new=a_preproc.h5", f"version={version}"]
        code, said = nenya_cli("update", args)
        assert code == 2 and f"version={version}: expected letters" in said and not (tmp_path / "there").exists()


# Folders of unfinished work that are links, and options that only the user may give


@pytest.fixture
def precious(tmp_path):
    """A folder that is not to be touched."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in ("thesis.tex", "lock", "manifest.json", "train.f32", "reserve", "assembled"):
        (folder / name).write_text("mine")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("thesis.tex", "lock", "manifest.json", "train.f32", "reserve", "assembled"), "mine"
    )


def commands(tmp_path, tiny_weights):
    write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(8, seed=1), valid=red_noise(8, seed=2))
    write_swath(tmp_path / "granule.nc")
    rng = np.random.default_rng(0)
    write_cutouts(tmp_path / "b_latents.h5", train=rng.standard_normal((30, 4)).astype(np.float32))
    pd.DataFrame({"pp_file": "b.h5", "pp_type": 1, "pp_idx": range(30)}).to_parquet(tmp_path / "b.parquet")
    return {
        "extract": ("a_preproc_latents.h5", ["model=demo", "data=a_preproc.h5", f"ckpt={tiny_weights}", *QUICK[:2]]),
        "prepare": (
            "c_preproc.h5",
            ["sensor=grid", "data=granule.nc", "out=c_preproc.h5", "field_size=32", "workers=1"],
        ),
        "embed": ("d.parquet", ["data=b_latents.h5", "table=b.parquet", "out=d.parquet", "n_neighbors=5"]),
    }


@pytest.mark.parametrize("command", ["extract", "prepare", "embed"])
@pytest.mark.parametrize("clobber", [False, True])
def test_a_partial_folder_that_is_a_link_is_left_alone(nenya_cli, tmp_path, tiny_weights, precious, command, clobber):
    output, args = commands(tmp_path, tiny_weights)[command]
    partial = tmp_path / f"{output}.partial"
    partial.symlink_to(precious)
    code, said = nenya_cli(command, [*args, f"clobber={str(clobber).lower()}"])
    assert code == 2 and said.splitlines()[-1].count(" is a link to ") == 1 and partial.is_symlink(), said
    partial.unlink()
    partial.mkdir()
    for name in ("lock", "thesis.tex", "train.f32", "reserve", "assembled", "manifest.json"):
        (partial / name).symlink_to(precious / name)
        code, said = nenya_cli(command, [*args, f"clobber={str(clobber).lower()}"])
        assert code == 2 and said.splitlines()[-1].count(" is a link to ") == 1, said
        (partial / name).unlink()
    assert not (tmp_path / output).exists()


def test_a_partial_folder_of_a_finished_file_that_is_a_link(nenya_cli, tmp_path, tiny_weights, precious):
    output, args = commands(tmp_path, tiny_weights)["extract"]
    assert nenya_cli("extract", args)[0] == 0
    (tmp_path / f"{output}.partial").symlink_to(precious)
    nenya_cli("extract", args)
    assert (tmp_path / f"{output}.partial").is_symlink()


@pytest.mark.parametrize(
    "change",
    [
        {"backend": 3}, {"batch_size": "x"}, {"batch_size": -1}, {"block_size": 0}, {"threads": 2**40}, {"source": []},
        {"source": None}, {"source": {"size": "x", "status": []}}, {"source": {"size": 1, "status": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_types_in_the_manifest_of_unfinished_work(tmp_path, small_file, change):
    from nenya.data.cutouts import inspect_cutouts
    from nenya.extraction.journal import BlockStore, begin, journal_line

    blocks = BlockStore(tmp_path / "x_latents.h5", {"train": 40}, 4)
    blocks.partial.mkdir()
    wanted = dict.fromkeys(
        ("checkpoint_sha256", "preprocessing", "latent", "precision", "device", "torch_version"), "x"
    )
    wanted |= {"rows": {"train": 40}, "dim": 4, "backend": "eager", "batch_size": 8, "block_size": 8, "threads": 1}
    wanted |= {"source": {"size": 3, "status": [1, 2, 3], "sha256": None}}
    blocks.start({**wanted, **change})
    (blocks.partial / "journal-0").write_bytes(
        journal_line(0, bytes(8 * 16), 0) + b"9" * 5000 + b" 00000000 1 00000000\n"
    )
    with pytest.raises(OutputError, match=r"manifest\.json: damaged: .*clobber=true starts over"):
        begin(blocks, wanted, inspect_cutouts(small_file), clobber=False)


def test_a_link_in_the_cache(s3_bucket, s3_service, tmp_path, nenya_cli):
    put(s3_service, s3_bucket, hostile(["v/index/latents.lance/data/x.lance"]))
    (tmp_path / "cache").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "cache" / "archive").symlink_to(tmp_path / "other")
    code, said = nenya_cli("search", [f"archive=s3://{s3_bucket}", "like=0", "loader.cache_dir=cache"])
    assert code == 2 and "is a link" in said and not list((tmp_path / "other").iterdir()), said


@pytest.mark.parametrize(
    "line",
    [
        *("clobber: true", "out: other_preproc.h5", "data: other.nc", "debug: true", "traceback: true", "workers: 9"),
        *("dask: tcp://host:1", "loader: {allow_external: true}", "loader: {cache_dir: /}", "trainer: {devices: 2}"),
    ],
)
def test_a_recipe_sets_only_how_cutouts_are_made(nenya_cli, tmp_path, line):
    write_swath(tmp_path / "granule.nc")
    (tmp_path / "c_preproc.h5").write_text("mine")
    (tmp_path / "mine.yaml").write_text(f"field_size: 32\n{line}\n")
    for command, args in (
        ("prepare", ["data=granule.nc", "out=c_preproc.h5"]),
        ("update", ["archive=x", "new=granule.nc"]),
    ):
        code, said = nenya_cli(command, ["sensor=mine.yaml", *args])
        key = line.partition(":")[0]
        assert code == 2 and f"mine.yaml: a recipe may not set {key}" in said and said.count("\n") == 1, said
    assert (tmp_path / "c_preproc.h5").read_text() == "mine" and not (tmp_path / "x").exists()


def test_the_recipes_that_come_with_nenya_set_nothing_else(tmp_path):
    from nenya.options.files import read_recipe

    for path in (config_dir() / "sensor").glob("*.yaml"):
        assert read_recipe(path)["recipe"] == path.stem


@pytest.mark.parametrize("key", ["clobber", "out", "data", "allow_external", "loader", "debug", "resume", "ckpt"])
def test_an_option_file_sets_only_a_model(nenya_cli, tmp_path, key):
    (tmp_path / "opts.json").write_text(json.dumps({"ssl_model": "resnet18", key: True}))
    code, said = nenya_cli("extract", ["model=opts.json", "data=x.h5"])
    assert code == 2 and f"unknown option {key}" in said and said.count("\n") == 1, said


def test_the_options_of_a_run_replace_nothing(nenya_cli, tmp_path):
    from omegaconf import OmegaConf

    from nenya.commands.compose import compose
    from nenya.options.declare import to_dict

    values = to_dict(compose("train", ["model=demo", "data=x_preproc.h5"]))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    for key, changed in (
        ("clobber", {**values, "clobber": True}),
        ("loader.allow_external", {**values, "loader": {**values["loader"], "allow_external": True}}),
    ):
        OmegaConf.save(OmegaConf.create(changed), tmp_path / "run" / "config.yaml")
        code, said = nenya_cli("train", ["resume=run"])
        assert code == 2 and f"sets {key}=true, which only the command line may" in said, said
        assert said.count("\n") == 1


# Damaged data of an index


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An index of 60 rows, not to be changed."""
    from nenya.cli import run_command

    folder = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    write_cutouts(folder / "b_latents.h5", train=rng.standard_normal((60, 4)).astype(np.float32))
    assert run_command("index", [f"data={folder}/b_latents.h5", f"out={folder}/whole.index", "index_from=10"]) == 0
    return folder / "whole.index"


@pytest.mark.parametrize("clobber", [False, True])
def test_links_in_an_index_lead_nowhere(whole, nenya_cli, tmp_path, precious, clobber):
    rng = np.random.default_rng(1)
    write_cutouts(tmp_path / "c_latents.h5", train=rng.standard_normal((20, 4)).astype(np.float32))
    args = ["data=c_latents.h5", "out=alias.index", f"clobber={str(clobber).lower()}"]
    place = tmp_path / "got.index"
    for name in ("latents.lance", "latents.lance/data", "latents.lance/_versions", "lock"):
        shutil.copytree(whole, place)
        if (place / name).is_dir():
            shutil.rmtree(place / name)
        else:
            (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(precious / "lock" if name == "lock" else precious)
        (tmp_path / "alias.index").symlink_to(place)  # which is the user's to make
        code, said = nenya_cli("index", args)
        assert code == 2 and said.count("\n") == 1 and " is a link to " in said, said
        (tmp_path / "alias.index").unlink()
        shutil.rmtree(place)
    shutil.copytree(whole, place)
    (tmp_path / "alias.index").symlink_to(place)
    code, said = nenya_cli("index", args)
    assert code == 0 and "20 of them new" in said, said


@pytest.mark.parametrize(
    "name", ["latents.lance", "data", "_versions", "a file of data", "a version", "a pipe", "nowhere"]
)
def test_an_index_with_links_is_not_read(whole, nenya_cli, tmp_path, name):
    """A search would show what lies elsewhere, and never end on a pipe."""
    shutil.copytree(whole, tmp_path / "real.index")
    place = tmp_path / "got.index"
    place.symlink_to("real.index")  # which is the user's to make
    assert nenya_cli("search", [f"index={place}", "like=3"])[0] == 0
    table = tmp_path / "real.index" / "latents.lance"
    path = {
        "latents.lance": table,
        "a file of data": next((table / "data").iterdir()),
        "a version": next((table / "_versions").glob("*.manifest")),
        "a pipe": table / "data" / "x.lance",
        "nowhere": table / "_versions" / "x",
    }.get(name, table / name)
    if name == "a pipe":
        os.mkfifo(path)
    elif name == "nowhere":
        path.symlink_to(tmp_path / "nothing")
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    code, said = nenya_cli("search", [f"index={place}", "like=3"])
    assert code == 2 and said.count("\n") == 1, said
    assert "got a pipe" in said if name == "a pipe" else " is a link to " in said, said


def test_an_index_whose_data_lie_elsewhere_is_not_read(whole, nenya_cli, tmp_path):
    """LanceDB would read them from any folder or service that a manifest names."""
    lancedb = pytest.importorskip("lancedb")
    place = tmp_path / "got.index"
    shutil.copytree(whole, place)
    shutil.rmtree(place / "latents.lance")
    lancedb.connect(place).clone_table("latents", str(whole / "latents.lance"), is_shallow=True)
    assert lancedb.connect(place).open_table("latents").count_rows() == 60
    code, said = nenya_cli("search", [f"index={place}", "like=3"])
    assert code == 2 and said.count("\n") == 1 and "has data in another place" in said, said
    write_cutouts(tmp_path / "c_latents.h5", train=np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "lock"}
    code, said = nenya_cli("index", ["data=c_latents.h5", f"out={place}"])
    assert code == 2 and "has data in another place" in said, said
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize("ways", [("cut",), pytest.param(("zeros", "gone"), marks=pytest.mark.slow)])
def test_damaged_pieces_of_an_index(whole, nenya_cli, tmp_path, ways):
    pieces = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.suffix]
    assert len(pieces) >= 4
    for number, piece in enumerate(pieces):
        for way in ways:
            place = tmp_path / f"{number}-{way}"
            shutil.copytree(whole, place)
            data = (place / piece).read_bytes()
            (place / piece).unlink()
            if way != "gone":
                (place / piece).write_bytes(data[: len(data) // 2] if way == "cut" else bytes(len(data)))
            for args in (["like=3", "exact=true"], ["like=3"]):
                code, said = nenya_cli("search", [f"index={place}", *args])
                if code:
                    line = said.splitlines()[-1]
                    assert code == 2 and str(place) in line and "Error" not in line.partition("(")[0], (
                        f"{piece} {way}: {said}"
                    )
            shutil.rmtree(place)


@pytest.mark.parametrize("kind", ["endless", "pipe"])
def test_a_journal_that_is_none_is_not_read(tmp_path, kind):
    from nenya.extraction.journal import BlockStore, journal_line

    blocks = BlockStore(tmp_path / "x_latents.h5", {"train": 40}, 4)
    blocks.partial.mkdir()
    journal = blocks.partial / "journal-0"
    journal.write_bytes(journal_line(0, bytes(8 * 16), 0))
    assert set(blocks.entries()) == {0}
    if kind == "pipe":
        journal.unlink()
        os.mkfifo(journal)
    else:
        os.truncate(journal, 2**40)
    with pytest.raises(InputFileError, match="pipe" if kind == "pipe" else "at most"):
        blocks.entries()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cluster_centres_are_finite(tmp_path, value):
    from nenya.archive.stages import read_centres

    centres = np.ones((3, 4))
    write_cutouts(tmp_path / "clusters.h5", centres=centres)
    assert (read_centres(tmp_path / "clusters.h5") == centres).all()
    centres[1, 2] = value
    write_cutouts(tmp_path / "clusters.h5", centres=centres)
    with pytest.raises(InputFileError, match="centres have NaN or infinite values"):
        read_centres(tmp_path / "clusters.h5")
