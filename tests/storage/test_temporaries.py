"""What killed processes leave: the next run of the same command removes it, and nothing that is a living one's."""

import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from granules import grid
from portal_data import write_archive

from nenya.cli import run_command
from nenya.storage import disk, process
from nenya.storage.disk import atomic_path, sweep, temporary_folder, temporary_name

GONE = 2**22 + 1  # no process has this number


def mark_of(pid, start="1", **other):
    return process.Identity(**{**process.current().values(), "pid": pid, "start": start, **other}).mark


def named(folder, mark, name="a.h5"):
    return folder / f".{name}.{mark}-01234567.tmp"


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        yield child
        child.kill()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_those_of_processes_that_are_gone_go(tmp_path, sleeper, make):
    start = process._stat(str(sleeper.pid))[1]
    sleeper.send_signal(signal.SIGSTOP)
    dead = [mark_of(GONE), mark_of(sleeper.pid, "1"), mark_of(GONE, "x")]
    alive = [process.current().mark, mark_of(sleeper.pid, start), mark_of(1, "x"), mark_of(GONE, space="elsewhere")]
    for mark in dead + alive:
        make(named(tmp_path, mark))
    others = [tmp_path / name for name in (".a.tmp", "a.tmp", ".a.h5.12.tmp", f"a.{mark_of(GONE)}-01234567.tmp")]
    for path in others:
        make(path)
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("b")
    assert set(tmp_path.iterdir()) == {tmp_path / "b.txt", *others, *(named(tmp_path, mark) for mark in alive)}


def test_those_of_an_earlier_start_go_where_the_disk_is_this_machines_own(tmp_path, monkeypatch):
    path = named(tmp_path, mark_of(1, boot="an earlier one"))
    path.touch()
    monkeypatch.setattr(disk, "is_local", lambda _: False)
    sweep(tmp_path)
    assert path.exists()
    monkeypatch.setattr(disk, "is_local", lambda _: True)
    sweep(tmp_path)
    assert not path.exists()


def test_those_of_which_nothing_is_known_go_after_a_week(tmp_path, monkeypatch):
    path, old = named(tmp_path, mark_of(1, space="elsewhere")), tmp_path / ".a.h5.123-01234567.tmp"
    for file in (path, old):
        file.touch()
    sweep(tmp_path)
    assert path.exists() and old.exists()
    for file in (path, old):
        os.utime(file, (1, 1))
    sweep(tmp_path)
    assert not path.exists() and not old.exists()


@pytest.mark.parametrize("name", ["a", "a" * 250, "ü" * 120, "a.b\nc"])
def test_names_that_are_long_or_odd(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("b")
        assert disk._FILE.fullmatch(temporary.name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    left = Path(str(temporary_name(tmp_path / name)).replace(process.current().mark, mark_of(GONE)))
    left.touch()
    assert disk.has_abandoned(tmp_path / name)
    assert not disk.has_abandoned(tmp_path / "other")


def test_a_link_is_removed_and_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    named(tmp_path, mark_of(GONE)).symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


def test_folders_of_killed_processes_go(tmp_path):
    (tmp_path / f"copy-{mark_of(GONE)}-01234567").mkdir()
    (tmp_path / "copy-of mine").mkdir()
    with temporary_folder("copy-", tmp_path) as folder:
        (folder / "file").touch()
        assert sorted(os.listdir(tmp_path)) == sorted(["copy-of mine", folder.name])
    assert os.listdir(tmp_path) == ["copy-of mine"]


def test_a_large_folder_is_not_looked_through_each_time(tmp_path, monkeypatch):
    looks = []
    real = disk.scandir
    monkeypatch.setattr(disk, "scandir", lambda place: looks.append(place) or real(place))
    for number in range(disk._FEW + 10):
        (tmp_path / str(number)).touch()
    for number in range(300):
        temporary_name(tmp_path / f"a{number}")
    assert 3 <= len(looks) <= 5


# Commands


def kill_at(number, command, args, *, late):
    """Run a command in a fork of this process that is killed when it gives the n-th file its name, or after it.

    Returns whether it came to that.
    """
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            count, real = itertools.count(1), os.replace

            def replace(*places):
                last = next(count) == number
                if last and not late:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(*places)
                if last:
                    os.kill(os.getpid(), signal.SIGKILL)

            os.replace = replace
            run_command(command, args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def left(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))]


def content(path):
    """Return what a file holds, but for dates and places."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: hashlib.sha256(file[name][()].tobytes()).hexdigest() for name in file}
    if path.suffix == ".parquet":
        return pd.util.hash_pandas_object(pd.read_parquet(path)).sum()
    return path.stat().st_size > 0


def whole(folder):
    return {path.relative_to(folder): content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def case(command, sources):
    granules, cutouts, portal = sources / "day.nc", sources / "a_preproc.h5", sources / "portal"
    shown = [f"table={portal / 'a.parquet'}", f"latents={portal / 'a_preproc_latents.h5'}"]
    return {
        "generate": ["kind=white", "n_train=30", "n_valid=10", "size=16", "out={out}/white_preproc.h5"],
        "generate ocean": ["kind=ocean", "n_train=4", "n_valid=2", "size=32", "out={out}/ocean_preproc.h5"],
        "repack": [f"data={cutouts}", "out={out}/b_preproc.h5", "force=true"],
        "prepare": [f"data={granules}", "out={out}/d_preproc.h5", "field_size=16", "workers=1", "clear_threshold=50"],
        "portal": [*shown, f"images={portal / 'a_preproc.h5'}", "export={out}/page", "sample=100"],
        "metrics": [f"data={portal / 'a_preproc_latents.h5'}", "out={out}"],
    }[command]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_cutouts(folder / "a_preproc.h5", train=red_noise(30, side=16, seed=1), valid=red_noise(10, side=16, seed=2))
    grid((64, 96), times=2).to_netcdf(folder / "day.nc", engine="h5netcdf")
    (folder / "portal").mkdir()
    write_archive(folder / "portal")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        *("generate", "prepare", "portal"),
        pytest.param("repack", marks=pytest.mark.slow),
        pytest.param("generate ocean", marks=pytest.mark.slow),
        pytest.param("metrics", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_of_killed_commands(command, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = command.split()[0]

    def args(out):
        (tmp_path / out).mkdir(exist_ok=True)
        return [arg.format(out=tmp_path / out) for arg in case(command, sources)]

    assert run_command(name, args("wanted")) == 0
    wanted, seen = whole(tmp_path / "wanted"), 0
    for number, late in itertools.product(range(1, 12), (False, True)):
        out = f"{number}{late}"
        if not kill_at(number, name, args(out), late=late):
            break
        seen += len(left(tmp_path / out))
        code = run_command(name, args(out))
        assert left(tmp_path / out) == []
        if code:  # where a result is there, the command says so, and replaces it when it is told to
            assert run_command(name, [*args(out), "clobber=true"]) == 0
        found = whole(tmp_path / out)
        assert found == wanted
    assert number > 1 and seen > 0
