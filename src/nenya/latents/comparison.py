"""Two sets of latents of one network: what differs, where, and which rows the other set lacks.

Letters in shapes: N rows of both tables, of a first; D dimensions of a latent.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.block_null import Float64Array, IntArray, MarkArray, Side, false_discovery_rates, pool_of, side
from nenya.latents.clusters import unit_rows
from nenya.latents.density_ratio import ratios_of, reference
from nenya.latents.difference import MEASURES, NOTHING, Estimate, compare_sides
from nenya.latents.files import Latents
from nenya.latents.matched_pairs import compare_pairs
from nenya.options.declare import suggest
from nenya.runtime.process import RowProgress
from nenya.storage.table_integers import comparable
from nenya.tables.blocks import blocks_of, marks_of
from nenya.tables.quantities import dt_of, metric, numbers_of
from nenya.tables.strata import Stratum, strata

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

QUANTITIES = {
    "DT": ("DT",),
    "slope": ("slope", "alpha", "zonal_slope", "true_slope"),
    "mean_temperature": ("mean_temperature",),
}
"""Quantities that are compared alone -> columns that may hold them, the measured ones first."""

SAMPLE_OF_STRATUM = 1_000
"""Rows of each set in a stratum, at most."""

LEAST = 10
"""Rows of each set in a stratum, at least; a smaller stratum is listed without numbers."""

_MANY = 100_000  # rows above which the density ratio is of a smaller sample
_REFERENCE = 2_000

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """How two sets are compared.

    Attributes:
        block: what changes sides as a whole under the null: granule, day, none (each row), or a column.
        by: strata.
        pair: column of b with the UID of the row of a that it matches.
        k: neighbours of coverage and density.
        permutations: of blocks.
        sample: rows of each set, at most.
        side: of HEALPix's cells.
        seed: of samples and permutations.
    """

    block: str = "granule"
    by: tuple[str, ...] = ()
    pair: str | None = None
    k: int = 5
    permutations: int = 999
    sample: int = 5_000
    side: int = 4
    seed: int = 0


@dataclass(frozen=True)
class TwoSets:
    """The rows of two sets that have latents.

    Attributes:
        latents: of a and of b; both may be the same files.
        rows: (N,) int64, the number of each row's latent in its latents.
        of_a: (N,) bool.
        tables: the rows of a, and those of b.
        blocks: (N,) int64.
        marks: (N,) uint64.
        quantities: name -> (N,) float64.
        partner: (N,) int64, the row of a that a row of b matches, -1 for none.
    """

    latents: tuple[Latents, Latents]
    rows: IntArray
    of_a: BoolArray
    tables: "tuple[pd.DataFrame, pd.DataFrame]"
    blocks: IntArray
    marks: MarkArray
    quantities: dict[str, Float64Array] = field(default_factory=dict)
    partner: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    def table(self) -> "pd.DataFrame":
        """Return the rows of a, then those of b; numbers that only one has may lose digits."""
        import pandas as pd

        return pd.concat(self.tables, ignore_index=True)

    def sides(self, chosen: BoolArray, most: int) -> tuple[Side, Side]:
        """Return samples of the latents, scaled to unit length, of some rows of a and of b."""
        found = []
        for latents, own in zip(self.latents, (self.of_a, ~self.of_a), strict=True):
            some = self._sample(np.flatnonzero(chosen & own), most)
            values = unit_rows(latents.take(self.rows[some])) if len(some) else np.zeros((0, latents.shape[1]))
            found.append(side(values, self.blocks[some], self.marks[some]))
        return found[0], found[1]

    def sides_of(self, quantity: str, chosen: BoolArray, most: int) -> tuple[Side, Side]:
        """Return samples of the finite values of a quantity of some rows of a and of b."""
        values = self.quantities[quantity]
        known = chosen & np.isfinite(values)
        a, b = (self._sample(np.flatnonzero(known & own), most) for own in (self.of_a, ~self.of_a))
        return side(values[a], self.blocks[a], self.marks[a]), side(values[b], self.blocks[b], self.marks[b])

    def _sample(self, rows: IntArray, most: int) -> IntArray:
        if len(rows) <= most:
            return rows
        return np.sort(rows[np.argpartition(self.marks[rows], most)[:most]])


def two_sets(
    latents: tuple[Latents, Latents], tables: "tuple[pd.DataFrame, pd.DataFrame]", settings: Settings
) -> TwoSets:
    """Join two tables with their latents.

    Raises:
        InputFileError: The latents are of different weights or dimensions, or a table does not fit its latents.
        OptionError: There is no such block.
    """
    import pandas as pd

    check_one_network(*latents)
    kept, rows, marks = [], [], []
    for own, table in zip(latents, tables, strict=True):
        number = own.positions(table)
        has = number >= 0
        kept.append(table[has])
        rows.append(number[has])
        marks.append(marks_of(table[has], settings.seed))
    table = pd.concat(kept, ignore_index=True)
    blocks = np.arange(len(table)) if settings.block == "none" else blocks_of(table, settings.block)
    of_a = np.arange(len(table)) < len(kept[0])
    partner = partners(kept[0], kept[1], settings.pair) if settings.pair else np.empty(0, np.int64)
    found = TwoSets(latents, np.concatenate(rows), of_a, (kept[0], kept[1]), blocks, np.concatenate(marks), {}, partner)
    for name in QUANTITIES:
        if (values := quantity(kept, name)) is not None:
            found.quantities[name] = values
        else:
            log.warning("%s is not compared alone: no column of it is in both tables", name)
    return found


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


def _pairs(sets: TwoSets, chosen: BoolArray, settings: Settings, most: int) -> dict[str, Estimate]:
    """Compare the pairs of which both rows are chosen."""
    rows = np.flatnonzero((sets.partner >= 0) & chosen & chosen[sets.partner])
    if len(rows) > most:
        rows = rows[np.argpartition(sets.marks[rows], most)[:most]]
    rows = rows[np.argsort(sets.marks[rows], kind="stable")]
    if len(rows) < 2:
        return {}
    own = sets.partner[rows]
    first, second = (
        unit_rows(latents.take(sets.rows[some])) for latents, some in zip(sets.latents, (own, rows), strict=True)
    )
    good = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    return compare_pairs(
        first[good], second[good], sets.blocks[own][good], permutations=settings.permutations, seed=settings.seed
    )


def density_ratio(sets: TwoSets, settings: Settings) -> Float64Array:
    """Return the local density ratio at each row, (N,): how many times denser its own set is than the other.

    The densities are those of samples of `settings.sample` rows a set, of fewer if there are many rows to place.
    """
    many = len(sets.rows) > _MANY
    most = min(settings.sample, _REFERENCE) if many else settings.sample
    a, b = sets.sides(np.ones(len(sets.rows), bool), most)
    pool = pool_of(a, b)
    blocks = np.concatenate([a.blocks, b.blocks])[pool.source]
    sample = reference(pool, blocks)
    found = np.full(len(sets.rows), np.nan)
    with RowProgress("density ratio", len(found)) as progress:
        for latents, own, is_a in zip(sets.latents, (sets.of_a, ~sets.of_a), (True, False), strict=True):
            found[own] = ratios_of(latents, sets.rows[own], sets.blocks[own], is_a, sample, progress.advance)
    return found


def quantity(tables: "Sequence[pd.DataFrame]", name: str) -> Float64Array | None:
    """Return a quantity of the rows of several tables, from a column that all have; None if there is none."""
    for column in QUANTITIES[name]:
        found = [metric(table, column) for table in tables]
        if all(values is not None and np.isfinite(values).any() for values in found):
            return np.concatenate([values for values in found if values is not None])
    if name == "DT":
        differences = [dt_of(table, true=True) for table in tables]
        if all(values is not None for values in differences):
            return np.concatenate([numbers_of(values) for values in differences if values is not None])
    return None


@dataclass(frozen=True)
class Compared:
    """The answer for the whole or for a stratum.

    Attributes:
        rows: number of rows of a and of b, and how many of each were compared.
        blocks: number of blocks of a and of b that were compared.
        latents: measure -> estimate.
        quantities: quantity -> measure -> estimate.
        pairs: measure of matched pairs -> estimate; empty without pairs.
        stratum: None for the whole.
        rates: measure -> false discovery rate over the strata.
    """

    rows: dict[str, int]
    latents: dict[str, Estimate]
    quantities: dict[str, dict[str, Estimate]]
    pairs: dict[str, Estimate]
    stratum: Stratum | None = None
    rates: dict[str, float] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = dict(self.rows)
        if self.stratum is not None:
            found |= {"by": self.stratum.by, "name": self.stratum.name}
            found |= {} if self.stratum.lon is None else {"lon": self.stratum.lon, "lat": self.stratum.lat}
        for name, estimate in self.latents.items():
            found[name] = estimate.values()
            if self.stratum is not None:
                rate = self.rates.get(name, float("nan"))
                found[name]["q"] = rate if np.isfinite(rate) else None
        for name, measures in self.quantities.items():
            found[name] = {measure: estimate.values() for measure, estimate in measures.items()}
        if self.pairs:
            found["pairs"] = {name: estimate.values() for name, estimate in self.pairs.items()}
        return found


def compare(sets: TwoSets, settings: Settings) -> tuple[Compared, list[Compared]]:
    """Return the answer for the whole, and for each stratum, with false discovery rates over the strata."""
    parts = list(strata(sets.table(), settings.by, settings.side))
    everything = np.ones(len(sets.rows), bool)
    sizes = [settings.sample, *(min(settings.sample, SAMPLE_OF_STRATUM) for _ in parts)]
    work = [_work(sets, everything, settings.sample)]
    work += [_work(sets, part.rows, size) for part, size in zip(parts, sizes[1:], strict=True)]
    with RowProgress("compare", sum(work), unit="rows") as progress:
        whole = _compare(sets, everything, settings, sizes[0], progress.advance)
        found = []
        for part, size in zip(parts, sizes[1:], strict=True):
            progress.rename(part.label)
            found.append(_compare(sets, part.rows, settings, size, progress.advance, part))
    for name in MEASURES:
        rates = false_discovery_rates(np.array([one.latents[name].p for one in found], np.float64))
        for one, rate in zip(found, rates, strict=True):
            one.rates[name] = float(rate)
    return whole, found


def _work(sets: TwoSets, chosen: BoolArray, most: int) -> int:
    rows = sum(min(most, int((chosen & own).sum())) for own in (sets.of_a, ~sets.of_a))
    return rows * (1 + len(sets.quantities))


def _compare(
    sets: TwoSets,
    chosen: BoolArray,
    settings: Settings,
    most: int,
    done: Callable[[int], object],
    stratum: Stratum | None = None,
) -> Compared:
    options: dict[str, Any] = {
        "k": settings.k, "permutations": settings.permutations, "sample": most, "seed": settings.seed, "done": done,
    }  # fmt: skip
    a, b = sets.sides(chosen, most)
    rows = {
        "rows_of_a": int((chosen & sets.of_a).sum()),
        "rows_of_b": int((chosen & ~sets.of_a).sum()),
        "compared_of_a": len(a),
        "compared_of_b": len(b),
        "blocks_of_a": len(np.unique(a.blocks)),
        "blocks_of_b": len(np.unique(b.blocks)),
    }
    alone = {}
    few = stratum is not None and min(len(a), len(b)) < LEAST
    if few:
        nothing = dict.fromkeys(MEASURES, NOTHING)
        return Compared(rows, nothing, dict.fromkeys(QUANTITIES, nothing), {}, stratum)
    for name in QUANTITIES:
        known = name in sets.quantities
        alone[name] = (
            compare_sides(*sets.sides_of(name, chosen, most), **options) if known else dict.fromkeys(MEASURES, NOTHING)
        )
    pairs = _pairs(sets, chosen, settings, most) if settings.pair else {}
    return Compared(rows, compare_sides(a, b, **options), alone, pairs, stratum)
