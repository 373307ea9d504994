"""The differences of two selections of the portal by the core of `nenya compare`, of a sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nenya.errors import InputFileError
from nenya.latents.comparison import Compared, Settings, compare_whole, two_sets
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Ticket
from nenya.portal.pair import IntArray, Pair
from nenya.portal.state import BoolArray
from nenya.tables.key_columns import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

LIMITS = (500, 1000, 2000, 5000)
"""Cutouts of each set that can be compared at most: the time grows with the square."""
PERMUTATIONS = 199
LARGEST_SEED = 2**31 - 1
_DRAWN = 50_000  # rows of a set from which the sample is taken
_WANTED = (
    *COLUMNS,
    *(
        "granule",
        "filename",
        "datetime",
        "row",
        "col",
        "face",
        "DT",
        "T90",
        "T10",
        "slope",
        "alpha",
        "zonal_slope",
        "true_slope",
    ),
    "mean_temperature",
)


@dataclass(frozen=True)
class Difference:
    """What was found.

    Attributes:
        compared: the measures.
        notes: sentences on the rows that were used, and on what the table lacks.
        seed: of the sample and the permutations.
        sample: cutouts of each set, at most.
    """

    compared: Compared
    notes: list[str]
    seed: int
    sample: int


def compare_pair(dataset: Dataset, pair: Pair, sample: int, seed: int, ticket: Ticket) -> Difference:
    """Compare two selections; rows in both are left out of either.

    Args:
        dataset: with latents.
        pair: the two selections.
        sample: cutouts of each set, at most.
        seed: of the sample and the permutations.
        ticket: of the work, which may be cancelled.

    Raises:
        InputFileError: There are no latents, a set has too few, or both sets have cutouts in common.
    """
    latents = dataset.latents
    if latents is None:
        raise InputFileError("a comparison needs latents: start the portal with latents=, the latents files")
    a, b = pair.masks(dataset, ticket)
    common, notes = int((a & b).sum()), []
    if common:
        notes.append(f"{common:,} cutouts are in both selections and are left out of either.")
    rows = [_drawn(dataset, own & ~other, name, seed, notes) for own, other, name in ((a, b, "A"), (b, a, "B"))]
    tables = (_table(dataset, rows[0]), _table(dataset, rows[1]))
    ticket.tick(0.0)
    settings = Settings(permutations=PERMUTATIONS, sample=sample, seed=seed)
    try:
        sets = two_sets((latents, latents), tables, settings)
    except InputFileError as error:
        if "block=granule" not in str(error):
            raise
        settings = Settings(block="none", permutations=PERMUTATIONS, sample=sample, seed=seed)
        sets = two_sets((latents, latents), tables, settings)
        notes.append(
            "The table does not say the granules, so that each cutout counts as independent (block=none): intervals "
            "are too narrow."
        )
    found = compare_whole(sets, settings, lambda share: ticket.tick(share))
    return Difference(found, notes, seed, sample)


def _drawn(dataset: Dataset, mask: BoolArray, name: str, seed: int, notes: list[str]) -> IntArray:
    """Return the rows of a set that have latents, of very many a random part."""
    rows = np.flatnonzero(mask & (dataset.latent_of >= 0))
    if len(rows) < 2:
        raise InputFileError(f"{name} has {len(rows)} cutouts with latents of its own, expected at least 2")
    if len(rows) <= _DRAWN:
        return rows
    notes.append(f"Of the {len(rows):,} cutouts of {name}, {_DRAWN:,} were drawn first (seed {seed}).")
    return np.sort(np.random.default_rng([seed, len(rows)]).choice(rows, _DRAWN, replace=False))


def _table(dataset: Dataset, rows: IntArray) -> "pd.DataFrame":
    columns = dataset.columns
    own = "latents" in dataset.in_order  # the keys of the table, if it has any, are not those of the latents
    names = [name for name in _WANTED if name in columns.names and not (own and name in COLUMNS)]
    found: pd.DataFrame = columns.table.select(names).take(rows).to_pandas()
    return found.assign(pp_type=np.zeros(len(rows), np.int8), pp_idx=dataset.latent_of[rows]) if own else found
