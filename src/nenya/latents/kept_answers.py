"""Answers of an interrupted command, kept beside its output for the next run with the same inputs.

An answer lies in a file of its own, in a folder named by a digest of all inputs. It is either complete or absent: files
are renamed when their bytes are on the disk, and a checksum tells a damaged one. Other inputs have another digest, so
that nothing of theirs is taken.
"""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.latents.files import Latents
from nenya.runtime.process import RowProgress
from nenya.storage.disk import atomic_path
from nenya.storage.small_files import refuse_links

log = logging.getLogger(__name__)

_CHECK = 4  # bytes of the checksum


class KeptAnswers:
    """Answers by name, of one set of inputs.

    Args:
        folder: of all inputs, created with the first answer; None keeps nothing.
        inputs: a digest of everything that the answers depend on; see `digest`.

    Raises:
        OutputError: The folder is a link or holds one.
    """

    def __init__(self, folder: Path | None = None, inputs: str = "") -> None:
        self.folder = None if folder is None else refuse_links(folder)
        self._own = None if folder is None else folder / inputs

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
        """Remove the answers of all inputs: the output is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Remove the answers if the work inside finds that its input or its options cannot be right."""
        try:
            yield
        except (InputFileError, OptionError):
            self.remove()
            raise


def digest(latents: Iterable[Latents], settings: object, arrays: Iterable[NDArray[Any]]) -> str:
    """Return a digest of inputs: files (name, size, time of the last change), settings and arrays.

    Args:
        latents: whose files count.
        settings: whose text counts.
        arrays: of numbers.
    """
    found = hashlib.sha256(f"{nenya.__version__}\n{settings}\n".encode())
    for one in latents:
        for path in dict.fromkeys(part.path for part in one.parts):
            state = path.stat()
            found.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    for values in arrays:
        found.update(f"{values.dtype} {values.shape}\n".encode())
        found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()[:32]


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
        work: returns the numbers of the rows of a piece, given its place among the pieces.
        kept: answers of an interrupted run, which are taken; those found here are added.
        name: of the work and of its answers.
        visible: whether progress is shown.
    """
    found, still = np.full(count, np.nan), []
    for number, rows in enumerate(pieces):
        values = np.empty(len(rows))
        if kept.take_numbers(f"{name}-{number:08d}", values):
            found[rows] = values
        else:
            still.append(number)
    total, left = sum(map(len, pieces)), sum(len(pieces[number]) for number in still)
    if left < total and visible:
        log.info("resuming: %s of %d of %d rows is already known", name, total - left, total)
    with RowProgress(name, total, before=total - left, visible=visible) as progress:
        for number in still:
            found[pieces[number]] = values = work(number)
            kept.keep_numbers(f"{name}-{number:08d}", values)
            progress.advance(len(values))
    return found
