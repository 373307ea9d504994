"""Extractions that are killed, stopped, disturbed or out of room, and the same command again."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.data.blocks import Block
from nenya.errors import Interrupted
from nenya.extraction import job as jobs
from nenya.extraction import ranks
from nenya.extraction.journal import BlockStore, partial_folder, remove_leftover
from nenya.extraction.writer import BlockWriter, LatentsWriter
from nenya.models.contrastive import ContrastiveModule
from nenya.runtime import process as progresses
from nenya.runtime.process import RowProgress
from nenya.storage.lock import Companions, OutputLock

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"train": 40, "valid": 24}
NAME = "small_preproc_latents.h5"
STEPS = ["loader.block_size=4", "loader.batch_size_valid=4"]
BLOCKS = 16


class Case:
    """A cutout file of 16 blocks, the command for it, and what came of it."""

    def __init__(self, cli, source, weights, folder, monkeypatch):
        self.cli, self.weights, self.folder, self.patch = cli, weights, folder, monkeypatch
        self.source = Path(shutil.copy(source, folder / source.name))
        self.output = folder / "out" / NAME
        self.partial = self.output.with_name(NAME + ".partial")
        self.computed = []
        original = ContrastiveModule.predict_step

        def step(module, batch, batch_idx):
            if self.last is not None and len(self.computed) >= self.last:
                raise self.error
            self.computed.append(batch["number"])
            return original(module, batch, batch_idx)

        self.last, self.error = None, RuntimeError("stopped")
        monkeypatch.setattr(ContrastiveModule, "predict_step", step)

    def args(self, *overrides):
        return [
            *("model=demo", f"data={self.source}", f"out={self.output.parent}", f"ckpt={self.weights}"),
            *("trainer.accelerator=cpu", *STEPS, *overrides),
        ]

    def extract(self, *overrides):
        """Run the command: (exit code, error output); `computed` are the blocks that it computed."""
        self.computed.clear()
        return self.cli("extract", self.args(*overrides))

    def stop_after(self, blocks, *overrides):
        """Let it end with an error after some blocks."""
        self.last = blocks
        code, said = self.extract(*overrides)
        self.last = None
        assert code == 2 and f"{blocks} finished blocks" not in said, said
        assert len(self.finished()) == blocks

    def finished(self):
        """The blocks that the journals say are finished."""
        lines = []
        with contextlib.suppress(FileNotFoundError):  # the folder is not there, or went meanwhile
            for name in os.listdir(self.partial):
                if name.startswith("journal-"):
                    lines += (self.partial / name).read_text().splitlines()
        return sorted(int(line.split()[0]) for line in lines)

    def wait_for_blocks(self, count, seconds=300):
        deadline = time.monotonic() + seconds
        while True:
            if len(self.finished()) >= count:
                return
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def assert_whole(self, wanted):
        got = read(self.output)
        assert got.keys() == wanted.keys()
        for name in wanted:
            assert got[name].tobytes() == wanted[name].tobytes(), name
        assert os.listdir(self.output.parent) == [NAME]


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.fixture
def case(nenya_cli, small_file, tiny_weights, tmp_path, monkeypatch):
    return Case(nenya_cli, small_file, tiny_weights, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def wanted(small_file, tiny_weights, tmp_path_factory):
    """The data sets of an undisturbed run."""
    from nenya.cli import run_command

    out = tmp_path_factory.mktemp("undisturbed")
    args = ["model=demo", f"data={small_file}", f"out={out}", f"ckpt={tiny_weights}", "trainer.accelerator=cpu"]
    assert run_command("extract", [*args, *STEPS]) == 0
    return read(out / NAME)


class Forks:
    """Starts extractions as processes that are forked from one that has imported everything."""

    def __init__(self, **env):
        command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen(command, **pipes, text=True, env={**os.environ, **env})

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.server.stdin.close()
        self.server.wait(300)

    def ask(self, **request):
        assert self.server.poll() is None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, folder, **request):
        log = folder / f"said-{time.monotonic_ns()}"
        return Forked(self, self.ask(folder=str(folder), log=str(log), **request), log)

    def extract(self, case, *overrides, slow=0.2, **env):
        return self.start(case.folder, args=case.args(*overrides), slow=slow, env=env)


class Forked:
    """One of these processes."""

    def __init__(self, forks, pid, log):
        self.forks, self.pid, self.log, self.code = forks, pid, log, None

    def poll(self):
        if self.code is None:
            self.code = self.forks.ask(poll=self.pid)
        return self.code

    def send(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds=300):
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)
        return self.code

    def said(self):
        return self.log.read_text()


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 200])
def test_chaos(forks, tmp_path, kills):
    process = forks.start(tmp_path, kills=kills, out=str(tmp_path / "chaos.json"))
    assert process.wait(50 + 20 * kills) == 0, process.said()
    results = json.loads((tmp_path / "chaos.json").read_text())["modes"]
    assert sum(mode["resumed_equal"] for mode in results) >= kills
    assert {mode["computed_again"] for mode in results} == {0}


def test_kill_9_of_the_script_and_the_same_command_again(case, tmp_path):
    """Single rows in passes of 8 take their time."""
    slow = ["loader.block_size=1", "loader.batch_size_valid=8"]
    command = [sys.executable, str(ROOT / "scripts" / "extract.py"), *case.args(*slow)]
    for _ in range(9):  # on a busy machine it may be done before it is killed
        shutil.rmtree(case.output.parent, ignore_errors=True)
        process = subprocess.Popen(command, cwd=case.folder, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(case.finished()) < 3:
            time.sleep(0.002)
        process.kill()
        if process.wait() == -signal.SIGKILL and not case.output.exists():
            break
    before = case.finished()
    assert process.returncode == -signal.SIGKILL and 3 <= len(before) <= 64
    code, said = case.extract(*slow)
    assert code == 0, said
    assert f"{len(before)} of them from an earlier run" in said
    assert sorted(before + case.computed) == list(range(64))
    got = read(case.output)
    assert case.extract("clobber=true", "loader.block_size=40", "loader.batch_size_valid=8")[0] == 0
    case.assert_whole(got)


def test_sigterm_keeps_what_is_finished(case, wanted, forks):
    process = forks.extract(case)
    case.wait_for_blocks(2)
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.said()
    said = process.said()
    count = len(case.finished())
    (line,) = said.splitlines()
    assert line.startswith("nenya extract: interrupted")
    assert f"{count} finished blocks are kept in" in line and "the same command resumes" in line
    assert case.extract()[0] == 0
    assert len(case.computed) == BLOCKS - count
    case.assert_whole(wanted)


def test_two_runs_at_once_on_one_output(case, wanted, forks):
    process = forks.extract(case, slow=0.3)
    case.wait_for_blocks(1)
    code, said = case.extract()
    assert code == 2 and said.count("\n") == 1, said
    assert f"{case.output} is being written by process {process.pid} on " in said
    assert case.computed == []
    code, said = case.extract("clobber=true")
    assert code == 2 and f"process {process.pid}" in said
    assert process.wait() == 0, process.said()
    case.assert_whole(wanted)


def test_a_run_that_another_has_overtaken_leaves_nothing(case, wanted, monkeypatch):
    original = jobs.make_trainer

    def overtake(*args, **kwargs):
        if not case.output.exists():
            case.output.parent.mkdir(exist_ok=True)
            case.output.write_bytes(b"by another run")
        return original(*args, **kwargs)

    monkeypatch.setattr(jobs, "make_trainer", overtake)
    code, said = case.extract()
    assert code == 0 and "written by another run in the meantime" in said
    assert os.listdir(case.output.parent) == [NAME]


# The input changed


def test_another_content_of_the_same_size_is_refused(case, wanted):
    case.stop_after(5)
    other = case.source.with_name("other.h5")
    write_cutouts(other, train=red_noise(40, seed=8), valid=red_noise(24, seed=9))
    assert other.stat().st_size == case.source.stat().st_size
    other.replace(case.source)
    code, said = case.extract()
    assert code == 2 and said.count("\n") == 1, said
    assert "finished rows of another input" in said and "clobber=true starts over" in said
    assert (case.computed, len(case.finished())) == ([], 5)
    assert case.extract("clobber=true")[0] == 0
    assert len(case.computed) == BLOCKS
    assert read(case.output)["train"].tobytes() != wanted["train"].tobytes()


@pytest.mark.parametrize("how", ["touched", "replaced by a copy"])
def test_the_same_content_is_gone_on_with(case, wanted, how):
    case.stop_after(5)
    if how == "touched":
        os.utime(case.source)
    else:
        copy = case.source.with_name("copy.h5")
        shutil.copy(case.source, copy)
        copy.replace(case.source)
    code, said = case.extract()
    assert code == 0, said
    assert case.computed == list(range(5, BLOCKS))
    case.assert_whole(wanted)


def test_a_source_that_changes_meanwhile_keeps_nothing(case):
    original, calls = jobs.describe_status, []

    def later(path):
        calls.append(path)
        if len(calls) == 2:
            os.utime(case.source, (1, 1))
        return original(path)

    case.patch.setattr(jobs, "describe_status", later)
    code, said = case.extract()
    assert code == 2 and "changed while it was read; no rows were kept" in said
    assert os.listdir(case.output.parent) == []


# Other weights, other options


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    path = tmp_path_factory.mktemp("weights") / "other.pth"
    save_pth(path, make_net(compose("extract", ["model=demo", "seed=5"])), options={}, epoch=0)
    return path


def test_other_weights_and_options_are_refused(case, other_weights, wanted):
    case.stop_after(5)
    for override, words in {
        f"ckpt={other_weights}": "checkpoint_sha256",
        "preprocess.file=demean": "preprocessing none instead of demean",
        "trainer.precision=bf16-mixed": "precision 32-true instead of bf16-mixed",
        "model.latent=encoder": "latent projection instead of encoder",
    }.items():
        code, said = case.extract(override)
        assert code == 2 and said.count("\n") == 1, said
        assert words in said and "clobber=true starts over" in said and str(case.partial) in said
        assert case.computed == []
    assert len(case.finished()) == 5
    assert case.extract()[0] == 0
    assert case.computed == list(range(5, BLOCKS))
    case.assert_whole(wanted)


@pytest.mark.parametrize("other", ["loader.batch_size_valid=64", "loader.block_size=7"])
def test_sizes_are_those_of_the_first_run(case, wanted, other):
    case.stop_after(5)
    code, said = case.extract(other)
    assert code == 0, said
    assert case.computed == list(range(5, BLOCKS))
    case.assert_whole(wanted)


def test_clobber_starts_over(case, wanted):
    case.stop_after(5)
    assert case.extract("clobber=true")[0] == 0
    assert case.computed == list(range(BLOCKS))
    case.assert_whole(wanted)


# Disks


def test_a_damaged_block_alone_is_computed_again(case, wanted):
    case.stop_after(5)
    with (case.partial / "train.f32").open("r+b") as raw:
        raw.seek(4 * 64 * 4 * 2 + 77)
        byte = raw.read(1)
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte[0] ^ 16]))
    code, said = case.extract()
    assert code == 0 and "block 2 is damaged on disk and is computed again" in said, said
    assert case.computed == [2, *range(5, BLOCKS)]
    case.assert_whole(wanted)


def test_a_half_written_assembly_and_torn_lines(case, wanted):
    case.stop_after(5)
    (case.partial / "assembled").write_bytes(b"\x89HDF\r\n\x1a\n half of it")
    (case.partial / ".manifest.json.1-ab.tmp").write_text('{"ro')
    (journal,) = case.partial.glob("journal-*")
    journal.write_bytes(journal.read_bytes()[:-3])
    assert case.extract()[0] == 0
    assert case.computed == list(range(4, BLOCKS))
    case.assert_whole(wanted)


def leave_partial(case, *, finished):
    """Leave the folder as a kill between the last two steps does, or one amid the work of `clobber=true`."""
    case.stop_after(5)
    kept = shutil.copytree(case.partial, case.folder / "kept")
    if finished:
        (kept / "reserve").unlink()
    assert case.extract()[0] == 0
    shutil.copytree(kept, case.partial)


def test_a_partial_folder_beside_a_whole_output_goes(case, wanted):
    leave_partial(case, finished=True)
    code, said = case.extract()
    assert code == 0 and "output exists and is complete" in said, said
    assert case.computed == []
    case.assert_whole(wanted)


def test_unfinished_work_that_is_to_replace_an_output_stays(case):
    leave_partial(case, finished=False)
    code, said = case.extract()
    assert code == 0 and "output exists and is complete" in said, said
    assert len(case.finished()) == 5


def test_only_what_a_finished_run_left_goes(tmp_path):
    output = tmp_path / "a.h5"
    remove_leftover(output)
    for name, goes in {"manifest.json": True, "reserve": False, "assembled": False}.items():
        folder = partial_folder(output)
        folder.mkdir()
        (folder / name).touch()
        with OutputLock(folder / "lock", "a.h5"):
            remove_leftover(output)
            assert folder.exists()
        remove_leftover(output)
        assert folder.exists() is not goes
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_disk(case):
    """A disk of which the outputs folder is made: (kilobytes) -> None, may be called again."""
    case.output.parent.mkdir()
    mounted = []

    def mount(kilobytes):
        options = f"size={kilobytes}k" + (",remount" if mounted else "")
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", case.output.parent], capture_output=True
        ).returncode:
            pytest.skip("no right to mount a small disk")
        mounted.append(kilobytes)

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", case.output.parent], check=True)


def test_a_disk_that_fills_midway_and_then_has_room(case, wanted, small_disk):
    """Rows and the reserve for the final file have their room from the start; journals and attributes need more."""
    small_disk(4096)
    case.last, original = None, ContrastiveModule.predict_step
    filler = case.output.parent / "filler"

    def fill(module, batch, batch_idx):
        if batch["number"] == 6:
            case.wait_for_blocks(5)
            for path in case.partial.glob("*.f32"):  # as on a disk that takes room only when it is written
                size = path.stat().st_size
                with path.open("r+b") as raw:
                    raw.truncate(4 * 64 * 4 * 7 if path.name == "train.f32" else 0)
                    raw.truncate(size)
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        return original(module, batch, batch_idx)

    case.patch.setattr(ContrastiveModule, "predict_step", fill)
    code, said = case.extract()
    assert code == 2 and "No space left on device" in said, said
    assert "finished blocks are kept" in said and said.count("\n") == 1
    case.patch.setattr(ContrastiveModule, "predict_step", original)
    before = case.finished()
    assert len(before) >= 5
    code, said = case.extract()
    assert code == 2 and ("No space left" in said or "are free" in said), said
    filler.unlink()
    code, said = case.extract()
    assert code == 0, said
    assert sorted(before + case.computed) == list(range(BLOCKS))
    case.assert_whole(wanted)


@pytest.fixture(scope="module")
def full_disk_forks(tmp_path_factory):
    """Processes in which every call that changes a folder can be made to fail as on a full disk."""
    library = tmp_path_factory.mktemp("library") / "full_disk.so"
    source = ROOT / "tests" / "full_disk.c"
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    with Forks(LD_PRELOAD=str(library)) as forks:
        yield forks


def all_calls():
    yield from itertools.count(1)


def some_calls():
    yield from (1, 3, 6, 9)
    yield from itertools.count(16, 15)


@pytest.mark.parametrize("calls", [some_calls, pytest.param(all_calls, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_from_any_call_on(case, wanted, full_disk_forks, calls):
    """Folders, files, room, rows, journal, manifest, the final file, its move: one after the other fails."""
    said = Counter()
    for call in calls():
        process = full_disk_forks.extract(case, slow=0, FULL_DISK_UNDER=str(case.output.parent), FULL_DISK_AT=str(call))
        if process.wait() == 0:
            break
        assert process.code == 2, f"call {call}: {process.said()}"
        line = process.said()
        assert line.count("\n") == 1 and "No space left on device" in line, f"call {call}: {line}"
        assert "OSError" not in line, f"call {call}: {line}"
        said[re.sub(r"[0-9]+ finished blocks are kept.*", "... kept", line).replace(str(case.folder), "")] += 1
        assert not case.output.exists() or read(case.output).keys() == wanted.keys()
        before = case.finished()
        code, again = case.extract()
        assert code == 0, f"call {call}: {again}"
        assert sorted(before + case.computed) in (list(range(BLOCKS)), []), f"call {call}"
        case.assert_whole(wanted)
        shutil.rmtree(case.output.parent)
    assert call > 60 and len(said) > 3, said
    case.assert_whole(wanted)


def test_a_run_goes_on_in_the_room_that_it_has_taken(case, wanted, small_disk):
    small_disk(1100)
    case.stop_after(5)
    code, said = case.extract()
    assert code == 0, said
    assert "resuming an earlier run with 20 of 64 rows" in said
    case.assert_whole(wanted)


def test_a_command_that_starts_over_says_so_when_it_is_stopped(case):
    case.stop_after(5)
    case.last = 3
    code, said = case.extract("clobber=true")
    case.last = None
    assert code == 2
    assert len(case.finished()) == 3
    assert case.extract()[0] == 0
    case.error, case.last = Interrupted("stopped"), 2
    code, said = case.extract("clobber=true")
    assert code == 75 and "the same command without clobber=true resumes there" in said, said


def test_an_output_folder_that_cannot_be_written(case):
    case.output.parent.mkdir()
    if shutil.which("chattr") is None or subprocess.run(["chattr", "+i", case.output.parent]).returncode:
        pytest.skip("no right to make a folder unchangeable")
    try:
        code, said = case.extract()
    finally:
        subprocess.run(["chattr", "-i", case.output.parent], check=True)
    assert code == 2 and said.count("\n") == 1, said
    assert str(case.output.parent) in said and "out=" in said
    assert case.computed == [] and os.listdir(case.output.parent) == []


def test_a_read_only_file_system(case, small_disk):
    small_disk(1024)
    subprocess.run(["mount", "-o", "remount,ro", case.output.parent], check=True)
    code, said = case.extract()
    assert code == 2 and said.count("\n") == 1, said
    assert f"{case.output.parent}: the folder is not writable; choose another with out=" in said
    assert case.computed == []


# Progress


def test_the_remaining_time_counts_on_this_run_alone(monkeypatch, caplog):
    clock = [100.0]
    monkeypatch.setattr(progresses.time, "monotonic", lambda: clock[0])
    with caplog.at_level("INFO", "nenya"), RowProgress("a.h5", 1000, before=900) as progress:
        clock[0] += 40
        progress.advance(20)
    assert caplog.messages == ["a.h5: 920 of 1000 rows, about 160 s left"]


def test_progress_goes_on_where_it_was(case, monkeypatch):
    made = []

    class Spy(RowProgress):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(jobs, "RowProgress", Spy)
    case.stop_after(5)
    assert case.extract()[0] == 0
    assert [(p.before, p.total) for p in made] == [(0, 64), (20, 64)]
    assert made[1].done == 64


# Several processes


def start_ranks(forks, case, slow):
    """Start processes as torchrun does, with these seconds more for each block; returns them."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = str(len(slow))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    args = [f"trainer.devices={count}", "trainer.strategy=ddp"]
    return [
        forks.extract(case, *args, slow=seconds, **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, seconds in enumerate(slow)
    ]


def test_three_processes_make_what_one_makes(case, wanted, forks):
    processes = start_ranks(forks, case, (0, 0.1, 0.2))
    for process in processes:
        assert process.wait() == 0, process.said()
    case.assert_whole(wanted)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run(case, wanted, forks, victim):
    processes = start_ranks(forks, case, (0.5, 0.5))
    case.wait_for_blocks(4)
    processes[victim].send(signal.SIGKILL)
    assert processes[1 - victim].wait() == 75, processes[1 - victim].said()
    assert processes[victim].wait() == -signal.SIGKILL
    said = processes[1 - victim].said()
    (line,) = [line for line in said.splitlines() if line.startswith("nenya extract: ")]
    assert "another process of this run has ended" in line
    before = case.finished()
    assert 4 <= len(before) < BLOCKS
    if victim:
        assert f"{len(before)} finished blocks are kept" in line
        code, said = case.extract()
        assert code == 0, said
        assert sorted(before + case.computed) == list(range(BLOCKS))
    else:
        for process in start_ranks(forks, case, (0, 0)):
            assert process.wait() == 0, process.said()
    case.assert_whole(wanted)


def test_a_slow_rank_does_not_hold_up_the_other(case, wanted, forks):
    """All blocks of one are finished before the second of the other's is begun: no time is measured."""
    processes = start_ranks(forks, case, (0, 3))
    deadline = time.monotonic() + 300
    while not set(range(0, BLOCKS, 2)) <= set(case.finished()):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.01)
    slow = [number for number in case.finished() if number % 2]
    for process in processes:
        process.send(signal.SIGKILL)
        process.wait()
    assert len(slow) < BLOCKS // 2
    code, said = case.extract()
    assert code == 0, said
    case.assert_whole(wanted)


class Companion:
    """Stands for what a process knows of another one, and its trainer for signals."""

    world_size = 2

    def __init__(self, tmp_path, *, seen, lost=False, received_sigterm=False):
        self.companions, self.lost, self.received_sigterm = (
            Companions(tmp_path, "own"),
            threading.Event(),
            received_sigterm,
        )
        self.companions._seen = {"journal-1-b"} if seen else set()
        if lost:
            self.lost.set()


def test_rows_that_never_come_are_not_waited_for_for_ever(tmp_path):
    store = BlockStore(tmp_path / "a.h5", {"train": 3}, 2)
    store.partial.mkdir()
    writer = LatentsWriter(store)
    writer.blocks = [Block(0, "train", range(3))]
    other = Companion(tmp_path, seen=False)
    writer._wait_for_rows(other, other)
    for words, how in {"has ended": {"lost": True}, "interrupted": {"received_sigterm": True}}.items():
        other = Companion(tmp_path, seen=True, **how)
        with pytest.raises(Interrupted, match=words):
            writer._wait_for_rows(other, other)
    store.raw("train").touch()
    done = BlockWriter(store, "1")
    done.put("train", 0, 0, np.zeros((3, 2), np.float32))
    done.close()
    other = Companion(tmp_path, seen=True)
    writer._wait_for_rows(other, other)


def test_companions_are_missed_when_they_are_gone(tmp_path):
    import fcntl

    def hold(name):
        file = (tmp_path / name).open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    (tmp_path / "journal-0-old").touch()
    own, other, lock = hold("journal-0-a"), hold("journal-1-b"), hold("lock")
    companions = Companions(tmp_path, "journal-0-a")
    assert not companions.lost()
    late = hold("journal-2-c")
    assert not companions.lost()
    other.close()
    assert companions.lost()
    assert Companions(tmp_path, "journal-0-a").lost() is False
    for file in (own, late, lock):
        file.close()


def test_the_first_process_waits_until_the_others_have_found_it(tmp_path, monkeypatch):
    """So that nobody waits for ever for a run with nothing to do, which is over at once."""
    monkeypatch.setenv("NENYA_BATCH", "")  # so that it is unset afterwards
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}.items():
        monkeypatch.setenv(name, value)
    folder, heard = tmp_path / "batch-1", []
    folder.mkdir()

    def wait(seconds):
        heard.append(seconds)
        if len(heard) == 3:
            monkeypatch.delenv("NENYA_BATCH", raising=False)
            with pytest.raises(EOFError):
                ranks.Follower(tmp_path).hear(0)

    monkeypatch.setattr(ranks.time, "sleep", wait)
    with ranks.Leader(folder) as leader:
        leader.end()
    assert len(heard) == 3
    with pytest.raises(RuntimeError), ranks.Leader(folder):
        raise RuntimeError("the launcher ends the others")
    assert len(heard) == 3
    assert not list(tmp_path.glob("*session-*"))


def test_what_a_killed_run_told_is_not_heard(tmp_path, monkeypatch):
    """A killed run leaves its folder, and the next one may meet at the same address."""
    monkeypatch.setenv("NENYA_BATCH", "")  # so that it is unset afterwards
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    dead, alive = tmp_path / "batch-1", tmp_path / "batch-2"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "lock").touch()
    ranks.Leader(dead).__enter__().tell(0, ["of the killed run"])
    monkeypatch.delenv("NENYA_BATCH")
    monkeypatch.setattr(ranks, "_STARTED", time.time() + 0.05)
    time.sleep(0.1)
    follower, looks = ranks.Follower(tmp_path), []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            ranks.Leader(alive).__enter__().tell(0, ["of this run"])
            monkeypatch.delenv("NENYA_BATCH")

    monkeypatch.setattr(ranks.time, "sleep", wait)
    assert follower.hear(0) == ["of this run"]
    monkeypatch.setattr(ranks, "_STARTED", time.time() - 1e4)
    shutil.rmtree(alive)
    next(tmp_path.glob("session-*")).unlink()
    with pytest.raises(Interrupted, match="does not start"):
        ranks.Follower(tmp_path).hear(0)
