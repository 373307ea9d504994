"""Who holds an archive or an output: told by processes, fences and beats, never by a clock."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import s3_server
from conftest import red_noise, write_cutouts
from s3_server import pending_uploads

from nenya.archive.folder import Folder
from nenya.archive.lease import Lease
from nenya.data.cutouts import inspect_cutouts
from nenya.data.unpack import _cached
from nenya.errors import InputFileError, LockLostError, OutputError
from nenya.extraction import ranks
from nenya.extraction.scratch import remove_abandoned
from nenya.latents.index_s3 import publish, state_of
from nenya.storage import flock as locks
from nenya.storage import process
from nenya.storage.lock import OutputLock, read_lock
from nenya.storage.process import Life, current
from nenya.storage.s3.access import ONE_WRITER
from nenya.storage.s3.conditional import ReplacedError
from nenya.storage.s3.replace import check_conditions
from nenya.storage.s3.service import store

ROOT = Path(__file__).resolve().parents[2]
PLAY = [sys.executable, str(ROOT / "benchmarks" / "stolen_locks.py")]


def play(words, tmp_path):
    if sys.platform != "linux" or not all(map(shutil.which, ("cc", "unshare"))):
        pytest.skip("namespaces and a C compiler are needed")
    if subprocess.run(["unshare", "--uts", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no right to make namespaces")
    done = subprocess.run(
        [*PLAY, f"--only={words}", f"--out={tmp_path / 'out.json'}"], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "out.json").read_text())["scenarios"]


@pytest.mark.parametrize(
    "words",
    [
        "in_the_middle_of_a_commit, two hosts, locks that always",
        pytest.param("aged, one host", marks=pytest.mark.slow),
        pytest.param("late_commit, two hosts, no locks", marks=pytest.mark.slow),
        pytest.param("stopped_and_taken_for_alive, two hosts", marks=pytest.mark.slow),
        pytest.param("late_commit, two hosts, S3", marks=pytest.mark.slow),
        pytest.param("", marks=pytest.mark.slow),
    ],
)
def test_stolen_locks(words, tmp_path):
    """Nothing that was committed vanishes, and no two holders commit over each other."""
    assert set(play(words, tmp_path).values()) == {""}


# What is known of a process


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        yield child
        child.kill()


def identity(pid):
    return process.Identity(**{**process.current().values(), "pid": pid, "start": process._stat(str(pid))[1]})


def test_a_process_lives_until_it_ends(sleeper):
    known = identity(sleeper.pid)
    assert process.life(known) is process.life_of_mark(known.mark) is Life.ALIVE
    sleeper.send_signal(signal.SIGSTOP)
    assert process.life(known) is Life.ALIVE
    os.kill(sleeper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its number is not given back
    assert process.life(known) is process.life_of_mark(known.mark) is Life.GONE
    sleeper.wait()
    assert process.life(known) is Life.GONE


def test_a_number_that_was_given_again_is_another_process(sleeper):
    known = identity(sleeper.pid)
    other = process.Identity(**{**known.values(), "start": str(int(known.start) - 1)})
    assert process.life(other) is process.life_of_mark(other.mark) is Life.GONE


@pytest.mark.parametrize("change", [{"boot": "another"}, {"space": "pid:[1]"}])
def test_elsewhere_nothing_is_known(change):
    other = process.Identity(**{**process.current().values(), **change})
    assert process.life(other) is process.life_of_mark(other.mark) is Life.UNKNOWN


# The lock file


def test_numbers_grow_with_each_holder(tmp_path):
    for number in range(1, 4):
        with OutputLock(tmp_path / "lock", "out.h5") as lock:
            assert lock.fence == number and not lock.taken_over
            lock.check()
        assert os.listdir(tmp_path) == ["lock"]


def test_one_that_was_taken_over_finds_out(tmp_path):
    late = OutputLock(tmp_path / "lock", "out.h5")
    late.take()
    said = json.loads((tmp_path / "lock").read_bytes())
    gone = {**said, "pid": 2**22 + 1}  # no such number is given
    (tmp_path / "lock").write_text(json.dumps(gone))
    with OutputLock(tmp_path / "lock", "out.h5") as lock:
        assert lock.fence == late.fence + 1 and lock.taken_over
        with pytest.raises(LockLostError, match=r"out\.h5: this process was silent so long.*by process"):
            late.check()
        late._write({})
        late.release()
        lock.check()
    assert read_lock(tmp_path / "lock").said == {"fence": 2, "free": True}


def test_one_killed_while_it_took_the_lock_keeps_nobody(tmp_path):
    said = {**process.current().values(), "pid": 2**22 + 1, "fence": 7, "token": "x"}
    (tmp_path / "lock.7").write_text(json.dumps(said))
    (tmp_path / "lock.3").write_text(json.dumps(said))
    with OutputLock(tmp_path / "lock", "out.h5") as lock:
        assert lock.fence == 8
        assert os.listdir(tmp_path) == ["lock"]


def test_one_killed_while_it_took_the_lock_does_not_cost_a_holder_that_lives(tmp_path):
    gone = {**process.current().values(), "pid": 2**22 + 1, "fence": 2, "token": "x"}
    with OutputLock(tmp_path / "lock", "out.h5") as lock:
        (tmp_path / "lock.2").write_text(json.dumps(gone))
        (tmp_path / "lock.٣").touch()
        (tmp_path / f"lock.{'9' * 40}").touch()
        with pytest.raises(OutputError, match="is being written by process"):
            OutputLock(tmp_path / "lock", "out.h5").take()
        lock.check()
    with OutputLock(tmp_path / "lock", "out.h5") as lock:
        assert lock.fence == 3


def test_a_claim_without_content_is_passed(tmp_path):
    (tmp_path / "lock.4").touch()
    with OutputLock(tmp_path / "lock", "out.h5") as lock:
        assert lock.fence == 5


@pytest.mark.parametrize("number", [10**15, 10**15 + 1, 10**17 - 1, 10**30])
@pytest.mark.parametrize("where", ["claim", "fence"])
def test_numbers_that_nobody_reaches_keep_nobody_out(tmp_path, where, number):
    path = tmp_path / "lock"
    if where == "claim":
        (tmp_path / f"lock.{number}").write_text("{}")
    else:
        path.write_text(json.dumps({"fence": number, "free": True}))
    for _ in range(3):
        with OutputLock(path, "out.h5") as lock:
            with pytest.raises(OutputError, match="is being written by process"):
                OutputLock(path, "out.h5").take()
            lock.check()
    assert {p.name for p in tmp_path.iterdir()} <= {"lock", f"lock.{number}"}


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_the_lock_of_a_cache_is_a_file(tmp_path, kind, small_file):
    cache, other = tmp_path / "cache", tmp_path / "other"
    cache.mkdir()
    with inspect_cutouts(small_file).reader("train") as reader:
        source = hashlib.sha256(str(small_file.resolve()).encode()).hexdigest()[:8]
        lock = cache / f"{small_file.stem}_train_{source}.lock"
        {"link": lambda: lock.symlink_to(other), "fifo": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
        with pytest.raises(OutputError, match="is not a file, as the lock"):
            _cached(reader, cache, False, False)
    assert not other.exists() and os.listdir(cache) == [lock.name]


def test_a_pipe_as_the_lock_of_another_batch_is_not_waited_for(tmp_path):
    folder = tmp_path / "batch-1"
    folder.mkdir()
    os.mkfifo(folder / "lock")
    remove_abandoned(tmp_path)
    assert folder.exists() and not ranks._is_free(folder / "lock")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "json", "list", "deep", "number", "endless", "far"])
def test_what_lies_at_the_name_is_no_lock(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("nenya.storage.lock.SILENT", 0.2)
    path, other = tmp_path / "place" / "lock", tmp_path / "other"
    path.parent.mkdir()
    other.write_text("kept")
    contents = {
        **{"json": "{", "list": "[1]", "deep": "[" * 60000, "number": '{"fence": "many", "pid": [], "beat": {}}'},
        **{
            "endless": json.dumps({**current().values(), "pid": float("inf")}),
            "far": '{"fence": 999999999999999999999}',
        },
    }
    if kind in contents:
        path.write_text(contents[kind])
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    try:
        with OutputLock(path, "out.h5") as lock:
            assert lock.fence == 1
    except OutputError:
        assert kind == "folder"
    assert other.read_text() == "kept"


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_locks_that_do_not_lock_are_found_and_said(tmp_path, monkeypatch, caplog, error):
    def flock(*_):
        if error:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_tried", {})
    with OutputLock(tmp_path / "lock", "out.h5"):
        with pytest.raises(OutputError, match="is being written by process"):
            OutputLock(tmp_path / "lock", "out.h5").take()
    assert caplog.text.count("file locks do not work") == 1
    assert os.listdir(tmp_path) == ["lock"]


_READ = """
import sys
import threading
from pathlib import Path
from nenya.data.cutouts import inspect_cutouts
from nenya.data.unpack import _cached
from nenya.storage.lock import OutputLock
from nenya.storage.disk import atomic_path
path = Path(sys.argv[1])
with OutputLock(path.parent / "lock", "out.h5"), atomic_path(path.parent / "b") as temporary:
    temporary.write_text(str(inspect_cutouts(path).partitions["train"].rows))
"""


@pytest.fixture(scope="module")
def broken_locks(tmp_path_factory):
    """A library that lets flock do nothing, or fail with the error that FLOCK names."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed")
    library = tmp_path_factory.mktemp("library") / "broken_locks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests" / "broken_locks.c"], check=True)
    return library


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, ""])
def test_files_are_read_and_written_where_there_are_no_locks(tmp_path, broken_locks, error):
    path = write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(4))
    env = {**os.environ, "LD_PRELOAD": str(broken_locks), "FLOCK": str(error)}
    done = subprocess.run([sys.executable, "-c", _READ, path], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("file locks do not work") == 1, done.stderr
    assert (tmp_path / "b").read_text() == "4"


def test_a_file_that_is_being_written_is_not_called_damaged(tmp_path):
    path = write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(4))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputFileError, match="cannot be locked") as said:
            inspect_cutouts(path)
    assert "damaged" not in str(said.value) and "\n" not in str(said.value)


def test_locks_here_are_found_to_work(tmp_path):
    assert locks.try_locks(tmp_path) == "" and os.listdir(tmp_path) == []


# The commit


def test_a_commit_compares_what_it_replaces(tmp_path):
    one, other = Folder(str(tmp_path)), Folder(str(tmp_path))
    assert one.read() == other.read() == {}
    one.commit({})
    with pytest.raises(OutputError, match="changed by another update"):
        other.commit({})
    before = (tmp_path / "archive.json").read_bytes()
    assert other.read() == {}
    (tmp_path / "archive.json").write_bytes(before + b" ")
    with pytest.raises(OutputError, match="changed by another update"):
        other.commit({})
    assert (tmp_path / "archive.json").read_bytes() == before + b" "
    assert not list(tmp_path.glob(".*.tmp"))


def test_who_takes_an_archive_over_takes_what_was_about_to_be_published(tmp_path):
    folder = Folder(str(tmp_path))
    with Lease(folder):
        folder.commit({})
    left = tmp_path / ".archive.json.1-1-00000000-00000000-00000000.tmp"
    left.write_text("{}")
    with Lease(folder):
        assert not left.exists()


def test_the_lease_is_asked_before_anything_is_published(tmp_path):
    folder = Folder(str(tmp_path))
    made = tmp_path / ".work" / "made"
    with Lease(folder):
        made.write_text("made")
        (tmp_path / ".work" / "lock").write_text("{}")
        for step in (lambda: folder.commit({}), lambda: folder.publish(made, "a"), lambda: folder.remove("b")):
            with pytest.raises(LockLostError, match="this process was silent"):
                step()
    assert not (tmp_path / "archive.json").exists() and not (tmp_path / "a").exists()


# S3


def test_uploads_of_killed_updates_are_dropped(s3_bucket, s3_service, tmp_path):
    folder, client = Folder(f"s3://{s3_bucket}/archive", str(tmp_path)), s3_service.client()
    for name in ("index/data/a.lance", "cutouts/b.h5"):
        key = f"archive/{name}"
        started = client.create_multipart_upload(Bucket=s3_bucket, Key=key)["UploadId"]
        folder._note(name).write_text(json.dumps([s3_bucket, key, None if "index" in name else started]))
    assert len(pending_uploads(client, s3_bucket)) == 2
    folder.drop_uploads()
    assert pending_uploads(client, s3_bucket) == [] and list((folder.work / "uploads").iterdir()) == []


def test_two_indexes_on_s3_do_not_replace_each_other(s3_bucket, tmp_path):
    url = f"s3://{s3_bucket}/archive.index"
    (tmp_path / "about.json").write_text("{}")
    before = state_of(url)
    publish(tmp_path, url, before)
    now = state_of(url)
    (tmp_path / "about.json").write_text("{ }")
    with pytest.raises(OutputError, match="changed by another run in the meantime"):
        publish(tmp_path, url, before)
    assert state_of(url) == now
    publish(tmp_path, url, now)
    assert state_of(url) != now


def test_an_answer_that_is_lost_is_no_refusal(s3_bucket, s3_proxy, s3_service):
    """The service wrote, its answer did not come, and the request is made again."""
    url = f"s3://{s3_bucket}/a.json"
    written = s3_server.status(500, "InternalError")
    written.call = lambda: s3_service.client().put_object(Bucket=s3_bucket, Key="a.json", Body=b"one")
    s3_proxy.rule("PUT", "a.json", written)
    etag = store().replace(url, b"one", "")
    assert s3_proxy.count("PUT", "a.json") >= 2 and store().head(url).etag == etag
    for wrong in ("", "0" * 32):
        with pytest.raises(ReplacedError):
            store().replace(url, b"two", wrong)
    with pytest.raises(ReplacedError):
        store().replace(f"{url}2", b"two", etag)
    assert store().read_bytes(url) == b"one"


@pytest.fixture(params=["refuses", "ignores"])
def no_conditions(request, s3_bucket, s3_proxy):
    """A service that refuses conditions, or ignores them: its bucket."""
    if request.param == "ignores":
        s3_server.forget_conditions(s3_proxy)
    else:
        refusal = s3_server.status(501, "NotImplemented")
        s3_proxy.guard = lambda method, headers: (
            refusal if method == "PUT" and {"If-Match", "If-None-Match"} & set(headers) else None
        )
    return s3_bucket


def test_without_conditions_nothing_that_several_may_write_is_written(no_conditions, s3_service, tmp_path):
    folder, index = Folder(f"s3://{no_conditions}/archive", str(tmp_path)), f"s3://{no_conditions}/an.index"
    for write in (Lease(folder).__enter__, lambda: check_conditions(index)):
        with pytest.raises(OutputError, match=r"no conditional writes \(If-Match\).*storage.one_writer=true"):
            write()
    assert "Contents" not in s3_service.client().list_objects_v2(Bucket=no_conditions)


def test_with_conditions_a_place_is_probed_and_left_as_it_was(s3_bucket, s3_service):
    assert check_conditions(f"s3://{s3_bucket}/an.index")
    assert "Contents" not in s3_service.client().list_objects_v2(Bucket=s3_bucket)


def test_a_pointer_is_not_written_where_conditions_turn_out_to_be_unknown(s3_bucket, s3_proxy, tmp_path):
    (tmp_path / "about.json").write_text("{}")
    s3_proxy.rule("PUT", "current.json", s3_server.status(501, "NotImplemented"))
    with pytest.raises(OutputError, match="no conditional writes"):
        publish(tmp_path, f"s3://{s3_bucket}/an.index", "")
    assert state_of(f"s3://{s3_bucket}/an.index") == ""


def test_one_writer_of_a_service_without_conditions(no_conditions, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("nenya.archive.lease._SETTLED", 0.1)
    monkeypatch.setenv(ONE_WRITER, "true")
    assert not check_conditions(f"s3://{no_conditions}/an.index")
    caplog.clear()
    folder = Folder(f"s3://{no_conditions}/archive", str(tmp_path))
    with Lease(folder):
        assert not folder.safe and folder.read() == {}
        folder.commit({})
        other = Folder(folder.place, str(tmp_path / "other"))
        with pytest.raises(OutputError, match="is being updated by process"):
            Lease(other).__enter__()
    assert caplog.text.count("has no conditional writes") == 1
    assert store().head(f"{folder.place}/update-lock.json") is None


def test_a_lease_on_s3_is_read_in_one_state_however_often_it_changes(s3_bucket, tmp_path):
    folder = Folder(f"s3://{s3_bucket}/archive", str(tmp_path))
    lease, stop = Lease(folder).object, threading.Event()
    states = {}

    def write():
        for number in itertools.count():
            states[store().replace(lease.url, b'{"token": "a", "beat": %d}' % number, None)] = number
            if stop.is_set():
                return

    assert lease.read() == ("", {})
    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen, end = [], time.monotonic() + 300
        while len(seen) < 40 or (len({etag for etag, said in seen if said}) < 2 and time.monotonic() < end):
            seen.append(lease.read())
    finally:
        stop.set()
        thread.join()
    seen = [(etag, said["beat"]) for etag, said in seen if said]
    assert len({beat for _, beat in seen}) > 1 and all(states[etag] == beat for etag, beat in seen)


def test_a_lease_on_s3_that_was_taken_over(s3_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.archive.lease.BEAT", 0.1)
    folder = Folder(f"s3://{s3_bucket}/archive", str(tmp_path))
    with Lease(folder) as lease:
        end = time.monotonic() + 300
        while lease.holder()["beat"] < 2:
            assert time.monotonic() < end
        store().replace(lease.object.url, b'{"token": "of another"}', None)
        with pytest.raises(LockLostError):
            folder.commit({})
        assert folder.read() == {}
    assert lease.holder() == {"token": "of another"}
