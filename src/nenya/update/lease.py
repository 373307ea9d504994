"""One update at a time: a lock of this machine, and for an archive on S3 an object that says who is at work."""

import json
import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nenya.archive_folder import Folder
from nenya.errors import NenyaError, OutputError
from nenya.extraction.lock import OutputLock
from nenya.s3 import join_url, store

log = logging.getLogger(__name__)

LEASE = "update-lock.json"
BEAT = 60.0
"""Seconds between signs of life on S3."""

SILENT = 600.0
"""Seconds of silence after which a holder on another machine counts as gone."""


class Lease:
    """Holds an archive for this process.

    On S3 the object is looked at and then written, which two processes may do at the same moment; what then saves the
    archive is that a commit is refused when another one came before it.

    Args:
        folder: the archive.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._lock = OutputLock(folder.work / "lock", folder.place)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            OutputError: Another update holds it; says who.
        """
        self._lock.__enter__()
        if self.folder.url is None:
            return self
        try:
            holder = self.holder()
            if holder and not _is_gone(holder):
                raise OutputError(
                    f"{self.folder.place} is being updated by process {holder.get('pid')} on {holder.get('host')} "
                    f"since {holder.get('since')}: wait for it; one that is gone is noticed after {SILENT:.0f} s"
                )
            self._say()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            try:
                store().delete(self._url)
            except NenyaError as said:
                log.warning("%s", said)
        self._lock.__exit__(kind, error, trace)

    @property
    def _url(self) -> str:
        assert self.folder.url is not None
        return join_url(self.folder.url, LEASE)

    def holder(self) -> dict[str, Any]:
        """Return who says to be at work on S3; nothing where nobody does."""
        if store().head(self._url) is None:
            return {}
        try:
            found = json.loads(store().read_bytes(self._url))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _say(self) -> None:
        with tempfile.TemporaryDirectory(prefix="nenya-") as folder:
            path = Path(folder) / LEASE
            said = {"host": socket.gethostname(), "pid": os.getpid(), "since": _SINCE, "alive": time.time()}
            path.write_text(json.dumps(said))
            store().upload(path, self._url)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                self._say()
            except NenyaError as error:
                log.warning("%s", error)


_SINCE = time.strftime("%Y-%m-%d %H:%M:%S")


def _is_gone(holder: dict[str, Any]) -> bool:
    """Return whether a holder was killed: its process is not there, or it was silent for long."""
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder.get("pid", 0)), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, ValueError):
            pass
    return time.time() - float(holder.get("alive", 0)) > SILENT
