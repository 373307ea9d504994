"""Probes of columns: scikit-learn's values, intervals that cover, folds by granules, and what cannot be probed."""

import numpy as np
import pandas as pd
import pytest
from latent_sets import latents

from nenya.errors import InputFileError
from nenya.latents.audit_columns import targets_of
from nenya.latents.column_probes import ProbeSettings, check_targets, labels_of, probe_columns
from nenya.latents.image_features import MOMENTS, SPECTRUM, image_features
from nenya.latents.linear import STRENGTHS, Folds, logistic_predictions, ridge_predictions
from nenya.latents.probe_folds import folds_of
from nenya.latents.probes import Features, as_target
from nenya.latents.scores import accuracy_with_interval, interval, r2, r2_with_interval
from nenya.tables.blocks import marks_of

ROWS, GRANULE = 400, 20
BLOCKS = np.arange(ROWS) // GRANULE


def table_of(rows=ROWS):
    number = np.arange(rows)
    granule = [f"g{one}" for one in number // GRANULE]
    return pd.DataFrame({"granule": granule, "pp_file": "a_preproc.h5", "pp_type": 1, "pp_idx": number})


def folds(table, by=None, count=5):
    return folds_of(table, table["pp_type"].to_numpy(), by, count, marks_of(table))[0]


def probed(x, columns, by=None, **more):
    """The values of both probes for columns of latents x."""
    table = table_of(len(x)).assign(**columns)
    own = folds(table, by)
    targets, left_out = check_targets(targets_of(table, list(columns), ranks=False)[0], own, 10)
    assert not left_out
    found = probe_columns({"a": Features(x, x)}, targets, own, ProbeSettings(**more), visible=False)
    return {name: one["a"] for name, one in found.items()}


@pytest.mark.parametrize(("rows", "width"), [(ROWS, 8), (120, 150)])
def test_ridge_equals_scikit_learn_in_folds_of_granules(rows, width, monkeypatch):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, GroupKFold, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    penalties = np.logspace(-2, 3, 4)
    monkeypatch.setattr("nenya.latents.linear.PENALTIES", penalties)
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(rows, width)) * np.logspace(-3, 2, width)
    x[:, 1] = 3.0  # tells nothing
    y = np.stack([x[:, 0] * 1e3 + rng.normal(size=rows), rng.normal(size=rows), 1e6 + x[:, -1]], axis=1)
    blocks = np.arange(rows) // 6
    group = np.empty(rows, np.int64)
    splits = list(GroupKFold(5).split(x, y, blocks))
    for number, (_, test) in enumerate(splits):
        group[test] = number
    made = ridge_predictions(x, y, Folds(group, (0, 1, 2, 3, 4), blocks, "granule"))
    for train, test in splits:
        for column in range(y.shape[1]):
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge()),
                {"ridge__alpha": penalties},
                scoring=lambda model, a, b: -((model.predict(a) - b) ** 2).sum(),
                cv=PredefinedSplit(group[train]),
            ).fit(x[train], y[train, column])
            expected = search.predict(x[test])
            np.testing.assert_allclose(made[test, column], expected, atol=1e-6 * y[:, column].std())


def test_logistic_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = latents(ROWS, 1).astype(np.float64)[:, :6]
    labels = np.digitize(x[:, 0], np.quantile(x[:, 0], (0.5, 0.9)))
    group = BLOCKS % 5
    made, other = logistic_predictions(
        x, labels, Folds(group, tuple(range(5)), BLOCKS, "granule"), [np.random.default_rng(0).permutation(labels)]
    )
    for number in range(5):
        test, train = group == number, group != number
        fits = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=300))
            for c in STRENGTHS
        ]
        nearest = min(
            np.abs(fit.fit(x[train], labels[train]).predict_proba(x[test]) - made[test]).max() for fit in fits
        )
        assert nearest < 1e-3
    assert (made.argmax(axis=1) == labels).mean() > 0.85 > 0.6 > (other.argmax(axis=1) == labels).mean()


def test_scores_equal_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, r2_score

    rng = np.random.default_rng(0)
    y, made = rng.normal(size=(2, ROWS, 1))
    assert r2(y, made) == pytest.approx(r2_score(y, made))
    labels, told = rng.integers(0, 3, (2, ROWS))
    value = accuracy_with_interval(labels, told, BLOCKS, rng)[0]
    assert value == pytest.approx(balanced_accuracy_score(labels, told))


def test_what_is_known_is_found_by_both_probes():
    x = latents(ROWS, 1).astype(np.float64)
    kind = np.array(["low", "middle", "high"])[np.digitize(x[:, 0], np.quantile(x[:, 0], (1 / 3, 2 / 3)))]
    found = probed(x, {"number": 3 + 2 * x[:, 3], "kind": kind, "noise": np.random.default_rng(0).normal(size=ROWS)})
    for probe in ("linear", "knn"):
        number, classes, noise = (found[name][probe] for name in ("number", "kind", "noise"))
        assert number.metric == "R2" and number.low > 0.8 and number.low <= number.value <= number.high <= 1
        assert classes.metric == "balanced accuracy" and classes.chance == pytest.approx(1 / 3)
        assert classes.low > 0.6 and classes.auc > 0.85 and abs(classes.shuffled - 1 / 3) < 0.12
        assert noise.low <= 0 and noise.value < 0.05 and number.shuffled < 0.1
        assert (number.n, number.folds, number.blocks) == (ROWS, 5, ROWS // GRANULE)


def test_intervals_cover_chance_where_nothing_is_known():
    """Columns that are the same within granules and have nothing to do with the latents, in most of the seeds."""
    covered = []
    x = latents(ROWS, 1).astype(np.float64)[:, :6]
    for seed in range(12):
        rng = np.random.default_rng(seed)
        columns = {f"c{i}": rng.normal(size=20)[BLOCKS] + rng.normal(size=ROWS) for i in range(5)}
        covered += [one[probe].low <= 0 for one in probed(x, columns, seed=seed, shuffles=1).values() for probe in one]
    assert np.mean(covered) > 0.94
    inside = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels, told = rng.integers(0, 2, (2, 20))[:, BLOCKS]  # of whole granules
        _, low, high = accuracy_with_interval(labels, told, BLOCKS, rng)
        inside.append(low <= 0.5 <= high)
    assert 0.9 < np.mean(inside) < 0.99


@pytest.mark.parametrize("blocks", [5, 40])
def test_intervals_cover_the_true_r2(blocks):
    """A prediction with errors of variance 0.5 has R2 0.5, in about 95 % of samples of few and of many blocks."""
    own, inside = np.repeat(np.arange(blocks), 50), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = rng.normal(size=(len(own), 1))
        _, low, high = r2_with_interval(y, y + np.sqrt(0.5) * rng.normal(size=y.shape), own, rng)
        inside.append(low <= 0.5 <= high)
    assert 0.91 < np.mean(inside) < 0.995


def test_an_interval_needs_two_blocks():
    assert np.isnan(interval(np.arange(10.0), 1)).all()
    few, many = interval(np.arange(2000.0), 5), interval(np.arange(2000.0), 500)
    assert few[0] < many[0] < many[1] < few[1]


def test_copied_granules_need_folds_by_granule():
    rng = np.random.default_rng(0)
    x = latents(ROWS, 1)[BLOCKS * GRANULE].astype(np.float64) + 1e-3 * rng.normal(size=(ROWS, 32))
    column = {"number": rng.normal(size=20)[BLOCKS], "kind": np.array(["a", "b"])[rng.integers(0, 2, 20)[BLOCKS]]}
    copied, apart = probed(x, column, "rows"), probed(x, column, "granule")
    assert copied["number"]["knn"].value > 0.95 and apart["number"]["knn"].value < 0.1
    assert copied["kind"]["linear"].value > 0.95 and apart["kind"]["linear"].value < 0.75
    assert apart["number"]["linear"].low <= 0


def test_from_train_to_valid_only_valid_is_judged():
    x = latents(ROWS, 1).astype(np.float64)
    table = table_of().assign(number=x[:, 3], kind=np.where(x[:, 0] > 0, "a", "b"))
    table["split"] = np.array(["train", "valid", "none"])[np.digitize(BLOCKS, (10, 15))]
    own, rows = folds_of(table, table["pp_type"].to_numpy(), "partition", 5, marks_of(table))
    assert len(rows) == 300 and len(own.judged_rows) == 100 and set(BLOCKS[rows[own.judged_rows]]) == set(range(10, 15))
    targets, _ = check_targets(targets_of(table.iloc[rows], ["number", "kind"], ranks=False)[0], own, 10)
    features = Features(x[rows], x[rows])
    found = probe_columns({"a": features}, targets, own, ProbeSettings(), visible=False)
    for probe in ("linear", "knn"):
        number, kind = found["number"]["a"][probe], found["kind"]["a"][probe]
        assert number.value > 0.8 and number.n == 100 and number.folds == 1 and number.blocks == 5
        assert kind.value > 0.7 and kind.auc > 0.9
    moved = x.copy()
    moved[rows[own.judged_rows]] = 0  # what is judged teaches nothing
    told = probe_columns({"a": Features(moved[rows], moved[rows])}, targets, own, ProbeSettings(), visible=False)
    assert told["number"]["a"]["linear"].value < 0.1


def test_a_category_of_one_fold_is_left_out_and_the_order_of_categories_does_not_matter():
    x = latents(ROWS, 1).astype(np.float64)
    names = np.where(x[:, 0] > 0, "a", "b").astype(object)
    names[:GRANULE] = "only here"
    table = table_of().assign(kind=names)
    own = folds(table)
    targets, _ = check_targets(targets_of(table, ["kind"], ranks=False)[0], own, 10)
    target, known = targets["kind"]
    assert known.sum() == ROWS - GRANULE and set(labels_of(target)) == {0, 1}
    renamed = np.where(names == "a", "z", names)
    values = [probed(x, {"kind": kinds})["kind"]["linear"].value for kinds in (names, renamed)]
    assert values[0] == pytest.approx(values[1])


def test_what_cannot_be_probed_is_told():
    rng = np.random.default_rng(0)
    table = table_of().assign(
        constant=1.5,
        unknown=np.nan,
        once=np.where(BLOCKS < 2, rng.normal(size=ROWS), np.nan),
        one_fold=np.where(BLOCKS == 3, rng.normal(size=ROWS), 0.5),
        kind=np.where(BLOCKS < 2, "here", None),
        local=[f"k{one}" for one in BLOCKS % 20],
    )
    own = folds(table)
    targets, left_out = targets_of(table, None, ranks=False)
    good, more = check_targets(targets, own, 10)
    words = {
        "constant": "one value",
        "unknown": "no value",
        "once": "too few for 5",
        "one_fold": "one value in all but one",
        "kind": "one value",
        "local": "occur in one fold",
    }
    assert not set(good) & set(words)
    for name, text in words.items():
        assert text in (left_out | more)[name]
    assert as_target(pd.Series(rng.normal(size=30)), ranks=False)[0].values.std() > 0.5


def test_folds_that_cannot_be_are_refused():
    table = table_of()
    with pytest.raises(InputFileError, match=r"by=granule: .* 5 of them among 60 rows.* got 3; give folds=3"):
        folds(table.iloc[:60])
    with pytest.raises(InputFileError, match="by=time: the table has no column datetime; give by=granule"):
        folds(table, "time")
    with pytest.raises(InputFileError, match="by=partition: expected rows of train and of valid, got 400 and 0"):
        folds(table, "partition")
    bare = folds(table.drop(columns="granule"))
    assert bare.by == "rows" and len(np.unique(bare.blocks)) == ROWS
    assert folds(table.assign(sensor=BLOCKS % 7), "sensor").by == "sensor"
    dated = table.assign(datetime=np.datetime64("2012-01-01", "ns") + BLOCKS.astype("timedelta64[D]") * 20)
    assert len(np.unique(folds(dated, "time").blocks)) == 14


def test_features_of_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(130, 16, 16)).cumsum(1).astype(np.float32)
    images[7, 3, 3] = np.nan
    found = image_features(lambda rows: images[rows], 130, [5, 5, 9], dt_crop=8)
    components = [f"image PCA, {count}{what}" for count in (5, 9) for what in ("", " squared")]
    assert list(found) == [*components, SPECTRUM, MOMENTS]
    good = np.arange(130) != 7
    for own in found.values():
        assert np.isfinite(own.linear[good]).all() and not np.isfinite(own.linear[7]).all()
    flat = images[good].reshape(129, -1).astype(np.float64)
    exact = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(
        np.abs(found["image PCA, 9"].linear[good][:, 0]), np.abs(exact[0][:, 0] * exact[1][0]), rtol=1e-3, atol=1e-3
    )
    tall = image_features(lambda rows: images[rows][:, :12], 130, [5])
    assert SPECTRUM not in tall and MOMENTS in tall
