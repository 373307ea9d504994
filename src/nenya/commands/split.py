"""`nenya split`: divides the rows of a table into training and validation, and says what leaks between them."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.data.cutouts import inspect_cutouts
from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.latents.duplicates import nearest_cosines
from nenya.latents.files import Latents, open_latents
from nenya.options.curation import SplitOptions
from nenya.storage.disk import atomic_path, check_output, together
from nenya.storage.paths import base_name, local_path
from nenya.storage.texts import say
from nenya.tables.key_columns import COLUMNS, TYPES, Keys, read_keys
from nenya.tables.near import Distance
from nenya.tables.split import (
    NONE,
    ROWS,
    SPLIT,
    TRAIN,
    UNITS,
    VALID,
    WORDS,
    SplitArray,
    Units,
    leakage,
    split_rows,
    stored_split,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_FEW = 20  # rows that may all have values of their own
_NEAR = Distance(100.0, 1.0)  # what is reported where no buffer is requested


def run(options: SplitOptions) -> int:
    """Write a row list for `nenya train`, and the leakage beside it as JSON.

    Args:
        options: of `scripts/split.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    if not options.table:
        raise OptionError("expected a table of cutouts: nenya split cutouts_preproc.parquet")
    _check_used(options)
    source = local_path(options.table)
    out = list_path(options.out or f"{source.stem}_split.parquet", source)
    summary = out.with_suffix(".json")
    for path in (out, summary):
        check_output(path, options.clobber)
    table = read_table(source)
    units = Units(options.by, options.block_days, options.block_km, options.valid and tuple(options.valid))
    buffer = Distance(options.apart_km, options.apart_days)
    try:
        keys = read_keys(table)
        split = split_rows(table, units, valid_fraction=options.valid_fraction, seed=options.seed, buffer=buffer)
        near = buffer or _NEAR
        both = {"before": stored_split(keys), "after": split}
        leaks = {name: leakage(table, which, near).to_dict() for name, which in both.items()}
    except InputFileError as error:
        raise InputFileError(f"{source}: {error}") from error
    _say_single(table, options.by, split)
    cosines = _Cosines(table, options)
    found = {name: {**leaks[name], "nearest_cosine": cosines.median(which)} for name, which in both.items()}
    with together():
        write_table(row_list(table, split, cosines.lengths(rows_beside(source, keys))), out)
        _write_summary(summary, options, near, split, found)
    counts = [f"{int((split == number).sum())} {words}" for number, words in {**WORDS, NONE: "left out"}.items()]
    say(f"by {options.by}: {', '.join(counts)}")
    for name, values in found.items():
        say(f"{name}: {_sentence(values, near)}")
    log.info("%s\n%s\nnext: nenya train data=CUTOUTS rows=%s", out, summary, out)
    return 0


def _say_single(table: "pd.DataFrame", by: str, split: SplitArray) -> None:
    """Warn where the values of a column keep hardly any rows together."""
    used = table[by][split != NONE] if by not in UNITS else None
    if used is not None and len(used) > _FEW and used.nunique() > len(used) / 2:
        log.warning(
            "by=%s: %d rows have %d values, so that hardly any are kept together: near ones may be on both sides",
            by, len(used), used.nunique(),
        )  # fmt: skip


def _check_used(options: SplitOptions) -> None:
    """Refuse options that would change nothing.

    Raises:
        OptionError: There is one.
    """
    usual = SplitOptions()
    used = {"block_days": options.by == "time", "block_km": options.by == "place", "valid_fraction": not options.valid}
    needs = {"block_days": "by=time", "block_km": "by=place", "valid_fraction": "a drawn validation, without valid="}
    for name, counts in used.items():
        if not counts and (value := getattr(options, name)) != getattr(usual, name):
            raise OptionError(f"{name}={value:g} changes nothing with by={options.by}: it is of {needs[name]}")


def list_path(out: str, table: Path | None = None) -> Path:
    """Return the path of a row list.

    Args:
        out: as given.
        table: of the cutouts; the list would lack its other columns.

    Raises:
        OptionError: It is not that of a table, or that of the cutouts.
    """
    path = local_path(out)
    if path.suffix not in TABLE_SUFFIXES:
        raise OptionError(f"out={out}: expected a table ({', '.join(TABLE_SUFFIXES)})")
    if table is not None and path.exists() and table.exists() and path.samefile(table):
        raise OptionError(f"out={out} is the table of the cutouts, which a row list would replace: give another name")
    return path


def row_list(table: "pd.DataFrame", split: SplitArray, rows: NDArray[np.int64]) -> "pd.DataFrame":
    """Return a row list: the key columns of a table, UID where it has it, `pp_rows` and `split`.

    Args:
        table: (N rows).
        split: (N,) what each row is used for.
        rows: (N,) cutouts in the partition of each row, -1 where unknown; `train` refuses files of other lengths.
    """
    import pandas as pd

    kept = [name for name in table if name in (*COLUMNS, "UID")]
    words = np.array([WORDS[VALID], WORDS[TRAIN], WORDS[NONE]], object)[split]  # -1, none, is the last
    lengths = {ROWS: pd.array(rows, "Int64")} if (rows >= 0).all() else {}
    if not lengths and (rows >= 0).any():
        lengths = {ROWS: pd.array(np.where(rows < 0, 0, rows), "Int64")}
        lengths[ROWS][rows < 0] = pd.NA
    return table[kept].assign(**lengths, **{SPLIT: words})


def rows_beside(source: Path, keys: Keys) -> NDArray[np.int64]:
    """Return the number of cutouts in the partition of each row, (N,), of files beside their table; -1 if unknown."""
    found = np.full((len(keys.names or []) + 1, 3), -1, np.int64)  # the last: no file, no partition
    for number, name in enumerate(keys.names or []):
        path = source.parent / base_name(name)
        try:
            partitions = inspect_cutouts(path).partitions if path.is_file() else {}
        except NenyaError:
            continue
        for partition, kind in TYPES.items():
            if partition in partitions:
                found[number, kind] = partitions[partition].rows
    return np.asarray(found[keys.file, np.maximum(keys.kind, -1)])


def rows_of_latents(latents: Latents, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of cutouts in the partition of each row, (N,), as its latents have them; -1 for no latent."""
    starts, rows = (np.array([getattr(part, name) for part in latents.parts]) for name in ("start", "rows"))
    found = rows[np.searchsorted(starts, np.maximum(positions, 0), side="right") - 1]
    return np.where(positions < 0, -1, found)


class _Cosines:
    """Latents of the rows, for the cosine of nearest neighbours."""

    def __init__(self, table: "pd.DataFrame", options: SplitOptions) -> None:
        self.rows, self.options, self.latents = np.empty(0, np.int64), options, None
        if options.latents:
            loader = options.loader
            self.latents = open_latents(options.latents, loader.cache_dir, allow_external=loader.allow_external)
            self.rows = self.latents.positions(table)

    def lengths(self, beside: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of cutouts in the partition of each row, from its latents or from the file beside it."""
        if self.latents is None:
            return beside
        own = rows_of_latents(self.latents, self.rows)
        return np.where(own < 0, beside, own)

    def median(self, split: SplitArray) -> float | None:
        """Return the median cosine of rows to validate on with their nearest row to train on."""
        if self.latents is None:
            return None
        train, valid = (self.rows[(split == kind) & (self.rows >= 0)] for kind in (TRAIN, VALID))
        options = self.options
        found = nearest_cosines(self.latents, np.sort(train), np.sort(valid), sample=options.sample, seed=options.seed)
        if not len(found) and len(train) and len(valid):
            log.warning("no cosine of nearest neighbours: the rows to validate on, or to train on, have no latents")
        return float(np.median(found)) if len(found) else None


def _write_summary(path: Path, options: SplitOptions, near: Distance, split: SplitArray, found: dict[str, Any]) -> None:
    """Write how the division was made, and its leakage."""
    values = {name: getattr(options, name) for name in _RECORDED}
    counts = {word: int((split == number).sum()) for number, word in WORDS.items()}
    record = {
        "nenya": nenya.__version__, "options": values, "rows": counts,
        "near": {"km": near.km, "days": near.days}, **found,
    }  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


_RECORDED = (
    *("table", "by", "valid_fraction", "block_days", "block_km", "valid", "apart_km", "apart_days", "seed"),
    *("latents", "sample"),
)


def _sentence(values: dict[str, float | None], near: Distance) -> str:
    """Return the leakage in words."""
    if not values["valid"] or not values["train"]:
        return f"{values['train']} rows to train on, {values['valid']} to validate on: no validation"
    parts = []
    if values["same_granule"] is not None:
        parts.append(f"{100 * values['same_granule']:.1f} % of the valid rows have a train row of their granule")
    if values["near"] is not None:
        parts.append(f"{100 * values['near']:.1f} % have one within {near}")
    if values["nearest_cosine"] is not None:
        parts.append(f"median cosine with the nearest one {values['nearest_cosine']:.4f}")
    return ", ".join(parts) or "unknown, as the table has neither granules nor places and times"
