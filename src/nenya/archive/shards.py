"""Shards of an update: workers make the cutouts and latents of their files, and the merge adds all files in order.

Each file has a folder of its own in `.work/`, where any update resumes, so the merge is an update that finds its work
done. A worker does not hold the archive, and writes nothing that a reader sees. On S3 the work is in
`loader.cache_dir`, which all workers must then see.
"""

import json
import logging
from pathlib import Path

from nenya.archive.arrivals import Arrivals
from nenya.archive.folder import Folder
from nenya.archive.lease import SHARED
from nenya.archive.preflight import Opening
from nenya.archive.stages import Stages
from nenya.archive.update import Update, quiet
from nenya.archive.update import run as update
from nenya.errors import OutputError
from nenya.latents.kept_answers import KeptAnswers
from nenya.options.commands import UpdateOptions
from nenya.runtime.shards import MERGE, Share
from nenya.runtime.signals import Termination
from nenya.storage.lock import holder_of
from nenya.storage.names import parse_json

log = logging.getLogger(__name__)

_NOTE = "files"


def run_share(options: UpdateOptions, share: Share) -> int:
    """Make cutouts and latents of the files of a worker, and their tables if the version exists.

    Args:
        options: of the command.
        share: of this worker.

    Returns:
        0, or 1 if some files failed; the merge tries them again.

    Raises:
        NenyaError: An error that concerns all files, or another process updates the archive.
        Interrupted: A signal was received; the same command resumes.
    """
    opening, failed = Opening.of(options), 0
    with Termination(), quiet():
        for name in opening.names:
            kept = _kept(opening.folder, name, share)
            with kept.working(opening.folder.place):
                _refuse_update(opening.folder)
                failed += SharedUpdate(opening.folder, opening.manifest, name, options).build(opening.new, kept)
    log.info("%s: shard %s is complete; when all are, shard=%s adds the files", opening.folder.place, share, MERGE)
    return 1 if failed else 0


def merge(options: UpdateOptions) -> int:
    """Add the files that workers have made to the archive; see `nenya.archive.update.run`.

    Raises:
        OutputError: Shards are missing, which it names.
    """
    made: list[KeptAnswers] = []

    def check(folder: Folder, name: str, arrivals: Arrivals) -> None:
        kept = _kept(folder, name, Share(0, 0))
        made.append(kept)
        wanted = [arrival.uid for arrival in arrivals.wanted]
        missing = [uid for uid in wanted if kept.take(uid) is None]
        order = _order(kept) or wanted
        kept.refuse_missing([order.index(uid) if uid in order else 0 for uid in missing], len(order))

    code = update(options, check)
    for kept in made:
        kept.remove_own()
    return code


class SharedUpdate(Update):
    """The work of one worker on a version; nothing is published."""

    def build(self, new: tuple[list[Path | str], list[Path | str]] | None, kept: KeptAnswers) -> int:
        """Make the files of a worker; return the number that failed.

        Args:
            new: cutout files and granules, None for the cutouts that other versions have.
            kept: of this worker.
        """
        self.of_shards = True
        self.arrivals = self.arrivals_of(new)
        wanted = self.arrivals.wanted
        kept.keep(_NOTE, json.dumps([arrival.uid for arrival in wanted]).encode())
        mine = [arrival for number, arrival in enumerate(wanted) if kept.owns(number)]
        if not mine:
            return self.close()
        log.info(
            "%s, version %s: %d of %d files are of this shard", self.folder.place, self.name, len(mine), len(wanted)
        )
        with kept.alone("settings"):
            settings, network = self.settings()
        stages = Stages(self.folder, self.options, settings, self.work, network)
        for arrival in mine:
            kept.check()
            made = self.build_file(stages, arrival)
            if made is not None and self.version is not None:
                fitted = self.folder.local(self.version.projector), self.folder.local(self.version.clusters)
                stages.table(made.arrival, made.latents, *fitted)
            kept.keep(arrival.uid, b"")
        return self.close()

    def close(self) -> int:
        """Log the failed files; return their number."""
        for place, reason in self.arrivals.failed.items():
            log.error("failed: %s: %s", place, reason)
        return len(self.arrivals.failed)


def _kept(folder: Folder, name: str, share: Share) -> KeptAnswers:
    return KeptAnswers(folder.work / SHARED, name, share)


def _order(kept: KeptAnswers) -> list[str]:
    """Return the files in the order in which workers shared them; empty if that is not known."""
    found = kept.take(_NOTE)
    return [] if found is None else [item.text() for item in parse_json(found.decode(), str(kept.place)).items()]


def _refuse_update(folder: Folder) -> None:
    """Check that nobody updates the archive; an update that begins later finds this worker.

    Raises:
        OutputError: Somebody does.
    """
    if (holder := holder_of(folder.work / "lock")) is not None:
        raise OutputError(f"{folder.place} is being updated by {holder.who}: wait until it ends")
