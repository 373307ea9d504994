"""What latents of several models know of columns: linear and nearest-neighbour probes, side by side on the same rows.

Letters: n rows, d features, C numbers of a target, K classes, k neighbours.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.linear import Folds, logistic_predictions, ridge_predictions
from nenya.latents.probes import Features, Target, exchanges, nearest_rows
from nenya.latents.scores import accuracy, accuracy_with_interval, fold_auc, r2, r2_with_interval
from nenya.runtime.process import RowProgress

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Targets = Mapping[str, tuple[Target, BoolArray]]

R2, ACCURACY = "R2", "balanced accuracy"
"""The measures: of numbers and of categories."""

PROBES = ("linear", "knn")
"""The two probes of a column."""

_LARGEST = 1e30  # of a number; netCDF fills with 9.97e36


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of the probes.

    Attributes:
        k: nearest rows.
        shuffles: times that a column is shuffled, for the value by chance.
        seed: of draws and shuffles.
    """

    k: int = 10
    shuffles: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Probed:
    """How well one probe predicts a column from the latents of one model.

    Attributes:
        value: R2 of numbers, balanced accuracy of categories, of rows that the probe has not seen.
        low: lower end of its 95 % interval, by a bootstrap over blocks.
        high: its upper end.
        metric: `R2` or `balanced accuracy`.
        chance: the value of a prediction without features: 0, or one over the number of categories.
        shuffled: the mean value for the shuffled column.
        n: rows that were predicted.
        folds: number of groups that were predicted.
        blocks: blocks of these rows.
        auc: for categories, the AUC within folds, mean over the categories.
    """

    value: float
    low: float
    high: float
    metric: str
    chance: float
    shuffled: float
    n: int
    folds: int
    blocks: int
    auc: float | None = None


def probe_columns(
    models: Mapping[str, Features], targets: Targets, folds: Folds, settings: ProbeSettings, *, visible: bool = True
) -> dict[str, dict[str, dict[str, Probed]]]:
    """Return what each model knows of each column: column -> model -> probe (`linear`, `knn`) -> value.

    Args:
        models: name -> features of the same n rows.
        targets: column -> its values where they are known, and which of the n rows these are; see `check_targets`.
        folds: of the n rows.
        settings: of the probes.
        visible: whether progress is shown.
    """
    found: dict[str, dict[str, dict[str, Probed]]] = {name: {} for name in targets}
    with RowProgress("probe", len(models) * len(targets), visible=visible, unit="columns") as progress:
        for model, features in models.items():
            near: dict[bytes, IntArray] = {}
            for name, (target, known) in targets.items():
                rows = np.flatnonzero(known)
                part = folds.take(rows)
                own = features.take(rows)
                if known.tobytes() not in near:
                    near = {known.tobytes(): _neighbours(own.near, part, settings.k)}
                found[name][model] = _probe(own, near[known.tobytes()], target, part, settings)
                progress.advance(1)
    return found


def check_targets(targets: Targets, folds: Folds, k: int) -> tuple[Targets, dict[str, str]]:
    """Return the columns that can be probed, and for the others why they cannot.

    Categories that occur in one group only, so that no other group could teach them, are left out.

    Args:
        targets: as of `probe_columns`.
        folds: of the n rows.
        k: nearest rows of the probe.
    """
    good: dict[str, tuple[Target, BoolArray]] = {}
    refused: dict[str, str] = {}
    for name, (target, known) in targets.items():
        target, known = _taught(target, known, folds)
        part = folds.take(np.flatnonzero(known))
        if why := _why_not(target, part, len(folds.judged) if len(folds.judged) > 1 else 0, k):
            refused[name] = why
        else:
            good[name] = target, known
    return good, refused


def _taught(target: Target, known: BoolArray, folds: Folds) -> tuple[Target, BoolArray]:
    """Return a target without the categories that occur in one group only."""
    if not target.classes:
        return target, known
    rows = np.flatnonzero(known)
    labels = labels_of(target)
    groups = folds.group[rows]
    kept = [name for name in np.unique(labels) if _is_taught(groups[labels == name], folds)]
    if len(kept) == len(np.unique(labels)):
        return target, known
    some = np.isin(labels, kept)
    values = np.stack([(labels[some] == name).astype(np.float64) for name in kept], axis=1)
    left = known.copy()
    left[rows[~some]] = False
    return Target(values[:, 1:] if len(kept) == 2 else values, True), left


def _is_taught(groups: IntArray, folds: Folds) -> bool:
    """Return whether a category in these groups occurs in one that is predicted, and in another one."""
    return any((groups == one).any() and (groups != one).any() for one in folds.judged)


def _why_not(target: Target, folds: Folds, needed: int, k: int) -> str:
    """Return why a column cannot be probed with the folds of its known rows; an empty string if it can."""
    values = target.values
    groups = len(np.unique(folds.group))
    if needed and groups < needed:
        return f"its values are known in {len(np.unique(folds.blocks))} of folds by {folds.by}, too few for {needed}"
    if not len(folds.judged_rows) or groups < 3:
        return "its values are known on one side of the split only"
    for test, train in folds.splits():
        if len(train) <= max(k, 2) or not len(test):
            return f"too few rows have a value for the {k} nearest"
        if not target.classes and np.ptp(values[train], axis=0).max() == 0:
            return f"it has one value in all but one of the folds by {folds.by}"
    if not target.classes and np.abs(values).max() > _LARGEST:
        return f"it has values beyond {_LARGEST:.0e}, as of missing values: leave these empty in the table"
    judged = values[folds.judged_rows]
    if not values.size or np.ptp(judged, axis=0).max(initial=0) == 0:
        return f"its values occur in one fold by {folds.by} each, or one value in all that is predicted"
    return ""


def labels_of(target: Target) -> IntArray:
    """Return the classes of a target as numbers from 0 up, (n,); rows of none of them are a further class."""
    values = target.values
    if values.shape[1] == 1:
        return np.asarray(values[:, 0] > 0, np.int64)
    labels = np.where(values.any(axis=1), values.argmax(axis=1), values.shape[1])
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)


def _neighbours(near: Float64Array, folds: Folds, k: int) -> IntArray:
    """Return the k nearest training rows of each judged row, (n, k), -1 for other rows."""
    found = np.full((len(near), k), -1, np.int64)
    for test, train in folds.splits():
        found[test] = train[nearest_rows(near[test], near[train], k)]
    return found


def _probe(
    features: Features, near: IntArray, target: Target, folds: Folds, settings: ProbeSettings
) -> dict[str, Probed]:
    """Return the values of both probes of one column."""
    orders = exchanges(folds.blocks, settings.shuffles, np.random.default_rng(settings.seed))
    return (_of_classes if target.classes else _of_numbers)(features, near, target, folds, (orders, settings.seed))


def _of_numbers(
    features: Features, near: IntArray, target: Target, folds: Folds, chance: tuple[IntArray, int]
) -> dict[str, Probed]:
    orders, seed = chance
    values, rows = target.values, folds.judged_rows
    width = values.shape[1]
    every = np.hstack([values, *(values[order] for order in orders)])
    made = {"linear": ridge_predictions(features.linear, every, folds)[rows], "knn": every[near[rows]].mean(axis=1)}
    truth, found = every[rows], {}
    for name, own in made.items():
        parts = [slice(start, start + width) for start in range(0, every.shape[1], width)]
        shuffled = [r2(truth[:, part], own[:, part]) for part in parts[1:]]
        scores = r2_with_interval(truth[:, :width], own[:, :width], folds.blocks[rows], np.random.default_rng(seed))
        found[name] = _probed(scores, R2, 0.0, shuffled, folds)
    return found


def _of_classes(
    features: Features, near: IntArray, target: Target, folds: Folds, chance: tuple[IntArray, int]
) -> dict[str, Probed]:
    orders, seed = chance
    labels, rows = labels_of(target), folds.judged_rows
    width = int(labels.max()) + 1
    every = [labels, *(labels[order] for order in orders)]
    near_made = [_shares(own, near[rows], folds, width) for own in every]
    linear_made = [one[rows] for one in logistic_predictions(features.linear, labels, folds, every[1:])]
    found = {}
    for name, made in zip(PROBES, (linear_made, near_made), strict=True):
        told = [one.argmax(axis=1) for one in made]
        shuffled = [accuracy(own[rows], one) for own, one in zip(every[1:], told[1:], strict=True)]
        scores = accuracy_with_interval(labels[rows], told[0], folds.blocks[rows], np.random.default_rng(seed))
        own = np.eye(width)[labels[rows]]
        auc = float(fold_auc(folds.group[rows], made[0][:, None], own[:, None])[0])
        found[name] = _probed(scores, ACCURACY, 1 / width, shuffled, folds, auc)
    return found


def _shares(labels: IntArray, near: IntArray, folds: Folds, width: int) -> Float64Array:
    """Return the share of each class among the nearest rows, over its share among the training rows: (m, K)."""
    own = np.eye(width)[labels]
    shares = own[near].mean(axis=1)
    group = folds.group[folds.judged_rows]
    for name in folds.judged:
        usual = own[folds.group != name].mean(axis=0)
        shares[group == name] /= np.maximum(usual, 1e-12)
    total = shares.sum(axis=1, keepdims=True)
    return np.asarray(shares / np.maximum(total, 1e-300), np.float64)


def _probed(
    scores: tuple[float, float, float],
    metric: str,
    chance: float,
    shuffled: list[float],
    folds: Folds,
    auc: float | None = None,
) -> Probed:
    value, low, high = scores
    rows = folds.judged_rows
    mean = float(np.mean(shuffled)) if shuffled else float("nan")
    blocks, judged = len(np.unique(folds.blocks[rows])), len(np.unique(folds.group[rows]))
    return Probed(value, min(low, value), max(high, value), metric, chance, mean, len(rows), judged, blocks, auc)


def as_rows(found: Mapping[str, Mapping[str, Mapping[str, Probed]]]) -> list[dict[str, Any]]:
    """Return the rows of a table: column, model, probe, and the fields of `Probed`."""
    return [
        {"column": column, "model": model, "probe": probe, **asdict(one)}
        for column, models in found.items()
        for model, probes in models.items()
        for probe, one in probes.items()
    ]
