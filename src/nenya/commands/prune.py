"""`nenya prune`: chooses the cutouts to train on: without near-duplicates, balanced over patterns."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.commands.split import list_path, row_list, rows_of_latents
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.latents.duplicates import balance, canonical_rows, prune, rows_left, strata
from nenya.latents.files import Latents, open_latents
from nenya.latents.kept_answers import KeptAnswers, digest
from nenya.options.curation import PruneOptions
from nenya.runtime.process import RowProgress
from nenya.storage.disk import atomic_path, check_output, together
from nenya.storage.paths import local_path
from nenya.storage.texts import say
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import repeated_rows
from nenya.tables.split import NONE, TRAIN, VALID, SplitArray, row_hashes, splits_of, stored_split

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

_LEAST = 2  # rows that a training needs


@dataclass
class _Choice:
    """The rows of a list while it is made.

    Attributes:
        split: (N,) what each is used for.
        order: rows to train on that have a latent, in the order in which they are looked at.
        said: what was done, for the summary.
        rows: (N,) cutouts in the partition of each row, -1 where unknown.
    """

    split: SplitArray
    order: IntArray
    said: dict[str, Any]
    rows: IntArray

    def leave_out(self, which: NDArray[np.bool_]) -> None:
        """Leave out some of the rows in `order`."""
        self.split[self.order[which]] = NONE
        self.order = self.order[~which]


def run(options: PruneOptions) -> int:
    """Write a row list for `nenya train` with fewer rows to train on, and what was done beside it as JSON.

    Args:
        options: of `scripts/prune.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    if options.cosine is None and options.k is None:
        raise OptionError("nothing to do: give cosine=, to leave out near-duplicates, or k=, to balance over patterns")
    if options.keep is not None and options.k is None:
        raise OptionError(f"keep={options.keep}: expected k=, the number of patterns to balance over, such as k=50")
    if options.rows and options.table:
        raise OptionError("rows= and table= both name rows: give one of them")
    latents = open_latents(options.data, options.loader.cache_dir, allow_external=options.loader.allow_external)
    source = local_path(options.table) if options.table else None
    out = list_path(options.out or f"{latents.parts[0].stem}_pruned.parquet", source)
    summary = out.with_suffix(".json")
    for path in (out, summary):
        check_output(path, options.clobber)
    table, split = _rows(latents, options)
    place = latents.positions(table)
    hashes = row_hashes(read_keys(table), options.seed)
    what = options.cosine, options.exact_to, options.seed
    kept = KeptAnswers(out.with_name(f"{out.stem}.partial"), digest([latents], what, (place, hashes, split)))
    with kept.unless_refused():
        choice = _choose(latents, place, hashes, split, options, kept)
    with together():
        write_table(row_list(table, choice.split, choice.rows), out)
        _write_summary(summary, options, choice)
    kept.remove()
    log.info("%s\n%s\nnext: nenya train data=CUTOUTS rows=%s", out, summary, out)
    return 0


def _rows(latents: Latents, options: PruneOptions) -> tuple["pd.DataFrame", SplitArray]:
    """Return the rows, and what they are used for."""
    given = options.rows or options.table
    table = read_table(local_path(given)) if given else latents.keys()
    try:
        keys = read_keys(table)
        if repeated := repeated_rows(keys):
            raise InputFileError(f"{repeated} rows repeat the cutout of an earlier row: give each cutout one row")
        split = splits_of(table) if options.rows else stored_split(keys)
        if options.rows and not (split == TRAIN).any():
            raise InputFileError("expected rows to train on (split = train), got none")
    except InputFileError as error:
        raise InputFileError(f"{given or latents.parts[0].path}: {error}") from error
    if not (split == TRAIN).any():
        log.warning("no row of a partition `train`: those of `valid` are trained on, without a validation")
        split = np.where(split == VALID, TRAIN, split).astype(np.int8)
    return table, split


def _choose(  # what one choice needs
    latents: Latents,
    place: IntArray,
    hashes: NDArray[np.uint64],
    split: SplitArray,
    options: PruneOptions,
    kept: KeptAnswers,
) -> _Choice:
    """Leave out rows without a latent and near-duplicates, then balance.

    Args:
        latents: of the rows.
        place: (N,) the number of each row's latent, -1 for none.
        hashes: (N,) their order, which does not depend on that of the table.
        split: (N,) what each is used for.
        options: of the command.
        kept: state of an interrupted run.
    """
    order = np.argsort(hashes, kind="stable")
    valid, train = order[split[order] == VALID], order[split[order] == TRAIN]
    said: dict[str, Any] = {"train_before": len(train), "valid": len(valid)}
    choice = _Choice(split.copy(), train, said, rows_of_latents(latents, place))
    before = valid if options.cosine is not None else valid[:0]  # none of them is left out
    rows, good = canonical_rows(latents, place[np.concatenate([before, train])])
    fixed, good = int(good[: len(before)].sum()), good[len(before) :]
    choice.leave_out(~good)
    choice.said["without_latent"] = int((~good).sum())
    if (count := len(rows) - fixed) < _LEAST:
        raise InputFileError(
            f"{latents.parts[0].path}: expected at least {_LEAST} rows to train on that have a latent, got {count} of "
            f"{len(train)}: give the latents of the rows"
        )
    if options.cosine is not None:
        rows = _without_duplicates(rows, fixed, choice, options, kept)
    if options.k is not None:
        labels = strata(rows, options.k, seed=options.seed)
        chosen = balance(labels, options.keep)
        sizes = np.bincount(labels, minlength=options.k), np.bincount(labels[chosen], minlength=options.k)
        choice.leave_out(~chosen)
        choice.said["strata"] = [{"before": int(a), "after": int(b)} for a, b in zip(*sizes, strict=True)]
        say(
            f"balance over {options.k} patterns: {len(chosen)} -> {int(chosen.sum())} rows, the largest pattern from "
            f"{100 * sizes[0].max() / len(chosen):.1f} to {100 * sizes[1].max() / chosen.sum():.1f} %"
        )
    choice.said["train_after"] = len(choice.order)
    say(f"{len(choice.order)} of {len(train)} rows to train on are kept; {len(valid)} validation rows are kept")
    return choice


def _without_duplicates(
    rows: NDArray[np.float32], fixed: int, choice: _Choice, options: PruneOptions, state: KeptAnswers
) -> NDArray[np.float32]:
    """Leave out near-duplicates of rows to validate on and of rows to train on; return the latents of the rest.

    Args:
        rows: latents of the rows to validate on, then of those to train on; changed.
        fixed: number of rows to validate on.
        choice: what is left out.
        options: of the command.
        state: of an interrupted run.
    """
    assert options.cosine is not None
    with RowProgress("compare latents", len(rows)) as progress:
        found = prune(
            rows, options.cosine, seed=options.seed, exact_to=options.exact_to, first=fixed, tick=progress.advance,
            kept=state,
        )  # fmt: skip
    kept, like = found.kept[fixed:], found.like[fixed:]
    leaked = int((~kept & (like < fixed)).sum())
    choice.said["duplicates"] = {"of_train": int((~kept).sum()) - leaked, "of_valid": leaked, "recall": found.recall}
    if found.recall < 1:
        log.info("of pairs at the very limit %.1f %% were compared, of closer ones more", 100 * found.recall)
    if kept.sum() < _LEAST:
        raise OptionError(
            f"cosine={options.cosine:g} leaves {int(kept.sum())} of {len(kept)} rows to train on, expected at least "
            f"{_LEAST}: give a larger one, as these latents are nearly alike"
        )
    say(f"near-duplicates (cosine above {options.cosine:g}): {int((~kept).sum())} rows, {leaked} of them of valid rows")
    choice.leave_out(~kept)
    return rows_left(rows[fixed:], kept)


def _write_summary(path: Path, options: PruneOptions, choice: _Choice) -> None:
    names = ("data", "table", "rows", "cosine", "k", "keep", "seed", "exact_to")
    values = {name: getattr(options, name) for name in names}
    record = {"nenya": nenya.__version__, "options": values, **choice.said}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=str) + "\n")
