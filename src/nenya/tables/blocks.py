"""Blocks of rows that belong together: granules, days, or values of a column; and folds that keep them together.

Rows of one granule share weather, noise and the instrument's faults, so that they are not independent. Everything that
draws or divides rows at random does it by complete blocks, and by what the rows are, not by where they stand: the same
rows in another order give the same result.

Letters in shapes: N rows of a table, K blocks.
"""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest
from nenya.storage.paths import key_of
from nenya.tables.granules import granules
from nenya.tables.key_columns import read_keys
from nenya.tables.place_and_time import dates_of, usual_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
MarkArray = NDArray[np.uint64]


def blocks_of(table: "pd.DataFrame", block: str = "granule") -> IntArray:
    """Return the block of each row as a number.

    Args:
        table: with the columns from which `nenya.tables.granules.granules` tells granules, a datetime, or `block`.
        block: `granule`, `day` (of UTC), or the name of a column: its values are the blocks.

    Returns:
        (N,) int64 from 0 up, equal for rows of one block; a row of an unknown block is a block of its own.

    Raises:
        OptionError: There is no such column.
        InputFileError: No row has a block.
    """
    codes = _codes(table, block)
    unknown = codes < 0
    if unknown.any():
        log.warning(
            "%d of %d rows have no %s: each is a separate block", int(unknown.sum()), len(codes), block
        )  # fmt: skip
        codes = codes.copy()
        codes[unknown] = codes.max(initial=-1) + 1 + np.arange(int(unknown.sum()))
    return codes


def check_blocks(table: "pd.DataFrame", block: str, name: str) -> None:
    """Check that a table, called `name` in messages, tells its blocks; see `blocks_of`.

    Raises:
        OptionError: There is no such column.
        InputFileError: No row has a block.
    """
    try:
        _codes(table, block)
    except (InputFileError, OptionError) as error:
        raise type(error)(f"the table of {name}: {error}") from error


def _codes(table: "pd.DataFrame", block: str) -> IntArray:
    """Return the block of each row, -1 if it is unknown."""
    import pandas as pd

    if block == "granule":
        codes = granules(table)
        if codes is None:
            raise InputFileError(
                "block=granule needs a column granule, filename or datetime in the table; give block=day or block=<a "
                "column>"
            )
    elif block == "day" and "day" not in table:
        dated = usual_names(table)
        if "datetime" not in dated:
            raise InputFileError("block=day needs a column datetime in the table; give block=<a column>")
        codes = pd.factorize(dates_of(dated["datetime"]).dt.floor("D"))[0].astype(np.int64)
    elif block in table:
        codes = pd.factorize(table[block])[0].astype(np.int64)
    else:
        meant = suggest(block, ["granule", "day", *map(str, table.columns)])
        raise OptionError(f"block={block}{meant}: expected granule, day or a column of the table")
    if len(codes) and (codes < 0).all():
        raise InputFileError(f"block={block}: no row of the table has one; give block=<another column>")
    return codes


def marks_of(table: "pd.DataFrame", seed: int = 0) -> MarkArray:
    """Return a random number for each row that depends on the row's identity and a seed alone, not on its position.

    The identity is the name of the cutout file (without folder and suffix), pp_type and pp_idx.

    Args:
        table: with pp_idx and, as in `nenya.tables.keys`, pp_file and pp_type.
        seed: of the numbers.

    Returns:
        (N,) uint64; rows with the smallest ones are a sample without replacement.
    """
    keys = read_keys(table)
    names = [""] if keys.names is None else [key_of(name) for name in keys.names]
    named = _hashed(np.array([*names, ""], object))[keys.file] if keys.names is not None else np.zeros(len(table))
    return mixed(seed, np.asarray(named), keys.kind, keys.row)


def marks_of_values(values: NDArray[Any], seed: int = 0) -> MarkArray:
    """Return a random number for each row, (N,) uint64, that depends on its values, (N, D), and a seed alone."""
    found = np.full(len(values), 0, np.uint64)
    for column in np.atleast_2d(np.asarray(values, np.float64).T):
        found = mixed(seed, found, np.ascontiguousarray(column).view(np.uint64))
    return found


def mixed(seed: int, *parts: NDArray[Any]) -> MarkArray:
    """Return a hash of the numbers of each row, (N,) uint64, as SplitMix64 mixes them (Steele et al. 2014)."""
    found = np.full(len(parts[0]), np.uint64(seed % 2**63) + np.uint64(0x9E3779B97F4A7C15), np.uint64)
    for part in parts:
        word = part.astype(np.uint64) if part.dtype == np.uint64 else part.astype(np.int64).view(np.uint64)
        found = (found ^ word) + np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found = found ^ (found >> np.uint64(31))
    return found


def order_of_blocks(blocks: IntArray, marks: MarkArray) -> IntArray:
    """Return the blocks numbered in an order that depends on their rows alone: (N,) int64, 0 to K - 1.

    The order is that of the smallest mark of each block, so that it is random, but the same for rows in another order.
    """
    _, dense = np.unique(blocks, return_inverse=True)
    smallest = np.full(int(dense.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, dense, marks)
    place = np.empty(len(smallest), np.int64)
    place[np.argsort(smallest, kind="stable")] = np.arange(len(smallest))
    found: IntArray = place[dense]
    return found


def block_folds(blocks: IntArray, folds: int, marks: MarkArray) -> IntArray:
    """Divide rows into folds of about equal size that keep blocks together.

    Blocks are dealt, the largest first, to the fold with the fewest rows; among equal ones in random order.

    Args:
        blocks: (N,) the block of each row.
        folds: number of folds.
        marks: (N,) random numbers of the rows, such as `marks_of` returns.

    Returns:
        (N,) int64, 0 to folds - 1; with fewer blocks than folds, only as many folds as blocks are used.
    """
    ordered = order_of_blocks(blocks, marks)
    sizes = np.bincount(ordered)
    held, fold = np.zeros(folds, np.int64), np.zeros(len(sizes), np.int64)
    for block in np.argsort(-sizes, kind="stable"):
        fold[block] = int(held.argmin())
        held[fold[block]] += sizes[block]
    return fold[ordered]


def _hashed(texts: NDArray[Any]) -> MarkArray:
    """Return a hash of each text, the same in every process."""
    import pandas as pd

    return np.asarray(pd.util.hash_array(texts, categorize=False), np.uint64)
