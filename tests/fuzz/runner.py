"""Cases in processes of their own, under limits; each gives an outcome, in capitals where it must not be.

A case may be read, or refused with one line of a `NenyaError`. It must not crash, hang, take much memory, raise
anything else, write beside its own folder, read a file that lies elsewhere, start a program, or give numbers that
nothing wrote.
"""

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
CORPUS = Path(__file__).with_name("corpus")
SECONDS, WAIT = 12, 120  # of computing; and of waiting, which other work on the machine makes longer
HUGE = 600 * 2**20  # bytes that no case may need more
ROOM = 3 * 2**30  # of address space more than the libraries take
LARGEST = 256 * 2**20  # bytes of a file that a case writes
SECRET = np.float32(7777.125)
UNWRITTEN = 0x5A  # glibc fills memory with it that nothing has written yet
_WORD = np.uint32(UNWRITTEN * 0x01010101)


class Result(NamedTuple):
    """What came of a case."""

    target: str
    case: str
    outcome: str
    line: str = ""
    seconds: float = 0.0
    grown: int = 0

    @property
    def bad(self) -> bool:
        """Whether it must not be."""
        return self.outcome.isupper()


def run(cases: Iterable[tuple[str, int | str]]) -> list[Result]:
    """Read cases, and return what came of them in their order.

    Args:
        cases: target and number of a case, negative for a good file as it is, or target and file of the corpus.
    """
    cases = list(cases)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, tempfile.TemporaryFile("w+") as log:
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            "MALLOC_PERTURB_": str(UNWRITTEN ^ 0xFF),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **dict.fromkeys(("HOME", "TMPDIR"), folder),
        }
        command = [sys.executable, "-X", "faulthandler", "-m", "fuzz.runner", "--work", folder]
        done = subprocess.run(
            command,
            input=json.dumps(cases),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            log.seek(0)
            raise RuntimeError(log.read()[-4000:])
    return [Result(*values) for values in json.loads(done.stdout)]


def corpus(target: str | None = None) -> list[tuple[str, str]]:
    """Return target and path of each case that went wrong once."""
    return [(path.parent.name, str(path)) for path in sorted(CORPUS.glob(f"{target or '*'}/*")) if path.is_file()]


# In the process that starts a process for each case


def _work(cases: list[tuple[str, int | str]], folder: Path) -> list[Result]:
    from fuzz.targets import TARGETS

    outside = folder / "outside"
    _plant(outside)
    results: list[Result] = []
    seeds: dict[Any, Path] = {}
    names = list(dict.fromkeys(target for target, _ in cases))
    for name in names:
        target = TARGETS[name]
        target.load()
        left = [case for own, case in cases if own == name]
        if target.write not in seeds:
            seeds[target.write] = place = folder / f"seeds-{len(seeds)}"
            place.mkdir()
            _in_child(lambda target=target, place=place: target.write(place))
        while left:
            group = left[: target.batch]
            done = _batch(name, group, folder, seeds[target.write])
            results += done
            left = left[len(done) :]
    order = {tuple(case): number for number, case in enumerate(map(tuple, cases))}
    return sorted(results, key=lambda result: order[result.target, _key(result.case)])


def _key(case: str) -> int | str:
    return int(case) if case.removeprefix("-").isdecimal() else case


def _plant(outside: Path) -> None:
    """Make files that a case must neither read nor change."""
    import h5py

    outside.mkdir()
    with h5py.File(outside / "secret.h5", "w") as file:
        for name, shape in {"train": (60, 1, 16, 16), "valid": (22, 1, 16, 16), "flat": (60, 12)}.items():
            file[name] = np.full(shape, SECRET, np.float32)
    (outside / "secret.raw").write_bytes(np.full(2**16, SECRET, np.float32).tobytes())
    _look(outside)


def _look(outside: Path) -> dict[str, tuple[int, int]]:
    """Return name -> size and time of change, and forget when each was read."""
    found = {}
    for path in sorted(outside.rglob("*")):
        status = path.stat()
        found[str(path)] = status.st_size, status.st_mtime_ns
        os.utime(path, ns=(0, status.st_mtime_ns))  # as the time of reading is only noted if it is older
    return found


def _was_read(outside: Path) -> str:
    return next((path.name for path in outside.glob("*") if path.stat().st_atime_ns != 0), "")


def _in_child(work: Any) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the files to start from could not be written")


def _batch(name: str, cases: list[int | str], folder: Path, seeds: Path) -> list[Result]:
    """Read some cases in one process; where it ends before all are done, the last result says how."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            _child(name, cases, folder, seeds, writer)
            code = 0
        except BaseException:  # of the cases themselves
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writer)
    outside, results, before = folder / "outside", [], _look(folder / "outside")
    log = Path("/proc/self/fd/2")
    said = len(log.read_bytes())
    with os.fdopen(reader, "rb") as pipe:
        for case in cases:
            found = _answer(pipe, pid)
            if isinstance(found, str):
                end = _end(pid)
                if end == "exit 1":  # not a crash, but an error of the cases themselves
                    raise RuntimeError(f"{name} {case}")
                found = "HANG" if end == "SIGXCPU" else found
                text = log.read_bytes()[said:][-1500:].decode(errors="replace")
                results.append(Result(name, str(case), found, f"{end} {text}"))
                break
            result = Result(name, str(case), *found)
            if (after := _look(outside)) != before:
                result = result._replace(outcome="WROTE", line=f"{set(after.items()) ^ set(before.items())}")
                shutil.rmtree(outside)
                _plant(outside)
                before = _look(outside)
            results.append(result)
        else:
            os.waitpid(pid, 0)
    for path in folder.glob("case*"):
        shutil.rmtree(path, ignore_errors=True)
    return results


def _answer(pipe: Any, pid: int) -> list[Any] | str:
    """Return the values of the next case, or CRASH or HANG."""
    ready, _, _ = select.select([pipe], [], [], WAIT)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        return "HANG"
    line = pipe.readline()
    return json.loads(line) if line.endswith(b"\n") else "CRASH"


def _end(pid: int) -> str:
    status = os.waitpid(pid, 0)[1]
    number = os.waitstatus_to_exitcode(status)
    return f"{signal.Signals(-number).name}" if number < 0 else f"exit {number}"


# In the process of a case


def _child(name: str, cases: list[int | str], folder: Path, seeds: Path, writer: int) -> None:
    from fuzz.targets import TARGETS

    seen: list[tuple[str, str]] = []
    _watch(folder, seen)
    for case in cases:
        own = folder / f"case-{os.getpid()}-{len(list(folder.glob('case*')))}"
        (own / "in").mkdir(parents=True)
        os.chdir(own)
        target = TARGETS[name]
        if isinstance(case, str):
            path = target.place(Path(case), own / "in")
        else:
            rng = np.random.default_rng([zlib.crc32(name.encode()), abs(case)])
            path = target.make(seeds, own / "in", rng, case, folder / "outside")
        seen.clear()
        values = _one(target, path, folder / "outside", seen)
        if isinstance(case, str) and Path(case).name.startswith("refused") and values[0] == "read":
            values = ("ACCEPTED", *values[1:])
        os.write(writer, (json.dumps(values) + "\n").encode())
        shutil.rmtree(own, ignore_errors=True)


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _one(target: Any, path: Path, outside: Path, seen: list[tuple[str, str]]) -> tuple[str, str, float, int]:
    """Return outcome, line, seconds and bytes of a case."""
    from nenya.errors import NenyaError

    own, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_CPU, int(own.ru_utime + own.ru_stime) + SECONDS)
    _limit(resource.RLIMIT_FSIZE, LARGEST)
    _limit(resource.RLIMIT_AS, size + ROOM)
    Path("/proc/self/clear_refs").write_text("5")  # the most memory, from here on
    _look(outside)
    before, values, line = _resident(), None, ""
    try:
        outcome, values = "read", target.read(path)
        if isinstance(values, str):
            line, values = values, []
    except NenyaError as error:
        outcome, line = "refused", str(error)
        if len(line.splitlines()) != 1 or len(line) > 20_000:
            outcome, line = "LINES", line[:300]
    except BaseException as error:
        outcome, line = "RAISED", f"{type(error).__name__}: {error} {_where(error)}"[:500]
    grown = _resident("VmHWM") - before
    _limit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1])
    if grown > HUGE:
        outcome, line = "HUGE", f"{grown >> 20} MiB; {outcome}: {line}"
    elif seen:
        outcome, line = seen[0]
    elif name := _was_read(outside):
        outcome, line = "STOLE", f"{name} was read; {outcome}: {line}"
    elif wrong := _leak(values, path):
        outcome, line = wrong
    return outcome, line, round(time.monotonic() - start, 3), grown


def _where(error: BaseException) -> str:
    """Return the innermost lines of a traceback, nenya's among them."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "nenya" in frame.filename]
    shown = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-2:], *frames[-1:])]
    return "at " + " > ".join(dict.fromkeys(shown))


def _resident(name: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _watch(folder: Path, seen: list[tuple[str, str]]) -> None:
    """Note what a case does that no reader may: write elsewhere, start a program, unpickle a function."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and list(arguments[1])[:2] in (["git", "rev-parse"], ["git", "describe"]):
            return  # of the folder that nenya itself lies in
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect"):
            seen.append(("RAN", f"{event} {arguments[:2]!r}"[:300]))
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                _judge(os.fsdecode(arguments[0]), "open")
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
            for name in arguments[:2]:
                if isinstance(name, str | bytes | os.PathLike):
                    _judge(os.fsdecode(name), event)

    def _judge(name: str, event: str) -> None:
        place = os.path.realpath(name)
        if not place.startswith((f"{folder}/case", "/dev/", "/proc/")):
            if f"{folder}/outside" in place or not place.startswith(str(folder)):
                seen.append(("WROTE", f"{event} {place}"[:300]))

    sys.addaudithook(hook)


def _leak(values: Any, path: Path) -> tuple[str, str] | None:
    """Find what was never written, or lies in the files that are none of the case's."""
    arrays = [np.ascontiguousarray(value) for value in values or () if isinstance(value, np.ndarray)]
    arrays = [array for array in arrays if array.dtype.kind in "fiuV" and array.size]
    if any((array == SECRET).any() for array in arrays if array.dtype.kind == "f"):
        return "STOLE", "a number of another file came back"
    for array in arrays:
        if array.dtype.itemsize == 4:
            count = int((array.view(np.uint32) == _WORD).sum())
        elif array.dtype == np.float64:
            count = int((array == np.float64(_WORD.view(np.float32))).sum())
        else:
            count = 0
        if count and b"ZZZZ" not in _all_bytes(path):
            return "LEAKED", f"{count} of {array.size} numbers were never written"
    return None


def _all_bytes(path: Path) -> bytes:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return b"".join(item.read_bytes() for item in files)


def table(results: list[Result]) -> str:
    """Return target, cases and outcomes as text."""
    outcomes = sorted({result.outcome for result in results}, key=lambda name: (name.isupper(), name))
    counts = Counter((result.target, result.outcome) for result in results)
    lines = [f"{'target':18} {'cases':>6} " + " ".join(f"{name:>9}" for name in outcomes) + "  slowest   memory"]
    for name in dict.fromkeys(result.target for result in results):
        own = [result for result in results if result.target == name]
        row = " ".join(f"{counts[name, outcome]:9}" for outcome in outcomes)
        slowest, most = max(r.seconds for r in own), max(r.grown for r in own) >> 20
        lines.append(f"{name:18} {len(own):6} {row} {slowest:6.2f} s {most:4} MiB")
    return "\n".join(lines)


def main() -> None:
    """Read the cases FIRST to STOP of a target (or of `all`), or `corpus`, and print what came of them."""
    if sys.argv[1] == "--work":
        answers = _work(json.load(sys.stdin), Path(sys.argv[2]))
        sys.stdout.write(json.dumps(answers))
        return
    from fuzz.targets import NAMES

    name, *numbers = sys.argv[1:]
    chosen = list(NAMES) if name in ("all", "corpus") else [name]
    if name == "corpus":
        cases: list[tuple[str, int | str]] = [*corpus()]
    else:
        cases = [(target, number) for target in chosen for number in range(*map(int, numbers))]
    results = run(cases)
    for result in results:
        if result.bad:
            print(result.target, result.case, result.outcome, result.line[-700:])  # noqa: T201
    print(table(results))  # noqa: T201


if __name__ == "__main__":
    main()
