import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.path import Path as Polygon

from nenya.errors import InputFileError, OptionError
from nenya.portal.columns import BINS, Columns, compact, read_arrow
from nenya.portal.history import Selection
from nenya.portal.masks import Masks
from nenya.portal.state import Category, Range, View, make_box, make_lasso, make_range, read_view
from nenya.portal.words import filter_text

ROWS = 4000


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(3)
    stamps = np.datetime64("2010-01-01") + np.repeat(rng.integers(0, 1500, ROWS // 10), 10).astype("timedelta64[D]")
    dt = rng.gamma(2, 0.5, ROWS)
    dt[:7] = np.nan
    return Columns(
        _compacted(
            {
                "US0": rng.normal(size=ROWS).astype("f4"),
                "US1": rng.normal(size=ROWS).astype("f4"),
                "lat": rng.uniform(-80, 80, ROWS),
                "lon": rng.uniform(0, 360, ROWS),
                "datetime": stamps.astype("datetime64[ns]"),
                "DT": dt,
                "LL": np.full(ROWS, 2.0),
                "region": rng.choice(["med", "gulfstream", "north"], ROWS),
                "filename": [f"granule{i // 10}" for i in range(ROWS)],
                "UID": [f"u{i}" for i in range(ROWS)],
                "pp_idx": np.arange(ROWS),
            }
        )
    )


def _compacted(values):
    from nenya.portal.columns import _compact

    return pa.table({name: _compact(pa.chunked_array([pa.array(column)])) for name, column in values.items()})


def test_longitudes_of_either_convention_and_dates_become_columns(columns):
    assert columns.values("lon").min() >= -180 and columns.values("lon").max() < 180
    times = columns.table.column("datetime").to_pylist()
    assert columns.values("month").tolist() == [t.month for t in times]
    assert columns.values("year").tolist() == [t.year for t in times]


def test_metrics_leave_out_keys_and_constants_and_begin_with_DT(columns):
    metrics = columns.metrics()
    assert metrics[0] == "DT"
    assert not {"LL", "pp_idx", "US0", "UID", "region"} & set(metrics)
    assert {"month", "year", "lat"} <= set(metrics)


def test_a_histogram_counts_every_known_value_once(columns):
    binned = columns.binned("DT")
    assert binned.counts.sum() == ROWS - 7 == (binned.codes < BINS).sum()
    inner = columns.values("DT")
    exact = np.histogram(inner[(inner > binned.edges[0]) & (inner < binned.edges[-1])], binned.edges)[0]
    assert np.abs(exact[1:-1] - binned.counts[1:-1]).max() <= 1  # an edge in float32
    month = columns.binned("month")
    assert month.whole and np.count_nonzero(month.counts) == 12


def test_texts_that_repeat_are_dictionaries_and_unique_ones_are_not(columns):
    assert pa.types.is_dictionary(columns.table.schema.field("filename").type)
    assert pa.types.is_string(columns.table.schema.field("UID").type)
    assert columns.categories() == {"region": ["gulfstream", "med", "north"]}


def test_a_table_without_columns_says_what_it_lacks():
    bare = Columns(_compacted({"lat": [1.0, 2.0], "lon": [3.0, 4.0]}))
    assert bare.missing == {"UMAP": ["US0", "US1"], "seasons": ["datetime"]}


@pytest.mark.parametrize("box", [((-30, 40), (-10, 10)), ((170, 195), (-50, 50)), ((-200, -150), (0, 60))])
def test_a_box_on_the_map_may_cross_the_dateline(columns, box):
    (x0, x1), (y0, y1) = box
    lon, lat = columns.values("lon"), columns.values("lat")
    expected = np.zeros(ROWS, bool)
    for turn in (-360, 0, 360):
        expected |= (lon + turn >= x0) & (lon + turn <= x1) & (lat >= y0) & (lat <= y1)
    found = make_box("map", *box).mask(columns)
    assert expected.any()
    assert np.array_equal(found, expected)


def test_a_lasso_equals_the_exact_polygon(columns):
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = 1.2 + 0.5 * np.sin(5 * angle)
    lasso = make_lasso("umap", list(zip(radius * np.cos(angle), radius * np.sin(angle), strict=True)))
    points = np.column_stack([columns.values("US0"), columns.values("US1")]).astype(np.float64)
    expected = Polygon(np.array(lasso.points), closed=False).contains_points(points)
    assert 0 < expected.sum() < ROWS
    assert np.array_equal(lasso.mask(columns), expected)


def test_a_lasso_over_the_dateline_takes_both_sides(columns):
    lasso = make_lasso("map", [(160, -40), (200, -40), (200, 40), (160, 40)])
    box = make_box("map", (160, 200), (-40, 40))
    assert np.array_equal(lasso.mask(columns), box.mask(columns))
    assert set(np.sign(columns.values("lon")[lasso.mask(columns)])) == {-1, 1}


def test_filters_intersect_and_a_new_one_takes_the_place_of_its_view(columns):
    masks, selection = Masks(columns, most=3), Selection()
    assert masks.all_of(selection.view.filters) is None
    selection.add(make_box("umap", (-1, 1), (-1, 1)))
    selection.add(make_range("DT", 2, 0.5))
    selection.add(Category("region", ("med",)))
    dt, region = columns.values("DT"), np.array(columns.table.column("region").to_pylist())
    expected = (np.abs(columns.values("US0")) <= 1) & (np.abs(columns.values("US1")) <= 1)
    expected &= (dt >= 0.5) & (dt <= 2) & (region == "med")
    assert np.array_equal(masks.all_of(selection.view.filters), expected)
    selection.add(make_box("umap", (0, 1), (0, 1)))
    assert len(selection.view.filters) == 3
    assert len(masks._kept) <= 3


def test_undo_and_redo_go_step_by_step_and_reset_can_be_undone():
    selection = Selection()
    first, second = make_range("DT", 0, 1), make_range("lat", 0, 10)
    selection.add(first)
    selection.add(second)
    selection.show(row=5)
    selection.reset()
    assert selection.view.filters == ()
    assert selection.undo() and selection.view.filters == (first, second)
    assert selection.view.row == 5
    assert selection.undo() and selection.view.row is None and selection.view.filters == (first, second)
    assert selection.undo() and selection.view.filters == (first,)
    assert selection.redo() and selection.redo() and selection.view.row == 5
    assert selection.go(0) and selection.view == View() and not selection.undo()
    assert selection.go(3) and selection.step == 3 and not selection.go(9)
    selection.show(colour="DT")  # a new change takes the place of what was undone
    assert not selection.redo() and selection.view.row == 5 and selection.view.colour == "DT"
    assert not selection.show(colour="DT") and selection.step == 4


def test_zooms_of_one_plane_in_quick_succession_are_one_step():
    selection = Selection()
    for size in (5.0, 4.0, 3.0):
        selection.zoom("umap", (-size, size, -1.0, 1.0))
    selection.zoom("map", (-10.0, 10.0, -5.0, 5.0))
    assert selection.step == 2 and selection.view.extent("umap") == (-3.0, 3.0, -1.0, 1.0)
    assert selection.undo() and selection.view.extent("map") is None and selection.view.extent("umap")
    assert selection.undo() and selection.view == View()
    assert not selection.zoom("map", None)


def test_old_steps_are_forgotten_and_numbers_stay():
    from nenya.portal.history import MOST_STEPS

    selection = Selection()
    for row in range(MOST_STEPS + 10):
        selection.show(row=row)
    assert len(selection.views) == MOST_STEPS and selection.step == MOST_STEPS + 10
    assert selection.go(selection.step - 5) and selection.view.row == MOST_STEPS + 4 and not selection.go(3)


def test_a_link_restores_the_same_view_and_the_same_rows(columns):
    filters = (
        make_box("map", (170.123456789, 190), (-10, 20)),
        make_lasso("umap", [(0, 0), (1.5, 0.1), (0.5, 2)]),
        make_range("month", 3, 5),
        Category("region", ("med", "north")),
    )
    zoom = (("map", (-20.0, 30.5, -5.0, 40.0)), ("umap", (0.0, 1.0, -1.0, 0.5)))
    view = View(filters, 17, "DT", "own", "DT", True, "stats", (False, True), zoom=zoom)
    text = view.to_text()
    assert len(View().to_text()) < 80 and read_view(View().to_text(), columns) == View()
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert read_view(text, columns) == view


HUGE = [1e15, -1e15, 541, 1e300, 10**400, float("inf"), "7", None, True, [1], {"a": 1}]
FAR = [
    *(["lasso", {"plane": "map", "points": [[0, 0], [far, 1], [1, 1]]}] for far in HUGE),
    *(["lasso", {"plane": "map", "points": [[0, 0], [1, far], [1, 1]]}] for far in HUGE),
    *(["lasso", {"plane": "umap", "points": [[0, 0], [far, 1], [1, 1]]}] for far in HUGE if far != 541),
    *(
        ["box", {"plane": plane, "x": [far, 0], "y": [0, 1]}]
        for far in (1e15, 10**400, "7")
        for plane in ("map", "umap")
    ),
    *(["range", {"column": "DT", "low": far, "high": 1}] for far in (1e300, 10**400, "7", None, [1])),
    ["category", {"column": "region", "values": ["med"] * 65}],
    ["category", {"column": "region", "values": ["<script>"]}],
    ["category", {"column": "region", "values": "med"}],
    ["category", {"column": "region", "values": []}],
    ["lasso", {"plane": "map", "points": 7}],
    ["lasso", {"plane": "map", "points": [[90 * (n % 2), n % 7] for n in range(99)]}],
    ["box", {"plane": "map", "x": [0, 1, 2], "y": [0, 1]}],
    ["range", {"column": ["DT"], "low": 0, "high": 1}],
]  # filters of links that no page makes


def test_hostile_links_are_refused_with_one_sentence(columns):
    import base64
    import json
    import zlib

    def link(values):
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode()

    good = {"f": [], "r": 1, "c": "count", "s": "shared"}
    bad = [
        "", "x" * 30_000, "////", base64.b64encode(b"no zlib").decode(), link([]), link("f"),
        base64.urlsafe_b64encode(zlib.compress(b" " * 10**7)).decode(),
        *(link(good | change) for change in (
            *({"o": bad} for bad in (["nope", True], ["DT"], ["DT", 1], [["DT"], True], "DT", None)),
            *({"t": bad} for bad in ("x", ["table"], None)), *({"n": bad} for bad in ([1, 0], [True], True, None)),
            *({"z": bad} for bad in ({"x": [0, 1, 0, 1]}, {"map": [1, 0, 0, 1]}, {"map": [0, 1]}, [1], {"map": 7},
                                     {"umap": [0, 1e9, 0, 1]}, {"umap": [0, float("nan"), 0, 1]})),
            {"r": ROWS}, {"r": True}, {"r": "../../etc/passwd"}, {"c": "UID"}, {"s": "x"},
            {"f": [["range", {"column": "nope", "low": 0, "high": 1}]]},
            {"f": [["range", {"column": "DT", "low": float("nan"), "high": 1}]]},
            {"f": [["box", {"plane": "__class__", "x": [0, 1], "y": [0, 1]}]]},
            {"f": [["category", {"column": "UID", "values": ["u1"]}]]},
            {"f": [["lasso", {"plane": "map", "points": []}]]},
            *({"f": [item]} for item in FAR),
            {"f": [["range", {"column": "DT", "low": 0, "high": 1}]] * 2}, {"f": {"a": 1}}, {"f": "range"}, {"f": None},
            {"f": [["range", {"column": "DT", "low": n, "high": n}] for n in range(41)]}, {"r": 10**400}, {"r": 1e3},
        )),
    ]  # fmt: skip
    assert read_view(link(good), columns) == View(row=1)
    for text in bad:
        with pytest.raises(OptionError, match="the view in this link"):
            read_view(text, columns)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (make_box("map", (170.0371, 199.96), (19.98, 35.012)), "map: 20°N to 35°N, 170°E to 160°W"),
        (make_box("map", (-2.5, 3.25), (-95, 0)), "map: 90°S to 0°, 2.5°W to 3.2°E"),
        (make_box("map", (-200, 170), (-95, 95)), "map: 90°S to 90°N, all longitudes"),
        (make_box("umap", (-1.23456, 3.4), (0.111119, 0.25)), "UMAP: US0 -1.2 to 3.4, US1 0.11 to 0.25"),
        (
            make_lasso("map", [(160, -40), (200, -40), (180, 40)]),
            "map lasso of 3 corners: within 40°S to 40°N, 160°E to 160°W",
        ),
        (make_range("DT", 1.0049, 2.4971), "DT: 1.0 to 2.5 K"),
        (make_range("month", 3, 8), "month: 3 to 8"),
        (make_range("month", 4, 4), "month: 4"),
        (make_range("mean_temperature", 9.87654, 31.2345), "mean temperature: 10 to 31 °C"),
        (make_range("lat", -12.34, 40), "latitude: 12°S to 40°N"),
        (make_range("some_count", 0, 12345678), "some count: 0 to 1.235e+07"),
        (Category("region", ("a", "b", "c", "d", "e")), "region: a, b, c and 2 more"),
    ],
)  # fmt: skip
def test_a_filter_is_said_with_axes_units_and_no_more_digits_than_it_needs(item, text):
    assert filter_text(item) == text


def test_a_granule_is_one_time_of_one_file():
    stamps = np.array(["2012-01-01", "2012-02-01"] * 2, "datetime64[ns]")
    months = pa.table({"filename": ["model.nc"] * 4, "datetime": stamps})
    assert Columns(compact(months)).same_granule(1).tolist() == [False, True, False, True]
    named = Columns(compact(months.append_column("granule", pa.array(["a", "a", "b", None]))))
    assert named.same_granule(0).tolist() == [True, True, False, False]
    assert named.same_granule(3).tolist() == [False, False, False, True]


def test_rows_of_one_granule(columns):
    assert np.flatnonzero(columns.same_granule(25)).tolist() == list(range(20, 30))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_tables_of_every_kind_give_the_same_columns(tmp_path, columns, suffix):
    from nenya.io import write_table

    path = tmp_path / f"table{suffix}"
    write_table(columns.table.to_pandas(), path)
    again = Columns(read_arrow(path))
    for name in ("DT", "US0", "lon", "month", "year"):
        assert np.allclose(again.values(name), columns.values(name), equal_nan=True), name
    assert again.categories() == columns.categories()


def test_an_empty_or_damaged_table_is_one_line(tmp_path):
    empty, damaged = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"lat": pa.array([], pa.float64())}), empty)
    damaged.write_bytes(b"PAR1 and no more")
    for path, word in ((empty, "expected a table with rows"), (damaged, "cannot be read")):
        with pytest.raises(InputFileError, match=word):
            read_arrow(path)


def test_ranges_hold_both_ends():
    columns = Columns(_compacted({"month": [1, 2, 3, 4]}))
    assert Range("month", 2, 3).mask(columns).tolist() == [False, True, True, False]


def test_links_keep_examples_and_refuse_rows_that_are_none(columns):
    view = View(examples=((3, 5), (7,)))
    assert read_view(view.to_text(), columns) == view
    for bad in (((ROWS,), ()), ((), (-1,)), (tuple(range(41)), ())):
        with pytest.raises(OptionError):
            read_view(View(examples=bad).to_text(), columns)


def test_parts_of_a_table_may_have_more_strings_together_than_each_has_numbers_for():
    parts = [[f"granule {part}.{row}" for row in range(100) for _ in range(3)] for part in range(3)]
    chunks = [pa.array(part).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())) for part in parts]
    found = compact(pa.table({"filename": pa.chunked_array(chunks)}))
    assert found.column("filename").to_pylist() == [name for part in parts for name in part]
    assert found.column("filename").num_chunks == 1


def test_a_column_of_truth_values_has_their_words_in_the_legend():
    values = Columns(compact(pa.table({"clear": [True, None, False, True], "count": [1, 0, None, 1]})))
    assert values.classes("clear").labels == ("False", "True")
    assert values.classes("clear").codes.tolist() == [1, -1, 0, 1]
    assert values.classes("count").labels == ("0", "1")
