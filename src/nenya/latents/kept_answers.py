"""Answers of an interrupted command, or of its shards, kept beside its output for the next run with the same inputs.

An answer lies in a file of its own, in a folder named by a digest of all inputs. It is either complete or absent: files
are renamed when their bytes are on the disk, and a checksum tells a damaged one. Other inputs have another digest, so
that nothing of theirs is taken.
"""

import hashlib
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.latents.files import Latents
from nenya.runtime.blas import in_order
from nenya.runtime.process import RowProgress
from nenya.runtime.shards import Share, missing_shards
from nenya.storage.disk import atomic_path
from nenya.storage.lock import OutputLock, holder_of
from nenya.storage.small_files import refuse_links

log = logging.getLogger(__name__)

_CHECK = 4  # bytes of the checksum
_BEGUN = "shared-among-"  # name of the answer that tells the number of workers
_MOMENT = 0.2  # seconds between looks for what another worker makes
_FAILURES = 20  # to take a lock that nobody holds

SHARDS = ".shards"
"""End of the name of the folder in which the shards of an output keep their answers."""


class KeptAnswers:
    """Answers by name, of one set of inputs.

    Args:
        folder: of all inputs, created with the first answer; None keeps nothing.
        inputs: a digest of everything that the answers depend on; see `digest`.
        share: of this worker, None if it does everything.

    Raises:
        OutputError: The folder is a link or holds one.
    """

    def __init__(self, folder: Path | None = None, inputs: str = "", share: Share | None = None) -> None:
        self.folder = None if folder is None else refuse_links(folder)
        self.share = share
        self._own = None if folder is None else folder / inputs
        self._lock: OutputLock | None = None

    @property
    def place(self) -> Path:
        """The folder of these inputs."""
        assert self._own is not None
        return self._own

    def owns(self, piece: int) -> bool:
        """Return whether this process finds the answer of a piece: any, or those of its share."""
        return self.share is None or self.share.owns(piece)

    @contextmanager
    def working(self, output: str) -> Iterator[None]:
        """Hold the share of this worker; without one, do nothing.

        Args:
            output: of the command, for messages.

        Raises:
            OutputError: Another process does the same share, or the folder cannot be written.
        """
        if self.share is None or self.share.merges:
            yield
            return
        number, count = self.share.number, self.share.count
        with OutputLock(self.place / f"shard-{number}-of-{count}.lock", f"shard {self.share} of {output}") as lock:
            self.keep(f"{_BEGUN}{count}", b"")
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Let one worker at a time into the block, which makes what all of them need; the others wait for it."""
        if self.share is None or self.share.merges:
            yield
            return
        lock = self._when_free(name)
        try:
            yield
        finally:
            lock.release()

    def _when_free(self, name: str) -> OutputLock:
        """Return a lock of this name, taken when no other worker holds it.

        Raises:
            OutputError: It cannot be written.
        """
        failed = 0
        while True:
            lock = OutputLock(self.place / f"{name}.lock", f"{name} of {self.folder}")
            try:
                lock.take()
                return lock
            except OutputError:
                failed = failed + 1 if holder_of(lock.path) is None else 0
                if failed > _FAILURES:
                    raise
                time.sleep(_MOMENT)

    def refuse_missing(self, missing: Collection[int], total: int) -> None:
        """Refuse a merge with missing pieces.

        Raises:
            OutputError: It names the shards that are to be run.
        """
        if missing and self.share is not None and self.share.merges:
            output = "" if self.folder is None else str(self.folder).removesuffix(SHARDS)
            raise missing_shards(output, missing, total, self._workers())

    def refuse_all(self) -> None:
        """Refuse a merge if no shard is complete.

        Raises:
            OutputError: It names the shards.
        """
        self.refuse_missing(range(max(1, self._workers())), 0)

    def _workers(self) -> int:
        """Return the number of workers that last began to share the work, 0 if none did."""
        if self._own is None or not self._own.is_dir():
            return 0
        begun = [path for path in self._own.glob(f"{_BEGUN}*") if path.name.removeprefix(_BEGUN).isdecimal()]
        last = max(begun, key=lambda path: path.stat().st_mtime_ns, default=None)
        return 0 if last is None else int(last.name.removeprefix(_BEGUN))

    def check(self) -> None:
        """Check that the folder of a shard is still its own: a merge may have removed it.

        Raises:
            LockLostError: It is not.
        """
        if self._lock is not None:
            self._lock.check()

    def take(self, name: str) -> bytes | None:
        """Return an answer; None if it is absent or damaged."""
        if self._own is None:
            return None
        try:
            data = (self._own / name).read_bytes()
        except OSError:
            return None
        body, check = data[:-_CHECK], data[-_CHECK:]
        return body if zlib.crc32(body).to_bytes(_CHECK, "little") == check else None

    def keep(self, name: str, answer: bytes) -> None:
        """Keep an answer.

        Raises:
            OutputError: It cannot be written.
        """
        if self._own is None:
            return
        self.check()
        path = self._own / name
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(answer + zlib.crc32(answer).to_bytes(_CHECK, "little"))
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def take_numbers(self, name: str, out: NDArray[np.float64]) -> bool:
        """Fill in an array from an answer; False if it is absent, damaged, or of another size."""
        data = self.take(name)
        if data is None or len(data) != out.nbytes:
            return False
        out[...] = np.frombuffer(data, "<f8").reshape(out.shape)
        return True

    def keep_numbers(self, name: str, values: NDArray[np.float64]) -> None:
        """Keep an array as an answer."""
        self.keep(name, np.ascontiguousarray(values, "<f8").tobytes())

    def remove(self) -> None:
        """Remove the answers, as the output is complete; shards with other inputs stay, as workers may be at them."""
        if self.folder is None:
            return
        if self.share is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self.remove_own()
        if self.folder.is_dir():
            log.info(
                "%s: kept the shards of other files or options; remove the folder if nobody needs them", self.folder
            )

    def remove_own(self) -> None:
        """Remove the answers of these inputs, and the folder of all inputs if no others are there."""
        shutil.rmtree(self.place, ignore_errors=True)
        with suppress(OSError):  # it holds others
            self.place.parent.rmdir()

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Remove the answers if the work inside finds that its input or its options cannot be right."""
        try:
            yield
        except (InputFileError, OptionError):
            if self.share is None:
                self.remove()
            raise


def digest(latents: Iterable[Latents], settings: object, arrays: Iterable[NDArray[Any]]) -> str:
    """Return a digest of inputs: files (name, size, time of the last change), settings and arrays.

    Args:
        latents: the states of their files are part of the digest.
        settings: as text.
        arrays: of numbers.
    """
    found = hashlib.sha256(f"{nenya.__version__}\n{settings}\n".encode())
    for one in latents:
        for state in one.states():
            found.update(f"{state}\n".encode())
    for values in arrays:
        found.update(f"{values.dtype} {values.shape}\n".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:32]


def answer_of(name: str, number: int) -> str:
    """Return the name of the answer of a piece of work."""
    return f"{name}-{number:08d}"


def in_pieces(
    pieces: Sequence[NDArray[np.int64]],
    count: int,
    work: Callable[[int], NDArray[np.float64]],
    kept: KeptAnswers,
    *,
    name: str,
    visible: bool = True,
) -> NDArray[np.float64]:
    """Return a number of each row, (count,) float64, found piece by piece; NaN for rows in no piece.

    Args:
        pieces: the rows of each.
        count: number of rows.
        work: returns the numbers of the rows of a piece, given its place among the pieces; it runs on several threads,
            each with matrix products of its own.
        kept: answers of an interrupted run, which are taken; those found here are added.
        name: of the work and of its answers.
        visible: whether progress is shown.
    """
    found, still = np.full(count, np.nan), []
    for number, rows in enumerate(pieces):
        values = np.empty(len(rows))
        if kept.take_numbers(answer_of(name, number), values):
            found[rows] = values
        else:
            still.append(number)
    kept.refuse_missing(still, len(pieces))
    still = [number for number in still if kept.owns(number)]
    worker = kept.share is not None and not kept.share.merges
    total = sum(len(rows) for number, rows in enumerate(pieces) if kept.owns(number) or not worker)
    left = sum(len(pieces[number]) for number in still)
    if left < total and visible:
        log.info("resuming: %s of %d of %d rows is already known", name, total - left, total)
    with RowProgress(name, total, before=total - left, visible=visible) as progress:
        answers = in_order(work, still, name=name)
        for number, values in zip(still, answers, strict=True):
            found[pieces[number]] = values
            kept.keep_numbers(answer_of(name, number), values)
            progress.advance(len(values))
    return found
