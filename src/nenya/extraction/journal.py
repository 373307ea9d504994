"""Unfinished latents: raw rows, and journals of the blocks that are safely on disk.

HDF5 files do not survive a crash while they are written. So the rows of each partition go to a preallocated raw
file, and a block counts as done when its bytes are on disk and a line with their checksum is in a journal. Each
process has its own journal. At the end the final file is assembled from the raw ones, and appears complete.
A manifest names what the rows depend on: a later run resumes the same work, or refuses.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nenya.data.blocks import Block, cut_blocks
from nenya.data.cutouts import CutoutFile
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, LockLostError, NenyaError, OutputError
from nenya.latents.clear import column_name
from nenya.models.inference import obstacle
from nenya.storage.disk import atomic_path, move_synced, own_mark, sha256_file, write_hdf5
from nenya.storage.lock import OutputLock
from nenya.storage.names import Json, read_bytes, read_json, remove

log = logging.getLogger(__name__)

HDF5_OVERHEAD = 2**16
"""Bytes of an HDF5 file beside its latents: attributes, structure."""

_LINE = re.compile(rb"(\d{1,18}) ([0-9a-f]{8}) (\d{1,18}) ([0-9a-f]{8})")

_MUST_AGREE = (
    *("checkpoint_sha256", "preprocessing", "latent", "masked", "precision", "rows", "dim"),
    *("device", "torch_version", "columns", "calibration_sha256"),
)
_NONE = {"masked": "nan", "columns": [], "calibration_sha256": "none"}  # where a manifest does not say
_HINT = "clobber=true starts over"
_MOST_ROWS, _MOST_THREADS = 2**31, 2**12
_MOST_JOURNAL = 2**26  # bytes: a million blocks
_TAKEN_OVER = ("backend", "batch_size", "block_size", "threads")


@dataclass(frozen=True)
class Entry:
    """The entry of a block in a journal.

    Attributes:
        crc: CRC-32 of its bytes.
        nonfinite: number of its rows that are NaN.
    """

    crc: int
    nonfinite: int


@dataclass
class BlockStore:
    """The partial folder of one output.

    Attributes:
        path: the latents file.
        rows: partition -> number of rows N.
        dim: length D of a latent.
        check: called before the final file appears; raises if another run has taken over the output.
        columns: names of numbers that are kept beside each latent, written as data sets `<partition>_<name>`.
    """

    path: Path
    rows: Mapping[str, int]
    dim: int
    check: Callable[[], None] = lambda: None
    columns: tuple[str, ...] = ()
    _noted: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def partial(self) -> Path:
        """Folder of finished blocks, until the file is complete."""
        return partial_folder(self.path)

    @property
    def width(self) -> int:
        """Length of a raw row: a latent and its columns."""
        return self.dim + len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return 4 * self.width * sum(self.rows.values())

    def raw(self, partition: str) -> Path:
        """Raw little-endian float32 file (N, width) of a partition."""
        return self.partial / f"{partition.replace('/', '%2F')}.f32"

    def _size(self, partition: str) -> int:
        return 4 * self.width * self.rows[partition]

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the finished rows, None if there is none."""
        path = self.partial / "manifest.json"
        if not path.exists():
            return None
        try:
            values = read_json(path).value
        except (OSError, InputFileError):
            return None
        return values if isinstance(values, dict) else None

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Remove earlier work, allocate the space of all rows, and write the manifest.

        Raises:
            OutputError: There is too little space, or the folder cannot be written.
        """
        with self.guard():
            self.clear()
            for partition in self.rows:
                _preallocate(self.raw(partition), self._size(partition))
            # Reserves the space of the final file, so that a full disk shows before the work.
            _preallocate(self.partial / "reserve", self.nbytes + HDF5_OVERHEAD)
            self.note(manifest)

    def note(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        with atomic_path(self.partial / "manifest.json") as temporary:
            temporary.write_text(json.dumps(dict(manifest), indent=1))
        self._noted = dict(manifest)

    def note_sha256(self, sha256: str) -> str:
        """Add the hash of the source to the manifest; a resume from a copy of the source needs it."""
        manifest = self._noted or self.manifest()
        if manifest is not None and sha256:
            self.note({**manifest, "source": {**manifest["source"], "sha256": sha256}})
        return sha256

    def revoke(self) -> None:
        """Remove files that earlier runs began to assemble, so that they cannot appear any more."""
        for path in self.partial.glob("assembled*"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything but the lock."""
        for path in self.partial.iterdir():
            if not path.name.startswith("lock"):
                remove(path)

    def scan(self, blocks: Sequence[Block]) -> dict[int, Entry]:
        """Return the finished blocks: listed in a journal, with matching checksums."""
        if any(not self._has(partition) for partition in self.rows):
            return {}
        entries = self.entries()
        done = {}
        for block in blocks:
            entry = entries.get(block.number)
            if entry is not None and zlib.crc32(self.read(block)) == entry.crc:
                done[block.number] = entry
            elif entry is not None:
                log.warning("%s: block %d is damaged on disk and is computed again", self.partial, block.number)
        return done

    def _has(self, partition: str) -> bool:
        path = self.raw(partition)
        return path.is_file() and path.stat().st_size == self._size(partition)

    def entries(self) -> dict[int, Entry]:
        """Return the entries of all journals; torn or altered lines are ignored."""
        found: dict[int, Entry] = {}
        for journal in sorted(self.partial.glob("journal-*")):
            for line in read_bytes(journal, _MOST_JOURNAL).split(b"\n"):
                match = _LINE.fullmatch(line)
                if match and _line(int(match[1]), Entry(int(match[2], 16), int(match[3]))) == line + b"\n":
                    found[int(match[1])] = Entry(int(match[2], 16), int(match[3]))
        return found

    def read(self, block: Block) -> bytes:
        """Return the bytes of a block."""
        with self.raw(block.partition).open("rb") as raw:
            raw.seek(4 * self.width * block.rows.start)
            return raw.read(4 * self.width * len(block.rows))

    def assemble(self, blocks: Sequence[Block], attributes: Mapping[str, Any]) -> dict[str, int]:
        """Assemble the final file from all blocks, and remove the partial folder.

        Args:
            blocks: all of them.
            attributes: of the final file.

        Returns:
            Partition -> number of rows that are NaN.

        Raises:
            OutputError: A block is missing or damaged, or the file cannot be written; finished blocks are kept.
        """
        for partition, rows in self.rows.items():
            covered = sum(len(block) for block in blocks if block.partition == partition)
            if covered != rows:
                raise OutputError(
                    f"{self.path}: expected {rows} rows of '{partition}', got {covered}; run the same command again"
                )
        entries = self.entries()
        missing = [block.number for block in blocks if block.number not in entries]
        if missing:
            raise OutputError(
                f"{self.path}: {len(missing)} of {len(blocks)} blocks are missing (first {missing[0]}), so the file "
                "was not written"
            )
        nonfinite = dict.fromkeys(self.rows, 0)
        for block in blocks:
            nonfinite[block.partition] += entries[block.number].nonfinite
        temporary = self.partial / f"assembled-{own_mark()}"
        hashes: dict[str, Any] = {}
        self.check()
        with self.guard():
            (self.partial / "reserve").unlink(missing_ok=True)
            with write_hdf5(temporary) as h5:
                for partition in self.rows:
                    for name, shape in self._shapes(partition).items():
                        h5.create_dataset(name, shape, "<f4")
                        hashes[name] = hashlib.sha256()
                for block in blocks:
                    data = self.read(block)
                    if zlib.crc32(data) != entries[block.number].crc:
                        raise OutputError(
                            f"{self.path}: block {block.number} is damaged on disk, so the file was not written: "
                            "check the disk"
                        )
                    for name, values in self._split(block.partition, data).items():
                        hashes[name].update(values.tobytes())
                        h5[name][block.rows.start : block.rows.stop] = values
                h5.attrs.update(attributes)
                h5.attrs["nonfinite_rows"] = json.dumps(nonfinite)
                h5.attrs["latents_sha256"] = json.dumps({name: h.hexdigest() for name, h in hashes.items()})
            self._check(temporary)
            self.check()
            try:
                move_synced(temporary, self.path)
            except FileNotFoundError:  # removed by a run that has taken over the output
                self.check()
                raise
        shutil.rmtree(self.partial, ignore_errors=True)
        return nonfinite

    def _shapes(self, partition: str) -> dict[str, tuple[int, ...]]:
        """Return the data sets of a partition: name -> shape."""
        rows = self.rows[partition]
        return {partition: (rows, self.dim), **{column_name(partition, name): (rows,) for name in self.columns}}

    def _split(self, partition: str, data: bytes) -> dict[str, NDArray[np.float32]]:
        """Return the rows of a block for each data set of its partition."""
        rows = np.frombuffer(data, "<f4").reshape(-1, self.width)
        columns = {column_name(partition, name): rows[:, self.dim + i] for i, name in enumerate(self.columns)}
        return {partition: rows[:, : self.dim], **columns}

    def _check(self, path: Path) -> None:
        """Read back the shapes of the assembled file."""
        wanted = {name: shape for partition in self.rows for name, shape in self._shapes(partition).items()}
        with open_hdf5(path) as h5:
            shapes = {name: h5[name].shape for name in wanted}
        if shapes != wanted:
            raise OutputError(f"{self.path}: read back with shapes {shapes}; the disk may be failing")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn errors of the disk into `OutputError`."""
        try:
            yield
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"{self.path}: cannot write ({error.strerror or error})") from error

    def kept(self, *, clobber: bool = False) -> str:
        """Return what the same command can resume from, and remove the folder if there is nothing.

        Args:
            clobber: whether the command starts over.
        """
        try:
            self.check()
            count = len(self.entries())
        except LockLostError:
            return "another run has taken over the finished blocks"
        except NenyaError:
            raise
        except OSError:
            count = 0
        if count:
            without = "without clobber=true " if clobber else ""
            return f"{count} finished blocks are kept in {self.partial}: the same command {without}resumes there"
        shutil.rmtree(self.partial, ignore_errors=True)
        return "no partial output is kept"


def partial_folder(path: Path) -> Path:
    """Return the folder of the finished blocks of a latents file, until it is complete."""
    return path.with_name(path.name + ".partial")


def remove_leftover(path: Path) -> None:
    """Remove the partial folder that a killed run left beside a complete latents file.

    Unfinished work that is to overwrite the file (`clobber=true`) stays, and so does that of a running process.
    """
    partial = partial_folder(path)
    if partial.is_symlink() or (partial / "lock").is_symlink() or not partial.is_dir():
        return
    with suppress(OutputError), OutputLock(partial / "lock", str(path)):
        if not (partial / "reserve").exists() and not any(partial.glob("assembled*")):
            shutil.rmtree(partial, ignore_errors=True)


def _preallocate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)


def _line(number: int, entry: Entry) -> bytes:
    """Return a line of a journal, which ends with its own checksum."""
    text = b"%d %08x %d" % (number, entry.crc, entry.nonfinite)
    return b"%s %08x\n" % (text, zlib.crc32(text))


def journal_line(number: int, data: bytes | memoryview, nonfinite: int) -> bytes:
    """Return the line of a finished block."""
    return _line(number, Entry(zlib.crc32(data), nonfinite))


@dataclass(frozen=True)
class Work:
    """The remaining work on an output and its settings, the same for all processes.

    Attributes:
        done: numbers of the finished blocks.
        backend: implementation of the forward pass.
        block_size: rows of a block, where the chunks leave the choice.
        batch_size: rows of a forward pass.
        threads: of torch.
        sha256: of the source, if known.
        fresh: whether no block is finished yet.
    """

    done: frozenset[int]
    backend: str
    block_size: int
    batch_size: int
    threads: int
    sha256: str | None
    fresh: bool

    def write(self, store: BlockStore) -> None:
        """Write it for the other processes."""
        with store.guard(), atomic_path(store.partial / "work.json") as temporary:
            temporary.write_text(json.dumps({**asdict(self), "done": sorted(self.done)}))

    @classmethod
    def read(cls, store: BlockStore) -> Self:
        """Read what the first process wrote."""
        with store.guard():
            found = read_json(store.partial / "work.json", _HINT)
        found.object(cls.__dataclass_fields__)
        sha256 = found.get("sha256")
        return cls(
            done=frozenset(number.count() for number in found["done"].items()),
            backend=found["backend"].text(),
            block_size=found["block_size"].count(),
            batch_size=found["batch_size"].count(),
            threads=found["threads"].count(),
            sha256=sha256.sha256() if sha256 else None,
            fresh=found["fresh"].flag(),
        )


def describe_status(path: Path) -> dict[str, Any]:
    """Return the file status by which a changed or replaced file is recognised without reading it."""
    status = path.stat()
    return {"size": status.st_size, "status": [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]}


def begin(store: BlockStore, wanted: Mapping[str, Any], file: CutoutFile, *, clobber: bool) -> Work:
    """Find the remaining work on an output; nothing is written.

    Args:
        store: the partial folder, locked.
        wanted: the manifest of this run.
        file: the source.
        clobber: start over in any case.

    Raises:
        OutputError: Finished rows were made with different input, weights or options.
    """
    found = store.manifest()
    if clobber or found is None or not store.entries():
        return _work(wanted, frozenset(), fresh=True)
    for key in _MUST_AGREE:
        if found.get(key) != wanted.get(key):
            was, now = _short(found.get(key, _NONE.get(key))), _short(wanted.get(key, _NONE.get(key)))
            raise OutputError(
                f"{store.partial} holds finished rows that were made with {key} {was} instead of {now}: "
                "clobber=true starts over"
            )
    _check_types(Json(found, str(store.partial / "manifest.json"), hint=_HINT))
    _check_source(store, found, wanted, file.path)
    _check_backend(store, str(found["backend"]), wanted)
    merged = {**wanted, **{key: found[key] for key in _TAKEN_OVER}}
    merged["source"] = {**wanted["source"], "sha256": found["source"].get("sha256") or wanted["source"].get("sha256")}
    done = store.scan(cut_blocks(file, merged["block_size"], dict(store.rows)))
    return _work(merged, frozenset(done), fresh=not done)


def _check_types(found: Json) -> None:
    """Check the values that are taken over from a manifest.

    Raises:
        OutputError: A value is missing or has the wrong type.
    """
    try:
        found["backend"].text()
        for key in ("batch_size", "block_size"):
            if not found[key].count(_MOST_ROWS):
                found[key].refuse("a number of rows")
        found["threads"].count(_MOST_THREADS)
        found["source"]["size"].count()
        found["source"]["status"].items()
        if sha256 := found["source"].get("sha256"):
            sha256.sha256()
    except InputFileError as error:
        raise OutputError(str(error)) from error


def _work(manifest: Mapping[str, Any], done: frozenset[int], *, fresh: bool) -> Work:
    taken = {key: manifest[key] for key in _TAKEN_OVER}
    return Work(done=done, sha256=manifest["source"].get("sha256"), fresh=fresh, **taken)


def _check_backend(store: BlockStore, backend: str, wanted: Mapping[str, Any]) -> None:
    """Check that the backend of the finished rows is available here."""
    reason = obstacle(backend, wanted["device"], wanted["precision"])
    if not reason and wanted["precision"] == "bf16-true" and backend != wanted["backend"]:
        reason = f"bfloat16 is computed by {wanted['backend']}"  # with weights that are rounded elsewhere
    if reason:
        raise OutputError(
            f"{store.partial} holds finished rows that were made with backend {backend}, which is not available here "
            f"({reason}): clobber=true starts over"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _check_source(store: BlockStore, found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that the finished rows were made from this source."""
    was, now = found["source"], wanted["source"]
    if was["size"] == now["size"] and was["status"] == now["status"]:
        return
    if was["size"] == now["size"] and was.get("sha256") and was["sha256"] == (now["sha256"] or sha256_file(path)):
        return
    raise OutputError(
        f"{store.partial} holds finished rows of another input, or {path} has changed since: clobber=true starts over"
    )


def cpu_threads(devices: int, threads: int) -> int:
    """Return the number of threads per process on this machine, as Lightning divides them."""
    if devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        return max(1, (os.cpu_count() or 1) // devices)
    return threads
