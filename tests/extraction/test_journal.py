"""Latents in the making: what is kept, what is computed again, and what is refused."""

import errno
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

import h5py
import numpy as np
import pytest

from nenya.data.blocks import Block
from nenya.errors import LockLostError, OutputError
from nenya.extraction import journal as journals
from nenya.extraction.journal import BlockStore
from nenya.extraction.writer import BlockWriter
from nenya.storage import lock as locks
from nenya.storage.lock import OutputLock

DIM = 4
BLOCKS = [Block(0, "train", range(5)), Block(1, "train", range(5, 8)), Block(2, "valid", range(3))]
ROWS = {"train": 8, "valid": 3}


@pytest.fixture
def store(tmp_path):
    store = BlockStore(tmp_path / "a_latents.h5", ROWS, DIM)
    store.partial.mkdir()
    store.start({"format": 1})
    return store


def latents(block):
    return np.random.default_rng(block.number).standard_normal((len(block), DIM)).astype(np.float32)


def write(store, *numbers, name="0"):
    writer = BlockWriter(store, name)
    for number in numbers:
        block = BLOCKS[number]
        writer.put(block.partition, block.rows.start, number, latents(block))
    writer.close()


def assert_whole(store):
    with h5py.File(store.path) as file:
        for name in ROWS:
            expected = np.concatenate([latents(block) for block in BLOCKS if block.partition == name])
            np.testing.assert_array_equal(file[name][:], expected)


def test_blocks_come_together_whatever_their_order_and_process(store):
    write(store, 2, 0, name="0")
    write(store, 1, name="1")
    assert set(store.scan(BLOCKS)) == {0, 1, 2}
    assert store.assemble(BLOCKS, {"made": "here"}) == {"train": 0, "valid": 0}
    assert_whole(store)
    with h5py.File(store.path) as file:
        assert (file.attrs["made"], file.attrs["nonfinite_rows"]) == ("here", '{"train": 0, "valid": 0}')
        for name, digest in json.loads(file.attrs["latents_sha256"]).items():
            assert hashlib.sha256(file[name][:].tobytes()).hexdigest() == digest
    assert not store.partial.exists()


def test_rows_of_nan_are_counted(store):
    rows = latents(BLOCKS[0])
    rows[1] = np.nan
    writer = BlockWriter(store, "0")
    writer.put("train", 0, 0, rows)
    writer.close()
    write(store, 1, 2)
    assert store.assemble(BLOCKS, {}) == {"train": 1, "valid": 0}


def test_a_missing_block_never_becomes_a_file(store):
    write(store, 0, 2)
    with pytest.raises(OutputError, match=r"1 of 3 blocks are missing \(first 1\)"):
        store.assemble(BLOCKS, {})
    assert not store.path.exists()
    write(store, 1)
    store.assemble(BLOCKS, {})
    assert_whole(store)


def line_length(journal):
    return len(journal) - journal.rindex(b"\n", 0, -1) - 1


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_line_says_nothing(store, cut):
    write(store, 0, 1)
    path = next(store.partial.glob("journal-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    done = set(store.scan(BLOCKS))
    assert done == ({0, 1} if cut == 1 else {0} if cut <= line_length(whole) + 1 else set())
    write(store, *(number for number in range(3) if number not in done))
    store.assemble(BLOCKS, {})
    assert_whole(store)


def test_an_altered_line_says_nothing(store):
    write(store, 0, 1, 2)
    path = next(store.partial.glob("journal-*"))
    whole = bytearray(path.read_bytes())
    for place in range(len(whole)):
        altered = whole.copy()
        altered[place] ^= 1
        path.write_bytes(altered)
        entries = store.entries()
        path.write_bytes(whole)
        good = store.entries()
        assert entries.items() <= good.items()
        assert len(entries) < 3 or place == len(whole) - 1  # the last line's end


def test_a_damaged_block_is_computed_again(store, caplog):
    write(store, 0, 1, 2)
    with store.raw("train").open("r+b") as raw:
        raw.seek(4 * DIM * 6)
        raw.write(b"\1")
    with pytest.raises(OutputError, match="block 1 is damaged on disk"):
        store.assemble(BLOCKS, {})
    assert set(store.scan(BLOCKS)) == {0, 2}
    assert "block 1 is damaged" in caplog.text
    write(store, 1)
    store.assemble(BLOCKS, {})
    assert_whole(store)


@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_without_the_rows_the_journal_says_nothing(store, damage):
    write(store, 0, 1, 2)
    raw = store.raw("valid")
    if damage == "missing":
        raw.unlink()
    else:
        os.truncate(raw, raw.stat().st_size + (-1 if damage == "short" else 1))
    assert store.scan(BLOCKS) == {}


def test_a_half_written_assembly_does_no_harm(store):
    write(store, 0, 1, 2)
    (store.partial / "assembled").write_bytes(b"half of it")
    store.assemble(BLOCKS, {})
    assert_whole(store)


@pytest.mark.parametrize("name", ["pwrite", "write", "fdatasync", "fsync", "replace", "posix_fallocate", "open"])
def test_a_full_disk_at_each_call_keeps_what_is_finished(store, monkeypatch, name):
    write(store, 0)
    real, calls = getattr(os, name), []

    def full(*args, **kwargs):
        calls.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OutputError, match="No space left on device"):
        if name == "posix_fallocate":
            BlockStore(store.path.with_name("b_latents.h5"), ROWS, DIM).partial.mkdir()
            BlockStore(store.path.with_name("b_latents.h5"), ROWS, DIM).start({})
        write(store, 1, 2)
        store.assemble(BLOCKS, {})
    assert calls
    monkeypatch.setattr(os, name, real)
    assert not store.path.exists()
    done = set(store.scan(BLOCKS))
    assert 0 in done
    write(store, *(number for number in range(3) if number not in done))
    store.assemble(BLOCKS, {})
    assert_whole(store)


def test_what_is_kept_is_said(store):
    assert store.kept() == "no partial output is kept"
    assert not store.partial.exists()
    store.partial.mkdir()
    store.start({})
    write(store, 0)
    assert "1 finished blocks are kept in" in store.kept()


def test_starting_over_forgets_all_but_the_lock(store):
    write(store, 0, 1, 2)
    (store.partial / "lock").write_text("held")
    store.start({"format": 2})
    assert store.scan(BLOCKS) == {}
    assert store.manifest() == {"format": 2}
    assert (store.partial / "lock").read_text() == "held"


def test_a_damaged_manifest_is_none(store):
    (store.partial / "manifest.json").write_text('{"format": ')
    assert store.manifest() is None


# The lock

HOLD = """
import sys, time
from pathlib import Path
from nenya.storage.lock import OutputLock
with OutputLock(Path(sys.argv[1]), "out.h5"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "out.h5.partial" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()


def test_the_second_says_who_holds_it(holder):
    path, process = holder
    with pytest.raises(OutputError, match=rf"out\.h5 is being written by process {process.pid} on \S+ since"):
        OutputLock(path, "out.h5").__enter__()


def test_a_killed_holder_holds_no_longer(holder):
    path, process = holder
    process.kill()
    process.wait()
    with OutputLock(path, "out.h5"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert json.loads(path.read_text()) == {"fence": 2, "free": True}
    with OutputLock(path, "out.h5"):
        pass


def test_a_stopped_holder_holds_however_old_its_lock_is(holder):
    path, process = holder
    process.send_signal(signal.SIGSTOP)
    for moment in (1, time.time() + 10**7, time.time() - 10**4):
        os.utime(path, (moment, moment))
        with pytest.raises(OutputError, match=f"process {process.pid} on"):
            OutputLock(path, "out.h5").__enter__()


def test_a_holder_of_which_nothing_is_known_is_watched(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "today"}))
    monkeypatch.setattr(locks, "SILENT", 300.0)
    monkeypatch.setattr(locks, "_LOOK", 0.05)
    heard = threading.Event()

    def live():
        for moment in itertools.count(1):  # its signs of life, at whatever time by its clock
            os.utime(path, (moment, moment))
            if heard.wait(0.1):
                return

    lives = threading.Thread(target=live)
    lives.start()
    try:
        with pytest.raises(OutputError, match=r"process 1 on elsewhere since today.*noticed at once on this machine"):
            OutputLock(path, "out.h5").__enter__()
    finally:
        heard.set()
        lives.join()
    monkeypatch.setattr(locks, "SILENT", 0.2)
    os.utime(path, (1, time.time() + 10**7))
    with OutputLock(path, "out.h5") as lock:
        assert lock.fence == 1 and lock.taken_over


def test_it_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    path = tmp_path / "lock"
    with OutputLock(path, "out.h5"):
        deadline = time.monotonic() + 300
        while json.loads(path.read_bytes())["beat"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_folder_may_go_while_it_is_held(tmp_path):
    path = tmp_path / "out.h5.partial" / "lock"
    with OutputLock(path, "out.h5"):
        shutil.rmtree(path.parent)
        with OutputLock(path, "out.h5"):  # a new output of the same name
            assert path.exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a folder"):
        OutputLock(tmp_path / "file" / "lock", "out.h5").__enter__()


def take_over(path):
    """Take a lock as another machine does that saw no sign of life of its holder."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "pid": 2**22 + 1}))
    return OutputLock(path, "out.h5")


@pytest.mark.parametrize("late", [False, True], ids=["before it assembles", "at the last moment"])
def test_who_was_taken_over_lets_no_file_appear(store, monkeypatch, late):
    write(store, 0, 1, 2)
    lock, other = store.partial / "lock", BlockStore(store.path, ROWS, DIM)
    takers = []

    def take(*_):
        takers.append(take_over(lock).__enter__())
        other.revoke()

    with OutputLock(lock, "out.h5") as held:
        store.check = held.check
        if late:
            real = journals.move_synced
            monkeypatch.setattr(journals, "move_synced", lambda *places: (take(), real(*places)))
        else:
            take()
        with pytest.raises(LockLostError, match="this process was silent so long"):
            store.assemble(BLOCKS, {})
        assert "another run" in store.kept() and not store.path.exists()
        other.check = takers[0].check
        monkeypatch.undo()
        other.assemble(BLOCKS, {})
    assert_whole(other)
    takers[0].release()


def test_the_line_of_a_journal_is_as_documented():
    line = journals.journal_line(7, b"abc", 2)
    number, crc, nonfinite, own = line.split()
    assert (number, nonfinite) == (b"7", b"2")
    import zlib

    assert int(crc, 16) == zlib.crc32(b"abc")
    assert int(own, 16) == zlib.crc32(line[: line.rindex(b" ")])
