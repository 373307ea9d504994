"""Extraction under `kill -9`: real processes, killed at random instants, until the same command has done it all.

`python benchmarks/chaos.py --kills 200` kills extractions of one process, of two that share a file, and from and to an
S3 service of its own. Each killed command is given again until it ends by itself. Then the data sets must be bitwise
those of an undisturbed run, nothing may be left beside them, and no block that a journal called finished may stand in
the journal of a later attempt. It prints a table and writes `outputs/bench/chaos.json`; the exit code is 1 if one of
these does not hold.

Each process is forked from this one, which has imported everything and computed nothing, since the imports take many
times as long as the extraction.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: no process here may have threads of its own

import h5py
import lightning.pytorch  # noqa: F401  # for the processes to come, like the next ones
import numpy as np
import torch.distributed  # noqa: F401

import nenya.latents_extraction
import nenya.storage.s3.service
from nenya.cli import run_command
from nenya.commands.compose import compose
from nenya.extraction import ranks
from nenya.extraction.journal import partial_folder
from nenya.models.contrastive import ContrastiveModule

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from s3_server import ENV, ISOLATION, OTHERS, Service, pending_uploads, start_moto  # noqa: E402

ROWS, BLOCK, SIDE = {"train": 480, "valid": 96}, 4, 32
TOTAL = sum(-(-rows // BLOCK) for rows in ROWS.values())
TINY = ["model=demo", "model.width=1", "trainer.accelerator=cpu", f"loader.batch_size_valid={BLOCK}"]
MODES = ("single", "ranks", "s3")
LATENTS = "noise_latents.h5"
PATIENCE = 10.0
"""Seconds in which a process should notice that the one beside it is dead, before it is asked to end."""
LIMIT = 120.0
_TICK = 0.002


@dataclass
class Process:
    """One process of an attempt.

    Attributes:
        pid: of the system.
        log: what it says.
        code: its exit code, negative for a signal, None while it lives.
        seconds: after the start, when it ended.
    """

    pid: int
    log: Path
    code: int | None = None
    seconds: float = 0.0

    def poll(self, start: float) -> bool:
        """Return whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.seconds = os.waitstatus_to_exitcode(status), time.monotonic() - start
        return self.code is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)


def fork(call: Callable[[], int], folder: Path, log: Path, env: dict[str, str]) -> Process:
    """Fork a process that does something in a folder, and ends with the exit code that it returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Process(pid, log)
    code = 99
    try:
        os.chdir(folder)
        os.environ.update(env)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = call()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def extract(args: Sequence[str], slow: float = 0.0) -> int:
    """Run `nenya extract` with some seconds more for each block."""
    ranks._STARTED = time.time()  # as a process that imports it has it
    original = ContrastiveModule.predict_step

    def step(module: ContrastiveModule, batch: dict[str, object], batch_idx: int) -> object:
        time.sleep(slow)
        return original(module, batch, batch_idx)

    if slow:
        ContrastiveModule.predict_step = step
    return run_command("extract", args)


@dataclass
class Place:
    """Where one case works: a folder, and for S3 a prefix."""

    mode: str
    folder: Path
    data: str
    weights: Path
    bucket: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        self.work, self.archive = self.folder / "work", self.folder / "archive"
        self.work.mkdir(parents=True)
        self.archive.mkdir()
        self.port = free_port()

    @property
    def out(self) -> str:
        """The folder or prefix of the latents."""
        return f"s3://{self.bucket}/{self.folder.name}" if self.mode == "s3" else str(self.folder / "out")

    def args(self) -> list[str]:
        """Return the overrides of the command."""
        args = [*TINY, f"data={self.data}", f"out={self.out}", f"ckpt={self.weights}", f"loader.block_size={BLOCK}"]
        if self.mode == "ranks":
            args += ["trainer.devices=2", "trainer.strategy=ddp"]
        if self.mode == "s3":
            args += [f"loader.cache_dir={self.folder / 'cache'}"]
        return args

    def start(self, number: int) -> list[Process]:
        """Start the command, as one process or as the two that torchrun would start."""
        count = 2 if self.mode == "ranks" else 1
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "chaos"}
        processes = []
        for rank in range(count):
            env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"} if count > 1 else {}
            log = self.archive / f"said-{number}-{rank}"
            processes.append(fork(partial(extract, self.args()), self.work, log, env))
        return processes

    def output(self) -> Path | None:
        """Return the local file that the latents are or were made as, if it or its partial folder is there."""
        if self.mode != "s3":
            return next((path for path in [self.folder / "out" / LATENTS] if is_begun(path)), None)
        folders = entries(self.folder / "cache" / "latents")
        return next((folder / LATENTS for folder in folders if is_begun(folder / LATENTS)), None)

    def keep_journals(self) -> None:
        """Link the journals that are there to a place that outlives their folder."""
        if (output := self.output()) is not None:
            for path in entries(partial_folder(output)):
                if path.name.startswith("journal-"):
                    with contextlib.suppress(OSError):  # it is there, or went meanwhile
                        os.link(path, self.archive / path.name)

    def finished(self) -> dict[str, list[int]]:
        """Return journal -> numbers of the blocks that its complete lines call finished."""
        found = {}
        for journal in self.archive.glob("journal-*"):
            whole, _, _ = journal.read_bytes().rpartition(b"\n")
            found[journal.name] = [int(line.split(b" ")[0]) for line in whole.splitlines()]
        return found

    def phase(self) -> str:
        """Say how far the work is."""
        output = self.output()
        if output is None:
            return "start-up"
        done, folder = sum(map(len, self.finished().values())), partial_folder(output)
        if output.exists():
            return "upload" if self.mode == "s3" else "clean-up"
        if (folder / "assembled").exists():
            return "assembly"
        return "start-up" if not done else "rows" if done < TOTAL else "rows done"


@dataclass
class Attempt:
    """What became of one command."""

    processes: list[Process]
    killed: bool = False
    phase: str = ""
    seconds: float = 0.0
    rows_done: float | None = None
    noticed: list[float] = field(default_factory=list)
    hung: int = 0


def run_attempt(
    place: Place, number: int, kill_at: float | None, victims: Sequence[int] = (0,), *, late: bool = False
) -> Attempt:
    """Run the command once; kill the given ranks after `kill_at` seconds, counted from the last row if `late`."""
    start = time.monotonic()
    attempt = Attempt(place.start(number))
    dead_at = asked_at = None
    while True:
        ended = [process.poll(start) for process in attempt.processes]
        place.keep_journals()
        now = time.monotonic() - start
        if all(ended):
            break
        if attempt.rows_done is None and sum(map(len, place.finished().values())) >= TOTAL:
            attempt.rows_done = now
        since = attempt.rows_done if late else 0.0
        due = kill_at is not None and since is not None and now >= since + kill_at
        if dead_at is None and due and not any(ended):
            attempt.phase, attempt.killed, dead_at = place.phase(), True, now
            for rank in victims:
                attempt.processes[rank].kill()
        elif dead_at is not None and now > dead_at + PATIENCE and asked_at is None:
            asked_at = now
            attempt.hung += 1
            for process in attempt.processes:
                process.kill(signal.SIGTERM)
        elif now > (LIMIT if asked_at is None else asked_at + 2):
            for process in attempt.processes:
                process.kill()
        time.sleep(_TICK)
    place.keep_journals()
    attempt.seconds = max(process.seconds for process in attempt.processes)
    if attempt.killed and dead_at is not None and asked_at is None:
        attempt.noticed = [p.seconds - dead_at for r, p in enumerate(attempt.processes) if r not in victims]
    return attempt


def read_latents(file: object) -> dict[str, bytes]:
    """Return data set -> its bytes."""
    with h5py.File(file) as h5:
        return {name: h5[name][()].tobytes() for name in h5}


def fetch_latents(place: Place, client: object) -> dict[str, bytes]:
    """Return the data sets of a case that has ended."""
    if place.mode != "s3":
        return read_latents(Path(place.out) / LATENTS)
    found = client.get_object(Bucket=place.bucket, Key=f"{place.folder.name}/{LATENTS}")  # type: ignore[attr-defined]
    return read_latents(io.BytesIO(found["Body"].read()))


def leftovers(place: Place, client: object) -> list[str]:
    """Return what is left beside the latents: files, folders of unfinished work, uploads in parts."""
    expected = {"out", f"out/{LATENTS}", "work", "work/outputs", "work/outputs/cache", "cache", "cache/latents"}
    found = {str(path.relative_to(place.folder)) for path in place.folder.rglob("*")}
    left = sorted(name for name in found - expected if not name.startswith("archive"))
    if place.mode == "s3":
        keys = [upload["Key"] for upload in pending_uploads(client, place.bucket)]
        left += [f"upload of {key}" for key in keys if key.startswith(f"{place.folder.name}/")]
    return left


@dataclass
class Result:
    """What came of all cases of a mode."""

    mode: str
    seconds: float = 0.0
    tail_seconds: float = 0.0
    kills: int = 0
    cases: int = 0
    resumed_equal: int = 0
    finished_blocks: int = 0
    computed_again: int = 0
    hung: int = 0
    noticed: list[float] = field(default_factory=list)
    phases: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    said: Counter = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether all requested conditions hold."""
        return not self.problems and self.computed_again == 0


class Chaos:
    """Runs the cases.

    Args:
        folder: for all files.
        seed: of the instants.
        client: of the S3 service, None without one.
        bucket: there.
    """

    def __init__(self, folder: Path, seed: int, client: object = None, bucket: str = "") -> None:
        self.folder, self.random, self.client, self.bucket = folder, random.Random(seed), client, bucket
        self.data, self.weights = folder / "noise.h5", folder / "tiny.pth"
        self.cases = 0

    def prepare(self, *, s3: bool) -> None:
        """Write cutouts and weights; the network is made in a process of its own, as this one must not compute."""
        generator = np.random.default_rng(0)
        with h5py.File(self.data, "w") as file:
            for name, rows in ROWS.items():
                cutouts = generator.standard_normal((rows, 1, SIDE, SIDE), dtype=np.float32)
                cutouts -= cutouts.mean(axis=(2, 3), keepdims=True)
                file.create_dataset(name, data=cutouts, chunks=(BLOCK, 1, SIDE, SIDE))
        if not (pid := os.fork()):
            code = 1
            try:
                save_weights(self.weights)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the weights could not be made")
        if s3:
            body = self.data.read_bytes()
            self.client.create_bucket(Bucket=self.bucket)  # type: ignore[attr-defined]
            self.client.put_object(Bucket=self.bucket, Key="in/noise.h5", Body=body)  # type: ignore[attr-defined]

    def place(self, mode: str) -> Place:
        """Return a new place."""
        self.cases += 1
        data = f"s3://{self.bucket}/in/noise.h5" if mode == "s3" else str(self.data)
        return Place(mode, self.folder / f"{mode}-{self.cases}", data, self.weights, self.bucket)

    def run(self, mode: str, kills: int) -> Result:
        """Kill commands of one mode until so many kills have met a running one."""
        result, times = Result(mode), []
        for _ in range(1 if kills < 10 else 2):
            place = self.place(mode)
            whole = run_attempt(place, 0, None)
            if any(process.code for process in whole.processes):
                raise RuntimeError("".join(process.log.read_text() for process in whole.processes))
            times.append(whole.seconds)
        wanted = fetch_latents(place, self.client)
        if left := leftovers(place, self.client):
            result.problems.append(f"undisturbed: left {left}")
        shares, result.seconds = self.shares(kills), min(times)
        result.tail_seconds = whole.seconds - (whole.rows_done or 0.0)
        while result.kills < kills:
            self.case(self.place(mode), result, wanted, *next(shares))
            show_progress(result, kills)
        return result

    def shares(self, kills: int) -> Iterator[tuple[float, bool]]:
        """Yield when first kills come, as shares of a run, or, one of three, of what follows its last row."""
        order = list(range(kills))
        self.random.shuffle(order)
        for i in order:
            yield (i + self.random.random()) / kills, self.random.random() < 1 / 3
        while True:
            yield self.random.random(), self.random.random() < 1 / 3

    def case(self, place: Place, result: Result, wanted: dict[str, bytes], share: float, late: bool) -> None:
        """Give one command until it ends by itself, killing it once or more; judge what comes out."""
        kills, earlier = [], set()
        kill_at: float | None = share * (result.tail_seconds if late else result.seconds)
        result.cases += 1
        for number in range(20):
            known = set(place.finished())
            victims = [(0,), (1,), (0, 1)][self.random.randrange(3)] if place.mode == "ranks" else (0,)
            attempt = run_attempt(place, number, kill_at, victims, late=late)
            now = place.finished()
            new = [block for name in now.keys() - known for block in now[name]]
            result.computed_again += len(earlier.intersection(new)) + len(new) - len(set(new))
            if again := earlier.intersection(new):
                result.problems.append(f"{place.folder.name}: finished blocks {sorted(again)[:5]} were computed again")
            earlier.update(new)
            result.finished_blocks += len(new)
            codes = [process.code for process in attempt.processes]
            if not attempt.killed:
                if number == 0 and not late:  # the machine has become faster
                    result.seconds = attempt.seconds
                break
            kills.append((round(kill_at or 0, 3), attempt.phase, victims))
            result.phases[attempt.phase] += 1
            result.hung += attempt.hung
            result.noticed += attempt.noticed
            for rank, process in enumerate(attempt.processes):
                if rank not in victims:
                    lines = process.log.read_text().strip().splitlines()[-1:] or ["nothing"]
                    result.said[f"{process.code}: {shorten(lines[0], place)}"] += 1
            again = self.random.random() < 0.35
            kill_at, late = (result.seconds * self.random.random() if again else None), False
        result.kills += len(kills)
        problem = ""
        if any(codes):
            problem = f"exit codes {codes}: " + " | ".join(p.log.read_text()[-600:] for p in attempt.processes)
        elif fetch_latents(place, self.client) != wanted:
            problem = "other data sets"
        elif left := leftovers(place, self.client):
            problem = f"left {left[:4]}"
        if problem:
            result.problems.append(f"{place.folder.name} killed at {kills}: {problem}")
        else:
            result.resumed_equal += len(kills)
            shutil.rmtree(place.folder)


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder that may go at any time."""
    with contextlib.suppress(OSError):
        return [folder / name for name in os.listdir(folder)]
    return []


def is_begun(output: Path) -> bool:
    """Return whether a latents file is there, or on its way."""
    return output.exists() or partial_folder(output).exists()


def shorten(line: str, place: Place) -> str:
    """Return a line without what differs from case to case."""
    return "".join("#" if c.isdigit() else c for c in line.replace(str(place.folder), "..."))[:160]


def save_weights(path: Path) -> None:
    """Write the weights of an untrained network."""
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    save_pth(path, make_net(compose("extract", TINY)), options={}, epoch=0)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def show_progress(result: Result, kills: int) -> None:
    """Say now and then how far it is."""
    if result.cases % 10 == 0:
        print(f"  {result.mode}: {result.kills} of {kills} kills, {len(result.problems)} problems", flush=True)


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    print(
        f"{'mode':8s} {'kills':>6s} {'equal':>6s} {'finished':>9s} {'again':>6s} {'hung':>5s}  where the kills landed"
    )
    for r in results:
        where = ", ".join(f"{name} {count}" for name, count in r.phases.most_common())
        print(f"{r.mode:8s} {r.kills:6d} {r.resumed_equal:6d} {r.finished_blocks:9d} {r.computed_again:6d} {r.hung:5d}"
              f"  {where}")  # fmt: skip
        if r.noticed:
            print(f"{'':8s} the other process ended by itself within {max(r.noticed):.1f} s, in {len(r.noticed)} cases")
        for line, count in r.said.most_common(8):
            print(f"{'':8s} {count:4d} x {line}")
        for problem in r.problems:
            print(f"{'':8s} PROBLEM {problem}")


@contextlib.contextmanager
def s3_client(wanted: bool) -> Iterator[object]:
    """Run an S3 service, which the environment then names."""
    if not wanted:
        yield None
        return
    for name in OTHERS:
        os.environ.pop(name, None)
    with start_moto() as endpoint:
        os.environ.update({**ENV, **ISOLATION, "AWS_ENDPOINT_URL": endpoint})
        yield Service(endpoint, is_moto=True).client()


def serve() -> int:
    """Start processes for a test: a request is a line of JSON, and so is the answer, until the input ends.

    `{"args": [...], "folder": ..., "log": ..., "env": {...}, "slow": 0.1}` starts an extraction, `{"kills": 10, ...}`
    a short run of this program; both answer with the pid. `{"poll": pid}` answers with the exit code or null.
    """
    processes: dict[int, Process] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            process = processes[request["poll"]]
            process.poll(0.0)
            print(json.dumps(process.code), flush=True)
            continue
        if "kills" in request:
            call = partial(main, ["--kills", str(request["kills"]), "--out", request["out"]])
        else:
            call = partial(extract, request["args"], request.get("slow", 0.0))
        process = fork(call, Path(request["folder"]), Path(request["log"]), request.get("env", {}))
        processes[process.pid] = process
        print(process.pid, flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="over all modes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--serve", action="store_true", help="start processes for the tests")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "chaos.json")
    args = parser.parse_args(argv)
    modes = args.modes.split(",")
    compose("extract", TINY)  # reads the grammar of overrides, once for all
    if args.serve:
        return serve()
    nenya.storage.s3.service.PART_SIZE = 16 * 1024  # so that these small files, too, go in several parts
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="nenya-chaos-"))
    with s3_client("s3" in modes) as client:
        chaos = Chaos(folder, args.seed, client, "chaos")
        chaos.prepare(s3="s3" in modes)
        share = [args.kills // len(modes) + (i < args.kills % len(modes)) for i in range(len(modes))]
        results = [chaos.run(mode, kills) for mode, kills in zip(modes, share, strict=True)]
    show(results)
    good = all(result.good for result in results)
    if good:
        shutil.rmtree(folder)
    else:
        print(f"the folders of the cases that went wrong are in {folder}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    about = {"seed": args.seed, "seconds": round(time.monotonic() - start, 1), "date": time.strftime("%Y-%m-%d")}
    table = [{**vars(result), "noticed": max(result.noticed, default=None)} for result in results]
    args.out.write_text(json.dumps({"good": good, **machine, **about, "modes": table}, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
