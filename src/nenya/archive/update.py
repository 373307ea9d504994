"""`nenya update`: adds granules or cutout files to an archive, with everything made from them.

Each file is completed in a folder of its own, published under names that no reader uses yet, and finally listed in
the manifest: readers see all of a file or nothing of it, whenever an update is killed.
"""

import contextlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nenya
from nenya.archive.arrivals import Arrival, Arrivals, arrivals_of, from_others, same_stem
from nenya.archive.check import broken_files
from nenya.archive.folder import Folder, open_entry
from nenya.archive.index_writer import IndexWriter
from nenya.archive.lease import Lease
from nenya.archive.manifest import CUTOUTS, MANIFEST, STATES, Added, Manifest, Version, parse_publishing
from nenya.archive.preflight import Opening
from nenya.archive.settings import CALIBRATION, extract_options, new_calibration, settings_of
from nenya.archive.stages import Stages, describe
from nenya.data.cutouts import inspect_cutouts
from nenya.data.orientation import SWATH, order_text, read_row_order
from nenya.errors import InputFileError, Interrupted, LockLostError, NenyaError, OptionError, OutputError
from nenya.io import read_table
from nenya.latents.files import Latents
from nenya.models.contrastive import find_weights_of, weights_source
from nenya.options.commands import UpdateOptions
from nenya.prepare.job import NoCutouts
from nenya.runtime.process import git_commit
from nenya.runtime.signals import Termination
from nenya.storage.disk import atomic_path, sha256_file
from nenya.storage.names import Entry, is_plain, read_bytes
from nenya.storage.paths import is_s3, temporary_copy
from nenya.storage.s3.service import store
from nenya.storage.texts import counted

log = logging.getLogger(__name__)

_PUBLISHING = "publishing.json"
_STAGES = ("extraction", "latents.index_build", "latents.embed")
_LIBRARIES = ("torch", "numpy", "h5py", "lancedb", "umap-learn", "scikit-learn")


def run(options: UpdateOptions, check: Callable[[Folder, str, Arrivals], None] | None = None) -> int:
    """Add new files to an archive; create it if it does not exist.

    Args:
        options: of `scripts/update.py`.
        check: called with the archive, the version and its files before anything is done with them.

    Returns:
        0 if all files are in the archive, 1 if some could not be added, or files of the archive are missing or damaged.

    Raises:
        NenyaError: An error that concerns all files: options, weights, the archive itself, another running update.
        Interrupted: A signal was received; the same command resumes.
    """
    opening = Opening.of(options)
    folder = opening.folder
    with Termination(), Lease(folder), quiet():
        manifest = folder.read()
        folder.drop_uploads()
        failed = sum(Update(folder, manifest, name, options, check).run(opening.new) for name in opening.names)
        broken = list(dict.fromkeys(file for name in manifest for file in broken_files(folder, manifest[name])))
    if broken:
        log.error(
            "%s: missing or damaged files listed in %s: %s%s; restore them from a backup (nenya status lists them)",
            folder.place, MANIFEST, broken[0], f" and {len(broken) - 1} more" if len(broken) > 1 else "",
        )  # fmt: skip
    return 1 if failed or broken else 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence log lines of the stages about files in folders of unfinished work, except warnings."""
    loggers = [logging.getLogger(f"nenya.{name}") for name in _STAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR if logger.name == "nenya.latents.index_build" else logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass
class Built:
    """A processed file, not yet published.

    Attributes:
        arrival: the file.
        cutouts: its cutout file.
        latents: their latents file.
        failed: names of granules that were skipped.
        row_order: order of the rows of its cutouts, empty if it is not recorded.
    """

    arrival: Arrival
    cutouts: Path
    latents: Path
    failed: set[str] = field(default_factory=set)
    row_order: str = ""


class Update:
    """The update of one model version.

    Args:
        folder: the archive, locked by this process.
        manifest: of the archive; changed and committed file by file.
        name: of the version.
        options: of the command.
        check: of `run`.
    """

    def __init__(
        self, folder: Folder, manifest: Manifest, name: str, options: UpdateOptions,
        check: Callable[[Folder, str, Arrivals], None] | None = None,
    ) -> None:  # fmt: skip
        self._check = check
        self.of_shards = check is not None
        self.folder, self.manifest, self.name, self.options = folder, manifest, name, options
        self.work = folder.work / name
        self.origin: dict[str, str] = {}
        self.version = manifest.get(name)
        self.arrivals = Arrivals()
        self.empty: list[list[Any]] = []
        self.added = 0
        self.side = 0  # side of a cutout in pixels, if known
        self.order: str | None = None  # row order of the cutouts, if known
        self.unsearched: set[str] = set()  # columns already reported as left out of the index

    def run(self, new: tuple[list[Path | str], list[Path | str]] | None) -> int:
        """Add the new files; return the number that failed."""
        self.arrivals = self.arrivals_of(new)
        if self._check is not None:
            self._check(self.folder, self.name, self.arrivals)
        self._sweep()
        if self.arrivals.wanted:
            log.info(
                "%s, version %s: %s to add",
                self.folder.place,
                self.name,
                counted(len(self.arrivals.wanted), "cutout file"),
            )
            self._add_all()
        elif self.version is not None:
            self._check_weights(self.version)
        if self.version is not None:
            self._finish(self.version)
        return self._close()

    def arrivals_of(self, new: tuple[list[Path | str], list[Path | str]] | None) -> Arrivals:
        """Return the files of this version among the new ones, or those that other versions have."""
        if new is None:
            return from_others(self.manifest, self.name)
        return arrivals_of(*new, self.version, self.options.granules_per_file)

    def _sweep(self) -> None:
        """Remove files that a killed update published without committing, and obsolete unfinished work."""
        named = {entry.name for version in self.manifest.values() for entry in version.entries()}
        wanted = {arrival.uid for arrival in self.arrivals.wanted}
        for journal in self.work.glob(f"*/{_PUBLISHING}"):
            names = parse_publishing(read_bytes(journal), str(journal), self.name)
            for name in sorted(set(names) - named):
                self.folder.remove(name)
            journal.unlink()
        for path in self.work.glob("*"):
            if path.is_dir() and path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def _add_all(self) -> None:
        settings, (weights, calibration) = self.settings()
        stages = Stages(self.folder, self.options, settings, self.work, (weights, calibration))
        built: Iterable[Built | None]
        if self.version is None:
            ready = [made for arrival in self.arrivals.wanted if (made := self.build_file(stages, arrival))]
            if not ready:
                return
            if left := len(self.arrivals.failed):
                log.warning(
                    "UMAP and clusters of version %s are fitted, once, without the %d failed files: to include them, "
                    "fix them and begin a new archive or another version=", self.name, left,
                )  # fmt: skip
            latents = {made.arrival.stem: made.latents for made in ready}
            clusters = stages.clusters(latents)  # first, as it is fast and refuses k above the number of rows
            projector = stages.projector(latents)
            stages.rarity({made.latents: made.arrival for made in ready}, projector, clusters)
            first = [
                (weights, f"{self.name}/{weights.name}"),
                (projector, f"{self.name}/{projector.name}"),
                (clusters, f"{self.name}/{clusters.name}"),
                *([] if calibration is None else [(calibration, f"{self.name}/{calibration.name}")]),
            ]
            self._note("begin", [name for _, name in first])
            entries = [self.folder.publish(path, name, keep=True) for path, name in first]
            built = ready
        else:
            entries = [self.version.weights, self.version.projector, self.version.clusters]
            projector, clusters = (self.folder.local(entry) for entry in entries[1:])
            built = (self.build_file(stages, arrival) for arrival in self.arrivals.wanted)
        index = IndexWriter(self.folder, self.name, self.version.index if self.version else None)
        for made in built:
            if made is not None:
                self._publish(stages, made, (projector, clusters), index, (settings, entries))

    def settings(self) -> tuple[dict[str, Any], tuple[Path, Path | None]]:
        """Return settings, weights and their calibration: as recorded, or those of a new version."""
        wanted = settings_of(self.options)
        recipes = (version.settings["sensor"] for version in self.manifest.values() if version.settings["sensor"])
        wanted["sensor"] = wanted["sensor"] or next(recipes, None)  # the cutouts are shared
        if self.version is not None:
            settings = self.version.settings
            settings["sensor"] = settings["sensor"] or wanted["sensor"]
            self._check_weights(self.version)
            calibration = self.version.calibration
            local = self.folder.local
            return settings, (local(self.version.weights), None if calibration is None else local(calibration))
        self.work.mkdir(parents=True, exist_ok=True)
        named = find_weights_of(extract_options(self.options, wanted), self.options.ckpt)
        source, self.origin = named.place, dict(named.origin)
        with temporary_copy(source if is_s3(source) else Path(source), self.options.loader.cache_dir) as path:
            named.check(sha256_file(path))
            digest, made = sha256_file(path), new_calibration(self.options, wanted, source)
            own = {} if made is None else {"calibration": sha256_file(made)}
            begun = json.dumps({**wanted, "weights": digest, **own}, sort_keys=True)
            note, kept = self.work / "settings.json", self.work / f"weights{path.suffix}"
            there = note.is_file() and note.read_text() == begun and kept.is_file() and sha256_file(kept) == digest
            if not there:
                self._begin_anew(note)
                with atomic_path(kept) as temporary:
                    shutil.copyfile(path, temporary)
                if made is not None:
                    with atomic_path(self.work / CALIBRATION) as temporary:
                        shutil.copyfile(made, temporary)
                with atomic_path(note) as temporary:
                    temporary.write_text(begun)
        return wanted, (kept, None if made is None else self.work / CALIBRATION)

    def _begin_anew(self, note: Path) -> None:
        """Remove work that was begun with other settings than those of a note, which is useless here.

        Raises:
            OutputError: It is that of shards.
        """
        if self.of_shards and note.is_file():
            raise OutputError(
                f"{self.work} holds unfinished work with other weights or options: run the command that began it, or "
                "remove the folder if no update runs"
            )
        shutil.rmtree(note.parent)

    def _check_weights(self, version: Version) -> None:
        """Check that `ckpt=`, if given, are the weights of the version.

        Raises:
            OptionError: They differ.
        """
        if not self.options.ckpt:
            return
        source = weights_source(self.options, self.options.ckpt)
        with temporary_copy(source if is_s3(source) else Path(source), self.options.loader.cache_dir) as path:
            came = sha256_file(path) if path.is_file() else "no file"
        if came != version.weights.sha256:
            raise OptionError(
                f"ckpt={self.options.ckpt}: expected the weights that version {self.name} was begun with (sha256 "
                f"{version.weights.sha256[:12]}), got {came[:12]}: leave ckpt= out, or begin another version "
                "by version="
            )

    def build_file(self, stages: Stages, arrival: Arrival) -> Built | None:
        """Make cutouts and latents of a file; if there is nothing to add, note the reason and return None."""
        try:
            other = arrival.known or same_stem(self.manifest, arrival.stem)
            if other and arrival.granules:  # the hash in its name shows that the granules are the same
                arrival = replace(arrival, known=other)
            self._check_name(arrival)
            cutouts, failed = stages.bring(arrival)
            if other and not arrival.known:
                if sha256_file(cutouts) != other.cutouts.sha256:
                    raise InputFileError("the archive has another file of this name: rename the new one")
                if self.version and any(added.stem == arrival.stem for added in self.version.files):
                    self.arrivals.there += 1
                    shutil.rmtree(stages.place(arrival), ignore_errors=True)
                    return None
                arrival = replace(arrival, known=other)
            self._check_size(cutouts, stages.place(arrival))
            order = self._check_order(cutouts, stages.place(arrival))
            twin = None if arrival.known or arrival.granules else self._twin(cutouts)
            if twin:
                log.warning("%s: left out, as the archive has the same cutouts as %s", arrival.place, twin)
                self.arrivals.there += 1
                shutil.rmtree(stages.place(arrival), ignore_errors=True)
                return None
            for name, reason in failed.items():
                self._fail(name, reason)
            return Built(arrival, cutouts, stages.extract(arrival, cutouts), set(failed), order)
        except NoCutouts as error:
            log.info("%s: no cutout: %s", arrival.place, str(error).partition(": ")[2])
            self.empty += arrival.marks
        except Exception as error:  # an error of one file does not stop the others
            self._fail(arrival.place, error)
        return None

    def _twin(self, cutouts: Path) -> str:
        """Return the name of a file of this version with the same content, empty if there is none."""
        known = self.version.files if self.version else []
        alike = [added for added in known if added.cutouts.size == cutouts.stat().st_size]
        digest = sha256_file(cutouts) if alike else ""
        return next((added.stem for added in alike if added.cutouts.sha256 == digest), "")

    def _check_size(self, cutouts: Path, work: Path) -> None:
        """Check that the cutouts of a file have the size of those of the version."""
        side = next(iter(inspect_cutouts(cutouts).partitions.values())).height
        if not self.side and self.version is not None:
            said = open_entry(self.folder, self.name, self.version).said.about["provenance"]
            size = said.get("image_size", "0")
            self.side = int(size) if size.isdecimal() and len(size) < 10 else 0
        self.side = self.side or side
        if side != self.side:
            shutil.rmtree(work, ignore_errors=True)  # its work is useless
            raise InputFileError(
                f"expected cutouts of {self.side} x {self.side} pixels (version {self.name}), got {side} x {side}: "
                "begin another archive for them"
            )

    def _check_order(self, cutouts: Path, work: Path) -> str:
        """Return the row order of a cutout file, which must be that of the archive."""
        order = read_row_order(cutouts)
        if self.order is None:
            known = [added.row_order for version in self.manifest.values() for added in version.files]
            self.order = known[-1] if known else order
        if order != self.order and {order, self.order} != {"", SWATH}:  # swaths always had their own frame
            shutil.rmtree(work, ignore_errors=True)  # its work is useless
            raise InputFileError(
                f"expected {order_text(self.order)}, as in the archive, got {order_text(order)}: begin another archive "
                "for them"
            )
        return order

    def _check_name(self, arrival: Arrival) -> None:
        """Check that no other new file has the same name."""
        if not is_plain(arrival.stem, one=True):
            raise InputFileError("expected a plain file name, got control characters or too many: rename the file")
        same = [other for other in self.arrivals.wanted if other.stem == arrival.stem]
        if same[0].uid != arrival.uid:
            raise InputFileError(f"{same[0].place} has the same name: rename one of the files")

    def _publish(
        self,
        stages: Stages,
        made: Built,
        fitted: tuple[Path, Path],
        index: IndexWriter,
        begun: tuple[dict[str, Any], list[Entry]],
    ) -> None:
        """Make table and index rows of a file, publish everything and commit."""
        try:
            added = self._place(stages, made, fitted, index)
        except Exception as error:
            self._fail(made.arrival.place, error)
            return
        state = index.publish(stages.place(made.arrival))
        if self.version is None:
            settings, (weights, projector, clusters, *calibration) = begun
            self.version = Version(settings, {**made_by(), **self.origin}, weights, projector, clusters, state)
            self.version.calibration = calibration[0] if calibration else None
            self.manifest[self.name] = self.version
        self.version.files.append(added)
        self.version.index = state
        self.version.empty += self.empty
        self.empty = []
        self.folder.commit(self.manifest)
        index.committed(state)
        self.added += 1
        shutil.rmtree(stages.place(made.arrival), ignore_errors=True)
        rows = ", ".join(f"{name} {count}" for name, count in added.rows.items())
        log.info("%s: added %s (%s)", self.name, made.arrival.place, rows)

    def _place(self, stages: Stages, made: Built, fitted: tuple[Path, Path], index: IndexWriter) -> Added:
        arrival = made.arrival
        table = stages.table(arrival, made.latents, *fitted)
        rows, left_out, dates = describe(made.latents, table)
        names = [f"{self.name}/latents/{made.latents.name}", f"{self.name}/tables/{table.name}"]
        if arrival.known is None:
            names.append(f"{CUTOUTS}/{made.cutouts.name}")
        self._note(arrival.uid, names)
        left_out_of_index = index.add(Latents([made.latents]), read_table(table))
        if news := [name for name in left_out_of_index if name not in self.unsearched]:
            log.warning(
                "%s: searches have no conditions on %s, as the index has only the columns of its first table",
                arrival.place, ", ".join(news),
            )  # fmt: skip
            self.unsearched.update(news)
        return Added(
            stem=arrival.stem,
            sources=arrival.known.sources if arrival.known else [m for m in arrival.marks if m[0] not in made.failed],
            cutouts=arrival.known.cutouts if arrival.known else self.folder.publish(made.cutouts, names[2]),
            latents=self.folder.publish(made.latents, names[0]),
            table=self.folder.publish(table, names[1]),
            rows=rows,
            left_out=left_out,
            dates=dates,
            nenya=nenya.__version__,
            date=now(),
            row_order=made.row_order,
        )

    def _note(self, folder: str, names: list[str]) -> None:
        """Record the files to publish, so that the next update finds them if this one is killed."""
        with atomic_path(self.work / folder / _PUBLISHING) as temporary:
            temporary.write_text(json.dumps(names))

    def _finish(self, version: Version) -> None:
        """Record granules without cutouts, update the vector index, remove obsolete files."""
        index = IndexWriter(self.folder, self.name, version.index)
        before, rebuilt = version.index, index.build(self.options, added=self.added > 0)
        if rebuilt:
            version.index = index.publish(self.work)
        if rebuilt or self.empty:
            version.empty += self.empty
            self.folder.commit(self.manifest)
        if rebuilt:
            index.committed(version.index)
            index.tidy(before)
        if self.added or rebuilt:
            self._drop_states(version)
        wanted = {arrival.uid for arrival in self.arrivals.wanted}
        for path in self.work.glob("*"):  # keep the work of failed files, which can be resumed
            if not path.is_dir():
                path.unlink()
            elif path.name not in wanted or not any(path.iterdir()):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # missing, or not empty
            self.work.rmdir()

    def _drop_states(self, version: Version) -> None:
        """Remove older states of the index, except the latest two, which may still be read."""
        prefix = f"{self.name}/{STATES}/"
        if self.folder.url is None:
            names = [path.name for path in (self.folder.root / prefix).glob("about-*.json")]
        else:
            names = [found.name for found in store().find(f"{self.folder.url}/{prefix}")]
        numbers = sorted(int(name[6:-5]) for name in names if name[6:-5].isdecimal())
        for number in [n for n in numbers if n < version.index.version][:-2]:
            self.folder.remove(f"{prefix}about-{number}.json")

    def _fail(self, place: str, error: BaseException | str) -> None:
        if isinstance(error, Interrupted | LockLostError):
            raise error
        kind = "" if isinstance(error, NenyaError | str) else f"{type(error).__name__}: "
        lines = str(error).strip().splitlines() or ["no message"]
        if self.options.traceback and isinstance(error, BaseException):
            log.error("", exc_info=error)
        self.arrivals.failed[place] = kind + lines[0].removeprefix(f"{place}: ")

    def _close(self) -> int:
        """Log the outcome of all files."""
        failed = self.arrivals.failed
        for place, reason in failed.items():
            log.error("failed%s: %s: %s", f" in version {self.name}" if len(self.manifest) > 1 else "", place, reason)
        counts = [(self.added, "added"), (self.arrivals.there, "already in the archive"), (len(failed), "failed")]
        said = ", ".join(f"{count} {what}" for count, what in counts if count) or "no new files"
        files = self.version.files if self.version else []
        rows = sum(sum(added.rows.values()) for added in files)
        total = f"{counted(len(files), 'cutout file')}, {counted(rows, 'cutout')}"
        log.info("%s, version %s: %s; %s", self.folder.place, self.name, said, total)
        if failed:
            log.info("fix the failed files, then run the same command again")
        return len(failed)


def made_by() -> dict[str, str]:
    """Return the versions of nenya and of the libraries that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"nenya": nenya.__version__, "git_commit": git_commit(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "date": now()}


def now() -> str:
    """Return the time (UTC) in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
