"""Unfinished latents: raw rows, and journals of the blocks that are safely on disk.

HDF5 files do not survive a crash while they are written. So the rows of each partition go to a preallocated raw
file, and a block counts as done when its bytes are on disk and a line with their checksum is in a journal. Each
process has its own journal. At the end the final file is assembled from the raw ones, and appears complete.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nenya.data.blocks import Block
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, LockLostError, NenyaError, OutputError
from nenya.storage.disk import atomic_path, move_synced, write_hdf5
from nenya.storage.lock import OutputLock
from nenya.storage.names import read_json, remove
from nenya.storage.temporaries import own_mark

log = logging.getLogger(__name__)

HDF5_OVERHEAD = 2**16
"""Bytes of an HDF5 file beside its latents: attributes, structure."""

_LINE = re.compile(rb"(\d{1,18}) ([0-9a-f]{8}) (\d{1,18}) ([0-9a-f]{8})")


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
    """

    path: Path
    rows: Mapping[str, int]
    dim: int
    check: Callable[[], None] = lambda: None

    @property
    def partial(self) -> Path:
        """Folder of finished blocks, until the file is complete."""
        return partial_folder(self.path)

    @property
    def nbytes(self) -> int:
        """Bytes of all latents."""
        return 4 * self.dim * sum(self.rows.values())

    def raw(self, partition: str) -> Path:
        """Raw little-endian float32 file (N, D) of a partition."""
        return self.partial / f"{partition.replace('/', '%2F')}.f32"

    def _size(self, partition: str) -> int:
        return 4 * self.dim * self.rows[partition]

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of the finished rows, None if there is none."""
        try:
            values = read_json(self.partial / "manifest.json").value
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
            for line in journal.read_bytes().split(b"\n"):
                match = _LINE.fullmatch(line)
                if match and _line(int(match[1]), Entry(int(match[2], 16), int(match[3]))) == line + b"\n":
                    found[int(match[1])] = Entry(int(match[2], 16), int(match[3]))
        return found

    def read(self, block: Block) -> bytes:
        """Return the bytes of a block."""
        with self.raw(block.partition).open("rb") as raw:
            raw.seek(4 * self.dim * block.rows.start)
            return raw.read(4 * self.dim * len(block.rows))

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
        hashes = {partition: hashlib.sha256() for partition in self.rows}
        self.check()
        with self.guard():
            (self.partial / "reserve").unlink(missing_ok=True)
            with write_hdf5(temporary) as h5:
                for partition, rows in self.rows.items():
                    h5.create_dataset(partition, (rows, self.dim), "<f4")
                for block in blocks:
                    data = self.read(block)
                    if zlib.crc32(data) != entries[block.number].crc:
                        raise OutputError(
                            f"{self.path}: block {block.number} is damaged on disk, so the file was not written: "
                            "check the disk"
                        )
                    hashes[block.partition].update(data)
                    h5[block.partition][block.rows.start : block.rows.stop] = np.frombuffer(data, "<f4").reshape(
                        -1, self.dim
                    )
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

    def _check(self, path: Path) -> None:
        """Read back the shapes of the assembled file."""
        with open_hdf5(path) as h5:
            shapes = {name: h5[name].shape for name in self.rows}
        if shapes != {name: (rows, self.dim) for name, rows in self.rows.items()}:
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
