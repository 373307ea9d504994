"""A process that holds an archive and does as it is told, a line of its standard input a step; answers with a line.

The archive's files are a few bytes each: what is tried is who may commit, not what is committed.
"""

import hashlib
import json
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

from nenya.archive import commit as archive_commit
from nenya.archive import folder as archive_folder
from nenya.archive import lease as archive_lease
from nenya.archive.folder import Entry, Folder
from nenya.archive.lease import Lease
from nenya.archive.manifest import STATES, Added, Index, Version
from nenya.archive.settings import settings_of
from nenya.errors import NenyaError
from nenya.options.commands import UpdateOptions
from nenya.options.sections import build_options
from nenya.storage import lock as output_lock
from nenya.storage.s3.service import store
from nenya.storage.s3.upload import PartsUpload

for module in (output_lock, archive_lease):
    module.SILENT = float(os.environ.get("PLAYER_SILENT", "120"))
    module._LOOK = min(0.1, module.SILENT / 10)
output_lock.HEARTBEAT = archive_lease.BEAT = float(os.environ.get("PLAYER_BEAT", "1"))
_NOTHING = {
    name: Entry(f"demo/{name}", 0, "0" * 64) for name in ("weights", "projector", "clusters", f"{STATES}/about")
}
_SETTINGS = settings_of(build_options(UpdateOptions, {}))


class _Sleepy:
    """The module os, whose first `replace` falls asleep before it is done."""

    def __getattr__(self, name):
        return getattr(os, name)

    def replace(self, *args):
        archive_commit.os = os
        os.kill(os.getpid(), signal.SIGSTOP)
        os.replace(*args)


class Player:
    """Plays the part of an update."""

    def __init__(self, place: str, cache: str) -> None:
        self.folder = Folder(place, cache)
        self.lease = Lease(self.folder)
        self.manifest: dict[str, Version] = {}

    def take(self) -> str:
        self.lease.__enter__()
        self.manifest = self.folder.read()
        return "held"

    def add(self, name: str) -> str:
        """Publish three files and commit them."""
        self.publish(name)
        return self.commit()

    def publish(self, name: str) -> str:
        self.folder.work.mkdir(parents=True, exist_ok=True)
        made = self.folder.work / f"made-{name}"
        made.write_text(f"all of {name} by {secrets.token_hex(4)}")
        kinds = {"cutouts": "cutouts", "latents": "demo/latents", "tables": "demo/tables"}
        entries = [self.folder.publish(made, f"{kind}/{name}") for kind in kinds.values()]
        made.unlink()
        *made_of, about = _NOTHING.values()
        version = self.manifest.setdefault("demo", Version(_SETTINGS, {}, *made_of, Index(1, 0, about)))
        version.files.append(Added(name, [], *entries, {}, 0, [], "", ""))
        return "published"

    def commit(self) -> str:
        self.folder.commit(self.manifest)
        return "committed"

    def publish_asleep(self, name: str) -> str:
        """Fall asleep at the last moment before the first file gets its name."""
        owner, step = (archive_folder, "move_synced") if self.folder.url is None else (PartsUpload, "complete")
        real = getattr(owner, step)

        def asleep(*args):
            setattr(owner, step, real)
            os.kill(os.getpid(), signal.SIGSTOP)
            return real(*args)

        setattr(owner, step, asleep)
        return self.publish(name)

    def commit_asleep(self) -> str:
        """Fall asleep when all is compared, at the last moment before the manifest is replaced."""
        if self.folder.url is None:
            archive_commit.os = _Sleepy()
        else:
            service, ask = store(), store().replace

            def replace(*args):
                if threading.current_thread() is threading.main_thread():  # and not the one that counts beats
                    service.replace = ask
                    os.kill(os.getpid(), signal.SIGSTOP)
                return ask(*args)

            service.replace = replace
        return self.commit()

    def read(self) -> str:
        self.manifest = self.folder.read()
        return "read"

    def release(self) -> str:
        self.lease.__exit__(None, None, None)
        return "released"


def main() -> None:
    player = Player(*sys.argv[1:3])
    sys.stdout.write(json.dumps({"pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        step, *args = line.split()
        try:
            said = getattr(player, step)(*args)
        except NenyaError as error:
            said = f"{type(error).__name__}: {error}"
        sys.stdout.write(" ".join(said.split()) + "\n")
        sys.stdout.flush()


def committed(place: str, cache: Path) -> list[str]:
    """Return the names of the files that an archive names, each of which is there and whole."""
    folder = Folder(place, str(cache))
    manifest = folder.read()
    for added in manifest["demo"].files if manifest else []:
        for entry in (added.cutouts, added.latents, added.table):
            data = folder.local(entry).read_bytes()
            assert data.startswith(f"all of {added.stem} by ".encode()), data
            assert hashlib.sha256(data).hexdigest() == entry.sha256, f"{entry.name} was replaced"
    return [added.stem for added in manifest["demo"].files] if manifest else []


if __name__ == "__main__":
    main()
