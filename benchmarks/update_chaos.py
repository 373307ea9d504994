"""Updates of an archive under `kill -9`: killed at random instants, looked at, given again.

`python benchmarks/update_chaos.py --kills 50` kills updates that begin an archive, that add to one, and that do so on
an S3 service of its own; what is new are two cutout files, one of them with a table, and two granules. After each kill
all that the archive names must be there and complete; in the mode `add` a process that opened the archive before reads
it all the while, and must find every bit as it was. The killed command is given again until it ends by itself. Then
cutouts, latents, tables, UMAP, clusters and index must be bitwise those of an archive that was built in one go, and
nothing may be left beside them. It prints a table and writes `outputs/bench/update_chaos.json`; the exit code is 1 if
one of these does not hold.

Each process is forked from this one, as in `chaos.py`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before anything is imported that makes threads

import h5py
import lance_namespace  # noqa: F401  # most of what lancedb imports, which itself starts a thread
import numpy as np
import pandas as pd
import sklearn.cluster  # noqa: F401  # for the processes to come, like the next ones
import xarray  # noqa: F401
from chaos import LIMIT, ROOT, TINY, Process, fork, s3_client, save_weights

import nenya.archive.update
import nenya.commands.status
import nenya.latents.projector
import nenya.prepare.fields
from nenya.archive.folder import Opened, open_version
from nenya.cli import run_command

MODES = ("begin", "add", "s3")
SIDE = 32
BUCKET = "archives"
_TICK = 0.002


def write_new(folder: Path) -> None:
    """Write what is new: `old_preproc.h5`, and below `new/` two cutout files, one table, two granules."""
    from granules import grid

    (folder / "new").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, path in enumerate(["old_preproc.h5", "new/a_preproc.h5", "new/b_preproc.h5"]):
        with h5py.File(folder / path, "w") as file:
            for name, rows in (("train", 48), ("valid", 16)):
                cutouts = rng.standard_normal((rows, 1, SIDE, SIDE), dtype=np.float32)
                file[name] = cutouts - cutouts.mean(axis=(2, 3), keepdims=True)
        if number < 2:
            table = pd.DataFrame({"pp_type": np.repeat([1, 0], [48, 16]), "pp_idx": [*range(48), *range(16)]})
            table["lat"], table["lon"] = rng.uniform(-60, 60, 64), rng.uniform(-180, 180, 64)
            table["datetime"] = pd.Timestamp("2012-01-01") + pd.to_timedelta(np.arange(64), unit="h")
            table["UID"] = 2**60 + 100 * number + np.arange(64)
            table.sample(frac=1, random_state=number).to_parquet((folder / path).with_suffix(".parquet"))
    for number in range(2):
        grid((64, 96), times=1, seed=number).to_netcdf(folder / "new" / f"granule{number}.nc", engine="h5netcdf")


def digest(opened: Opened) -> dict[str, str]:
    """Return name -> hash of all that an archive holds, but for dates of making and file names of the index."""
    found = {}
    for kind in ("cutouts", "latents"):
        for path in opened.paths(kind):
            with h5py.File(path) as file:
                for name in sorted(file):
                    found[f"{path.name} {name}"] = hashlib.sha256(file[name][()].tobytes()).hexdigest()
    for path in opened.paths("table"):
        table = pd.read_parquet(path)
        hashed = pd.util.hash_pandas_object(table).to_numpy().tobytes()
        found[path.name] = hashlib.sha256(repr(list(table.dtypes.items())).encode() + hashed).hexdigest()
    version = opened.version
    for entry in (version.projector, version.clusters):
        with h5py.File(opened.folder.local(entry)) as file:
            found |= {f"{entry.name} {n}": hashlib.sha256(file[n][()].tobytes()).hexdigest() for n in sorted(file)}
    rows = opened.index().table.to_arrow().sort_by("archive_row")
    flat = rows["latent"].combine_chunks().flatten().to_numpy()
    others = pd.util.hash_pandas_object(rows.drop_columns(["latent"]).to_pandas()).to_numpy()
    found["index"] = hashlib.sha256(flat.tobytes() + others.tobytes()).hexdigest()
    found["rows"] = f"{rows.num_rows} {version.index.rows}"
    files = [[f.stem, f.rows, f.left_out, f.dates, f.sources] for f in version.files]
    found["files"] = json.dumps([files, version.settings])
    return found


@dataclass
class Place:
    """Where one case works: a folder, and for S3 a prefix."""

    mode: str
    folder: Path
    new: Path
    weights: Path

    @property
    def archive(self) -> str:
        """The archive."""
        return f"s3://{BUCKET}/{self.folder.name}" if self.mode == "s3" else str(self.folder / "archive")

    def args(self) -> list[str]:
        """Return the overrides of the command."""
        place = [f"archive={self.archive}", f"loader.cache_dir={self.folder / 'cache'}"]
        if self.mode == "add":
            return [*place, "trainer.accelerator=cpu", "granules_per_file=1", "workers=1", f"new={self.new / 'new'}"]
        begin = [
            "sensor=grid",
            "field_size=32",
            "clear_threshold=100",
            "k=4",
            f"projector={self.weights.parent / 'map.h5'}",
        ]
        more = ["granules_per_file=1", "workers=1", f"new={self.new / 'new'}"]
        return [*TINY, *place, f"ckpt={self.weights}", *begin, *more]

    def old_args(self) -> list[str]:
        """Return the overrides that begin an archive with the old file."""
        args = [arg for arg in replace(self, mode="begin").args() if not arg.startswith("new=")]
        return [*args, f"new={self.new / 'old_preproc.h5'}"]

    def opened(self) -> Opened:
        """Open the archive as readers do."""
        return open_version(self.archive, None, str(self.folder / "cache-read"))


def phase(place: Place) -> str:
    """Say how far an update is, by what lies in its folder of unfinished work."""
    root = place.folder / "archive"
    if place.mode == "s3":
        root = next(iter((place.folder / "cache" / "archive").glob("*")), root)
    work = root / ".work"
    names = {str(path.relative_to(work)) for path in work.rglob("*")} if work.is_dir() else set()
    if any(name.endswith("publishing.json") and "/begin/" not in name for name in names):
        return "index and publishing"
    if any("placed.parquet" in name or "/table" in name for name in names):
        return "table"
    if any(name.endswith("clusters.h5") for name in names):
        return "fitted"
    if any(name.endswith("_latents.h5") for name in names):
        return "latents there"
    if any(".partial" in name for name in names):
        return "cutouts or latents"
    return "begun" if names - {"lock"} else "start-up or end"


def save_json(path: Path, call: Callable[[], object]) -> int:
    """Write what a call returns as JSON, for the process that waits for it."""
    path.write_text(json.dumps(call()))
    return 0


def look(place: Place) -> list[str]:
    """Return what is wrong with an archive that may be in the middle of an update."""
    folder = nenya.archive.folder.Folder(place.archive, str(place.folder / "cache"))
    if not folder.read():
        return []
    status = nenya.commands.status.status_of(place.archive, None, str(place.folder / "cache"), check=True)
    wrong = [f"{kind} {name}" for v in status.versions.values() for kind, names in
             (("missing", v.missing), ("damaged", v.damaged)) for name in names]  # fmt: skip
    opened = place.opened()
    found = digest(opened)
    latents = opened.latents()
    if len(opened.table()) != len(latents) or found["rows"] != "{0} {0}".format(len(latents)):
        wrong.append(f"{len(latents)} latents, {len(opened.table())} rows of tables, index {found['rows']}")
    return wrong


def read_on(place: Place, stop: Path) -> int:
    """Read an archive that was opened once, again and again until a file appears; 1 if anything changes."""
    opened = place.opened()
    first = digest(opened)
    stop.with_suffix(".open").touch()
    count = 0
    while not stop.exists():
        if digest(opened) != first:
            print("what was opened has changed")
            return 1
        count += 1
    print(count)
    return 0


def wait_for(process: Process, start: float) -> int:
    """Wait until a process has ended, and return its exit code."""
    while not process.poll(start):
        if time.monotonic() > start + LIMIT:
            process.kill()
        time.sleep(_TICK)
    return int(process.code or 0)


@dataclass
class Result:
    """What came of all cases of a mode."""

    mode: str
    seconds: float = 0.0
    kills: int = 0
    cases: int = 0
    equal: int = 0
    readings: int = 0
    phases: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Chaos:
    """Runs the cases.

    Args:
        folder: for all files.
        seed: of the instants.
        client: of the S3 service, None without one.
    """

    def __init__(self, folder: Path, seed: int, client: object = None) -> None:
        self.folder, self.random, self.client = folder, random.Random(seed), client
        self.new, self.weights, self.cases = folder / "files", folder / "tiny.pth", 0

    def prepare(self) -> None:
        """Write files, weights and a map, each in a process of its own, as this one must not compute."""
        start = time.monotonic()
        log = self.folder / "log"
        for call in (partial(self._do, write_new, self.new), partial(self._do, save_weights, self.weights), self._map):
            if wait_for(fork(call, self.folder, log, {}), start):
                raise RuntimeError(log.read_text())
        if self.client is not None:
            self.client.create_bucket(Bucket=BUCKET)  # type: ignore[attr-defined]

    def _do(self, call: Callable[[Path], None], path: Path) -> int:
        call(path)
        return 0

    def _map(self) -> int:
        """Write a map of made-up latents: a fit would take most of the time of a case."""
        rng = np.random.default_rng(1)
        rows = rng.standard_normal((200, 64)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        nenya.latents.projector.Projector.fit(rows, embedding=rows[:, :2] * 10).save(self.weights.parent / "map.h5")
        return 0

    def place(self, mode: str, old: Path | None) -> Place:
        """Return a new place; for `add` with an archive that has the old file."""
        self.cases += 1
        place = Place(mode, self.folder / f"{mode}-{self.cases}", self.new, self.weights)
        place.folder.mkdir()
        if old is not None:
            shutil.copytree(old, place.folder / "archive")
        return place

    def call(self, place: Place, call: Callable[[], int], name: str) -> tuple[int, str]:
        """Do something in a process and return its exit code and what it said."""
        log = place.folder / name
        code = wait_for(fork(call, place.folder, log, {}), time.monotonic())
        return code, log.read_text()

    def told(self, place: Place, call: Callable[[], object]) -> object:
        """Return what a call in a process returns."""
        path = place.folder / "told.json"
        code, said = self.call(place, partial(save_json, path, call), "told")
        if code:
            return [f"it cannot be read: {said[-600:]}"]
        return json.loads(path.read_bytes())

    def run(self, mode: str, kills: int) -> Result:
        """Kill updates of one mode until so many kills have met a running one."""
        result, old = Result(mode), None
        if mode == "add":
            first = self.place(mode, None)
            code, said = self.call(first, partial(run_command, "update", first.old_args()), "said")
            if code:
                raise RuntimeError(said)
            old = Path(first.archive)
        place, start = self.place(mode, old), time.monotonic()
        code, said = self.call(place, partial(run_command, "update", place.args()), "said")
        if code:
            raise RuntimeError(said)
        result.seconds = time.monotonic() - start
        wanted = self.told(place, lambda: digest(place.opened()))
        if not isinstance(wanted, dict):
            raise RuntimeError(str(wanted))
        order = [(i + self.random.random()) / kills for i in range(kills)]
        self.random.shuffle(order)
        while result.kills < kills:
            share = order.pop() if order else self.random.random()
            self.case(self.place(mode, old), result, wanted, share * result.seconds)
            print(f"  {mode}: {result.kills} of {kills} kills, {len(result.problems)} problems", flush=True)
        return result

    def case(self, place: Place, result: Result, wanted: dict[str, str], kill_at: float | None) -> None:
        """Give one command until it ends by itself, killing it once or more; judge what comes out."""
        result.cases += 1
        problems: list[str] = []
        kills: list[tuple[float, str]] = []
        with self.reader(place, problems, result):
            for number in range(20):
                start = time.monotonic()
                log = place.folder / f"said-{number}"
                process = fork(partial(run_command, "update", place.args()), place.folder, log, {})
                killed = False
                while not process.poll(start):
                    now = time.monotonic() - start
                    if not killed and kill_at is not None and now >= kill_at:
                        where = phase(place)
                        process.kill()
                        killed = True
                        kills.append((round(now, 3), where))
                    if now > LIMIT:
                        process.kill()
                    time.sleep(_TICK)
                if killed and process.code == -signal.SIGKILL:
                    result.kills += 1
                    result.phases[kills[-1][1]] += 1
                    problems += self.told(place, lambda: look(place))  # type: ignore[operator]
                    again = self.random.random() < 0.3
                    kill_at = result.seconds * self.random.random() if again else None
                    continue
                if process.code:
                    problems.append(f"exit code {process.code}: {log.read_text()[-600:]}")
                break
        found = self.told(place, lambda: digest(place.opened()))
        if found != wanted:
            differ = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
            problems.append(f"differs in {differ[:6]}" if isinstance(found, dict) else str(found))
        args = [f"archive={place.archive}", f"loader.cache_dir={place.folder / 'cache'}"]
        code, said = self.call(place, partial(run_command, "status", args), "status")
        if code:
            problems.append(f"status says {said[-400:]}")
        problems += self.leftovers(place)
        if problems:
            result.problems.append(f"{place.folder.name} killed at {kills}: {'; '.join(problems)}")
        else:
            result.equal += 1
            shutil.rmtree(place.folder)

    @contextlib.contextmanager
    def reader(self, place: Place, problems: list[str], result: Result) -> Iterator[None]:
        """Let a process read the archive all the while, where there is one from the start."""
        if place.mode != "add":
            yield
            return
        stop, log = place.folder / "stop", place.folder / "reader"
        start = time.monotonic()
        process = fork(partial(read_on, place, stop), place.folder, log, {})
        while not stop.with_suffix(".open").exists() and not process.poll(start):
            time.sleep(_TICK)
        try:
            yield
        finally:
            stop.touch()
            code = wait_for(process, time.monotonic())
            said = log.read_text().strip()
            if code:
                problems.append(f"the reader: {said[-400:]}")
            else:
                result.readings += int(said.splitlines()[-1])

    def leftovers(self, place: Place) -> list[str]:
        """Return what lies in an archive and is not named, but for older states of the index."""
        if place.mode == "s3":
            pages = self.client.list_objects_v2(Bucket=BUCKET, Prefix=place.folder.name + "/")  # type: ignore[attr-defined]
            start = len(place.folder.name) + 1
            names = {entry["Key"][start:] for entry in pages.get("Contents", [])}
        else:
            root = Path(place.archive)
            names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        named = {entry.name for entry in place.opened().version.entries()} | {"archive.json", ".work/lock"}
        left = [n for n in names - named if "/index/" not in n and "/index-states/" not in n]
        return [f"left {left[:4]}"] if left else []


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    print(f"{'mode':8s} {'kills':>6s} {'cases':>6s} {'equal':>6s} {'readings':>9s}  where the kills landed")
    for r in results:
        where = ", ".join(f"{name} {count}" for name, count in r.phases.most_common())
        print(f"{r.mode:8s} {r.kills:6d} {r.cases:6d} {r.equal:6d} {r.readings:9d}  {where}")
        for problem in r.problems:
            print(f"{'':8s} PROBLEM {problem}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="over all modes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench" / "update_chaos.json")
    args = parser.parse_args(argv)
    modes = args.modes.split(",")
    with tempfile.TemporaryDirectory(prefix="nenya-chaos-") as name, s3_client("s3" in modes) as client:
        chaos = Chaos(Path(name), args.seed, client)
        chaos.prepare()
        start = time.monotonic()
        results = [
            chaos.run(mode, args.kills * (i + 1) // len(modes) - args.kills * i // len(modes))
            for i, mode in enumerate(modes)
            if args.kills * (i + 1) // len(modes) > args.kills * i // len(modes)
        ]
        seconds = time.monotonic() - start
    show(results)
    found = {"seconds": round(seconds, 1), "seed": args.seed, "modes": {r.mode: r.__dict__ for r in results}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1, default=dict) + "\n")
    return 1 if any(r.problems for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
