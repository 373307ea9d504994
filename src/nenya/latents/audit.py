"""What latents tell of the columns of their table: what they should (the ocean) and what they should not (the rest).

Letters: N latents, n of them in a sample, D the length of a latent, k neighbours.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.errors import InputFileError, OptionError
from nenya.latents.audit_columns import DERIVED, KINDS, kind_of, targets_of
from nenya.latents.fold_blocks import blocks_for
from nenya.latents.nearest import as_unit
from nenya.latents.probes import FOLDS, Features, Probe, Score, Target, false_discovery, score
from nenya.latents.rarity import fit_components, known_rows, take_rows, whiten
from nenya.runtime.process import RowProgress
from nenya.storage.kept import Kept
from nenya.tables.blocks import block_folds, marks_of
from nenya.tables.place_and_time import usual_names
from nenya.tables.quantities import dt_name, dt_of

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Contrasts = dict[str, tuple[str, Float64Array]]  # column -> whether it is DT or slope, values

log = logging.getLogger(__name__)

COMPONENTS = 64
"""Principal components of the latents in the ridge regression, at most."""

SLOPES = ("slope", "alpha", "zonal_slope", "min_slope", "true_slope")
"""Columns of spectral slopes; the first one that the table has is used."""

FOLD_KINDS = ("granule", "time", "place", "rows")
"""Kinds of folds; `rows` keeps nothing together, to show what blocks change."""

_LEAST_ROWS = 50
_BARELY = 0.05  # above nothing
_PROBES = 24  # kept at a time, of 15 MB each
_NAMED = {"lat": "latitude", "lon": "longitude"}


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
        contrast_of: what that is from: `DT and slope`, or one of them, as a column does not tell itself.
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
    contrast_of: str = "DT and slope"
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
        words = f"{self.measure} {_shown(own.value)}"
        if not self.found:
            words += f", p = {own.p:.2g}"
        others = [(self.contrast, f"{self.contrast_of} alone"), (self.untrained, "an untrained network")]
        known = [f"{_shown(value)} from {what}" for value, what in others if value is not None]
        beside = f" ({', '.join(known)})" if known else ""
        name = _NAMED.get(self.name, self.name)
        article = "the " if name.isalpha() and name.islower() else ""
        tell = "do not tell" if not self.found else "barely tell" if self._gain < _BARELY else "tell"
        return f"latents {tell} {article}{name}: {words}{beside}"


def _shown(value: float) -> str:
    """Return a value with two decimals, three below a hundredth, without the sign of nothing."""
    return f"{value:.3f}" if 0.0005 <= value < 0.01 else f"{value:.2f}".replace("-0.00", "0.00")


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


def audit(  # noqa: PLR0913  # settings, each with a default
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
    kept: Kept | None = None,
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
        kept: results of an earlier run; columns with the same inputs are taken from it, finished ones are added to it.

    Raises:
        InputFileError: Fewer than 50 rows have a latent, or no column can be probed.
        OptionError: A column does not exist.
    """
    if missing := [name for name in columns or [] if name not in table and name not in DERIVED]:
        raise OptionError(f"columns={','.join(missing)}: expected columns of the table ({', '.join(map(str, table))})")
    good = known_rows(latents)
    if len(good) < _LEAST_ROWS:
        raise InputFileError(f"expected at least {_LEAST_ROWS} rows with a latent for an audit, got {len(good)}")
    marks = marks_of(table, seed)
    rows = good[np.argsort(marks[good], kind="stable")[:sample]]  # so that the order of the table changes nothing
    part, marks = table.iloc[rows].reset_index(drop=True), marks[rows]
    if k >= len(rows) - -(-len(rows) // FOLDS):
        raise OptionError(f"k={k}: expected fewer than the rows of a probe, {len(rows) - -(-len(rows) // FOLDS)} here")
    targets, left_out = targets_of(part, columns)
    if not targets:
        raise InputFileError(
            "expected a table with columns to audit, of numbers or categories of at least two values"
            + (f", got none ({_reasons(left_out)})" if left_out else "")
        )
    part = usual_names(part)
    blocks = {name: own for name, own in blocks_for(part).items() if name == "rows" or len(np.unique(own)) >= FOLDS}
    sets = {"latents": latent_features(latents, rows)}
    if untrained is not None:
        own = untrained(rows)
        sets["untrained"] = latent_features(own, np.arange(len(own)))
    probes = _Probes(sets, _contrasts(part), blocks, marks, k, permutations, seed)
    findings = []
    for name, found in _all_findings(probes, targets, kept, visible).items():
        if isinstance(found, str):
            left_out[name] = found
        else:
            findings.append(found)
    if not findings:
        raise InputFileError(f"no column can be audited ({_reasons(left_out)})")
    q = false_discovery(np.array([one.scores[one.main].p for one in findings]))
    findings = [replace(one, q=float(value)) for one, value in zip(findings, q, strict=True)]
    order = sorted(findings, key=lambda one: (KINDS.index(one.kind), not one.found, one.name))
    return Audit(order, left_out, {name: len(np.unique(own)) for name, own in blocks.items()}, len(rows))


def _reasons(left_out: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in left_out.items())


def _all_findings(
    probes: "_Probes", targets: dict[str, tuple[Target, BoolArray]], kept: Kept | None, visible: bool
) -> dict[str, Finding | str]:
    """Return the finding on each column, or why there is none; those that were kept are not computed again."""
    marks = {} if kept is None else {name: probes.mark(name, *target) for name, target in targets.items()}
    before = {name: kept.get(mark) for name, mark in marks.items()} if kept is not None else {}
    found = {name: _read(value) for name, value in before.items() if value is not None}
    if found:
        log.info("resuming: %d of %d columns are already audited", len(found), len(targets))
    with RowProgress("audit", len(targets), before=len(found), visible=visible, unit="columns") as progress:
        for name, (target, known) in targets.items():
            if name not in found:
                found[name] = own = probes.finding(name, target, np.flatnonzero(known))
                if kept is not None:
                    kept.put(marks[name], own if isinstance(own, str) else asdict(own))
                progress.advance(1)
    return {name: found[name] for name in targets}


def _read(value: Any) -> Finding | str:
    """Return a finding from its JSON values."""
    if isinstance(value, str):
        return value
    return Finding(**{**value, "scores": {kind: Score(**one) for kind, one in value["scores"].items()}})


class _Probes:
    """Sets of features and kinds of folds, fitted once for each set of rows that have a value."""

    def __init__(
        self, sets: dict[str, Features], contrasts: Contrasts, blocks: dict[str, IntArray], marks: Any,
        k: int, permutations: int, seed: int,
    ) -> None:  # fmt: skip
        self.sets, self.contrasts, self.blocks, self.k = sets, contrasts, blocks, k
        self.folds = {name: block_folds(own, FOLDS, marks) for name, own in blocks.items()}
        self.permutations, self.seed = permutations, seed
        self.main = next(name for name in FOLD_KINDS if name in blocks)
        self._known: dict[tuple[str, str, bytes], Probe | None] = {}
        state = hashlib.sha256(f"{nenya.__version__} {k} {permutations} {seed}".encode())
        own = {name: features.near for name, features in sets.items()}
        for name, values in (own | {name: column for name, (_, column) in contrasts.items()} | blocks).items():
            state.update(name.encode() + np.ascontiguousarray(values).tobytes())
        self._state = state

    def mark(self, name: str, target: Target, known: BoolArray) -> str:
        """Return a hash of all that the finding on a column depends on."""
        own = self._state.copy()
        own.update(f"{name} {target.classes} {target.values.shape}".encode())
        own.update(np.ascontiguousarray(target.values).tobytes() + known.tobytes())
        return own.hexdigest()

    def finding(self, name: str, target: Target, rows: IntArray) -> Finding | str:
        """Return what the latents tell of a column, or why nothing can be said.

        Args:
            name: of the column.
            target: of the rows with a known value.
            rows: their numbers.
        """
        scores = {which: made for which in self.blocks if (made := self._score("latents", which, target, rows))}
        if self.main not in scores:
            return f"its values occur in one {self.main} each, or in too few rows"
        measure = "AUC" if target.classes else "R2"
        others = {of: self._score(of, self.main, target, rows, name=name) for of in ("contrast", "untrained")}
        values = {of: None if made is None else made.value for of, made in others.items()}
        contrast, untrained = values["contrast"], values["untrained"]
        used = [what for column, (what, _) in self.contrasts.items() if column != name]
        return Finding(
            name, kind_of(name), measure, len(rows), scores, self.main, contrast, " and ".join(used), untrained
        )  # fmt: skip

    def _score(self, of: str, which: str, target: Target, rows: IntArray, *, name: str = "") -> Score | None:
        """Return the score of a set of features in one kind of folds."""
        features = self.sets.get(of)
        if of == "contrast":
            used = [values for column, (_, values) in self.contrasts.items() if column != name]
            features = _polynomial(np.stack(used, axis=1)) if used else None
            of = f"contrast without {name}" if name in self.contrasts else of
        if features is None:
            return None
        key = of, which, rows.tobytes()
        if key not in self._known:
            while len(self._known) >= _PROBES:  # the oldest: columns with other gaps have probes of their own
                del self._known[next(iter(self._known))]
            fold = self.folds[which][rows]
            enough = len(np.unique(fold)) == FOLDS and len(rows) - np.bincount(fold).max() > self.k
            self._known[key] = Probe(features.take(rows), fold, self.k) if enough else None
        probe = self._known[key]
        if probe is None:
            return None
        null = of == "latents" and (which != "rows" or self.main == "rows")
        count = self.permutations if of == "latents" else 1
        # What granules share is not independent in places either, and places do not hold complete granules.
        blocks = self.blocks["granule" if which == "place" and "granule" in self.blocks else which][rows]
        return score(probe, target, blocks, permutations=count, seed=self.seed, null=null)


def latent_features(latents: Any, rows: IntArray) -> Features:
    """Return the features of latents: at unit length, and whitened principal components, at most `COMPONENTS`."""
    units = as_unit(take_rows(latents, rows))
    pca = fit_components(units)
    able = int((pca.spectrum > 1e-8 * pca.total_variance).sum())
    pca = fit_components(units, min(COMPONENTS, able, max(1, len(rows) // 10)))
    return Features(units.astype(np.float64), whiten(pca, units))


def _contrasts(table: "pd.DataFrame") -> Contrasts:
    """Return the columns of DT and of the slope as standardised ranks (n,); unknown ones are in the middle."""
    found: dict[str, Any] = {}
    if (difference := dt_of(table, true=True)) is not None:
        found[dt_name(table.columns, true=True) or "DT"] = difference
    if (slope := next((name for name in SLOPES if name in table), None)) is not None:
        found[slope] = table[slope]
    made = {}
    for name, column in found.items():
        what = "slope" if name == slope else "DT"
        ranks = column.rank(pct=True).to_numpy(np.float64, na_value=np.nan)
        if np.isfinite(ranks).sum() > 1 and np.nanstd(ranks) > 0:
            made[name] = what, np.nan_to_num((ranks - np.nanmean(ranks)) / np.nanstd(ranks))
    return made


def _polynomial(values: Float64Array) -> Features:
    """Return quantities (n, m) as features, with their squares and products for the ridge regression."""
    count = values.shape[1]
    products = [values[:, i] * values[:, j] for i in range(count) for j in range(i, count)]
    return Features(values, np.column_stack([values, *products]))
