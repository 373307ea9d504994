"""What the columns of a table are called and measured in, and which of them is DT."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nenya.tables.quantities import QUANTITIES, dt_name, dt_of, heading_of, label_of, title_of, with_dt

SOURCE = Path(__file__).resolve().parents[2] / "src" / "nenya"


@pytest.mark.parametrize(
    ("columns", "settings", "name"),
    [
        ("DT DT40 T90 T10", {}, "DT"),
        ("DT DT40 T90 T10", {"central": True}, "DT40"),
        ("T90 T10 true_DT", {"true": True}, "T90 - T10"),
        ("T90 true_DT", {"true": True}, "true_DT"),
        ("T90 true_DT DT40", {}, None),
    ],
)
def test_one_column_is_dt(columns, settings, name):
    table = pd.DataFrame({column: np.full(2, i + 1.0) for i, column in enumerate(columns.split())})
    found = dt_of(table, **settings)
    assert dt_name(list(table), **settings) == name
    assert (found is None) == (name is None)
    if name is not None:
        np.testing.assert_array_equal(found, table.eval(name))


def test_a_table_gets_dt_once():
    table = pd.DataFrame({"T90": [3.0, 4.0], "T10": [1.0, 1.5]})
    assert list(with_dt(table)["DT"]) == [2.0, 2.5] and "DT" not in table
    assert list(with_dt(table.assign(DT=9.0))["DT"]) == [9.0, 9.0]
    assert list(with_dt(table[["T90"]])) == ["T90"]


def test_titles_name_the_unit():
    assert title_of("DT") == "DT = T90 - T10 (K)" and heading_of("DT") == label_of("DT") == "DT (K)"
    assert heading_of("mean_temperature") == "mean T (\N{DEGREE SIGN}C)" and label_of("T90") == "T90 (deg C)"
    assert title_of("wind_speed") == "wind speed" and label_of("wind_speed") == "wind_speed"


def test_titles_stand_in_one_place():
    written = {f"{quantity.title} ({quantity.unit})" for quantity in QUANTITIES.values() if quantity.unit}
    for path in SOURCE.rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert not written & {text for text in texts if isinstance(text, str)}, path
