"""One update at a time: a lock file in the folder of the archive, or a lock object on S3.

The object is written conditionally on its ETag, so that one of two competing processes
gets it. The holder increments a counter in it; a process that finds an unknown holder watches the counter by a
monotonic clock of its own. A holder taken for dead finds that its next increment is refused, and
checks before each commit, which is itself refused when the archive has changed since it was read.
"""

import json
import logging
import secrets
import threading
import time
from types import TracebackType
from typing import Any, Self

from nenya.archive.commit import revoke
from nenya.archive.folder import Folder
from nenya.archive.manifest import MANIFEST
from nenya.errors import NenyaError, OutputError, StorageError
from nenya.storage.lock import MOST_FENCE, OutputLock, holder_of, lost
from nenya.storage.process import Life, current, from_values, life
from nenya.storage.s3.conditional import NoConditionsError, ReplacedError
from nenya.storage.s3.replace import NO_SUCH, allow_without
from nenya.storage.s3.service import join_url, store

log = logging.getLogger(__name__)

LEASE = "update-lock.json"
SHARED = ".shards"
"""Folder, in that of unfinished work, of what shards of an update note."""

BEAT = 20.0
"""Seconds between signs of life on S3."""

SILENT = 180.0
"""Seconds without a sign of life after which an unknown holder counts as dead."""

_LOOK = 1.0  # seconds between checks of such a holder
_ATTEMPTS = 20
_SETTLED = 2.0  # seconds within which two simultaneous unconditional writes are done


class Lease:
    """Holds the lock of an archive for this process.

    Args:
        folder: the archive, which from then on checks the lock before each publication.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.object = None if folder.url is None else LeaseObject(join_url(folder.url, LEASE), folder.place)
        self._lock, self._before = OutputLock(folder.work / "lock", folder.place), folder.check

    def __enter__(self) -> Self:
        """Acquire the lock.

        Raises:
            OutputError: Another update holds it; the message says which.
        """
        self._lock.take()
        try:
            _refuse_shards(self.folder)
            if self.object is not None:
                self.object.take()
                self.folder.safe = self.object.safe
                if self.object.taken_over:
                    self._revoke_uploads()
            self.folder.check = self.check
            revoke(self.folder.root, MANIFEST, all_of_them=self._lock.taken_over)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.folder.check = self._before
        try:
            if self.object is not None:
                self.object.release()
        finally:
            self._lock.release()

    def _revoke_uploads(self) -> None:
        """Abort uploads of the previous holder, which may wake and overwrite an object of this process."""
        try:
            store().drop_uploads(self.folder.url or "")
        except StorageError as error:  # some services do not list uploads
            log.warning("%s", error)

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            LockLostError: Another process took it over.
            StorageError: The S3 service does not answer.
        """
        self._lock.check()
        if self.object is not None:
            self.object.check()

    def holder(self) -> dict[str, Any]:
        """Return the holder of the lock on S3; empty if there is none."""
        said = {} if self.object is None else self.object.read()[1]
        identity = from_values(said)
        return {} if identity is not None and life(identity) is Life.GONE else said


def _refuse_shards(folder: Folder) -> None:
    """Check that no shard of an update is at work; one that begins later finds the lock of this process.

    Raises:
        OutputError: One is.
    """
    for path in sorted((folder.work / SHARED).glob("*/shard-*.lock")):
        if (holder := holder_of(path)) is not None:
            raise OutputError(f"{folder.place}: {path.stem} of an update is being made by {holder.who}: wait for it")


class LeaseObject:
    """The lock of an archive on S3.

    Args:
        url: of the object.
        place: the archive, for messages.

    Attributes:
        safe: whether the service supports conditional writes.
        taken_over: whether the previous holder did not release it.
    """

    def __init__(self, url: str, place: str) -> None:
        self.url, self.place, self.safe, self.taken_over = url, place, True, False
        self._said: dict[str, Any] = {}
        self._etag = ""
        self._lost, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Acquire the lock.

        Raises:
            OutputError: Another update holds it, or the service has no conditional writes.
            StorageError: The service does not answer.
        """
        for _ in range(_ATTEMPTS):
            etag, said = self.read()
            if said and not self._is_gone(etag, said):
                continue
            if self._put(_record(said), etag):
                self.taken_over = bool(said)
                break
        else:
            raise OutputError(f"{self.place}: another process is acquiring its lock: run the command again")
        try:
            self._try_conditions()
            self.check()
        except BaseException:
            self.release()
            raise
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Remove the object if it still belongs to this process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if not self._lost.is_set() and self.holds():
                store().delete(self.url)
        except NenyaError as said:
            log.warning("%s", said)
        self._lost.set()

    def read(self) -> tuple[str, dict[str, Any]]:
        """Return ETag and content of one state of the object, which changes at any time; empty if there is none."""
        found = store().read_tagged(self.url)
        if found is None:
            return "", {}
        try:
            said = json.loads(found[1])
        except (ValueError, RecursionError):
            said = {}
        return found[0], said if isinstance(said, dict) and said else {"damaged": True}

    def holds(self) -> bool:
        """Return whether the object belongs to this process."""
        return bool(self._said) and self.read()[1].get("token") == self._said["token"]

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            LockLostError: It is not.
            StorageError: The service does not answer.
        """
        if self._lost.is_set() or not self.holds():
            self._lost.set()
            raise lost(self.place)

    def _put(self, said: dict[str, Any], etag: str) -> bool:
        """Write the object; return False if another process changed it since."""
        data = json.dumps(said).encode()
        try:
            try:
                self._etag = store().replace(self.url, data, etag if self.safe else None)
            except NoConditionsError:
                self._do_without()
                self._etag = store().replace(self.url, data, None)
        except ReplacedError:
            return False
        self._said = said
        return True

    def _try_conditions(self) -> None:
        """Test whether the service supports conditional writes, by requests that it should refuse."""
        data = json.dumps({**self._said, "beat": -1}).encode()
        for wrong in ("", NO_SUCH):
            if not self.safe:
                break
            try:
                self._etag = store().replace(self.url, data, wrong)
            except ReplacedError:
                continue
            except NoConditionsError:
                pass
            self._do_without()
        if not self.safe:
            time.sleep(_SETTLED)

    def _do_without(self) -> None:
        """Continue without conditional writes.

        Raises:
            OutputError: Nobody stated that there is one writer.
        """
        allow_without(self.place)
        self.safe = False

    def _is_gone(self, etag: str, said: dict[str, Any]) -> bool:
        """Return whether a holder is dead; False also if another took over since.

        Raises:
            OutputError: It is alive.
        """
        identity = from_values(said)
        state = life(identity) if identity is not None else Life.UNKNOWN
        if state is Life.ALIVE:
            raise self._held(said)
        if state is Life.GONE or "damaged" in said:
            return True
        log.info("%s: waiting up to %.0f s for a sign of life of %s", self.place, SILENT, _who(said))
        end = time.monotonic() + SILENT
        while time.monotonic() < end:
            time.sleep(min(_LOOK, SILENT / 4))
            now, what = self.read()
            if now != etag:
                if what.get("token") == said.get("token") and what.get("pid") == said.get("pid"):
                    raise self._held(said)
                return False
        return True

    def _held(self, said: dict[str, Any]) -> OutputError:
        return OutputError(
            f"{self.place} is being updated by {_who(said)}: wait until it ends; a dead process is detected after "
            f"{SILENT:.0f} s without a sign of life"
        )

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                said, asked = {**self._said, "beat": self._said["beat"] + 1}, _now()
                if self.safe or self.holds():
                    if (
                        not self.safe and _now() - asked > BEAT
                    ):  # the machine was suspended, so the answer may be outdated
                        continue
                    if self._put(said, self._etag):
                        continue
                self._lost.set()
                return
            except NenyaError as error:
                log.warning("%s", error)


_SINCE = time.strftime("%Y-%m-%d %H:%M:%S")


def _now() -> float:
    """Return monotonic seconds that include suspension, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _record(before: dict[str, Any]) -> dict[str, Any]:
    """Return the content for the next holder after `before`."""
    fence = before.get("fence", 0)
    number = fence + 1 if isinstance(fence, int) and 0 <= fence <= MOST_FENCE else 1
    return {"fence": number, "token": secrets.token_hex(16), "beat": 0, "since": _SINCE, **current().values()}


def _who(said: dict[str, Any]) -> str:
    words = ["".join(letter for letter in str(said.get(key))[:80] if letter.isprintable()) for key in _WORDS]
    return "process {} on {} since {}".format(*words)


_WORDS = ("pid", "host", "since")
