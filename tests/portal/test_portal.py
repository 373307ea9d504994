import datetime
import io
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from portal_data import SIDE, write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from nenya.errors import InputFileError, OptionError
from nenya.latents.files import Latents
from nenya.latents.similarity import closest
from nenya.options.commands import PortalOptions
from nenya.portal import pictures, summary, words
from nenya.portal.dataset import Cancelled, Shared, open_dataset
from nenya.portal.upload import Upload, read_image
from nenya.portal.work import ordered_rows

FIELD = np.random.default_rng(2).normal(size=(24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("portal"))
    return open_dataset(table, Latents([latents]), str(cutouts))


def saved(array, **settings):
    stream = io.BytesIO()
    np.save(stream, array, **settings)
    return stream.getvalue()


def test_a_raster_holds_every_point_once_and_means_are_means():
    rng = np.random.default_rng(1)
    x, y, v = rng.normal(size=(3, 5000)).astype(np.float32)
    x[:3] = np.nan
    cells = pictures.raster(x, y, (-9, 9, -9, 9), (40, 30))
    assert np.nansum(cells) == 4997 and cells.shape == (30, 40)
    expected = np.histogram2d(y[3:], x[3:], (30, 40), ((-9, 9), (-9, 9)))[0]
    assert np.abs(np.nan_to_num(cells) - expected).sum() <= 4  # edges in float32
    mask = rng.random(5000) < 0.3
    mean = pictures.raster(x, y, (-9, 9, -9, 9), (1, 1), mask=mask, values=v)
    assert mean[0, 0] == pytest.approx(v[mask & ~np.isnan(x)].mean(), rel=1e-5)


def test_a_raster_of_longitudes_goes_on_over_the_dateline():
    lon, lat = np.float32([175, -175, 0]), np.zeros(3, np.float32)
    cells = pictures.raster(lon, lat, (170, 190, -1, 1), (2, 1), around=360)
    assert cells.tolist() == [[1, 1]]


def test_a_sheet_keeps_every_pixel_with_its_first_line_at_the_bottom():
    images = [np.arange(16, dtype=np.float32).reshape(4, 4) + 100 * i for i in range(3)]
    sheet = pictures.sheet([*images[:2], None, images[2]], 3, 2, own_scale=False)
    assert np.array_equal(sheet[1:5, 7:11], images[1][::-1])
    assert np.array_equal(sheet[7:11, 1:5], images[2][::-1])
    assert np.isnan(sheet[1:5, 13:17]).all()


def test_cutouts_are_those_of_the_rows_in_any_order(dataset):
    import h5py

    rows = np.array([250, 3, 299, 3, 0])
    with h5py.File(dataset.cutouts._readers[0].path) as file:
        every = np.concatenate([file["train"][:, 0], file["valid"][:, 0]])
    found = dataset.cutouts.of(rows)
    assert all(np.array_equal(image, every[row]) for image, row in zip(found, rows, strict=True))


def test_a_search_tells_how_far_it_is_and_can_be_ended(dataset):
    query, told = dataset.latents.take([20])[0], []
    closest(dataset.latents, query, 15, block_rows=50, tick=told.append)
    assert told == sorted(told) and 0.5 < told[-1] <= 1

    def stop(_share):
        raise Cancelled

    with pytest.raises(Cancelled):
        closest(dataset.latents, query, 15, tick=stop)


def test_allowed_latents_follow_the_table(dataset):
    mask = np.zeros(dataset.columns.rows, bool)
    mask[[4, 9]] = True
    assert np.flatnonzero(dataset.allowed(mask)).tolist() == [4, 9]
    assert np.flatnonzero(dataset.allowed(mask, dataset.columns.same_granule(4))).tolist() == [9]


def test_orders_hold_each_selected_row_once(dataset):
    mask = dataset.columns.values("DT") > 1
    for order in ("random", "table order", "DT"):
        rows = ordered_rows(dataset, mask, order, True)
        assert np.array_equal(np.sort(rows), np.flatnonzero(mask)), order
    assert (np.diff(dataset.columns.values("DT")[ordered_rows(dataset, mask, "DT", True)]) <= 0).all()


def test_a_comparison_counts_and_chance_is_one(dataset):
    whole = summary.summarise(dataset.columns, None).comparisons
    assert whole["season"]["selected"].sum() == dataset.columns.rows
    assert (whole["year"]["ratio"] == 1).all()
    summer = np.isin(dataset.columns.values("month"), (6, 7, 8))
    line = summary.summarise(dataset.columns, summer).comparisons["season"].set_index("name").loc["JJA"]
    assert line["selected"] == line["whole"] == summer.sum()
    assert line["ratio"] == pytest.approx(dataset.columns.rows / summer.sum())


def test_the_page_compares_as_the_command_does(dataset):
    from nenya.tables.statistics import selection_statistics

    mask = dataset.columns.values("DT") > 1
    found = summary.summarise(dataset.columns, mask)
    wanted = selection_statistics(dataset.columns.table.to_pandas(), mask)
    for name, table in (("season", wanted.seasons), ("year", wanted.years)):
        assert found.comparisons[name].equals(table)
    places = wanted.regions[~wanted.regions["name"].isin(["global", "north"])]
    assert found.comparisons["region"].equals(places) and places["whole"].sum() > 0
    text = words.statistics(found, False)
    line = places[places["ratio"] > 0].iloc[0]
    assert f"{line['ratio']:.2f} <span class='hint'>{line['ratio_low']:.2f} to {line['ratio_high']:.2f}" in text
    assert f"{100 * found.trend.slope:+.3g} ± {100 * found.trend.error:.2g} percentage points a year" in text
    assert "percentage points" not in words.statistics(found, True)  # of all rows there is no trend
    assert "the table has no dates" in words.statistics(summary.Summary({}, None, (0, 0), []), True)
    assert "the table has no dates" not in text
    assert "click a cutout, or a point of the UMAP or the map: the most similar cutouts" in re.sub(
        "<.*?>", "", words.chips(())
    )
    bare = words.chips((), pictures=False, planes=(), latents=False)
    assert "click a row of the table: it is shown at the upper right" in re.sub("<.*?>", "", bare)
    here, all_of_them = (int(wanted.regions[n].iloc[-2] - places[n].sum()) for n in ("selected", "whole"))
    assert f"{here:,} selected and {all_of_them:,} of all rows are in none of them" in text and all_of_them > 0
    empty, full = places[places["whole"] == 0]["name"], places[places["whole"] > 0]["name"]
    assert len(empty) and f"No row is in {', '.join(empty)}." in text
    assert [name for name in places["name"] if f">{name}</th>" in text] == list(full)
    assert "title='30°S to 20°S, 35°W to 10°E'>south_atlantic" in text


def test_a_table_without_dates_or_places_is_compared_by_what_it_has():
    import pyarrow as pa

    from nenya.portal.columns import Columns

    found = summary.summarise(Columns(pa.table({"DT": [0.0, 1.0, 2.0]})), np.array([True, False, True]))
    assert found.comparisons == {} and found.trend is None and found.medians[0][1:] == (1.0, 1.0)


def test_shared_results_are_made_once_and_forgotten_in_turn():
    import threading
    import time

    shared, made = Shared(most=3 * 8000), []

    def make(name):
        made.append(name)
        time.sleep(0.05)
        return (np.zeros(800), name)

    threads = [threading.Thread(target=shared.get, args=("a", lambda: make("a"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    for name in "bcd":
        assert shared.get(name, lambda name=name: make(name))[1] == name
    shared.get("d", lambda: make("d"))
    shared.get("a", lambda: make("a"))
    assert made == ["a", "b", "c", "d", "a"]

    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        shared.get("e", stop)
    assert shared.get("e", lambda: 5) == 5


def test_what_comes_from_files_is_escaped():
    row = {"filename": "<script>alert(1)</script>", "lat": 1.0, "lon": 200.0, "DT": 0.5}
    for text in (words.facts(row, 3), words.table([row], [3], 0, 1)):
        assert "<script>" not in text and "&lt;script&gt;" in text
    assert "160.00° W" in words.facts(row, 3)
    upload = Upload("<script>.npy", FIELD, np.zeros(2), source="<script>")
    assert "<script>" not in words.upload_facts(upload) + words.near_list([row], [3], [0.5]) + words.heading(
        "a", "<script>"
    )


def test_a_new_image_has_its_facts_and_says_what_of_it_is_shown():
    from nenya.analyze_image import calc_DT

    field = np.random.default_rng(4).normal(15, 1, (64, 64)).astype(np.float32)
    upload = Upload("x.npy", field, np.zeros(2), (1.25, -3.5), 128, "row 2 of the rows 0 to 9")
    text = re.sub("<[^>]*>", " ", words.upload_facts(upload).replace("</th>", ": "))
    whole, central = (calc_DT(field, [side]) for side in (64, 40))
    for fact in (
        f"DT (K):  {whole:.4g}",
        f"40 x 40 (K):  {central:.4g}",
        "64 x 64",
        "from:  128 x 128",
        "row 2 of the",
    ):
        assert fact in text, fact
    for fact in (f"{field.min():.5g}", f"{field.max():.5g}", "UMAP 1:  1.25", "UMAP 2:  -3.5"):
        assert fact in text, fact
    said = words.upload_taken(upload)
    assert "averaged from 128 x 128 pixels to the size of the cutouts, 64 x 64" in said
    assert "row 2 of the rows 0 to 9" in said
    plain = Upload("x.npy", field, np.zeros(2), None, 64)
    assert words.upload_taken(plain) == "x.npy is shown under New image." and "UMAP" not in words.upload_facts(plain)


def test_similar_cutouts_are_a_list_of_what_is_known_of_them():
    rows = [{"lat": 10.0, "lon": -20.0, "datetime": datetime.datetime(2010, 1, 2, 3)}, {"lat": None, "lon": None}]
    text = words.near_list(rows, [7, 1234], [0.98765, 0.5])
    assert "10.00° N, 20.00° W" in text and "2010-01-02 03:00" in text and "0.9877" in text and "DT" not in text
    assert text.count("tabindex='0'") == 2 and "data-action='row:1234'" in text


@pytest.mark.parametrize(("fraction", "shown"), [(0, "2010-01-01T00:00:00"), (5 * 10**8, "2010-01-01 00:00:00.5")])
def test_downloads_have_plain_dates_and_texts(fraction, shown):
    import pyarrow as pa

    from nenya.portal import downloads
    from nenya.portal.columns import Columns, compact
    from nenya.portal.dataset import Dataset

    dates = np.datetime64("2010-01-01T00:00:00", "ns") + np.array([fraction, 0], "timedelta64[ns]")
    table = compact(pa.table({"datetime": dates, "region": ["here", "here"], "DT": [1.0, 2.0]}))
    assert pa.types.is_dictionary(table.schema.field("region").type)
    dataset = Dataset(Columns(table))
    session = SimpleNamespace(dataset=dataset, selection=SimpleNamespace(view=SimpleNamespace(filters=())))
    lines = b"".join(downloads.rows_csv(session, lambda _: None)).decode().splitlines()
    assert shown in lines[1] and (fraction or "." not in lines[1].split(",")[0])
    frame = pq.read_table(io.BytesIO(b"".join(downloads.rows_parquet(session, lambda _: None))))
    assert (
        frame.schema.field("region").type == pa.string()
        and frame.column("datetime").to_numpy().tolist() == dates.tolist()
    )


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24), (3, 24, 24), (3, 1, 24, 24)])
def test_arrays_of_images_are_read_by_row(shape):
    row = shape[0] - 1 if len(shape) > 2 else 0
    array = np.broadcast_to(FIELD, shape).copy()
    array[(row, ...) if len(shape) > 2 else ...] += 1
    stream = io.BytesIO()
    np.savez(stream, image=array)
    for name, data in (("a.npy", saved(array)), ("a.npz", stream.getvalue())):
        found = read_image(name, data, str(row))
        assert np.array_equal(found.image, FIELD + 1)
        assert found.source == ("row 2 of the rows 0 to 2" if row else "")


def test_hdf5_netcdf_and_png_are_read(tmp_path):
    import h5netcdf
    import h5py
    from PIL import Image

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["valid"] = np.stack([FIELD, FIELD + 1])[:, None]
        file["train"] = FIELD[None]
    found = read_image("a.h5", (tmp_path / "a.h5").read_bytes())
    assert np.array_equal(found.image, FIELD) and found.source == "train, the first of 2 partitions"
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["train"]
    found = read_image("a.h5", (tmp_path / "a.h5").read_bytes(), "1")
    assert np.array_equal(found.image, FIELD + 1) and found.source == "row 1 of the rows 0 to 1"
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["sst"], file["note"] = FIELD, "about"
    found = read_image("b.h5", (tmp_path / "b.h5").read_bytes())
    assert np.array_equal(found.image, FIELD) and found.source == ""
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["elsewhere"] = h5py.ExternalLink("a.h5", "/valid")
    with pytest.raises(InputFileError, match="'elsewhere' uses a link"):
        read_image("b.h5", (tmp_path / "b.h5").read_bytes())
    with pytest.raises(InputFileError, match="expected an array of images"):
        read_image("a.npy", saved(np.zeros((0, 24, 24), "f4")))
    with pytest.raises(InputFileError, match=r"got values up to 1e\+30"):
        read_image("a.npy", saved(np.where(FIELD == FIELD.max(), 1e30, FIELD)))
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype("u1")).save(picture, "PNG")
    with pytest.raises(InputFileError, match="got a colour image"):
        read_image("a.png", picture.getvalue(), scale=("0", "30"))
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"y": 24, "x": 24}
        sst = file.create_variable("sst", ("y", "x"), data=np.round(FIELD * 100).astype("i2"))
        sst.attrs["scale_factor"], sst.attrs["add_offset"] = 0.01, 5.0
        file.create_variable("mask", ("y", "x"), data=np.ones((24, 24), "i1"))
    found = read_image("a.nc", (tmp_path / "a.nc").read_bytes())
    assert found.source == "sst, the first of 2 variables"
    found = found.image
    assert np.allclose(found, np.round(FIELD * 100) / 100 + 5, atol=1e-5)
    grey = np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    assert np.allclose(
        read_image("a.PNG", stream.getvalue(), scale=("10", "20")).image, 10 + grey[::-1] / 25.5, atol=1e-4
    )
    with pytest.raises(OptionError, match="brightness"):
        read_image("a.png", stream.getvalue())


def bomb():
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("a.npy", "w", force_zip64=True) as out,
    ):
        for _ in range(3):
            out.write(bytes(2**20))
    return stream.getvalue()


def linked_hdf5(tmp_path):
    import h5py

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["valid"] = FIELD[None, None]
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["valid"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "valid")
    return (tmp_path / "link.h5").read_bytes()


def test_hostile_and_wrong_files_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.portal.upload._MOST_VALUES", 2**18)
    hole = FIELD.copy()
    hole[3, 3] = np.nan
    evil = saved(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, data, word in (
        ("a.pkl", b"cos\nsystem\n(S'true'\ntR.", "expected a file ending in"),
        ("a", b"", "expected a file ending in"),
        ("a.npy", evil, "expected numbers"),
        ("a.npy", b"\x80\x04\x95", "cannot be read"),
        ("a.npy", saved(FIELD[:, :9]), "square"),
        ("a.npy", saved(FIELD[:9, :9]), "pixels per side"),
        ("a.npy", saved(hole), "missing"),
        ("a.npy", saved(np.full((24, 24), 20, "i2")), "are 20: a constant field has no structure"),
        ("a.npz", b"PK damaged", "cannot be read"),
        ("a.npz", bomb(), "too large"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.h5", linked_hdf5(tmp_path), "uses a link, external storage"),
        ("a.nc", b"CDF\x01", "cannot be read"),
        ("a.png", b"\x89PNG", "black and white"),
    ):
        with pytest.raises((InputFileError, OptionError), match=word) as caught:
            read_image(name, data)
        assert str(tmp_path) not in str(caught.value) and "/tmp" not in str(caught.value)
    for row in ("-1", "x", "7"):
        with pytest.raises(OptionError, match="row"):
            read_image("a.npy", saved(np.stack([FIELD, FIELD])), row)


def test_the_command_says_what_is_missing_or_wrong(tmp_path):
    from nenya.commands.portal import run

    with pytest.raises(OptionError, match="expected table="):
        run(PortalOptions())
    table, latents, _ = write_archive(tmp_path)
    with pytest.raises(OptionError, match="give one"):
        run(PortalOptions(table=str(table), latents=str(latents), data=str(latents)))
    with pytest.raises(InputFileError, match="no such table"):
        run(PortalOptions(table=str(tmp_path / "none.parquet")))


def test_export_is_a_flag_too():
    from nenya.commands.compose import compose

    assert compose("portal", ["table=a.parquet", "export=b"]).export == "b"
    assert SIDE == 16


def test_equal_searches_selections_and_pictures_of_sessions_are_made_once(dataset, monkeypatch):
    from nenya.portal import work
    from nenya.portal.jobs import Ticket
    from nenya.portal.state import View, make_range

    made, ticket = [], Ticket(lambda share: None)
    search, raster = work.closest, pictures.raster
    monkeypatch.setattr(work, "closest", lambda *a, **k: made.append("search") or search(*a, **k))
    monkeypatch.setattr(pictures, "raster", lambda *a, **k: made.append("raster") or raster(*a, **k))
    filters = (make_range("DT", 0.123, 2),)
    for _ in range(3):
        found = work.find_similar(dataset, None, 31, filters, True, ticket)
        chosen = work.select(dataset, filters, ("random", False), ["DT"], ticket)
        whole, part = work.rasters(dataset, "map", (-180, 180, -80, 80), View(filters), ticket)
    assert made == ["search", "raster", "raster"]
    assert chosen.mask[found.rows].all() and np.nansum(part) == chosen.mask.sum() == len(chosen.ordered)
    assert np.nansum(whole) == dataset.columns.rows
    work.find_similar(dataset, None, 31, filters, False, ticket)
    assert made[3:] == ["search"]


def test_work_that_takes_long_holds_up_nothing_quick():
    import threading

    from nenya.portal.jobs import Jobs, Pools

    pools, go, said, results = Pools(), threading.Event(), [], []
    jobs = [Jobs(pools, lambda function: function(), lambda text, busy: said.append(text)) for _ in range(6)]
    for one in jobs:
        one.start("near", lambda _: go.wait(300), lambda _: None, slow=True)
    done = threading.Event()
    jobs[0].start("selection", lambda _: 5, lambda found: (results.append(found), done.set()))
    assert done.wait(300) and results == [5]
    ended = []
    jobs[1].start("upload", lambda _: 1, results.append, title="encoding", slow=True, ended=ended.append)
    jobs[1].cancel()
    go.set()
    pools.slow.submit(lambda: None).result(300)
    assert ended == ["stopped"] and results == [5] and not jobs[1].busy
    pools.shutdown()


def test_closing_the_portal_ends_what_is_under_way(dataset):
    import threading
    import time

    from nenya.portal.holding import Portal
    from nenya.portal.jobs import Jobs

    portal, begun, ended = Portal(dataset, "a"), threading.Event(), []
    jobs = Jobs(portal.pools, lambda function: function(), lambda text, busy: None)
    portal.sessions["key"] = SimpleNamespace(close=jobs.cancel)

    def endless(ticket):
        begun.set()
        try:
            while True:
                ticket.tick(0.5)
                time.sleep(0.01)
        finally:
            ended.append("search")

    jobs.start("near", endless, ended.append, slow=True)
    assert begun.wait(300)
    portal.close()
    assert ended == ["search"]
    with pytest.raises(RuntimeError):
        portal.pools.quick.submit(print)


def test_a_table_with_lists_is_sent_as_csv_with_json_texts(tmp_path):
    import csv
    from types import SimpleNamespace

    import pyarrow as pa

    from nenya.portal import downloads

    table = pa.table({"a": [1, 2], "list": [["x", 'y"'], None], "box": [{"b": 1}, {"b": None}]})
    columns = SimpleNamespace(table=table, rows=2)
    dataset = SimpleNamespace(columns=columns, masks=SimpleNamespace(all_of=lambda _: None))
    session = SimpleNamespace(dataset=dataset, selection=SimpleNamespace(view=SimpleNamespace(filters=())))
    text = b"".join(downloads.rows_csv(session, lambda _: None)).decode()
    rows = list(csv.reader(text.splitlines()))
    assert rows == [["a", "list", "box"], ["1", '["x", "y\\""]', '{"b": 1}'], ["2", "", '{"b": null}']]


def test_cutouts_have_the_colours_of_figures_with_0_at_the_neutral_one():
    from bokeh.models import LinearColorMapper

    from nenya.plotting.colours import colours_of
    from nenya.portal.sheets import set_span
    from nenya.portal.theme import anomaly

    neutral = anomaly(-1, 1)[128]
    for low, high in ((-2.0, 2.0), (-1.0, 3.0), (-4.0, 0.5)):
        colours = anomaly(low, high)
        zero = round(-low / (high - low) * 255)
        levels = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colours[zero], neutral)]
        assert np.abs(np.subtract(*levels)).max() <= 12, (low, high, colours[zero])
        figure, norm = colours_of(np.zeros(1), limits=(low, high))
        assert (norm.vmin, norm.vmax) == (low, high)
        assert [int(c[i : i + 2], 16) for c in colours[::51] for i in (1, 3, 5)] == pytest.approx(
            (255 * figure(np.arange(0, 256, 51))[:, :3]).ravel(), abs=1
        )
    assert neutral not in anomaly(280, 290), "temperatures of one sign have no neutral colour"
    mapper = LinearColorMapper(list(anomaly(-1, 1)), low=-1, high=1)
    set_span(mapper, 280.0, 290.0)
    assert tuple(mapper.palette) == anomaly(280, 290) and (mapper.low, mapper.high) == (280, 290)


def test_cutouts_with_scales_of_their_own_keep_0_in_the_middle():
    images = [np.array([[-1.0, 0], [0, 4]], np.float32), np.array([[-8.0, 0], [0, 2]], np.float32)]
    sheet = pictures.sheet(images, 2, 1, own_scale=True)
    assert pictures.own_range(sheet) == (-1, 1) and np.nanmax(sheet) == pytest.approx(1, abs=0.05)
    assert (sheet == 0).sum() == 4, "0 stays 0"
    warm = pictures.sheet([image + 290 for image in images], 2, 1, own_scale=True)
    assert pictures.own_range(warm) == (0, 1) and np.nanmin(warm) == pytest.approx(0, abs=0.05)
