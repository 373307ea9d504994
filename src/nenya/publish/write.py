"""Publishing rows: all formats from one pass over the latents, into a folder that is complete or absent."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nenya.errors import NenyaError, OutputError
from nenya.options.extras import need
from nenya.publish.about import ABOUT, describe, is_published
from nenya.publish.encoding import Encoded, encode, measure
from nenya.publish.geoparquet import FOLDER as GEOPARQUET
from nenya.publish.geoparquet import GeoParquetWriter
from nenya.publish.lance_table import FOLDER as LANCE
from nenya.publish.lance_table import LanceWriter
from nenya.publish.rows import Block, Choice, Rows
from nenya.publish.stac import FOLDER as STAC
from nenya.publish.stac import Stac, check_rows
from nenya.publish.zarr_store import FOLDER as ZARR
from nenya.publish.zarr_store import ZarrWriter
from nenya.storage.disk import check_folder, check_room, sha256_file, sync, temporary_folder
from nenya.storage.small_files import refuse_link
from nenya.storage.texts import first_words

log = logging.getLogger(__name__)

_MORE = 64  # bytes of a row beyond latent and table: geometry and bounds


class Writer(Protocol):
    """Writes the published rows in one format."""

    def add(self, block: Block, encoded: Encoded) -> None:
        """Write the rows of a block, which follows the last one."""

    def close(self) -> None:
        """Finish."""

    def abort(self) -> None:
        """Close what is open, after an error."""


def check_out(out: Path, clobber: bool) -> None:
    """Check that a published folder can be written, before the work; nothing is created.

    Args:
        out: the folder.
        clobber: whether one that is there may be replaced.

    Raises:
        OutputError: It is a file or a link, exists, holds other files, or its parent cannot be written.
    """
    refuse_link(out)
    parent = check_folder(out.parent, out)
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"{out} is a file, expected the name of a folder: choose another path with out=")
    if not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise OutputError(f"{out}: the folder {parent} is not writable; choose another path with out=")
    if not os.path.isdir(out) or not any(out.iterdir()):
        return
    if not is_published(out):
        raise OutputError(
            f"{out}: expected a new folder, or one of nenya publish, got other files; choose another out="
        )
    if not clobber:
        raise OutputError(f"{out} exists (clobber=true replaces it, out= names another folder)")


def publish(
    rows: Rows,
    out: Path,
    formats: Sequence[str],
    choice: Choice,
    *,
    dtype: str = "float32",
    seed: int = 1234,
    words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write rows in one or several formats.

    Args:
        rows: from `nenya.publish.rows.select` with `choice`.
        out: a folder that `check_out` accepts; what it holds is replaced at the end.
        formats: out of `nenya.publish.about.FORMATS`.
        choice: of the rows.
        dtype: type of the stored latents.
        seed: of the sample on which the loss of `dtype` is measured.
        words: `title` and `license` for STAC.

    Returns:
        The content of `published.json`.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
        OptionError: The latents do not fit `dtype`, or a package is missing.
        InputFileError: STAC is requested, and no row has a place or a time.
    """
    if "stac" in formats:
        check_rows(rows)
    if "lance" in formats:
        need("search", "format=lance")
    width = rows.dim * np.dtype(dtype).itemsize + rows.table.nbytes / max(1, len(rows)) + _MORE
    check_room(out.parent, int(len(rows) * width) * len([name for name in formats if name != "stac"]), "publishing")
    stored = {
        "dtype": dtype,
        "scale": "row" if dtype == "int8" else None,
        **measure(rows.latents, rows.number, dtype, seed),
    }
    chosen = {"where": choice.where, "geometry": choice.geometry, "partition": list(rows.partitions.names)}
    about = describe(rows, {**chosen, "cell_side": choice.side}, stored)
    with _errors(out), _new_folder(out) as new:
        writers = _writers(new, rows, formats, dtype, about)
        try:
            for block in rows.blocks():
                encoded = encode(block.latents, dtype)
                for writer in writers.values():
                    writer.add(block, encoded)
            for writer in writers.values():
                writer.close()
        except BaseException:
            for writer in writers.values():
                with suppress(Exception):
                    writer.abort()
            raise
        parquet = writers.get("geoparquet")
        parts = parquet.files if isinstance(parquet, GeoParquetWriter) else []
        about |= {"formats": list(formats), "parts": [{"name": part.name, "rows": part.rows} for part in parts]}
        files = _entries(new)
        if "stac" in formats:
            title = out.name or "latents"
            by_name = {file["name"]: file for file in files}
            Stac(new, about, by_name, words or {"title": title, "license": "various"}).write(rows, parts, formats)
            files += [entry for entry in _entries(new / STAC, f"{STAC}/")]
        about["files"] = files
        (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _writers(folder: Path, rows: Rows, formats: Sequence[str], dtype: str, about: dict[str, Any]) -> dict[str, Writer]:
    text = {"nenya": json.dumps(about)}
    made: dict[str, Writer] = {}
    if "geoparquet" in formats:
        made["geoparquet"] = GeoParquetWriter(folder / GEOPARQUET, rows, dtype, text)
    if "zarr" in formats:
        made["zarr"] = ZarrWriter(folder / ZARR, rows, dtype, text)
    if "lance" in formats:
        made["lance"] = LanceWriter(folder / LANCE, rows, dtype, text)
    return made


def _entries(folder: Path, start: str = "") -> list[dict[str, Any]]:
    """Return name (after `start`), size and hash of all files below a folder; their bytes are then on the disk."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        name = start + path.relative_to(folder).as_posix()
        found.append({"name": name, "size": path.stat().st_size, "sha256": sha256_file(path)})
    return found


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which takes the place of `out` at the end of the block unless that fails."""
    with temporary_folder(f".{out.name}.publish-", out.parent) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        sync(new / ABOUT)
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        sync(out.parent)


@contextmanager
def _errors(out: Path) -> Iterator[None]:
    """Turn errors of the disk, and of libraries that write, into one line."""
    try:
        yield
    except NenyaError:
        raise
    except OSError as error:
        said = error.strerror or first_words(error)
        raise OutputError(f"{out}: cannot be written ({said}); free some space, or choose another out=") from error
