"""`nenya split`: divides the rows of a table into training and validation, and says what leaks between them."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import nenya
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.latents.duplicates import nearest_cosines
from nenya.latents.files import open_latents
from nenya.options.curation import SplitOptions
from nenya.storage.disk import atomic_path, check_output, together
from nenya.storage.paths import local_path
from nenya.storage.texts import say
from nenya.tables.key_columns import COLUMNS, read_keys
from nenya.tables.near import Distance
from nenya.tables.split import (
    NONE,
    SPLIT,
    TRAIN,
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

_NEAR = Distance(100.0, 1.0)  # what is reported where no buffer is asked for


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
    source = local_path(options.table)
    out = list_path(options.out or f"{source.stem}_split.parquet")
    summary = out.with_suffix(".json")
    for path in (out, summary):
        check_output(path, options.clobber)
    table = read_table(source)
    units = Units(options.by, options.block_days, options.block_km, options.valid and tuple(options.valid))
    buffer = Distance(options.apart_km, options.apart_days)
    try:
        keys = read_keys(table)
        cosines = _Cosines(table, options)
        split = split_rows(table, units, valid_fraction=options.valid_fraction, seed=options.seed, buffer=buffer)
    except InputFileError as error:
        raise InputFileError(f"{source}: {error}") from error
    near = buffer or _NEAR
    found = {}
    for name, which in (("before", stored_split(keys)), ("after", split)):
        found[name] = {**leakage(table, which, near).to_dict(), "nearest_cosine": cosines.median(which)}
    with together():
        write_table(row_list(table, split), out)
        _write_summary(summary, options, near, split, found)
    counts = {word: int((split == number).sum()) for number, word in WORDS.items()}
    say(f"by {options.by}: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    for name, values in found.items():
        say(f"{name}: {_sentence(values, near)}")
    log.info("%s\n%s\nnext: nenya train data=CUTOUTS rows=%s", out, summary, out)
    return 0


def list_path(out: str) -> Path:
    """Return the path of a row list.

    Raises:
        OptionError: It is not that of a table.
    """
    path = local_path(out)
    if path.suffix not in TABLE_SUFFIXES:
        raise OptionError(f"out={out}: expected a table ({', '.join(TABLE_SUFFIXES)})")
    return path


def row_list(table: "pd.DataFrame", split: SplitArray) -> "pd.DataFrame":
    """Return a row list: the key columns of a table, UID where it has it, and `split`."""
    kept = [name for name in table if name in (*COLUMNS, "UID")]
    words = np.array([WORDS[VALID], WORDS[TRAIN], WORDS[NONE]], object)[split]  # -1, none, is the last
    return table[kept].assign(**{SPLIT: words})


class _Cosines:
    """Latents of the rows, for the cosine of nearest neighbours."""

    def __init__(self, table: "pd.DataFrame", options: SplitOptions) -> None:
        self.rows, self.options, self.latents = np.empty(0, np.int64), options, None
        if options.latents:
            loader = options.loader
            self.latents = open_latents(options.latents, loader.cache_dir, allow_external=loader.allow_external)
            self.rows = self.latents.positions(table)

    def median(self, split: SplitArray) -> float | None:
        """Return the median cosine of rows to validate on with their nearest row to train on."""
        if self.latents is None:
            return None
        train, valid = (self.rows[(split == kind) & (self.rows >= 0)] for kind in (TRAIN, VALID))
        options = self.options
        found = nearest_cosines(self.latents, np.sort(train), np.sort(valid), sample=options.sample, seed=options.seed)
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
