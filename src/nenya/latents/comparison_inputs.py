"""Checks of the two sets of a comparison: one network, no common cutouts, and the pairs that match.

Letters in shapes: n rows of a, m of b.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.block_null import Side
from nenya.latents.files import Latents
from nenya.options.declare import suggest
from nenya.storage.table_integers import comparable

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]


def check_one_network(a: Latents, b: Latents) -> None:
    """Refuse latents of different weights.

    Raises:
        InputFileError: The sha256 of the weights differ, or the dimensions do.
    """
    one, other = (latents.provenance.get("checkpoint_sha256") for latents in (a, b))
    if one and other and one != other:
        raise InputFileError(
            f"a was made with the weights {one[:12]} (sha256) and b with {other[:12]}, expected those of one "
            "network: extract both with the same ckpt=, or compare trainings with seeds=[...]"
        )
    if a.shape[1] != b.shape[1]:
        raise InputFileError(
            f"a has latents of {a.shape[1]} dimensions and b of {b.shape[1]}, expected those of one network"
        )
    if not (one and other):
        log.warning("%s does not say its weights: whether both are of one network is not checked", "b" if one else "a")


def check_finite(a: Side, b: Side) -> None:
    """Refuse sets of fewer than two finite latents.

    Raises:
        InputFileError: A set has fewer.
    """
    for name, one in (("a", a), ("b", b)):
        if len(one) < 2:
            raise InputFileError(
                f"{name} has {len(one)} cutouts with finite latents, expected at least 2: cutouts with missing pixels "
                "have none, and rows of the table without latents are ignored"
            )


def refuse_common_rows(latents: tuple[Latents, Latents], rows: Sequence[IntArray]) -> None:
    """Refuse two sets with common cutouts: rows of the same latents file.

    Args:
        latents: of a and of b.
        rows: the numbers of the latents of a, (n,), and of b, (m,).

    Raises:
        InputFileError: There are common ones.
    """
    parts = [{(part.path.resolve(), part.partition): part for part in one.parts} for one in latents]
    for place in parts[0].keys() & parts[1].keys():
        own, other = (
            some[(some >= part.start) & (some < part.start + part.rows)] - part.start
            for some, part in ((rows[0], parts[0][place]), (rows[1], parts[1][place]))
        )
        if common := len(np.intersect1d(own, other)):
            raise InputFileError(
                f"a and b have {common} cutouts in common, of {place[0]}, expected two sets without common cutouts: "
                "give other files, or tables of other rows"
            )


def partners(a: "pd.DataFrame", b: "pd.DataFrame", column: str) -> IntArray:
    """Return the row of a that each row of a and of b matches: (len(a) + len(b),) int64, -1 for none.

    Args:
        a: with a UID.
        b: with the UID of a row of a in `column`.
        column: of b.

    Raises:
        OptionError: b has no such column.
        InputFileError: a has no UID, one that repeats, or no row of b matches one of a.
    """
    if column not in b:
        raise OptionError(
            f"pair={column}{suggest(column, list(map(str, b.columns)))}: expected a column of the table of b"
        )
    if "UID" not in a:
        raise InputFileError(f"pair={column} needs a column UID in the table of a")
    ids, wanted = comparable(a["UID"].reset_index(drop=True), b[column].reset_index(drop=True))
    if not ids.dropna().is_unique:
        raise InputFileError("pair= needs a UID in the table of a that no two rows share")
    row_of = {value: row for row, value in enumerate(ids) if value == value}
    found = np.array([row_of.get(value, -1) if value == value else -1 for value in wanted], np.int64)
    if not (found >= 0).any():
        raise InputFileError(f"pair={column}: none of its values is a UID of the table of a: give the matching tables")
    return np.concatenate([np.full(len(a), -1), found])
