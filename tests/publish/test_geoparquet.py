"""Published GeoParquet: what GeoPandas, DuckDB and GDAL read from it, its geometries, partitions and loss."""

import json
from itertools import pairwise

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from latent_sets import DIM, latents
from portal_data import write_archive

from nenya.errors import InputFileError, OptionError
from nenya.io import read_table, write_table
from nenya.latents.files import open_latents
from nenya.publish.encoding import encode, measure
from nenya.publish.places import footprints, longitudes, nested_cells, points
from nenya.publish.rows import Choice, select

ROWS = 300  # of the archive, of which one has no latent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Latents and table; some rows have no place, no time, or lie on the date line."""
    table, vectors, _ = write_archive(tmp_path_factory.mktemp("source"))
    frame = read_table(table)
    frame["height_km"], frame["width_km"] = 100.0, 120.0
    frame["UID"] = 2**62 + np.arange(ROWS)
    frame.loc[[20, 21], "lat"] = np.nan
    frame.loc[30, "datetime"] = pd.NaT
    frame.loc[[40, 41, 42], ["lat", "lon"]] = [(10.0, 179.9), (-20.0, -179.8), (0.0, 359.9)]
    write_table(frame, table)
    return vectors, table


@pytest.fixture
def publish(nenya_cli, source):
    """Return a function that publishes the source and returns what was said."""

    def call(*args, out="published", fails=False):
        code, said = nenya_cli("publish", [f"latents={source[0]}", f"table={source[1]}", f"out={out}", *args])
        assert code == (2 if fails else 0), said
        return said

    return call


def original(source):
    """The latents by their number."""
    with h5py.File(source[0]) as file:
        return np.concatenate([file["train"][:], file["valid"][:]])


def test_geopandas_and_duckdb_read_every_row(publish, source, tmp_path):
    geopandas, duckdb = pytest.importorskip("geopandas"), pytest.importorskip("duckdb")
    said = publish()
    assert "299 rows of 12 dimensions" in said and "1 without a latent (NaN)" in said
    assert "2 of 299 rows have no place" in said and "1 of 299 rows have no time" in said
    files = sorted((tmp_path / "published" / "geoparquet").rglob("*.parquet"))
    whole = pd.concat([geopandas.read_parquet(path) for path in files]).set_index("archive_row").sort_index()
    assert list(whole.index) == [row for row in range(ROWS) if row != 7]
    np.testing.assert_array_equal(np.stack(whole["latent"]), original(source)[whole.index])
    table = read_table(source[1]).iloc[whole.index]
    assert whole.crs.to_authority() == ("OGC", "CRS84")
    assert (whole["UID"].to_numpy() == table["UID"].to_numpy()).all() and str(whole["datetime"].dtype.tz) == "UTC"
    known = table["lat"].notna().to_numpy()
    np.testing.assert_array_equal(whole.geometry.y[known], table["lat"][known])
    np.testing.assert_allclose(whole.geometry.x[known], (table["lon"][known] + 180) % 360 - 180, atol=1e-9)
    assert whole.geometry[~known].isna().all() and (~known).sum() == 2
    folder = tmp_path / "published" / "geoparquet"
    # Arrow cannot convert a partition's column with a missing value, here the year of a row without a date, to pandas.
    east = geopandas.read_parquet(folder, partitioning=None, bbox=(0, -90, 180, 90))
    assert sorted(east["archive_row"]) == sorted(whole.index[whole.geometry.x >= 0])
    assert len(geopandas.read_parquet(folder / "year=2012")) == (table["datetime"].dt.year == 2012).sum()
    # DuckDB without its spatial extension: plain SQL on the columns.
    place = f"read_parquet('{tmp_path}/published/geoparquet/**/*.parquet', hive_partitioning=true)"
    sql = duckdb.connect()
    counts = dict(sql.execute(f"SELECT year, count(*) FROM {place} GROUP BY year").fetchall())
    years = table["datetime"].dt.year
    assert counts == {int(year): int((years == year).sum()) for year in years.dropna()} | {None: 1}
    inside = sql.execute(f"SELECT count(*) FROM {place} WHERE bbox.xmin > 0 AND bbox.ymax < 10").fetchone()[0]
    assert inside == ((whole.geometry.x > 0) & (whole.geometry.y < 10)).sum()
    query = original(source)[12]
    near = sql.execute(
        f"SELECT archive_row FROM {place} "
        f"ORDER BY array_cosine_similarity(latent::FLOAT[12], $1::FLOAT[12]) DESC, archive_row LIMIT 3",
        [query.tolist()],
    ).fetchall()
    cosine = original(source)[whole.index] @ query
    assert [row for (row,) in near] == list(whole.index[np.argsort(-cosine, kind="stable")[:3]])


def test_files_say_what_they_hold_and_are_ordered_in_space(publish, tmp_path):
    publish("geometry=footprint", "partition=[]")
    (path,) = (tmp_path / "published" / "geoparquet").rglob("*.parquet")
    with pq.ParquetFile(path) as file:
        about = {key.decode(): json.loads(text) for key, text in file.metadata.metadata.items() if key[:5] != b"ARROW"}
        assert str(file.schema_arrow.field("latent").type).startswith("fixed_size_list<element: float>[12]")
        table = file.read()
    geo, column = about["geo"], about["geo"]["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], column["encoding"]) == ("1.1.0", "geometry", "WKB")
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"] and column["crs"]["id"]["code"] == "CRS84"
    assert column["covering"]["bbox"] == {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    boxes = pd.DataFrame([box for box in table["bbox"].to_pylist() if box])
    assert column["bbox"] == [boxes.xmin.min(), boxes.ymin.min(), boxes.xmax.max(), boxes.ymax.max()]
    assert about["nenya"]["stored"]["dtype"] == "float32" and about["nenya"]["stored"]["neighbours_lost"] == 0
    assert about["nenya"]["left_out"] == {"without a latent (NaN)": 1}
    lat, lon = (table[name].to_numpy() for name in ("lat", "lon"))
    cells = nested_cells(longitudes(lon), lat, 64)
    assert list(cells[cells >= 0]) == sorted(cells[cells >= 0]) and (cells[-2:] == -1).all()


def test_gdal_reads_footprints(publish, tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    if "Parquet" not in pyogrio.list_drivers():
        pytest.skip("this GDAL has no Parquet")
    publish("geometry=footprint", "partition=[]")
    (path,) = (tmp_path / "published" / "geoparquet").rglob("*.parquet")
    found = pyogrio.read_dataframe(path)
    assert len(found) == 299 and set(found.geometry.dropna().geom_type) == {"Polygon", "MultiPolygon"}


def test_footprints_over_the_date_line_are_split(publish, tmp_path):
    shapely = pytest.importorskip("shapely")
    assert "3 footprints cross the date line" in publish("geometry=footprint", "partition=[]")
    (path,) = (tmp_path / "published" / "geoparquet").rglob("*.parquet")
    table = pq.read_table(path).to_pandas().set_index("archive_row")
    shapes = {row: shapely.from_wkb(table.geometry[row]) for row in (40, 41, 42, 43)}
    assert [shapes[row].geom_type for row in shapes] == ["MultiPolygon", "MultiPolygon", "Polygon", "Polygon"]
    for row, shape in shapes.items():
        lat = table.lat[row]
        width = np.degrees(120 / 6371.0) / np.cos(np.radians(lat))
        assert shape.is_valid and shape.area == pytest.approx(width * np.degrees(100 / 6371.0))
        west, _, east, _ = shape.bounds
        assert -180 <= west <= east <= 180 and table.bbox[row]["xmin"] == west and table.bbox[row]["xmax"] == east
    assert shapes[40].intersects(shapely.Point(-179.9, 10)) and shapes[41].intersects(shapely.Point(179.9, -20))
    assert shapes[42].centroid.x == pytest.approx(-0.1)


def test_geometries_equal_those_of_shapely():
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(-360, 360, 200), rng.uniform(-90, 90, 200)
    lat[:3], lon[3], lat[4] = np.nan, np.nan, 90.0
    height, width = rng.uniform(1, 900, (2, 200))
    width[5] = np.nan
    found = footprints(lon, lat, height, width)
    shapes = shapely.from_wkb(found.wkb().to_numpy(zero_copy_only=False))
    assert (np.equal(shapes, None) == ~found.known).all() and (~found.known).sum() == 4
    there = np.flatnonzero(found.known)
    np.testing.assert_array_equal(shapely.bounds(shapes[there]), found.bounds()[there])
    assert shapely.is_valid(shapes[there]).all() and shapes[5].geom_type == "Point"
    assert tuple(shapes[4].bounds[::2]) == (-180, 180) and shapes[4].bounds[3] == 90
    assert {shape.geom_type for shape in shapes[there]} == set(found.kinds()) == {"Point", "Polygon", "MultiPolygon"}
    assert all(ring.is_ccw for shape in shapes[there] if shape.geom_type == "Polygon" for ring in [shape.exterior])
    np.testing.assert_array_equal(shapely.get_x(shapely.from_wkb(points(lon, lat).wkb().to_pylist())), found.lon)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_smaller_type_says_what_it_loses(publish, source, tmp_path, dtype):
    said = publish(f"dtype={dtype}", "partition=region")
    files = sorted((tmp_path / "published" / "geoparquet").rglob("*.parquet"))
    assert [path.parent.name for path in files] == ["region=here", "region=there"]
    tables = [pq.ParquetFile(path).read() for path in files]
    assert "region" not in tables[0].column_names
    for table in tables:
        vectors = np.stack(table["latent"].to_numpy()).astype(np.float32)
        assert table.schema.field("latent").type.value_type == {"float16": "halffloat", "int8": "int8"}[dtype]
        if dtype == "int8":
            vectors *= table["latent_scale"].to_numpy()[:, None]
        np.testing.assert_allclose(
            vectors, original(source)[table["archive_row"]], atol=1 / 250 if dtype == "int8" else 1e-3
        )
    stored = json.loads((tmp_path / "published" / "published.json").read_text())["stored"]
    assert json.loads(pq.read_metadata(files[0]).metadata[b"nenya"])["stored"] == stored
    assert 0 <= stored["neighbours_lost"] < 0.1 and 0.999 < stored["least_cosine"] <= 1.001 and stored["among"] == 299
    assert f"{dtype} changes" in said and "256 rows among 299" in said


def test_the_loss_equals_a_slow_reference():
    x = latents(600, 3) * np.float32(7)

    class Some:
        shape = x.shape

        def take(self, rows):
            return x[rows]

    for dtype, few in (("int8", 0.2), ("float16", 0.02), ("float32", 0.0)):
        found = measure(Some(), np.arange(600), dtype, seed=5)
        stored = encode(x, dtype).decoded().astype(np.float64)
        unit, other = (v / np.linalg.norm(v, axis=1)[:, None] for v in (x.astype(np.float64), stored))
        lost = []
        for query in np.sort(np.random.default_rng(5).choice(600, 256, replace=False)):
            near, far = (np.argsort(-(v @ v[query]), kind="stable") for v in (unit, other))
            lost.append(1 - len(np.intersect1d(near[near != query][:10], far[far != query][:10])) / 10)
        assert found["neighbours_lost"] == pytest.approx(np.mean(lost), abs=1e-3) and np.mean(lost) <= few
        assert found["least_cosine"] == pytest.approx((unit * other).sum(1).min(), abs=1e-6)
    assert measure(Some(), np.arange(1), "int8", seed=5)["neighbours_lost"] is None


def test_a_zero_latent_and_a_large_one():
    x = np.zeros((2, DIM), np.float32)
    x[1, 3] = 1e6
    assert (encode(x, "int8").decoded() == x).all()
    with pytest.raises(OptionError, match="float16: expected latents up to 65504, got 1e"):
        encode(x, "float16")


def test_many_blocks_and_files_hold_the_same_rows(source, monkeypatch, tmp_path):
    from nenya.publish import geoparquet, rows, write

    for module, name, value in ((rows, "_BLOCK", 1), (rows, "_FEWEST", 64), (geoparquet, "_GROUP", 1),
                                (geoparquet, "_FEWEST", 16), (geoparquet, "_GROUPS", 2)):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    choice = Choice(partition=[])
    chosen = select(open_latents(source[0]), read_table(source[1]), choice)
    assert chosen.block_rows == 64
    write.publish(chosen, tmp_path / "out", ["geoparquet"], choice)
    files = sorted((tmp_path / "out").rglob("*.parquet"), key=lambda path: int(path.stem.partition("-")[2]))
    assert len(files) == 10 and pq.ParquetFile(files[0]).num_row_groups == 2
    table = pd.concat([pq.read_table(path).to_pandas() for path in files])
    assert list(table["archive_row"]) == list(chosen.number)
    np.testing.assert_array_equal(np.stack(table["latent"]), original(source)[chosen.number])


def test_conditions_and_cells_divide_the_rows(publish, source, tmp_path):
    pytest.importorskip("lancedb")
    said = publish("where=lat > 0 AND DT > 1", "partition=[year,cell]", "side=2")
    table = read_table(source[1])
    wanted = np.flatnonzero((table["lat"] > 0) & (table["T90"] - table["T10"] > 1))
    assert "not selected by where=" in said
    names = [path.parts[-3:-1] for path in (tmp_path / "published" / "geoparquet").rglob("*.parquet")]
    assert all(year.startswith("year=") and cell.startswith("cell=") for year, cell in names)
    found = pd.concat(
        [
            pq.ParquetFile(path).read().to_pandas().assign(cell=int(path.parts[-2][5:]))
            for path in (tmp_path / "published" / "geoparquet").rglob("*.parquet")
        ]
    )
    assert sorted(found["archive_row"]) == sorted(set(wanted) - {7})
    cells = nested_cells(longitudes(found["lon"].to_numpy()), found["lat"].to_numpy(), 2)
    assert (cells == found["cell"]).all() and len(set(cells)) > 5


REFUSED = [
    (["partition=UID"], "partitions, expected at most 2000", True),
    (["partition=yaer"], "did you mean year?", False),
    (["partition=lat"], "expected a column of names or integers, got lat of float64", False),
    (["partition=[year,year]"], "expected each name once", False),
    (["format=geojson"], "expected one or a list of geoparquet, stac, zarr, lance", False),
    (["format=[]"], "expected one or a list of", False),
    (["dtype=float64"], "expected one of float32, float16, int8", False),
    (["out=s3://bucket/there"], "expected a local folder", False),
    (["archive=there"], "has its own latents and table", False),
    (["where=lat > 100"], "selects none of 300 rows", False),
    (["side=2"], "partition", False),
    (["license=My own"], "expected letters, digits and . + -", False),
    (["data=other.h5"], "give the latents files once", False),
]


@pytest.mark.parametrize(("args", "said", "few"), REFUSED, ids=[row[0][0] for row in REFUSED])
def test_what_is_impossible_is_refused(publish, tmp_path, monkeypatch, args, said, few):
    if few:
        monkeypatch.setattr("nenya.publish.partitions.MOST", 200)
        said = said.replace("2000", "200")
    if args[0].startswith("out="):
        answer = publish(out=args[0][4:], fails=True)
    else:
        answer = publish(*args, fails=True)
    assert said in answer and answer.count("nenya publish: ") == 1
    assert not list(tmp_path.iterdir())


def test_outputs_that_exist_are_kept(publish, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for out, wanted in (("other", "got other files"), ("file", "is a file"), ("link", "is a link"),
                        ("file/under", "is a file")):  # fmt: skip
        assert wanted in publish(out=out, fails=True) and wanted in publish("clobber=true", out=out, fails=True)
    (tmp_path / "empty").mkdir()
    publish(out="empty")
    before = (tmp_path / "empty" / "published.json").read_bytes()
    assert "clobber=true replaces it" in publish("partition=[]", out="empty", fails=True)
    assert (tmp_path / "empty" / "published.json").read_bytes() == before
    publish("partition=[]", "clobber=true", out="empty")
    assert len(list((tmp_path / "empty").rglob("*.parquet"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"other", "file", "link", "empty"}


def test_a_failure_leaves_nothing(publish, tmp_path, monkeypatch):
    from nenya.publish.geoparquet import GeoParquetWriter

    publish()
    before = (tmp_path / "published" / "published.json").read_bytes()
    add = GeoParquetWriter.add

    def full(self, block, encoded):
        add(self, block, encoded)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GeoParquetWriter, "add", full)
    for out in ("published", "another"):
        said = publish("clobber=true", out=out, fails=True)
        assert "No space left on device" in said
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert (tmp_path / "published" / "published.json").read_bytes() == before


def test_tables_that_do_not_fit(nenya_cli, source, tmp_path):
    frame = read_table(source[1])

    def said(table, *args):
        write_table(table, tmp_path / "t.parquet")
        code, text = nenya_cli("publish", [f"latents={source[0]}", "table=t.parquet", "out=out", *args])
        return code, text

    code, text = said(frame.drop(columns=["lat"]))
    assert code == 2 and "expected the columns lat and lon, the places of the cutouts" in text
    code, text = said(frame.assign(pp_file="other.h5"))
    assert code == 2 and "no row of the table has a latent" in text
    code, text = said(frame.assign(lat=-999.0))
    assert code == 2 and "expected lat from -90 to 90 degrees, got -999" in text
    code, text = said(frame.assign(lon=np.where(np.arange(ROWS) == 3, 1000.0, frame["lon"])))
    assert code == 2 and "expected lon from -360 to 360 degrees, got 1000" in text
    code, text = said(frame.drop(columns=["width_km"]), "geometry=footprint")
    assert code == 2 and "needs a column width_km" in text
    code, text = said(frame.drop(columns=["datetime"]), "partition=year")
    assert code == 2 and "the table has no dates" in text
    assert not (tmp_path / "out").exists()
    code, text = said(frame.iloc[:100].assign(geometry="x", Lat=1.0))
    assert code == 0 and "columns geometry of the table are left out" in text and "names differ in case only" in text
    assert "latents have no row in the table" in text  # they have no place
    code, text = nenya_cli("publish", [f"latents={source[0]}", "out=more"])
    assert code == 2 and "give the table of the cutouts by table=" in text
    code, text = nenya_cli("publish", ["latents=nothing.h5", f"table={source[1]}", "out=more"])
    assert code == 2 and "nothing.h5" in text
    code, text = nenya_cli("publish", ["out=more"])
    assert code == 2 and "expected archive=" in text
    assert not (tmp_path / "more").exists()


def test_rows_of_the_library_are_refused_in_its_own_words(source):
    with pytest.raises(InputFileError, match="none of 300 rows has a latent"):
        latents_of_nothing = open_latents(source[0])
        latents_of_nothing.left_out = np.ones(ROWS, bool)
        select(latents_of_nothing, read_table(source[1]), Choice())
    chosen = select(open_latents(source[0]), read_table(source[1]), Choice())
    starts = [block.start for block in chosen.blocks()]
    assert starts[0] == 0 and all(a < b for a, b in pairwise([*starts, len(chosen)]))
