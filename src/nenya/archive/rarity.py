"""Rarity of the rows of an archive: the distance to a fixed sample of the latents of the first files.

As UMAP and clusters, the sample is drawn once, so that rows that come later do not change those that are there. It lies
in the file of the cluster centres.

Letters: R rows of the sample, N rows of a file, D the length of a latent.
"""

import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.hdf5_links import COPY_IN, damage_named
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError
from nenya.latents.files import Latents
from nenya.latents.nearest import Identity, Nearest, as_unit, identity_of
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.tables.granules import GRANULE, SOURCES
from nenya.tables.place_and_time import dates_of, usual_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Float64Array = NDArray[np.float64]

RARITY_COLUMNS = ("rarity", "rarity_percentile")
"""Columns of the tables of an archive."""

NEIGHBOURS, SAMPLE_ROWS = 10, 10_000
APART_KM, APART_DAYS = 100.0, 3.0

# In the file: unit latents of the sample (R, D), its rarities in rising order, its table as Parquet.
_LATENTS, _RARITY, _TABLE = "sample_latents", "sample_rarity", "sample_table"
_KEYS = ("pp_file", "pp_type", "pp_idx")
_COLUMNS = (*_KEYS, GRANULE, *SOURCES, "lat", "lon")


def add_reference(path: Path, files: Iterable[tuple[Latents, "pd.DataFrame"]], seed: int) -> None:
    """Draw the sample and add it to the file of the cluster centres; nothing is added if it is too small.

    Args:
        path: of the cluster centres.
        files: latents of each of the first files, and their table, row by row.
        seed: of the sample.
    """
    import pandas as pd

    files = list(files)
    if not files:
        return
    ends = np.cumsum([len(latents) for latents, _ in files])
    chosen = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:SAMPLE_ROWS])
    units: list[NDArray[np.float32]] = []
    tables: list[pd.DataFrame] = []
    for (latents, table), wanted in zip(files, np.split(chosen, np.searchsorted(chosen, ends[:-1])), strict=True):
        wanted = wanted - (ends[len(tables)] - len(latents))
        rows = as_unit(latents.take(wanted))
        known = np.isfinite(rows[:, 0])
        units.append(rows[known])
        tables.append(_usual(table).iloc[wanted[known]])
    count = sum(map(len, units))
    if count <= NEIGHBOURS:
        log.warning("no rarity: the first files have %d latents, expected more than %d", count, NEIGHBOURS)
        return
    rows, table = np.concatenate(units), pd.concat(tables, ignore_index=True)
    own = _identity(table)
    found = np.sort(_distances(Nearest(rows, own), rows, own))
    found = found[np.isfinite(found)]
    if not len(found):
        log.warning("no rarity: no row has %d neighbours outside its own granule and surroundings", NEIGHBOURS)
        return
    text = io.BytesIO()
    table.to_parquet(text)
    with atomic_path(path) as temporary, write_hdf5(temporary) as file:
        with open_hdf5(path, advice=COPY_IN) as old:
            file.attrs.update(old.attrs)
            for name in old:
                old.copy(name, file)
        file[_LATENTS], file[_RARITY] = rows, found
        file[_TABLE] = np.frombuffer(text.getvalue(), np.uint8)


def has_reference(path: Path) -> bool:
    """Return whether the file of the cluster centres has a sample; those of older archives have none."""
    with open_hdf5(path, advice=COPY_IN) as file, damage_named(str(path)):
        return _LATENTS in file


def rarity_columns(path: Path, latents: Latents, table: "pd.DataFrame") -> dict[str, Float64Array]:
    """Return the columns of rarity of the rows of a file.

    Args:
        path: of the cluster centres.
        latents: of the file, N rows.
        table: of the same rows.

    Returns:
        Name -> (N,) float64: the mean cosine distance to the ten nearest of the sample that are not of the same granule
        or nearby, and the percentage of the sample that is as near or nearer; NaN where unknown. Empty if the archive
        has no sample.

    Raises:
        InputFileError: The sample is damaged.
    """
    if not has_reference(path):
        return {}
    rows, sample, known = _read(path)
    if rows.shape[1] != latents.shape[1]:
        raise InputFileError(f"{path}: expected a sample of latents (R, {latents.shape[1]}), got {rows.shape}")
    reference, own = _identities(sample, _usual(table))
    nearest, found = Nearest(rows, reference), np.full(len(latents), np.nan)
    for start, block in latents.blocks():
        units = as_unit(block)
        good = np.flatnonzero(np.isfinite(units[:, 0]))
        found[start + good] = _distances(nearest, units[good], own.take(start + good))
    percentile = 100 * np.searchsorted(known, found, side="right") / len(known)
    return dict(zip(RARITY_COLUMNS, (found, np.where(np.isfinite(found), percentile, np.nan)), strict=True))


def _read(path: Path) -> tuple[NDArray[np.float32], "pd.DataFrame", Float64Array]:
    """Return the sample: unit latents (R, D), their table, and the known rarities in rising order."""
    import pandas as pd

    with open_hdf5(path, advice=COPY_IN) as file, damage_named(str(path)):
        rows, known, text = (np.asarray(file[name][()]) for name in (_LATENTS, _RARITY, _TABLE))
    if rows.ndim != 2 or rows.dtype != np.float32 or not np.isfinite(rows).all() or not len(known):
        raise InputFileError(f"{path}: the sample of rarity is damaged: make the version again")
    try:
        table: Any = pd.read_parquet(io.BytesIO(text.tobytes()))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path}: the table of the sample of rarity is damaged: make the version again") from error
    if len(table) != len(rows):
        raise InputFileError(f"{path}: the sample of rarity is damaged: make the version again")
    return rows, table, known


def _usual(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the columns that tell which rows are near each other, each of one type in all tables."""
    import pandas as pd

    table = usual_names(table)
    found = table[[name for name in _COLUMNS if name in table]].copy()
    for name in found:
        if name == "datetime":
            found[name] = dates_of(found[name], check=False)
        elif name in ("pp_file", GRANULE, "filename"):
            found[name] = found[name].astype("string")
        else:
            found[name] = pd.to_numeric(found[name], errors="coerce")
    return found


def _identity(table: "pd.DataFrame") -> Identity:
    near = all(name in table and table[name].notna().any() for name in ("lat", "lon", "datetime"))
    return identity_of(table, APART_KM if near else None, APART_DAYS if near else None)


def _identities(sample: "pd.DataFrame", table: "pd.DataFrame") -> tuple[Identity, Identity]:
    """Return the identity of the rows of the sample, and of those of a table; a cutout in both has one number."""
    import pandas as pd

    both, count = _identity(pd.concat([sample, table], ignore_index=True)), len(sample)
    number = {key: row for row, key in enumerate(zip(*(sample[name] for name in _KEYS), strict=True))}
    keys = zip(*(table[name] for name in _KEYS), strict=True)
    both.number[count:] = [number.get(key, count + row) for row, key in enumerate(keys)]
    return both.take(slice(0, count)), both.take(slice(count, None))


def _distances(nearest: Nearest, units: NDArray[np.float32], own: Identity) -> Float64Array:
    """Return the mean cosine distance of rows to the nearest of the sample, (N,), NaN with fewer than ten."""
    found: Float64Array = 1 - nearest.search_many(units, own, NEIGHBOURS)[0].mean(axis=1)
    return found
