"""Two sets of latents of one network: what differs, where, and which rows the other set lacks.

Letters in shapes: N rows of both tables, of a first; D dimensions of a latent.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.block_null import Float64Array, IntArray, MarkArray, Side, false_discovery_rates, pool_of, side
from nenya.latents.clusters import unit_rows
from nenya.latents.comparison_inputs import check_finite, check_one_network, partners, refuse_common_rows
from nenya.latents.density_ratio import ratios_of, reference
from nenya.latents.difference import MEASURES, NOTHING, Estimate, compare_sides
from nenya.latents.files import Latents
from nenya.latents.kept_answers import KeptAnswers, digest
from nenya.latents.matched_pairs import compare_pairs
from nenya.runtime.process import RowProgress
from nenya.tables.blocks import blocks_of, check_blocks, marks_of
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
_LATER = ("stratum", "rates")  # of an answer: known without it, or only with all others

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
        InputFileError: The latents are of different weights or dimensions, a table does not fit its latents, or both
            have common cutouts.
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
    refuse_common_rows(latents, rows)
    for name, one in zip("ab", kept, strict=True):
        if settings.block != "none":
            check_blocks(one, settings.block, name)
    table = pd.concat(kept, ignore_index=True)
    blocks = np.arange(len(table)) if settings.block == "none" else blocks_of(table, settings.block)
    of_a = np.arange(len(table)) < len(kept[0])
    partner = partners(kept[0], kept[1], settings.pair) if settings.pair else np.empty(0, np.int64)
    found = TwoSets(latents, np.concatenate(rows), of_a, (kept[0], kept[1]), blocks, np.concatenate(marks), {}, partner)
    for name in QUANTITIES:
        if (values := quantity(kept, name)) is not None:
            found.quantities[name] = values
        else:
            columns = " or ".join(QUANTITIES[name])
            log.warning("%s is not compared: expected a column %s in both tables", name, columns)
    return found


def _pairs(sets: TwoSets, chosen: BoolArray, settings: Settings, most: int) -> dict[str, Estimate]:
    """Compare the pairs with both rows among the chosen ones."""
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


def kept_answers(sets: TwoSets, settings: Settings, folder: Path) -> KeptAnswers:
    """Return the answers that an interrupted run with the same rows and settings left in a folder."""
    arrays = (sets.rows, sets.of_a, sets.blocks, sets.marks, sets.partner, *sets.quantities.values())
    what = replace(settings, by=()), list(sets.quantities)
    return KeptAnswers(folder, digest(sets.latents, what, arrays))


def density_ratio(sets: TwoSets, settings: Settings, kept: KeptAnswers | None = None) -> Float64Array:
    """Return the local density ratio at each row, (N,): how many times denser its own set is than the other.

    The densities are those of samples of `settings.sample` rows a set, of fewer if there are many rows to place.

    Args:
        sets: the two sets.
        settings: how they are compared.
        kept: answers of an interrupted run; those found here are added.
    """
    kept = kept or KeptAnswers()
    many = len(sets.rows) > _MANY
    most = min(settings.sample, _REFERENCE) if many else settings.sample
    a, b = sets.sides(np.ones(len(sets.rows), bool), most)
    pool = pool_of(a, b)
    blocks = np.concatenate([a.blocks, b.blocks])[pool.source]
    sample = reference(pool, blocks)
    found = np.full(len(sets.rows), np.nan)
    with RowProgress("density ratio", len(found)) as progress:
        for latents, own, is_a in zip(sets.latents, (sets.of_a, ~sets.of_a), (True, False), strict=True):
            found[own] = ratios_of(latents, sets.rows[own], sets.blocks[own], is_a, sample, progress.advance, kept)
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
    """The answer for all rows or for a stratum.

    Attributes:
        rows: number of rows of a and of b, and how many of each were compared.
        blocks: number of blocks of a and of b that were compared.
        latents: measure -> estimate.
        quantities: quantity -> measure -> estimate.
        pairs: measure of matched pairs -> estimate; empty without pairs.
        stratum: None for all rows.
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


def compare(sets: TwoSets, settings: Settings, kept: KeptAnswers | None = None) -> tuple[Compared, list[Compared]]:
    """Return the answer for all rows, and for each stratum, with false discovery rates over the strata.

    Args:
        sets: the two sets.
        settings: how they are compared.
        kept: answers of an interrupted run, which are taken; those found here are added.

    Raises:
        InputFileError: A set has fewer than two finite latents.
    """
    kept = kept or KeptAnswers()
    check_finite(*sets.sides(np.ones(len(sets.rows), bool), settings.sample))
    parts: list[Stratum | None] = [None, *strata(sets.table(), settings.by, settings.side)]
    names = [_name_of(part) for part in parts]
    done = [_restored(kept.take(name), part) for name, part in zip(names, parts, strict=True)]
    work = [_work(sets, part, settings) for part in parts]
    before = sum(pairs for pairs, one in zip(work, done, strict=True) if one is not None)
    if before:
        log.info("resuming: %d of %d strata are compared already", sum(one is not None for one in done), len(done))
    found = []
    with RowProgress("compare", sum(work), before=before, unit="pairs of cutouts") as progress:
        for number, (name, part, one) in enumerate(zip(names, parts, done, strict=True)):
            progress.rename(f"{part.label}, stratum {number} of {len(parts) - 1}" if part else "compare")
            if one is None:
                one = _compare(sets, part, settings, progress.advance)
                kept.keep(name, json.dumps(_stored(one)).encode())
            found.append(one)
    whole, found = found[0], found[1:]
    for name in MEASURES:
        rates = false_discovery_rates(np.array([one.latents[name].p for one in found], np.float64))
        for one, rate in zip(found, rates, strict=True):
            one.rates[name] = float(rate)
    return whole, found


def compare_whole(sets: TwoSets, settings: Settings, tick: Callable[[float], object] = lambda _: None) -> Compared:
    """Return the answer for all rows alone, as `compare` does.

    Args:
        sets: the two sets.
        settings: how they are compared.
        tick: called with the share of the work that is done; an exception from it ends the work.

    Raises:
        InputFileError: A set has fewer than two finite latents.
    """
    check_finite(*sets.sides(np.ones(len(sets.rows), bool), settings.sample))
    total, ready = max(1, _work(sets, None, settings)), 0

    def done(pairs: int) -> None:
        nonlocal ready
        ready += pairs
        tick(min(1.0, ready / total))

    return _compare(sets, None, settings, done)


def _size(stratum: Stratum | None, settings: Settings) -> int:
    return settings.sample if stratum is None else min(settings.sample, SAMPLE_OF_STRATUM)


def _chosen(sets: TwoSets, stratum: Stratum | None) -> BoolArray:
    return np.ones(len(sets.rows), bool) if stratum is None else stratum.rows


def _work(sets: TwoSets, stratum: Stratum | None, settings: Settings) -> int:
    """Return the number of distances that are computed between rows: of latents and of each quantity."""
    chosen, most = _chosen(sets, stratum), _size(stratum, settings)
    rows = sum(min(most, int((chosen & own).sum())) for own in (sets.of_a, ~sets.of_a))
    return rows**2 * (1 + len(sets.quantities))


def _name_of(stratum: Stratum | None) -> str:
    """Return the name of the kept answer of a stratum, or of all rows."""
    if stratum is None:
        return "whole"
    return f"stratum-{hashlib.sha256(stratum.label.encode() + np.packbits(stratum.rows).tobytes()).hexdigest()[:16]}"


def _stored(one: Compared) -> dict[str, Any]:
    """Return an answer as numbers and texts, without its stratum and rates."""
    return {name: value for name, value in asdict(replace(one, stratum=None)).items() if name not in _LATER}


def _restored(data: bytes | None, stratum: Stratum | None) -> Compared | None:
    """Return an answer from what `_stored` made of it."""
    if data is None:
        return None
    values = json.loads(data)

    def estimates(found: dict[str, Any]) -> dict[str, Estimate]:
        return {measure: Estimate(**numbers) for measure, numbers in found.items()}

    quantities = {name: estimates(found) for name, found in values["quantities"].items()}
    return Compared(values["rows"], estimates(values["latents"]), quantities, estimates(values["pairs"]), stratum)


def _compare(sets: TwoSets, stratum: Stratum | None, settings: Settings, done: Callable[[int], object]) -> Compared:
    chosen, most = _chosen(sets, stratum), _size(stratum, settings)
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
