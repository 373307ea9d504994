"""The cutout file, chunked by cutouts, and its table, assembled from parts; both appear when they are complete."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import to_dict
from nenya.options.files import recipe_keys
from nenya.prepare.account import TALLY
from nenya.prepare.places import ARRAYS
from nenya.prepare.work import Columns
from nenya.runtime.process import git_commit
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.tables.granules import granule_name
from nenya.tables.key_columns import TYPES

if TYPE_CHECKING:
    import pandas

CHUNK_BYTES = 2**16
"""Bytes of a chunk, or one cutout if larger: reading a random cutout then reads few others."""

_NO_COLUMNS = ("images", "clearest", "granule_time", "field_shape", *TALLY, *ARRAYS)  # of a part

FIRST_COLUMNS = (
    *("lat", "lon", "row", "col", "datetime", "filename", "UID", "clear_fraction", "mean_temperature"),
    *("Tmin", "Tmax", "T10", "T90", "field_size", "pp_file", "pp_root", "pp_type", "pp_idx"),
)


def is_valid(name: str, time: np.datetime64, seed: int, fraction: float) -> bool:
    """Return whether a granule's cutouts are in the validation set: by a hash, independent of other granules."""
    text = f"{seed}|{name}|{np.datetime_as_string(time, 's')}"
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return draw < fraction


def read_table(parts: Sequence[tuple[str, Path]], options: PrepareOptions, pp_file: str) -> "pandas.DataFrame":
    """Return the table of all parts, one row per cutout in the order of the parts, with positions in the cutout file.

    Args:
        parts: (name of the file, part).
        options: of the run.
        pp_file: name of the cutout file in the table.

    Raises:
        InputFileError: Two granules have the same name and time.
    """
    import pandas as pd

    columns: list[Columns] = []
    for _, part in parts:
        with np.load(part) as found:
            columns.append({key: found[key] for key in found.files if key not in _NO_COLUMNS})
    filled = [c for c in columns if len(c["UID"])] or columns[:1]
    table = pd.DataFrame({key: np.concatenate([c[key] for c in filled]) for key in filled[0]})
    table["part"] = np.repeat(np.arange(len(columns)), [len(c["UID"]) for c in columns])
    table["part_row"] = np.concatenate([np.arange(len(c["UID"])) for c in columns])
    table["filename"] = table["filename"].astype(str)
    table["granule"] = np.array(_granules(parts), dtype=object)[table["part"].to_numpy()]
    if "at_index" in table and options.matches == "nearest" and len(table):
        table["gap"] = table["at_hours"].abs()
        best = table.sort_values(["at_index", "gap", "at_km", "UID"]).drop_duplicates("at_index").index
        table = table.loc[best.sort_values()].drop(columns="gap").reset_index(drop=True)
    twice = table["UID"].duplicated()
    if twice.any():
        row = table[twice].iloc[0]
        raise InputFileError(
            f"two granules are both called {row['filename']} at {row['datetime']}: their cutouts cannot be "
            "distinguished; give each granule once, or rename one"
        )
    table["pp_file"], table["pp_root"] = pp_file, options.recipe
    sides = np.array([_pp_type(name, part, options) for name, part in parts], dtype=np.int64)
    table["pp_type"] = sides[table["part"].to_numpy()]
    table["pp_idx"] = table.groupby("pp_type").cumcount().astype(np.int64)
    others = [name for name in table.columns if name not in FIRST_COLUMNS]
    return table[[*FIRST_COLUMNS, *others]]


def _granules(parts: Sequence[tuple[str, Path]]) -> list[str]:
    """Return the name of the granule of each part."""
    found = []
    for name, part in parts:
        with np.load(part) as columns:
            found.append(granule_name(name, np.datetime64(columns["granule_time"][()], "us")))
    return found


def _pp_type(name: str, part: Path, options: PrepareOptions) -> int:
    """Return the pp_type of a part."""
    with np.load(part) as found:
        time = found["granule_time"]
    valid = is_valid(name, np.datetime64(time[()], "us"), options.seed, options.valid_fraction)
    return TYPES["valid" if valid else "train"]


def write_outputs(
    path: Path, table: "pandas.DataFrame", parts: Sequence[Path], options: PrepareOptions, about: Mapping[str, Any]
) -> None:
    """Write the cutout file and the table beside it; both appear when both are complete.

    Args:
        path: of the cutout file; the table's ends in .parquet.
        table: of `read_table`.
        parts: of the table's column `part`.
        options: of the run.
        about: further provenance.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {name: int((table["pp_type"] == number).sum()) for name, number in TYPES.items()}
    rows = {name: count for name, count in rows.items() if count}
    provenance = {
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sensor": options.recipe,
        "options": json.dumps(recipe_values(options)),
        "rows": json.dumps(rows),
        "unit": "degrees Celsius for temperatures, metres for heights, else that of the field",
        **about,
    }
    beside = path.with_suffix(".parquet")
    with both_or_none(path, beside), atomic_path(path) as images, atomic_path(beside) as rows_file:
        with write_hdf5(images) as file:
            file.attrs.update(provenance)
            datasets, masks = {}, {}
            masked = options.inpaint == "none" and bool((table["clear_fraction"] < 1).any())
            for name, count in rows.items():
                side = _side_of(parts[0])
                chunk = min(count, max(1, CHUNK_BYTES // (4 * side * side)))
                shape = (count, 1, side, side)
                datasets[TYPES[name]] = file.create_dataset(name, shape, "<f4", chunks=(chunk, 1, side, side))
                if masked:
                    how: dict[str, Any] = {"chunks": (chunk, 1, side, side), "compression": "gzip"}
                    masks[TYPES[name]] = file.create_dataset(f"{name}_mask", shape, "u1", **how)
            for number, group in table.groupby("part", sort=True):
                with np.load(parts[int(str(number))]) as found:
                    chosen: NDArray[np.float32] = found["images"][group["part_row"].to_numpy()]
                for kind, some in group.reset_index(drop=True).groupby("pp_type"):
                    first = int(some["pp_idx"].iloc[0])
                    rows = chosen[some.index.to_numpy()]
                    datasets[int(str(kind))][first : first + len(some), 0] = rows
                    if masked:
                        masks[int(str(kind))][first : first + len(some), 0] = np.isnan(rows)
        final = table.drop(columns=["part", "part_row"])
        arrow = pa.Table.from_pandas(pd.DataFrame(final), preserve_index=False)
        metadata = {**(arrow.schema.metadata or {}), b"nenya": json.dumps(provenance).encode()}
        pq.write_table(arrow.replace_schema_metadata(metadata), rows_file)


@contextmanager
def both_or_none(path: Path, beside: Path) -> Iterator[None]:
    """Remove a new table if its cutout file could not be written, for instance on a full disk.

    Args:
        path: the cutout file.
        beside: its table.
    """
    there = path.exists() or beside.exists()
    try:
        yield
    except BaseException:
        if not there and not path.exists():
            beside.unlink(missing_ok=True)
        raise


def _side_of(part: Path) -> int:
    with np.load(part) as found:
        return int(found["images"].shape[-1])


def recipe_values(options: PrepareOptions) -> dict[str, Any]:
    """Return the options that determine the cutouts: not the input, the output or the number of processes."""
    values = to_dict(options)
    return {key: values[key] for key in recipe_keys()}
