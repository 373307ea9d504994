"""The manifest of unfinished output: a later run resumes the same work, or refuses."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nenya.data.blocks import cut_blocks
from nenya.data.cutouts import CutoutFile
from nenya.errors import InputFileError, OutputError
from nenya.extraction.journal import BlockStore
from nenya.models.inference import obstacle
from nenya.storage.disk import atomic_path, sha256_file
from nenya.storage.names import Json, read_json

_MUST_AGREE = (
    *("checkpoint_sha256", "preprocessing", "latent", "precision", "rows", "dim"),
    *("device", "torch_version"),
)
_HINT = "clobber=true starts over"
_MOST_ROWS, _MOST_THREADS = 2**31, 2**12
_TAKEN_OVER = ("backend", "batch_size", "block_size", "threads")


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
        if found.get(key) != wanted[key]:
            was, now = _short(found.get(key)), _short(wanted[key])
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


def note_sha256(store: BlockStore, sha256: str) -> str:
    """Add the hash of the source to the manifest; a resume from a copy of the source needs it."""
    manifest = store.manifest()
    if manifest is not None and sha256:
        store.note({**manifest, "source": {**manifest["source"], "sha256": sha256}})
    return sha256


def cpu_threads(devices: int, threads: int) -> int:
    """Return the number of threads per process on this machine, as Lightning divides them."""
    if devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        return max(1, (os.cpu_count() or 1) // devices)
    return threads
