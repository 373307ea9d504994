"""Reads untrusted images in sandboxed processes (`nenya.portal.jailed`), one process per file.

Their answers are untrusted too: a bounded JSON header and the bytes of one float32 array.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.portal.images import SIDES, checked
from nenya.portal.jailed import LENGTH, MOST_HEADER
from nenya.portal.upload import Given
from nenya.storage.texts import shown

log = logging.getLogger(__name__)

AT_ONCE = 2  # files read at the same time
_START = 60.0  # seconds within which a process must load its readers
_PIECE = 2**18  # bytes written or read at once
_BOOT = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); from nenya.portal.jailed import main; main()"
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")  # needed by Python to start
_ENVIRONMENT = {
    **{
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    },  # the sandbox applies to one thread
    **{"LC_ALL": "C.UTF-8", "HDF5_PLUGIN_PRELOAD": "::", "PYTHONDONTWRITEBYTECODE": "1"},
}


class Broken(Exception):
    """A process ended, or gave an invalid answer."""


class Late(Exception):
    """A process took too long."""


class Stopped(Exception):
    """The answer is no longer needed."""


class _Child:
    """One sandboxed process."""

    def __init__(self, arguments: Sequence[str]) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _ENVIRONMENT
        paths = [path for path in sys.path if os.path.isabs(path)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, "\n".join(paths), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,  # Ctrl-C must reach the server only
        )
        self.closed = False

    def wait_ready(self) -> None:
        """Wait until the process has entered its sandbox.

        Raises:
            Broken: It ended.
            Late: It took too long.
        """
        header, _ = self.talk((), _START, threading.Event())
        walls = header.get("closed")
        self.closed = isinstance(walls, dict) and all(walls.get(way) is True for way in ("files", "network"))

    def talk(self, request: Sequence[Any], seconds: float, stop: threading.Event) -> tuple[dict[str, Any], bytes]:
        """Send the pieces of a request; return header and body of the answer.

        Raises:
            Broken: The process ended, or its answer is invalid.
            Late: It took too long.
            Stopped: `stop` was set.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        into, out, end = self.process.stdin.fileno(), self.process.stdout.fileno(), time.monotonic() + seconds
        left, answer = [memoryview(piece) for piece in request], _Answer()
        os.set_blocking(into, False)
        with selectors.DefaultSelector() as ways:
            ways.register(out, selectors.EVENT_READ)
            if left:
                ways.register(into, selectors.EVENT_WRITE)
            while not answer.whole:
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > end:
                    raise Late
                for key, _ in ways.select(0.1):
                    if key.fd == out:
                        answer.take(os.read(out, _PIECE))
                    elif not _write(into, left):
                        ways.unregister(into)
        assert answer.header is not None
        return answer.header, bytes(answer.data)

    def end(self) -> int:
        """End the process, and return its return code as `subprocess` does."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return self.process.wait()

    def ended(self) -> int:
        """Return the return code of a process that closed its pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(1)
        return 0


def _write(into: int, left: list[memoryview]) -> bool:
    """Write from `left` as much as the pipe accepts; return whether data remain."""
    with contextlib.suppress(BlockingIOError):
        try:
            left[0] = left[0][os.write(into, left[0][:_PIECE]) :]
        except BrokenPipeError:
            left.clear()  # the answer or the end of the reader is still to be read
        while left and not left[0]:
            left.pop(0)
    return bool(left)


class _Answer:
    """A partial answer: length of the header, header, and body."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.data, self._size = bytearray(), LENGTH.size

    @property
    def whole(self) -> bool:
        """Whether the answer is complete."""
        return self.header is not None and len(self.data) == self._size

    def take(self, piece: bytes) -> None:
        """Read the next bytes.

        Raises:
            Broken: The stream ended, or the answer is invalid.
        """
        self.data += piece
        if not piece or len(self.data) > LENGTH.size + MOST_HEADER + 4 * SIDES[1] ** 2:
            raise Broken
        if self.header is None and len(self.data) >= LENGTH.size:
            self._size = LENGTH.size + LENGTH.unpack_from(self.data)[0]
            if self._size > LENGTH.size + MOST_HEADER:
                raise Broken
            if len(self.data) >= self._size:
                self._parse()
        if self.header is not None and len(self.data) > self._size:
            raise Broken

    def _parse(self) -> None:
        try:
            header = json.loads(self.data[LENGTH.size : self._size])
        except (ValueError, RecursionError) as error:
            raise Broken from error
        side = header.get("side", 0) if isinstance(header, dict) else None
        if type(side) is not int or not (side == 0 or SIDES[0] <= side <= SIDES[1]):
            raise Broken
        del self.data[: self._size]
        self.header, self._size = header, 4 * side * side


def _image(header: dict[str, Any], body: bytes, *, masked: bool) -> Given:
    """Return the image of an answer, or raise its error.

    Raises:
        InputFileError, OptionError: The file holds no valid image.
        MemoryError: It needed too much memory.
        Broken: The answer is invalid.
    """
    if "error" in header:
        text = shown(header.get("text"), 500)
        kinds = {"input": InputFileError(text), "option": OptionError(text), "memory": MemoryError()}
        raise kinds.get(str(header["error"])) or Broken
    source, side = header.get("source"), header.get("side")
    if not side or not isinstance(source, str):
        raise Broken
    return Given(checked(np.frombuffer(body, "<f4").reshape(side, side), masked=masked), shown(source, 200))


class Jail:
    """Reads untrusted files. One process with loaded readers waits for the next file, reads it and ends.

    Args:
        memory_mb: memory limit of reading a file.
        seconds: time limit of reading a file.
        walls: False disables the sandbox, as on systems without one.
        reader: module of `read_image`.
    """

    def __init__(
        self, memory_mb: int = 512, seconds: int = 20, *, walls: bool = True, reader: str = "nenya.portal.upload"
    ) -> None:
        self._memory_mb, self._seconds = memory_mb, seconds
        self._arguments = [reader, str(memory_mb * 10**6), str(seconds), str(int(walls))]
        self._starter = ThreadPoolExecutor(
            1, thread_name_prefix="jail"
        )  # a permanent thread, as processes end with their parent thread
        self.threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload")
        self._lock, self._shut = threading.Lock(), False
        self._closed: bool | None = None
        self._waiting: list[_Child] = []
        self._all: set[_Child] = set()
        weakref.finalize(self, _end_all, self._all)

    def start(self) -> None:
        """Start a waiting process if there is none."""
        with self._lock:
            if not self._shut and not self._waiting:
                self._starter.submit(self._refill)

    @property
    def closed(self) -> bool:
        """Whether processes are sandboxed on this system (no files, no network); waits for the first one to start.

        Raises:
            OptionError: No process can be started.
        """
        if self._closed is None:
            child = self._take()
            with self._lock:
                spare = bool(self._waiting) or self._shut
                if not spare:
                    self._waiting.append(child)
            if spare:
                self._end(child)
            self._closed = child.closed
        return self._closed

    def read(
        self,
        name: str,
        data: bytes | bytearray,
        row: str = "0",
        scale: Sequence[str] = ("", ""),
        stop: threading.Event | None = None,
        *,
        masked: bool = False,
    ) -> Given:
        """Return the image in the bytes of a file, as `nenya.portal.upload.read_image` does.

        Args:
            name: of the file.
            data: the bytes.
            row: row of the image in a file of several.
            scale: of PNG.
            stop: ends the work when set.
            masked: whether pixels may be NaN.

        Raises:
            InputFileError: It holds no valid image, or takes too much memory or time.
            OptionError: The row or the scale is invalid, or no process can be started.
            Stopped: `stop` was set.
        """
        asked = {"name": name[-200:], "size": len(data), "row": row[:20], "scale": [text[:40] for text in scale]}
        if masked:
            asked["masked"] = True
        text = json.dumps(asked).encode()
        child = self._take()
        try:
            request = LENGTH.pack(len(text)) + text, data
            return _image(*child.talk(request, self._seconds, stop or threading.Event()), masked=masked)
        except MemoryError:
            why = f" within {self._memory_mb} MB of memory: save one image alone"
        except Late:
            why = self._late
        except Broken:
            why = self._why_ended(child)
        finally:
            self._end(child)
            self.start()
        raise InputFileError(f"the image could not be read{why}")

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._shut = True
            children = list(self._all)
        for child in children:
            child.process.kill()  # a waiting caller sees its end
        for pool in (self.threads, self._starter):
            pool.shutdown(cancel_futures=True)
        _end_all(self._all)

    @property
    def _late(self) -> str:
        return f" within {self._seconds} seconds: save one image alone, without compression"

    def _why_ended(self, child: _Child) -> str:
        how = child.ended()
        if how == -signal.SIGXCPU:
            return self._late
        named = f" ({signal.Signals(-how).name})" if how < 0 else ""
        return f": the process that read it died{named}; the file is damaged or malicious"

    def _take(self) -> _Child:
        """Return a ready process."""
        with self._lock:
            if self._shut:
                raise OptionError("the portal is shutting down")
            while self._waiting:
                child = self._waiting.pop()
                if child.process.poll() is None:
                    return child
                child.end()
                self._all.discard(child)
        try:
            return self._starter.submit(self._started).result()
        except NenyaError:
            raise
        except (Broken, Late, OSError) as error:
            raise OptionError("the process that reads images cannot be started; see the server's log") from error

    def _started(self) -> _Child:
        """Start a process, and wait until it is ready."""
        child = _Child(self._arguments)
        with self._lock:
            self._all.add(child)
            shut = self._shut
        if shut:
            self._end(child)
            raise OptionError("the portal is shutting down")
        try:
            child.wait_ready()
        except BaseException as error:
            log.warning("portal: the process that reads images did not start (%s)", type(error).__name__)
            self._end(child)
            raise
        if self._closed is None and not child.closed:
            log.warning(
                "portal: this system has no sandbox for reading images: uploads are accepted from this machine only, "
                "unless upload= allows others"
            )
        self._closed = child.closed
        return child

    def _refill(self) -> None:
        if self._waiting or self._shut:
            return
        with contextlib.suppress(Broken, Late, OSError, OptionError):
            child = self._started()
            with self._lock:
                if not self._shut and not self._waiting:
                    self._waiting.append(child)
                    return
            self._end(child)

    def _end(self, child: _Child) -> None:
        child.end()
        with self._lock:
            self._all.discard(child)


def _end_all(children: set[_Child]) -> None:
    for child in list(children):
        child.end()
        children.discard(child)
