"""UMAP coordinates of a table: fit a projector on a sample, then place every row; interrupted work resumes.

Finished work lies in `<out>.partial/`: the projector, and a file for each block of rows, each complete or absent. That
of shards lies in `<out>.shards/`, in a folder named by a digest of what it depends on; the blocks are the same.
"""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.io import write_table
from nenya.latents.files import Latents
from nenya.latents.kept_answers import SHARDS, KeptAnswers
from nenya.latents.spread import SPREAD, umap_spread
from nenya.runtime.process import RowProgress
from nenya.runtime.shards import MERGE, Share
from nenya.storage.disk import atomic_path, check_output, sha256_file
from nenya.storage.lock import OutputLock
from nenya.storage.names import read_json, remove
from nenya.storage.small_files import refuse_links

if TYPE_CHECKING:
    import pandas as pd

    from nenya.latents.projector import Projector

log = logging.getLogger(__name__)

BLOCK_ROWS = 16384
DEBUG_ROWS = 2000
LEAST_ROWS = 4
_SEARCH = "integers in lists, all passes"  # of the approximate way: unfinished work of another is not resumed
_MANY = 10**6
_MERGING = "merging"  # name of the answer that tells the projector that a merge writes
COLUMNS = ("US0", "US1")


@dataclass(frozen=True)
class Fit:
    """Settings of a UMAP fit.

    Attributes:
        ntrain: largest number of rows drawn for the fit.
        n_neighbors: see `nenya.latents.projector.Projector.fit`.
        min_dist: see there.
        metric: see there.
        seed: of the draw and of the fit.
    """

    ntrain: int = 200_000
    n_neighbors: int = 15
    min_dist: float = 0.1
    metric: str = "euclidean"
    seed: int = 1234


def projector_place(table: Path) -> Path:
    """Return the default location of the projector of a table: `<name>_UMAP.h5` beside it."""
    return table.with_name(f"{table.stem.removesuffix('_umap')}_UMAP.h5")


def embed_table(
    latents: Latents,
    table: "pd.DataFrame",
    out: Path,
    how: Fit | Path,
    save: Path | None = None,
    *,
    approximate: bool = False,
    clobber: bool = False,
    directions: NDArray[np.float32] | None = None,
    merge: bool = False,
) -> "Projector":
    """Write a copy of a table with the columns US0, US1, and the projector that made them.

    Where the latents files know the error of masked cutouts, the table also gets `Latents.clearness` and `umap_spread`.

    Args:
        latents: of its cutouts.
        table: joined to them by pp_file, pp_type and pp_idx; rows without a finite latent get NaN.
        out: the output table.
        how: settings of a fit, or the file of a fitted projector.
        save: file of a newly fitted projector.
        approximate: place rows by the approximate search.
        clobber: overwrite existing outputs, and discard unfinished work of a run without shards.
        directions: (M, D), of the calibration of the latents, for `umap_spread`.
        merge: take the places that shards have found; see `embed_share`. Unfinished work is left as it is.

    Returns:
        The projector.

    Raises:
        OutputError: The table or the projector exists, another process writes it, it was begun with different
            options, or shards are missing.
        InputFileError: The latents cannot be used.
    """
    save = None if isinstance(how, Path) else save
    partial = refuse_links(out.with_name(out.name + ".partial"))
    check_output(out, clobber)
    if save is not None and not save.exists():
        check_output(save, clobber)
    if isinstance(how, Path):
        load_projector(how, latents)  # before any work
    joined = latents.join(table)
    rows = joined.number
    wanted, back = np.unique(rows[rows >= 0], return_inverse=True)
    manifest = _manifest(latents, wanted, how, approximate)
    shards = _shards(out, manifest, Share(0, 0)) if merge else KeptAnswers()
    if merge:  # before anything is written
        shards.refuse_missing(_unplaced(shards.place, len(wanted)), _block_count(len(wanted)))
    with OutputLock(partial / "lock", str(out)) as lock, _kept_if_it_holds_work(partial):
        if merge:
            _begin_merge(shards, save, clobber)
        else:
            _begin(partial, manifest, save, clobber)
        work = shards.place if merge else partial
        projector = _projector(latents, wanted, how, work)
        places = _place_rows(projector, latents, wanted, work, approximate, shards)
        coordinates = np.full((len(table), 2), np.nan, np.float32)
        coordinates[rows >= 0] = places[back]
        lock.check()
        if save is not None:
            projector.save(save)
            log.info("%s: projector of %d rows", save, len(projector.latents))
        columns = dict(zip(COLUMNS, coordinates.T, strict=True))
        columns |= _clearness(projector, latents, rows, coordinates, directions, approximate)
        write_table(table.assign(**columns), out)
        if not merge or _begun(partial) == manifest or not _holds_work(partial):
            shutil.rmtree(partial, ignore_errors=True)
        shards.remove()
    finite = int(np.isfinite(coordinates[:, 0]).sum())
    hidden = int((rows >= 0).sum()) - finite
    if unplaced := len(latents) - len(wanted):
        log.info("%d of %d latents have no row in the table and are not placed", unplaced, len(latents))
    if joined.note:
        log.warning("%s", joined.note)
    log.info(
        "%s: placed %d of %d rows (%d without a latent, %d with a non-finite latent)",
        out, finite, len(table), int((rows < 0).sum()), hidden,
    )  # fmt: skip
    return projector


def embed_share(
    latents: Latents,
    table: "pd.DataFrame",
    out: Path,
    how: Fit | Path,
    share: Share,
    *,
    approximate: bool = False,
) -> None:
    """Place the rows of one shard of `embed_table`, and keep them for the merge.

    Without a projector, the first worker fits it, and the others wait for it.

    Args:
        latents: as in `embed_table`.
        table: as there.
        out: as there; it is not written.
        how: as there.
        share: of this worker.
        approximate: as there.

    Raises:
        OutputError: Another process does this shard.
        InputFileError: The latents cannot be used.
    """
    rows = latents.join(table).number
    wanted = np.unique(rows[rows >= 0])
    shards = _shards(out, _manifest(latents, wanted, how, approximate), share)
    with shards.working(str(out)):
        with shards.alone("projector"):
            projector = _projector(latents, wanted, how, shards.place)
        _place_rows(projector, latents, wanted, shards.place, approximate, shards)
    log.info("%s: shard %s is complete; when all are, shard=%s writes the table", out, share, MERGE)


def _shards(out: Path, manifest: dict[str, Any], share: Share) -> KeptAnswers:
    inputs = hashlib.sha256(f"{nenya.__version__} {json.dumps(manifest)}".encode()).hexdigest()[:32]
    return KeptAnswers(out.with_name(out.name + SHARDS), inputs, share)


def _block_count(rows: int) -> int:
    return -(-rows // BLOCK_ROWS)


def _unplaced(folder: Path, rows: int) -> list[int]:
    """Return the numbers of the blocks that no shard has placed, or that are damaged."""
    room = np.empty((rows, 2), np.float32)
    starts = range(0, rows, BLOCK_ROWS)
    return [n for n, start in enumerate(starts) if not _take_block(folder, start, room[start : start + BLOCK_ROWS])]


def _clearness(
    projector: "Projector",
    latents: Latents,
    rows: NDArray[np.int64],
    places: NDArray[np.float32],
    directions: NDArray[np.float32] | None,
    approximate: bool,
) -> dict[str, NDArray[np.float32]]:
    """Return the columns on masks of the rows of a table, and the spread of their places where the error is known."""
    found = latents.clearness(rows)
    if "cosine_low" not in found:
        return found
    spread = np.full(len(rows), np.nan, np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        own = start + np.flatnonzero(rows[start : start + BLOCK_ROWS] >= 0)
        how = places[own], found["cosine"][own], found["cosine_low"][own], directions
        spread[own] = umap_spread(projector, latents.take(rows[own]), *how, approximate=approximate)
    return {**found, SPREAD: spread}


@contextmanager
def _kept_if_it_holds_work(partial: Path) -> Iterator[None]:
    """Remove the folder of unfinished work if an error ends the run before there is any."""
    try:
        yield
    except BaseException:
        if not _holds_work(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _holds_work(partial: Path) -> bool:
    return any(path.name == "projector.h5" or path.name.startswith("rows-") for path in partial.iterdir())


def _manifest(latents: Latents, wanted: NDArray[np.int64], how: Fit | Path, approximate: bool) -> dict[str, Any]:
    """Return everything that the coordinates depend on."""
    return {
        "latents": latents.states(),
        "rows": [len(wanted), zlib.crc32(wanted.tobytes())],
        "how": {"projector": sha256_file(how)} if isinstance(how, Path) and how.is_file() else str(how),
        "approximate": approximate,
        **({"search": _SEARCH} if approximate else {}),
        **({} if latents.left_out is None else {"left_out": zlib.crc32(latents.left_out.tobytes())}),
        "block": BLOCK_ROWS,
    }


def _begun(partial: Path) -> dict[str, Any] | None:
    try:
        values = read_json(partial / "manifest.json").value
    except (OSError, InputFileError):
        return None
    return values if isinstance(values, dict) else None


def _begin(partial: Path, manifest: dict[str, Any], save: Path | None, clobber: bool) -> None:
    """Prepare the folder of unfinished work; that of the same data and options stays.

    Raises:
        OutputError: It holds other work, or the file of the projector exists, without `clobber`.
    """
    begun = _begun(partial)
    if begun == manifest:
        return
    if begun is not None and not clobber:
        raise OutputError(f"{partial} holds unfinished work with different data or options: clobber=true starts over")
    _refuse_existing(save, clobber)
    for path in partial.iterdir():
        if not path.name.startswith("lock"):
            remove(path)
    _write(partial / "manifest.json", json.dumps(manifest, indent=1).encode())


def _begin_merge(shards: KeptAnswers, save: Path | None, clobber: bool) -> None:
    """Note that the merge of these shards writes the projector, so that a killed merge may write it again.

    Raises:
        OutputError: The file of the projector exists, without `clobber`.
    """
    noted = str(save).encode()
    if shards.take(_MERGING) != noted:
        _refuse_existing(save, clobber)
        shards.keep(_MERGING, noted)


def _refuse_existing(save: Path | None, clobber: bool) -> None:
    if save is not None and save.exists() and not clobber:
        raise OutputError(f"{save} exists: clobber=true overwrites it; projector={save} uses it")


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _projector(latents: Latents, wanted: NDArray[np.int64], how: Fit | Path, partial: Path) -> "Projector":
    """Return the given projector, or the one that an interrupted run fitted, or fit one."""
    kept = partial / "projector.h5"
    if isinstance(how, Path) or kept.is_file():
        return load_projector(how if isinstance(how, Path) else kept, latents)
    projector = fit_projector(latents, wanted, how)
    projector.save(kept)
    return projector


def fit_projector(latents: Latents, wanted: NDArray[np.int64], how: Fit) -> "Projector":
    """Fit a UMAP on a sample of the rows `wanted` of latents."""
    from nenya.latents.projector import Projector

    rng = np.random.default_rng(how.seed)
    chosen = np.sort(rng.choice(wanted, min(how.ntrain, len(wanted)), replace=False))
    rows = latents.take(chosen)
    finite = int(np.isfinite(rows).all(axis=1).sum())
    if finite < LEAST_ROWS:
        raise InputFileError(
            f"expected at least {LEAST_ROWS} rows with a finite latent for a UMAP, got {finite} of {len(rows)}: "
            "give more rows, or an existing projector="
        )
    neighbours = min(how.n_neighbors, finite - 1)
    if neighbours < how.n_neighbors:
        log.warning("n_neighbors=%d needs more rows: using %d for %d rows", how.n_neighbors, neighbours, finite)
    log.info("fitting a UMAP on %d of %d rows", len(rows), len(wanted))
    projector = Projector.fit(rows, neighbours, how.min_dist, how.metric, how.seed)
    projector.image_size = int(latents.provenance.get("image_size", 0))
    return projector


def load_projector(path: Path, latents: Latents) -> "Projector":
    """Read a projector, and check that it was fitted on latents of this length.

    Raises:
        InputFileError: It cannot be read, or was fitted on latents of another length.
    """
    from nenya.latents.projector import Projector

    projector = Projector.load(path)
    if projector.latents.shape[1] != latents.shape[1]:
        raise InputFileError(
            f"{path}: expected latents of {projector.latents.shape[1]} dimensions, got {latents.shape[1]}: give the "
            "projector of their model"
        )
    return projector


def _place_rows(
    projector: "Projector", latents: Latents, wanted: NDArray[np.int64], folder: Path, approximate: bool,
    shards: KeptAnswers,
) -> NDArray[np.float32]:  # fmt: skip
    """Place rows block by block: (len(wanted), 2) float32; finished blocks are read, not computed again.

    A shard places the blocks of its share only.
    """
    out = np.empty((len(wanted), 2), np.float32)
    starts = range(0, len(wanted), BLOCK_ROWS)
    blocks = {start: out[start : start + BLOCK_ROWS] for start in starts}
    done = {start for start, block in blocks.items() if _take_block(folder, start, block)}
    mine = {start for number, start in enumerate(starts) if shards.owns(number)} | done
    before = sum(len(blocks[start]) for start in done)
    if done and mine != done:
        log.info("resuming: %d of %d rows are already placed", before, len(wanted))
    with RowProgress("placing", sum(len(blocks[start]) for start in mine), before=before) as progress:
        for start in sorted(mine - done):
            places = projector.transform(latents.take(wanted[start : start + BLOCK_ROWS]), approximate=approximate)
            data = places.astype("<f4").tobytes()
            shards.check()
            _write(_block_path(folder, start), data + zlib.crc32(data).to_bytes(4, "little"))
            blocks[start][:] = places
            progress.advance(len(places))
    return out


def _block_path(partial: Path, start: int) -> Path:
    return partial / f"rows-{start:012d}"


def _take_block(partial: Path, start: int, out: NDArray[np.float32]) -> bool:
    """Fill in a block placed by an earlier run; False if it is missing or damaged."""
    try:
        data = _block_path(partial, start).read_bytes()
    except OSError:
        return False
    if len(data) != out.nbytes + 4 or zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        return False
    out[:] = np.frombuffer(data[:-4], "<f4").reshape(-1, 2)
    return True
