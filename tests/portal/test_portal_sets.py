"""Unions and differences of selections, typed conditions and chosen rows: their rows, words and links."""

import base64
import json
import zlib

import numpy as np
import pyarrow as pa
import pytest

from nenya.errors import OptionError
from nenya.portal.columns import Columns, compact
from nenya.portal.history import Selection
from nenya.portal.masks import Masks
from nenya.portal.question import condition_words, make_question
from nenya.portal.sets import MOST_ROWS, Either, Without
from nenya.portal.state import View, make_box, make_range, make_rows, read_view
from nenya.portal.words import filter_text
from nenya.tables.question import parse

ROWS = 500


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(1)
    days = np.datetime64("2010-01-01") + rng.integers(0, 900, ROWS).astype("timedelta64[D]")
    values = {name: rng.normal(size=ROWS) for name in ("DT", "US0", "US1")}
    values |= {"lat": rng.uniform(-60, 60, ROWS), "lon": rng.uniform(-180, 180, ROWS)}
    return Columns(compact(pa.table({**values, "datetime": days.astype("datetime64[s]")})))


def test_filters_add_up_and_take_away_and_links_keep_them(columns):
    masks, selection, dt = Masks(columns), Selection(), columns.values("DT")
    selection.add(make_range("DT", -0.5, 0.5))
    selection.add(make_box("umap", (0, 9), (-9, 9)), "or")
    selection.add(make_rows([3, 1, 2], "look-alikes of row 7"), "or")
    selection.add(make_question("month 12 to 2"), "not")
    (union, taken) = selection.view.filters
    assert isinstance(union, Either) and len(union.branches) == 3 and isinstance(taken, Without)
    wanted = ((dt >= -0.5) & (dt <= 0.5)) | (columns.values("US0") >= 0)
    wanted[[1, 2, 3]] = True
    wanted &= ~np.isin(columns.values("month"), (12, 1, 2))
    assert 0 < wanted.sum() < ROWS and np.array_equal(masks.all_of(selection.view.filters), wanted)
    assert [filter_text(item) for item in selection.view.filters] == [
        "DT: -0.5 to 0.5 K or UMAP: US0 0 to 9, US1 -9 to 9 or look-alikes of row 7",
        "not month 12 to 2",
    ]
    text = selection.view.to_text()
    assert read_view(text, columns) == selection.view
    selection.remove(taken.slot)
    assert selection.view.filters == (union,)


def test_a_selection_of_several_filters_is_one_branch(columns):
    selection = Selection()
    selection.add(make_range("DT", 0, 1))
    selection.add(make_range("lat", 0, 60))
    selection.add(make_range("DT", 2, 3), "or")
    assert filter_text(selection.view.filters[0]) == "(DT: 0 to 1 K and latitude: 0° to 60°N) or DT: 2 to 3 K"


@pytest.mark.parametrize(
    "item",
    [
        ["question", {"text": "lat > '"}],
        ["question", {"text": "x" * 2000}],
        ["question", {"text": "nothing > 1"}],
        ["question", {"text": ["lat > 1"]}],
        ["rows", {"rows": [ROWS], "title": "x"}],
        ["rows", {"rows": [-1], "title": "x"}],
        ["rows", {"rows": [True], "title": "x"}],
        ["rows", {"rows": list(range(MOST_ROWS + 1)), "title": "x"}],
        ["rows", {"rows": [], "title": "x"}],
        ["rows", {"rows": [1], "title": 7}],
        ["either", {"branches": []}],
        ["either", {"branches": "ab"}],
        ["without", {"filters": [["range", {"column": "nope", "low": 0, "high": 1}]]}],
        ["without", {"filters": [["box", {"plane": "umap", "x": [1e9, 2e9], "y": [0, 1]}]]}],
    ],
)
def test_hostile_sets_in_links_are_refused(columns, item):
    for nested in (item, ["without", {"filters": [item]}], ["either", {"branches": [[item]]}]):
        values = {"f": [nested], "r": None, "c": "count", "s": "shared"}
        text = base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode()
        with pytest.raises(OptionError):
            read_view(text, columns)


def test_deep_links_are_refused(columns):
    item = ["range", {"column": "DT", "low": 0, "high": 1}]
    for _ in range(9):
        item = ["without", {"filters": [item]}]
    values = {"f": [item], "r": None, "c": "count", "s": "shared"}
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode()
    with pytest.raises(OptionError, match="the view in this link"):
        read_view(text, columns)


def test_suggested_conditions_are_conditions(columns):
    from nenya.portal.question import ColumnRows

    words = condition_words(columns)
    assert {"region=gulfstream", "season=DJF", "winter", "month 12 to 2"} <= set(words)
    for word in words:
        assert parse(f"{word} 1" if word.endswith("> ") else word, ColumnRows(columns)).kind == "truth"


def test_months_go_over_the_years_end(columns):
    over = make_range("month", 11, 2)
    assert np.array_equal(over.mask(columns), np.isin(columns.values("month"), (11, 12, 1, 2)))
    assert filter_text(over) == "month: 11 to 2"
    assert read_view(View((over,)).to_text(), columns).filters == (over,)
