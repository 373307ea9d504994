"""Who may commit: holders that are stopped, killed, aged, moved to other hosts, and taken over; on disks and on S3.

    python benchmarks/stolen_locks.py [--only=WORDS] [--out=benchmarks/results/stolen_locks.json]

Real processes hold an archive and add files to it, as `nenya update` does, but files of a few bytes. Two hosts are
two namespaces of names and process numbers; a preloaded library makes file systems with locks that do not lock; S3
is a server. After each scenario every file that was reported as committed is named and complete, and every
process that came too late was told. Finished cases are kept in the results and not repeated.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import lock_player  # noqa: E402
import s3_server  # noqa: E402

from nenya.storage.s3.access import ONE_WRITER  # noqa: E402

SILENT = 3.0  # seconds after which an unknown holder counts as gone
BEAT = 0.3
PATIENCE = 120.0  # seconds for one step
LOST = "LockLostError"
HELD = "OutputError"
ENOLCK, ENOTSUP = "37", "95"


@dataclass
class Actor:
    """A process that holds an archive, or wants to."""

    process: subprocess.Popen[str]
    pid: int

    def send(self, step: str) -> None:
        """Tell it to take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()

    def answer(self, patience: float = PATIENCE) -> str:
        """Return what it says of a step."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], patience)[0]:
            raise AssertionError("no answer")
        return self.process.stdout.readline().strip()

    def do(self, step: str) -> str:
        """Tell it to take a step, and return what it says."""
        self.send(step)
        return self.answer()

    def stop(self) -> None:
        """Stop it, as a machine that sleeps does."""
        os.kill(self.pid, signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self) -> None:
        """Wait until it is stopped, by itself or by another."""
        end = time.monotonic() + PATIENCE
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
            assert time.monotonic() < end
            time.sleep(0.01)

    def go_on(self) -> None:
        """Let it continue."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class World:
    """The place of one scenario.

    Attributes:
        folder: of all that is local.
        place: the archive.
        locks: the library that makes locks that do not lock.
        told: names that somebody was told to be committed.
    """

    folder: Path
    place: str
    locks: Path
    told: list[str] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)

    def actor(self, host: str = "", flock: str | None = None) -> Actor:
        """Start a process: on another host, or with locks that do not lock."""
        env = {**os.environ, "PLAYER_SILENT": str(SILENT), "PLAYER_BEAT": str(BEAT), ONE_WRITER: "true"}
        if flock is not None:
            env |= {"LD_PRELOAD": str(self.locks), "FLOCK": flock}
        number = len(self.actors) if host or self.place.startswith("s3:") else 0
        command = [sys.executable, str(ROOT / "tests" / "lock_player.py"), self.place, str(self.folder / str(number))]
        if host:
            user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
            inner = f'hostname {host}; "$@"; exit $?'
            command = ["unshare", *user, *"--uts --pid --mount-proc --fork sh -c".split(), inner, "sh", *command]
        process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        actor = Actor(process, process.pid)
        self.actors.append(actor)
        json.loads(actor.answer())
        actor.pid = _deepest(process.pid)
        return actor

    def added(self, actor: Actor, name: str) -> None:
        """Let an actor add a file, which must be there ever after."""
        said = actor.do(f"add {name}")
        assert said == "committed", said
        self.told.append(name)

    def check(self) -> None:
        """Check that all is there that anybody was told to be, and that nobody's temporaries are."""
        there = lock_player.committed(self.place, self.folder / "reader")
        assert set(self.told) <= set(there), f"vanished: {set(self.told) - set(there)}"
        assert len(there) == len(set(there)), there
        last = self.actor()
        said = last.do("take")
        assert said == "held", said
        assert last.do("release") == "released"
        if not self.place.startswith("s3:"):
            left = [str(path) for path in Path(self.place).rglob("*") if path.name.endswith(".tmp")]
            claims = [path.name for path in (Path(self.place) / ".work").glob("lock.*")]
            assert not left and not claims, (left, claims)


def _deepest(pid: int) -> int:
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


# What happens to the holder; B comes then.


def stopped_and_taken_for_alive(world: World, a: Actor, b: Actor) -> None:
    """A is stopped, B is refused, A continues."""
    a.stop()
    said = b.do("take")
    assert said.startswith(HELD) and "wait" in said, said
    a.go_on()
    world.added(a, "a2")
    assert a.do("release") == "released"
    assert b.do("take") == "held"
    world.added(b, "b1")


def aged(world: World, a: Actor, b: Actor) -> None:
    """As before, with times of all lock files long ago, then far in the future."""
    a.stop()
    for moment in (1.0, time.time() - 7200, time.time() + 960, time.time() + 1e8):
        for path in (Path(world.place) / ".work").glob("lock*"):
            os.utime(path, (moment, moment))
        said = b.do("take")
        assert said.startswith(HELD), said
    a.go_on()
    world.added(a, "a2")


def running(world: World, a: Actor, b: Actor) -> None:
    """A only lives; B is refused."""
    said = b.do("take")
    assert said.startswith(HELD), said
    world.added(a, "a2")


def killed(world: World, a: Actor, b: Actor) -> None:
    """A is killed; B continues."""
    a.kill()
    assert b.do("take") == "held"
    world.added(b, "b1")


def killed_before_its_commit(world: World, a: Actor, b: Actor) -> None:
    """A is killed when its files are published."""
    assert a.do("publish a2") == "published"
    a.kill()
    assert b.do("take") == "held"
    world.added(b, "b1")


def stopped_and_taken_for_gone(world: World, a: Actor, b: Actor) -> None:
    """A sleeps on another host, B takes over, A wakes up."""
    a.stop()
    assert b.do("take") == "held"
    world.added(b, "b1")
    a.go_on()
    said = a.do("add a2")
    assert said.startswith(LOST) and "taken over" in said, said
    world.added(b, "b2")
    assert a.do("release") == "released"
    world.added(b, "b3")


def late_commit(world: World, a: Actor, b: Actor) -> None:
    """A sleeps between publishing and committing."""
    assert a.do("publish a2") == "published"
    a.stop()
    assert b.do("take") == "held"
    world.added(b, "b1")
    a.go_on()
    said = a.do("commit")
    assert said.startswith(LOST), said
    world.added(b, "b2")


def in_the_middle_of_a_commit(world: World, a: Actor, b: Actor) -> None:
    """A sleeps at the last moment, when it has compared and is about to replace."""
    assert a.do("publish a2") == "published"
    a.send("commit_asleep")
    a.wait_until_stopped()
    assert b.do("take") == "held"
    world.added(b, "b1")
    a.go_on()
    said = a.answer()
    assert said.startswith((LOST, HELD)), said
    world.added(b, "b2")


def in_the_middle_of_publishing(world: World, a: Actor, b: Actor) -> None:
    """A sleeps at the last moment before a file gets its name; B commits another file of that name."""
    a.send("publish_asleep same")
    a.wait_until_stopped()
    assert b.do("take") == "held"
    world.added(b, "same")
    a.go_on()
    said = a.answer()
    assert said.startswith(LOST), said
    world.added(b, "b2")


def woken_when_all_is_over(world: World, a: Actor, b: Actor) -> None:
    """A wakes when B has committed and gone."""
    assert a.do("publish a2") == "published"
    a.stop()
    assert b.do("take") == "held"
    world.added(b, "b1")
    assert b.do("release") == "released"
    a.go_on()
    said = a.do("commit")
    assert said.startswith(LOST), said


def raced(world: World, a: Actor, b: Actor) -> None:
    """A is killed, and several want the archive at the same moment."""
    others = [b, *(world.actor("" if i % 2 else f"host{i}", _FLOCK.get(id(world))) for i in range(3))]
    a.kill()
    for other in others:
        other.send("take")
    said = [other.answer() for other in others]
    held = [other for other, words in zip(others, said, strict=True) if words == "held"]
    assert len(held) == 1, said
    world.added(held[0], "b1")


def by_two_who_hold_nothing(world: World, a: Actor, b: Actor) -> None:
    """Two read the same state, and both commit."""
    assert a.do("release") == "released"
    c = world.actor()
    assert c.do("read") == b.do("read") == "read"
    assert b.do("publish b1") == c.do("publish c1") == "published"
    assert b.do("commit") == "committed"
    world.told.append("b1")
    said = c.do("commit")
    assert said.startswith(HELD) and "another update" in said, said


def of_an_older_version(world: World, a: Actor, b: Actor) -> None:
    """A lock on S3 of a version that wrote the time, far in the future."""
    from nenya.storage.s3.service import store

    a.kill()
    said = {"host": "elsewhere", "pid": 12, "since": "noon", "alive": time.time() + 1e8}
    store().replace(f"{world.place}/update-lock.json", json.dumps(said).encode(), None)
    assert b.do("take") == "held"
    world.added(b, "b1")


_FLOCK: dict[int, str | None] = {}
_DISKS = {"locks": None, "locks that always succeed": "", "no locks": ENOLCK, "locks not supported": ENOTSUP}


@dataclass(frozen=True)
class Scenario:
    """One case."""

    story: Callable[[World, Actor, Actor], None]
    where: str
    hosts: tuple[str, str]
    flock: str | None = None

    @property
    def name(self) -> str:
        """What it is called in the results."""
        hosts = "two hosts" if all(self.hosts) else "one host"
        return f"{self.story.__name__}, {hosts}, {self.where}"


def scenarios() -> Iterator[Scenario]:
    """Yield all cases."""
    one, two = ("", ""), ("one", "two")
    for words, flock in _DISKS.items():
        for story in (stopped_and_taken_for_alive, aged, running, killed, killed_before_its_commit, raced):
            yield Scenario(story, words, one, flock)
        yield Scenario(running, words, two, flock)
        yield Scenario(killed, words, two, flock)
        yield Scenario(raced, words, two, flock)
        if flock is None:
            yield Scenario(stopped_and_taken_for_alive, words, two, flock)
            yield Scenario(aged, words, two, flock)
            yield Scenario(by_two_who_hold_nothing, words, one, flock)
        else:
            for story in (
                stopped_and_taken_for_gone,
                late_commit,
                in_the_middle_of_a_commit,
                in_the_middle_of_publishing,
                woken_when_all_is_over,
            ):
                yield Scenario(story, words, two, flock)
    for where in ("S3", "S3 that does not compare"):
        for story in (stopped_and_taken_for_alive, running, killed, raced, by_two_who_hold_nothing):
            yield Scenario(story, where, one)
        for story in (running, killed, stopped_and_taken_for_gone, late_commit, woken_when_all_is_over):
            yield Scenario(story, where, two)
        yield Scenario(of_an_older_version, where, two)
    yield Scenario(in_the_middle_of_a_commit, "S3", two)
    yield Scenario(in_the_middle_of_publishing, "S3", two)


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
    """Run an S3 service; gives where -> address."""
    os.environ |= {**s3_server.ENV, **s3_server.ISOLATION}
    for name in s3_server.OTHERS:
        os.environ.pop(name, None)
    with s3_server.start_moto() as endpoint:
        proxy = s3_server.FaultProxy(endpoint)
        s3_server.forget_conditions(proxy)
        with proxy:
            yield {"S3": endpoint, "S3 that does not compare": proxy.endpoint}


def play(scenario: Scenario, addresses: dict[str, str], locks: Path, number: int) -> str:
    """Play one case; returns what went wrong, empty for nothing."""
    folder = Path(tempfile.mkdtemp(prefix="stolen-locks-"))
    place = str(folder / "archive")
    if scenario.where in addresses:
        os.environ["AWS_ENDPOINT_URL"] = addresses[scenario.where]
        place = f"s3://locks/{number}"
    world = World(folder, place, locks)
    _FLOCK[id(world)] = scenario.flock
    try:
        a = world.actor(scenario.hosts[0], scenario.flock)
        b = world.actor(scenario.hosts[1], scenario.flock)
        said = a.do("take")
        assert said == "held", said
        world.added(a, "a1")
        scenario.story(world, a, b)
        for actor in world.actors:
            with contextlib.suppress(OSError):
                actor.kill()
        world.check()
        return ""
    except AssertionError as error:
        import traceback

        line = traceback.extract_tb(error.__traceback__)[-1]
        return f"{error or 'not as expected'} (line {line.lineno}: {line.line})"
    finally:
        for actor in world.actors:
            with contextlib.suppress(OSError):
                os.kill(actor.pid, signal.SIGKILL)
            actor.process.kill()
            actor.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def run(only: str, out: Path, jobs: int) -> int:
    """Play all cases with all of the words in their name; returns the number of failed ones."""
    done: dict[str, str] = json.loads(out.read_text())["scenarios"] if out.is_file() else {}
    wanted = [s for s in scenarios() if all(word in s.name for word in only.split("&"))]
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        locks = Path(scratch) / "broken_locks.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", locks, ROOT / "tests" / "broken_locks.c"], check=True)
        addresses: dict[str, str] = {}
        if any("S3" in scenario.where for scenario in wanted):
            addresses = stack.enter_context(s3())
            os.environ["AWS_ENDPOINT_URL"] = addresses["S3"]
            _make_bucket(addresses["S3"])
        for number, scenario in enumerate(wanted):
            if done.get(scenario.name) == "":
                continue
            start = time.monotonic()
            done[scenario.name] = play(scenario, addresses, locks, number)
            line = f"{time.monotonic() - start:6.1f} s  {scenario.name}: {done[scenario.name] or 'good'}\n"
            sys.stdout.write(line)
            sys.stdout.flush()
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"scenarios": done}, indent=1) + "\n")
    failed = [scenario.name for scenario in wanted if done[scenario.name]]
    sys.stdout.write(f"{len(wanted)} scenarios, {len(failed)} failed\n")
    return len(failed)


def _make_bucket(endpoint: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="locks")


def main() -> None:
    """Read the arguments and play."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words, with & between them, that the names must have")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "stolen_locks.json")
    args = parser.parse_args()
    sys.exit(1 if run(args.only, args.out, 1) else 0)


if __name__ == "__main__":
    main()
