import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from nenya.plotting.categories import class_colours, colours_for
from nenya.plotting.colours import REST
from nenya.tables.categories import MOST, categories_of
from nenya.tables.classes import MOST_TEXTS, apart, centres, classes_of_numbers, classes_of_texts, commonest


def classes_of_column(column):
    """Return the classes of a column as the portal finds them."""
    if pd.api.types.is_numeric_dtype(column):
        return classes_of_numbers(column.name, column.to_numpy(np.float64, na_value=np.nan))
    codes, texts = pd.factorize(column.astype("string"))
    return classes_of_texts(column.name, codes, texts.tolist())


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([3, 1, 1, 7], (1, 3, 7)),
        ([3.0, np.nan, 1.0, 1.0], (1, 3)),
        (pd.array([2, None, 1], "Int64"), (1, 2)),
        ([True, False, True], (0, 1)),
        (["b", "a", None, "b"], ("a", "b")),
        (pd.Categorical(["b", "a", "b"], categories=["b", "a", "unused"]), ("a", "b")),
        (list(range(MOST)), tuple(range(MOST))),
        (list(range(MOST + 1)), None),
        ([0.5, 1.0, 2.0], None),
        ([1, 1, 1], None),
        ([np.nan, np.nan], None),
        (["a", "a"], None),
        ([f"granule {n}" for n in range(65)], None),
    ],
)
def test_columns_of_a_few_integers_or_strings_are_classes(values, wanted):
    column = pd.Series(values, name="x")
    found = classes_of_column(column)
    assert (found.values if found is not None else None) == wanted
    if found is not None:
        again = [None if code < 0 else found.values[code] for code in found.codes]
        same = [None if pd.isna(v) else v for v in column]
        assert again == same
        assert found.counts().tolist() == [sum(v == w for v in same if v is not None) for w in wanted]


def test_a_number_that_differs_late_is_seen():
    values = np.zeros(300_000)
    values[1::2], values[-1] = 1, 0.5
    assert classes_of_column(pd.Series(values, name="x")) is None
    values[-1] = 9
    assert classes_of_column(pd.Series(values, name="x")).values == (0, 1, 9)


def test_labels_may_be_many_and_measurements_are_none():
    many = np.arange(MOST_TEXTS, dtype=float)
    assert len(classes_of_numbers("cluster", many).values) == MOST_TEXTS
    assert classes_of_numbers("cluster", np.append(many, MOST_TEXTS)) is None
    assert classes_of_numbers("DT", np.array([1.0, 2, 3])) is None  # in K, rounded
    assert categories_of(pd.DataFrame({"DT": [1, 2, 3]}), "DT") is None  # figures say the same


def test_months_have_names():
    months = classes_of_column(pd.Series([12, 1, 2], name="month"))
    assert months.labels == ("Jan", "Feb", "Dec") and months.kind == "cycle"
    assert classes_of_column(pd.Series([2, 3], name="cluster")).labels == ("2", "3")


def test_the_commonest_class_of_a_cell_equals_a_slow_count():
    rng = np.random.default_rng(3)
    cells, codes = rng.integers(-1, 12, 900), rng.integers(-1, 5, 900)
    found = commonest(cells, codes, 13, 5)
    for cell in range(13):
        inside = codes[(cells == cell) & (codes >= 0)]
        assert found[cell] == (np.bincount(inside, minlength=5).argmax() if len(inside) else -1)


def test_classes_are_named_at_their_medians_where_there_is_room():
    classes = classes_of_column(pd.Series(["a", "a", "a", "b", "b", "c"], name="region"))
    x, y = np.array([0.0, 1, 2, 5, 7, np.nan]), np.array([0.0, 1, 5, 5, 7, 1])
    across, up = centres(x, y, classes)
    assert across[:2].tolist() == [1, 6] and up[:2].tolist() == [1, 6] and np.isnan(across[2])
    assert apart(across, up, classes.counts(), (0, 10, 0, 10)) == [0, 1]
    assert apart(across, up, classes.counts(), (0, 100, 0, 200)) == [0]  # the smaller one would cover the larger


@pytest.mark.parametrize(
    ("name", "values"),
    [("month", [12, 1, 2]), ("year", [2010, 2011, 2014]), ("cluster", [0, 1, 7]), ("cluster", [3, -1, 5])],
)
def test_the_portal_has_the_colours_of_figures(name, values):
    table = pd.DataFrame({name: values})
    figures, classes = categories_of(table, name), classes_of_numbers(name, np.array(values, float))
    wanted = dict(zip(figures.labels, map(to_hex, colours_for(figures)), strict=True))
    assert dict(zip(classes.labels, class_colours(classes), strict=True)) == wanted


def test_noise_is_grey_and_named_and_leaves_the_colours_of_clusters_alone():
    with_noise = classes_of_numbers("cluster", np.array([-1.0, 0, 1, 2]))
    without = classes_of_numbers("cluster", np.array([0.0, 1, 2]))
    assert with_noise.labels == ("noise", "0", "1", "2") and with_noise.noise == 0 and without.noise == -1
    assert class_colours(with_noise) == [REST, *class_colours(without)]
    quality = classes_of_numbers("level", np.array([-1.0, 0, 1]))
    assert quality.labels == ("-1", "0", "1") and REST not in class_colours(quality), "no cluster"
