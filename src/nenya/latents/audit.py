"""What latents tell of the columns of their table: what they should (the ocean) and what they should not (the rest).

Letters: N latents, n of them in a sample, D the length of a latent, k neighbours.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.nearest import as_unit, days_of
from nenya.latents.probes import FOLDS, Features, Probe, Score, Target, as_target, false_discovery, score
from nenya.latents.rarity import fit_components, known_rows, take_rows, whiten
from nenya.runtime.process import RowProgress
from nenya.tables.blocks import block_folds, blocks_of, marks_of
from nenya.tables.granules import granules
from nenya.tables.place_and_time import usual_names
from nenya.tables.quantities import dt_name, dt_of, numbers_of

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

COMPONENTS = 64
"""Principal components of the latents in the ridge regression, at most."""

BLOCK_DAYS, BLOCK_DEGREES = 30.0, 10.0
"""Blocks of time and of place."""

SLOPES = ("slope", "alpha", "zonal_slope", "min_slope", "true_slope")
"""Columns of spectral slopes, the first of which in the table is taken."""

FOLD_KINDS = ("granule", "time", "place", "rows")
"""Kinds of folds; `rows` keeps nothing together, to show what blocks change."""

_YEAR = 365.25  # days
_LEAST_ROWS = 50
_BARELY = 0.05  # above nothing
_DERIVED = ("season", "hour", "day")  # of the column datetime
_MADE_OF_LATENTS = re.compile(
    r"(US?[01]|cluster|rarity.*|latent_LL|texture_.*|rare_group|density_ratio|silhouette|cosine|rank|outlier.*)$"
)
_KEYS = re.compile(r"(UID|pp_root|granule|gid|id|index|level_0|Unnamed.*)$")
_NUISANCE = re.compile(
    r"(sensor|satellite|platform|instrument|granule|file|pp_|day$|hour|clear|cloud|mask|inpaint|fill|row$|col$|face|swath|"
    r"zenith|angle|noise|land|quality|field_size|recipe|version)",
    re.I,
)
_OCEAN = re.compile(
    r"(DT|slope|alpha|lat|lon|season|region|mean_temperature|T(10|90|min|max)|SST|true_|depth|eddy|front|merid|zonal)",
    re.I,
)


@dataclass(frozen=True)
class Finding:
    """What latents tell of a column.

    Attributes:
        name: of the column.
        kind: `nuisance`, `ocean` or `other`.
        measure: `AUC` or `R2`.
        rows: rows of the sample that have a value.
        scores: kind of folds -> score of the latents.
        main: kind of folds of the verdict.
        contrast: value from DT and slope alone, in the same folds; None without these columns.
        untrained: value from an untrained network; None if there is none.
        q: p-value of the verdict, adjusted for the number of columns.
    """

    name: str
    kind: str
    measure: str
    rows: int
    scores: dict[str, Score]
    main: str
    contrast: float | None = None
    untrained: float | None = None
    q: float = float("nan")

    @property
    def found(self) -> bool:
        """Whether the latents tell the column: the adjusted p-value is below 0.05, and the value above nothing."""
        return bool(self.q < 0.05 and self._gain > 0)

    @property
    def _gain(self) -> float:
        """The value above that of nothing."""
        return self.scores[self.main].value - (0.5 if self.measure == "AUC" else 0.0)

    @property
    def verdict(self) -> str:
        """The finding as a line: `latents tell the sensor: AUC 0.93 (0.55 from DT and slope alone)`."""
        own = self.scores[self.main]
        words = f"{self.measure} {own.value:.2f}"
        if not self.found:
            words += f", p = {own.p:.2g}"
        others = [(self.contrast, "DT and slope alone"), (self.untrained, "an untrained network")]
        known = [f"{value:.2f} from {what}" for value, what in others if value is not None]
        beside = f" ({', '.join(known)})" if known else ""
        article = "the " if self.name.isalpha() and self.name.islower() else ""
        tell = "do not tell" if not self.found else "barely tell" if self._gain < _BARELY else "tell"
        return f"latents {tell} {article}{self.name}: {words}{beside}"


@dataclass(frozen=True)
class Audit:
    """Findings on all columns.

    Attributes:
        findings: of each column that could be probed.
        left_out: column -> why it was not probed.
        folds: kind of folds -> number of blocks.
        rows: rows of the sample.
    """

    findings: list[Finding]
    left_out: dict[str, str]
    folds: dict[str, int]
    rows: int


def kind_of(name: str) -> str:
    """Return whether latents should tell a column: `ocean`; should not: `nuisance`; or `other`."""
    if _NUISANCE.search(name):
        return "nuisance"
    return "ocean" if _OCEAN.match(name) else "other"


def audit(
    latents: Any,
    table: "pd.DataFrame",
    *,
    columns: list[str] | None = None,
    k: int = 10,
    sample: int = 4000,
    permutations: int = 199,
    seed: int = 0,
    untrained: Callable[[IntArray], NDArray[np.floating]] | None = None,
    visible: bool = True,
) -> Audit:
    """Return what latents tell of each column of a table.

    Args:
        latents: (N, D) array, `nenya.latents.rarity.RowsOf`, or `nenya.latents.files.Latents`.
        table: (N rows) the rows of the latents.
        columns: those that are probed; default all that are neither keys nor made of the latents.
        k: nearest rows of the probe.
        sample: number of rows n that are probed.
        permutations: of the column, for p-values; also draws of the bootstrap.
        seed: of all randomness.
        untrained: returns latents of an untrained network for numbers of rows.
        visible: whether progress is shown.

    Raises:
        InputFileError: Fewer than 50 rows have a latent, or no column can be probed.
        OptionError: A column does not exist.
    """
    table = usual_names(table)
    if missing := [name for name in columns or [] if name not in table and name not in _DERIVED]:
        raise OptionError(f"columns={','.join(missing)}: expected columns of the table ({', '.join(map(str, table))})")
    good = known_rows(latents)
    if len(good) < _LEAST_ROWS:
        raise InputFileError(f"expected at least {_LEAST_ROWS} rows with a latent for an audit, got {len(good)}")
    rows = np.sort(np.random.default_rng(seed).choice(good, min(sample, len(good)), replace=False))
    part = table.iloc[rows].reset_index(drop=True)
    blocks, marks = blocks_for(part), marks_of(part, seed)
    targets, left_out = targets_of(part, columns)
    if not targets:
        raise InputFileError("expected a table with columns to audit: numbers or categories of at least two values")
    sets = {"latents": latent_features(latents, rows)}
    if untrained is not None:
        own = untrained(rows)
        sets["untrained"] = latent_features(own, np.arange(len(own)))
    probes = _Probes(sets, _contrasts(part), blocks, marks, k, permutations, seed)
    findings = []
    with RowProgress("audit", len(targets), visible=visible, unit="columns") as progress:
        for name, (target, known) in targets.items():
            found = probes.finding(name, target, np.flatnonzero(known))
            if isinstance(found, str):
                left_out[name] = found
            else:
                findings.append(found)
            progress.advance(1)
    q = false_discovery(np.array([one.scores[one.main].p for one in findings]))
    findings = [replace(one, q=float(value)) for one, value in zip(findings, q, strict=True)]
    order = sorted(findings, key=lambda one: (("nuisance", "ocean", "other").index(one.kind), not one.found, one.name))
    return Audit(order, left_out, {name: len(np.unique(own)) for name, own in blocks.items()}, len(rows))


class _Probes:
    """Sets of features and kinds of folds, fitted once for each set of rows that have a value."""

    def __init__(
        self, sets: dict[str, Features], contrasts: dict[str, Float64Array], blocks: dict[str, IntArray], marks: Any,
        k: int, permutations: int, seed: int,
    ) -> None:  # fmt: skip
        self.sets, self.contrasts, self.blocks, self.k = sets, contrasts, blocks, k
        self.folds = {name: block_folds(own, FOLDS, marks) for name, own in blocks.items()}
        self.permutations, self.seed = permutations, seed
        self.main = next(name for name in FOLD_KINDS if name in blocks)
        self._known: dict[tuple[str, str, bytes], Probe | None] = {}

    def finding(self, name: str, target: Target, rows: IntArray) -> Finding | str:
        """Return what the latents tell of a column with values in some rows, or why nothing can be said."""
        scores = {which: made for which in self.blocks if (made := self._score("latents", which, target, rows))}
        if self.main not in scores:
            return f"its values occur in one {self.main} each, or in too few rows"
        measure = "AUC" if target.classes else "R2"
        others = {of: self._score(of, self.main, target, rows, name=name) for of in ("contrast", "untrained")}
        values = {of: None if made is None else made.value for of, made in others.items()}
        contrast, untrained = values["contrast"], values["untrained"]
        return Finding(name, kind_of(name), measure, len(rows), scores, self.main, contrast, untrained)

    def _score(self, of: str, which: str, target: Target, rows: IntArray, *, name: str = "") -> Score | None:
        """Return the score of a set of features in one kind of folds."""
        features = self.sets.get(of)
        if of == "contrast":
            used = [values for column, values in self.contrasts.items() if column != name]
            features = _polynomial(np.stack(used, axis=1)) if used else None
            of = f"contrast without {name}" if name in self.contrasts else of
        if features is None:
            return None
        key = of, which, rows.tobytes()
        if key not in self._known:
            fold = self.folds[which][rows]
            enough = len(np.unique(fold)) == FOLDS and len(rows) - np.bincount(fold).max() > self.k
            self._known[key] = Probe(features.take(rows), fold, self.k) if enough else None
        probe = self._known[key]
        if probe is None:
            return None
        null = of == "latents" and (which != "rows" or self.main == "rows")
        count = self.permutations if of == "latents" else 1
        # What granules share is not independent in places either, and places do not hold whole granules.
        blocks = self.blocks["granule" if which == "place" and "granule" in self.blocks else which][rows]
        return score(probe, target.take(rows), blocks, permutations=count, seed=self.seed, null=null)


def latent_features(latents: Any, rows: IntArray) -> Features:
    """Return the features of latents: at unit length, and whitened principal components, at most `COMPONENTS`."""
    units = as_unit(take_rows(latents, rows))
    pca = fit_components(units)
    able = int((pca.spectrum > 1e-8 * pca.total_variance).sum())
    pca = fit_components(units, min(COMPONENTS, able, max(1, len(rows) // 10)))
    return Features(units.astype(np.float64), whiten(pca, units))


def _contrasts(table: "pd.DataFrame") -> dict[str, Float64Array]:
    """Return the column of DT and that of the slope, as standardised ranks (n,); unknown ones are in the middle."""
    found: dict[str, Any] = {}
    if (difference := dt_of(table, true=True)) is not None:
        found[dt_name(table.columns, true=True) or "DT"] = difference
    if (slope := next((name for name in SLOPES if name in table), None)) is not None:
        found[slope] = table[slope]
    made = {}
    for name, column in found.items():
        ranks = column.rank(pct=True).to_numpy(np.float64, na_value=np.nan)
        if np.isfinite(ranks).sum() > 1 and np.nanstd(ranks) > 0:
            made[name] = np.nan_to_num((ranks - np.nanmean(ranks)) / np.nanstd(ranks))
    return made


def _polynomial(values: Float64Array) -> Features:
    """Return quantities (n, m) as features, with their squares and products for the ridge regression."""
    count = values.shape[1]
    products = [values[:, i] * values[:, j] for i in range(count) for j in range(i, count)]
    return Features(values, np.column_stack([values, *products]))


def blocks_for(table: "pd.DataFrame") -> dict[str, IntArray]:
    """Return kind of folds -> block of each row, (n,), for those of which the table has the columns and enough blocks.

    Blocks of time are 30 days, those of place 10 by 10 degrees; rows of which one is unknown are blocks of their own.
    """
    found: dict[str, IntArray] = {}
    if granules(table) is not None:
        found["granule"] = blocks_of(table)
    if "datetime" in table:
        found["time"] = _numbered(np.floor(days_of(table) / BLOCK_DAYS))
    if {"lat", "lon"} <= set(table):
        lat, lon = (
            np.floor(table[name].to_numpy(np.float64, na_value=np.nan) / BLOCK_DEGREES) for name in ("lat", "lon")
        )
        found["place"] = _numbered(1000 * lat + np.mod(lon, 360 / BLOCK_DEGREES))
    found = {name: own for name, own in found.items() if len(np.unique(own)) >= FOLDS}
    return {**found, "rows": np.arange(len(table))}


def _numbered(values: Float64Array) -> IntArray:
    """Return equal values as equal numbers, (n,); each NaN is a number of its own."""
    _, found = np.unique(values, return_inverse=True, equal_nan=False)
    return np.asarray(found, np.int64)


def targets_of(
    table: "pd.DataFrame", columns: list[str] | None = None
) -> tuple[dict[str, tuple[Target, BoolArray]], dict[str, str]]:
    """Return name -> target and which rows have one, and name -> why a column is left out.

    A datetime is audited as `season` and `hour` (circular, UTC) and `day` (its rank), a longitude on its circle.

    Args:
        table: of n rows.
        columns: see `audit`.
    """
    found: dict[str, tuple[Target, BoolArray]] = {}
    left_out: dict[str, str] = {}
    for name, column in _columns(table):
        if columns is not None and name not in columns:
            continue
        if columns is None and (_MADE_OF_LATENTS.match(name) or _KEYS.match(name)):
            left_out[name] = "made of the latents" if _MADE_OF_LATENTS.match(name) else "a key"
            continue
        made: Any = column if isinstance(column, tuple | str) else as_target(column)
        if isinstance(made, str):
            left_out[name] = made
        else:
            found[name] = made
    return found, left_out


def _columns(table: "pd.DataFrame") -> Iterator[tuple[str, Any]]:
    """Yield the name of each column and its values, or its target and which rows are known."""
    import pandas as pd

    for name in table:
        column = table[name]
        if name == "lon":
            yield "lon", _circle(numbers_of(column) / 360)
        elif name == "datetime":
            days = days_of(table)
            yield "season", _circle(days / _YEAR)
            if np.isfinite(days).any() and np.ptp(np.mod(days[np.isfinite(days)], 1)) > 0:
                yield "hour", _circle(np.mod(days, 1))
            yield "day", pd.Series(np.floor(days))
        elif column.dtype.kind in "Mm" or isinstance(column.dtype, pd.DatetimeTZDtype):
            yield str(name), "a time other than datetime"
        else:
            yield str(name), column


def _circle(turns: Float64Array) -> tuple[Target, BoolArray]:
    """Return a circular quantity in turns, (n,), as a target of two numbers."""
    known = np.isfinite(turns)
    angle = 2 * np.pi * turns[known]
    return Target(np.stack([np.cos(angle), np.sin(angle)], axis=1), False), known
