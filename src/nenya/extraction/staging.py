"""Transfers of a batch: the next file is downloaded and the last one uploaded while the present one is extracted.

The temporary copies lie in a folder of this process below `loader.cache_dir`, and never take more than
`loader.cache_limit`. The next batch removes the folder of a killed process; latents for S3 lie where the next batch
finds them, finished or not.
"""

import contextlib
import hashlib
import logging
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from nenya.errors import InputFileError, Interrupted, NenyaError, OutputError
from nenya.extraction import existing
from nenya.extraction.job import Origin
from nenya.extraction.journal import remove_leftover
from nenya.extraction.scratch import (
    BATCH_PREFIX,
    LATENTS_FOLDER,
    LOOK_SECONDS,
    SHARE_OF_FREE,
    Scratch,
    make_locked,
    remove_abandoned,
    remove_if_empty,
)
from nenya.options.declare import parse_size
from nenya.options.sections import Options
from nenya.runtime.process import is_main_process
from nenya.runtime.signals import Termination
from nenya.storage.disk import folder_bytes, own_mark
from nenya.storage.names import local_name
from nenya.storage.paths import Source, own_place
from nenya.storage.s3.service import S3Object, store

log = logging.getLogger(__name__)

T = TypeVar("T")

_SKIPPED = "output exists and is complete (clobber=true overwrites it)"


@dataclass
class Item:
    """One file of a batch.

    Attributes:
        source: the cutout file.
        output: its latents file.
        fate: `done`, `skipped` or `failed`, once known.
        note: the reason or the result.
    """

    source: Source
    output: Source
    fate: str = ""
    note: str = ""

    @property
    def place(self) -> str:
        """Location of the cutouts, as given by the user."""
        return self.source.text

    @property
    def line(self) -> str:
        """The outcome of the file in one line."""
        to = "" if self.fate == "failed" else f" -> {self.output.text}"
        return f"{self.place}{to}: {self.note}"


@dataclass
class Ready:
    """A local file that can be extracted.

    Attributes:
        path: the local cutout file.
        output: the local latents file to be made.
        origin: where the cutouts come from.
        held: bytes of scratch space taken for it.
        made: whether the output exists already, and only needs uploading.
    """

    path: Path
    output: Path
    origin: Origin
    held: int = 0
    made: bool = False


@dataclass
class Skip:
    """A file that needs no work.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass
class Staging:
    """Prepares the files of a batch, one ahead, and moves their latents to their destinations.

    Args:
        options: of the run.
        items: the files.
        identity: provenance that existing latents must have for a file to be skipped.
        scratch_dir: folder of temporary copies, None if there are none.
    """

    options: Options
    items: Sequence[Item]
    identity: Mapping[str, str]
    scratch_dir: Path | None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._downloads = ThreadPoolExecutor(1, "download")
        self._uploads = ThreadPoolExecutor(1, "upload")
        self._pending: dict[int, Future[Ready | Skip]] = {}
        self._sent: list[Future[None]] = []
        self._asking = threading.Lock()
        self._termination = Termination()
        self._lock: IO[bytes] | None = None
        self.scratch: Scratch | None = None  # without one there is nothing to copy
        self.folder = Path()
        if self.scratch_dir is not None:
            remove_abandoned(self.scratch_dir)
            self.folder = self.scratch_dir / f"{BATCH_PREFIX}{own_mark()}"
            self._lock = make_locked(self.folder)
            limit = self.options.loader.cache_limit
            free = shutil.disk_usage(self.folder).free
            size = parse_size(limit) if limit is not None else int(SHARE_OF_FREE * free)
            self.scratch = Scratch(size, self._termination.check)
            self.scratch.kept = self.scratch.used = self._kept_by_others()
        self._termination.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._termination.check()
                for sent in self._sent:
                    self._wait(sent)
        finally:
            self._termination.came = True  # a signal must not interrupt the cleaning up
            self.cancelled.set()
            if self.scratch is not None:
                self.scratch.cancel()
            self._downloads.shutdown(cancel_futures=True)
            self._uploads.shutdown(cancel_futures=True)
            if self._lock is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self._lock.close()
                remove_if_empty(self.options, self.folder.parent)
            self._termination.__exit__()

    def get(self, index: int) -> Ready | Skip:
        """Wait until a file is ready.

        Raises:
            NenyaError: The file cannot be prepared, or its existing output differs from what would be made.
            Interrupted: A signal was received (SIGINT, SIGTERM).
        """
        self._termination.check()
        self.ahead(index)
        return self._wait(self._pending[index])

    def _wait(self, future: Future[T]) -> T:
        while not wait([future], LOOK_SECONDS).done:
            self._termination.check()
        return future.result()

    def ahead(self, index: int) -> None:
        """Start preparing the file of this number, if it exists and has not been started."""
        with self._asking:
            if index < len(self.items) and index not in self._pending:
                self._pending[index] = self._downloads.submit(self._make_ready, index)

    def hold(self, ready: Ready, nbytes: int, place: str) -> None:
        """Take scratch space for the latents of a file, if they are written there.

        Raises:
            OutputError: The limit is too low.
        """
        if self._is_ours(ready.output):
            self._take(nbytes, place, held=ready.held)
            ready.held += nbytes

    def _take(self, nbytes: int, place: str, held: int = 0) -> None:
        assert self.scratch is not None
        self.scratch.take(nbytes, place, held=held)

    def _is_ours(self, path: Path) -> bool:
        """Return whether a file lies in the scratch folder."""
        return self.scratch_dir is not None and self.scratch_dir / LATENTS_FOLDER in path.parents

    def finish(self, index: int, ready: Ready, note: str) -> None:
        """Remove the copy of an extracted file, and send its latents to their destination."""
        item = self.items[index]
        if item.output.path is None:
            size = self._drop_source(item, ready)
            ready.held -= size
            self._sent.append(self._uploads.submit(self._send, item, ready, note))
        else:
            self.release(item, ready)
            settle(item, "done", note)

    def release(self, item: Item, ready: Ready) -> None:
        """Remove the copy of the source and give its space back; unfinished latents stay, and keep their space."""
        self._drop_source(item, ready, give=False)
        if self.scratch is None:
            return
        left = 0
        if self._is_ours(ready.output):
            with contextlib.suppress(OSError):  # not empty
                ready.output.parent.rmdir()
            left = min(ready.held, folder_bytes(ready.output.parent))
            self.scratch.kept += left
        self.scratch.give(ready.held - left)
        ready.held = 0

    def _drop_source(self, item: Item, ready: Ready, *, give: bool = True) -> int:
        if item.source.path is not None or self.scratch is None:
            return 0
        size = ready.path.stat().st_size if ready.path.exists() else 0
        ready.path.unlink(missing_ok=True)
        if give:
            self.scratch.give(size)
        return size

    def _send(self, item: Item, ready: Ready, note: str) -> None:
        """Upload the latents of a file (in a thread)."""
        kept = f"; its latents are kept in {ready.output.parent}: the same command uploads them"
        try:
            metadata = existing.object_metadata(ready.output)
            store().upload(
                ready.output, item.output.text, metadata=metadata, cancelled=self.cancelled, note=_note(ready.output)
            )
            ready.output.unlink(missing_ok=True)
            settle(item, "done", note)
        except Interrupted:
            item.note = "interrupted"
        except NenyaError as error:
            settle(item, "failed", reword(error, ready, item) + kept)
        except Exception as error:  # an error in a thread would be lost
            settle(item, "failed", f"{type(error).__name__}: {error}{kept}")
        finally:
            self.release(item, ready)

    def _make_ready(self, index: int) -> Ready | Skip:
        """Prepare a file (in a thread); if nothing needs extracting, prepare the next one."""
        made: Ready | Skip | None = None
        try:
            made = self._prepare(index)
        except NenyaError:
            raise
        except OSError as error:
            raise InputFileError(f"{self.items[index].place}: {error.strerror or error}; check the path") from error
        finally:
            if not isinstance(made, Ready) and not self.cancelled.is_set():
                self.ahead(index + 1)
        return made

    def _prepare(self, index: int) -> Ready | Skip:
        """Check whether a file needs extracting, and download the source (in a thread)."""
        item = self.items[index]
        found = None if item.source.path is not None else self._head(item.source.text)
        provenance = None if self.options.clobber else self._existing(item)
        if provenance is not None:
            existing.check_same(item.output.text, provenance, self.identity)
            if item.source.path is not None:
                existing.check_local_source(item.output.text, provenance, item.source.path)
                return self._skip(item, provenance)
            if found is not None and _describes(provenance, found):
                return self._skip(item, provenance)
        output = self._local_output(item)
        if self._is_ours(output) and output.exists() and self._is_still_right(item, output, found):
            remove_leftover(output)
            size = output.stat().st_size
            self._take(size, item.place)
            return Ready(self.folder / "not needed", output, Origin(item.place), size, made=True)
        if item.source.path is not None:
            return Ready(item.source.path, output, Origin(item.place))
        assert found is not None
        self._take(found.size, item.place)
        ready = Ready(self.folder / str(index) / local_name(found.name), output, Origin(item.place), found.size)
        try:
            sha256 = store().download(found, ready.path, cancelled=self.cancelled)
            if provenance is not None:
                existing.check_source(item.output.text, provenance, found.size, sha256)
        except BaseException as error:
            self.release(item, ready)
            if isinstance(error, OutputError):
                raise OutputError(f"{error} (loader.cache_dir)") from error
            raise
        if provenance is not None:
            self.release(item, ready)
            return self._skip(item, provenance)
        ready.origin = Origin(item.place, sha256, found.etag)
        return ready

    def _skip(self, item: Item, provenance: Mapping[str, Any]) -> Skip:
        """Skip complete latents; remove what a killed run left of making and sending them."""
        output = self._local_output(item)
        remove_leftover(output)
        if self._is_ours(output):
            store().drop_upload(_note(output))
            with contextlib.suppress(OSError, OutputError):
                if existing.read_provenance(output).get("date") == provenance.get("date"):  # the file that was sent
                    output.unlink()
            with contextlib.suppress(OSError):  # missing, or not empty
                output.parent.rmdir()
        return Skip(_SKIPPED)

    def _head(self, url: str) -> S3Object:
        found = store().head(url)
        if found is None:
            raise InputFileError(f"{url}: no such object; check bucket and key")
        return found

    def _local_output(self, item: Item) -> Path:
        """Return where the latents are written: at their destination, or for S3 where a later batch finds them."""
        if item.output.path is not None:
            return item.output.path
        assert self.scratch_dir is not None
        place = hashlib.sha256(item.output.text.encode()).hexdigest()[:16]
        name = local_name(item.output.text.rsplit("/", 1)[1])
        return own_place(self.scratch_dir, f"{LATENTS_FOLDER}/{place}/{name}")

    def _kept_by_others(self) -> int:
        """Return the bytes of unfinished latents of other batches."""
        assert self.scratch_dir is not None
        mine = {self._local_output(item).parent for item in self.items if item.output.path is None}
        others = [folder for folder in (self.scratch_dir / LATENTS_FOLDER).glob("*") if folder not in mine]
        return sum(map(folder_bytes, others))

    def _is_still_right(self, item: Item, output: Path, found: S3Object | None) -> bool:
        """Return whether finished but unsent latents are those that would be made now; if not, remove them."""
        try:
            if self.options.clobber:
                raise OutputError("start over")
            provenance = existing.read_provenance(output)
            existing.check_same(str(output), provenance, self.identity)
            if item.source.path is not None:
                existing.check_local_source(str(output), provenance, item.source.path)
            elif found is None or not _describes(provenance, found):
                raise OutputError("another source")
        except OutputError:
            output.unlink()
            return False
        return True

    def _existing(self, item: Item) -> dict[str, Any] | None:
        """Return the provenance of existing latents, None if there are none.

        Raises:
            OutputError: They are incomplete, or have no provenance.
        """
        path = item.output.path
        if path is not None:
            if path.is_dir():
                raise OutputError(f"{path} is a folder, expected a file name: choose another with out=")
            return existing.read_provenance(path) if path.exists() else None
        found = store().head(item.output.text)
        if found is None:
            return None
        provenance = existing.object_provenance(found)
        if provenance is None:  # uploaded by other means: the provenance is in the file itself
            assert self.scratch is not None
            self.scratch.take(found.size, item.output.text)
            path = self.folder / "existing" / local_name(found.name)
            try:
                store().download(found, path, cancelled=self.cancelled)
                provenance = existing.read_provenance(path, item.output.text)
            finally:
                path.unlink(missing_ok=True)
                self.scratch.give(found.size)
        return provenance


def _describes(provenance: Mapping[str, Any], found: S3Object) -> bool:
    """Return whether latents were made from this version of an object."""
    return (provenance.get("source_etag"), provenance.get("source_size")) == (found.etag, found.size)


def _note(output: Path) -> Path:
    """Return the file that records the upload of latents in progress."""
    return output.with_name(output.name + ".upload")


def settle(item: Item, fate: str, note: str) -> None:
    """Record the outcome of a file, and log it."""
    item.fate, item.note = fate, note.removeprefix(f"{item.place}: ")
    if is_main_process():
        (log.error if fate == "failed" else log.info)("%s: %s", fate, item.line)


def reword(error: BaseException, ready: Ready | None, item: Item) -> str:
    """Return the text of an error with the user's locations in place of temporary ones."""
    text = str(error)
    if ready is not None:
        if item.output.path is None and str(ready.output.parent) in text:
            text = text.replace(" out=", " loader.cache_dir=")
        text = text.replace(str(ready.path), item.place)
        text = re.sub(re.escape(str(ready.output)) + r"(?!\.partial)", lambda _: item.output.text, text)
    return text


def reworded(error: Exception, ready: Ready | None, item: Item) -> NenyaError:
    """Return an error with the user's locations; one of another library also with its type."""
    if isinstance(error, NenyaError):
        return type(error)(reword(error, ready, item))
    first = (str(error).strip() or "no message").splitlines()[0]
    return NenyaError(f"{item.place}: {type(error).__name__}: {first} (traceback=true shows where)")


def check_places(places: Sequence[Source], *, write: bool) -> None:
    """Check that each bucket can be reached, before any work.

    Args:
        places: files and addresses.
        write: whether they will be written to.

    Raises:
        StorageError: A bucket cannot be reached.
    """
    buckets = {place.text.split("/")[2]: place.text for place in places if place.path is None}
    for place in buckets.values():
        store().check_bucket(place, write=write)
