import io
import zipfile

import numpy as np
import pytest
from portal_data import SIDE, write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from nenya.analysis_options import PortalOptions
from nenya.errors import InputFileError, OptionError
from nenya.latents import Latents
from nenya.portal import pictures, summary, words
from nenya.portal.archive import Cancelled, open_archive
from nenya.portal.session import ordered_rows
from nenya.portal.upload import read_image
from nenya.similarity import closest

FIELD = np.random.default_rng(2).normal(size=(24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("portal"))
    return open_archive(table, Latents([latents]), str(cutouts))


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


def test_cutouts_are_those_of_the_rows_in_any_order(archive):
    import h5py

    rows = np.array([250, 3, 299, 3, 0])
    with h5py.File(next(iter(archive.cutouts._readers.values())).path) as file:
        every = np.concatenate([file["train"][:, 0], file["valid"][:, 0]])
    found = archive.cutouts.of(rows)
    assert all(np.array_equal(image, every[row]) for image, row in zip(found, rows, strict=True))


def test_a_search_tells_how_far_it_is_and_can_be_ended(archive):
    query, told = archive.latents.take([20])[0], []
    closest(archive.latents, query, 15, block_rows=50, tick=told.append)
    assert told == sorted(told) and 0.5 < told[-1] <= 1

    def stop(_share):
        raise Cancelled

    with pytest.raises(Cancelled):
        closest(archive.latents, query, 15, tick=stop)


def test_allowed_latents_follow_the_table(archive):
    mask = np.zeros(archive.columns.rows, bool)
    mask[[4, 9]] = True
    assert np.flatnonzero(archive.allowed(mask)).tolist() == [4, 9]
    assert np.flatnonzero(archive.allowed(mask, archive.columns.same_granule(4))).tolist() == [9]


def test_orders_hold_each_selected_row_once(archive):
    mask = archive.columns.values("DT") > 1
    for order in ("random", "table order", "DT"):
        rows = ordered_rows(archive, mask, order, True)
        assert np.array_equal(np.sort(rows), np.flatnonzero(mask)), order
    assert (np.diff(archive.columns.values("DT")[ordered_rows(archive, mask, "DT", True)]) <= 0).all()


def test_a_comparison_counts_and_chance_is_one(archive):
    whole = summary.compare(archive.columns, None)
    assert sum(line.selected for line in whole["season"]) == archive.columns.rows
    assert all(line.ratio == 1 for line in whole["year"])
    summer = np.isin(archive.columns.values("month"), (6, 7, 8))
    lines = {line.name: line for line in summary.compare(archive.columns, summer)["season"]}
    assert lines["JJA"].selected == lines["JJA"].total == summer.sum()
    assert lines["JJA"].ratio == pytest.approx(archive.columns.rows / summer.sum())


def test_a_trend_is_found():
    lines = [summary.Line(str(2000 + i), 10 + 2 * i, 100, 1.0) for i in range(10)]
    assert summary.trend(lines, 1000).split(":")[1].split()[0] == "+2"


def test_what_comes_from_files_is_escaped():
    row = {"filename": "<script>alert(1)</script>", "lat": 1.0, "lon": 200.0, "DT": 0.5}
    for text in (words.facts(row, 3), words.table([row], [3], 0, 1)):
        assert "<script>" not in text and "&lt;script&gt;" in text
    assert "160.00° W" in words.facts(row, 3)


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24), (3, 24, 24), (3, 1, 24, 24)])
def test_arrays_of_images_are_read_by_row(shape):
    row = shape[0] - 1 if len(shape) > 2 else 0
    array = np.broadcast_to(FIELD, shape).copy()
    array[(row, ...) if len(shape) > 2 else ...] += 1
    stream = io.BytesIO()
    np.savez(stream, image=array)
    for name, data in (("a.npy", saved(array)), ("a.npz", stream.getvalue())):
        assert np.array_equal(read_image(name, data, str(row)), FIELD + 1)


def test_hdf5_netcdf_and_png_are_read(tmp_path):
    import h5netcdf
    import h5py
    from PIL import Image

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["valid"] = np.stack([FIELD, FIELD + 1])[:, None]
    assert np.array_equal(read_image("a.h5", (tmp_path / "a.h5").read_bytes(), "1"), FIELD + 1)
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"y": 24, "x": 24}
        sst = file.create_variable("sst", ("y", "x"), data=np.round(FIELD * 100).astype("i2"))
        sst.attrs["scale_factor"], sst.attrs["add_offset"] = 0.01, 5.0
    found = read_image("a.nc", (tmp_path / "a.nc").read_bytes())
    assert np.allclose(found, np.round(FIELD * 100) / 100 + 5, atol=1e-5)
    grey = np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    assert np.allclose(read_image("a.PNG", stream.getvalue(), scale=("10", "20")), 10 + grey[::-1] / 25.5, atol=1e-4)
    with pytest.raises(OptionError, match="brightness"):
        read_image("a.png", stream.getvalue())


def bomb():
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as out,
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
        ("a.pkl", b"cos\nsystem\n(S'true'\ntR.", "wanted is one of"),
        ("a", b"", "wanted is one of"),
        ("a.npy", evil, "wanted are numbers"),
        ("a.npy", b"\x80\x04\x95", "cannot be read"),
        ("a.npy", saved(FIELD[:, :9]), "square"),
        ("a.npy", saved(FIELD[:9, :9]), "pixels a side"),
        ("a.npy", saved(hole), "missing"),
        ("a.npz", b"PK damaged", "cannot be read"),
        ("a.npz", bomb(), "too large"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.h5", linked_hdf5(tmp_path), "HDF5"),
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
    from nenya.portal.command import run

    with pytest.raises(OptionError, match="table= is needed"):
        run(PortalOptions())
    table, latents, _ = write_archive(tmp_path)
    with pytest.raises(OptionError, match="give one"):
        run(PortalOptions(table=str(table), latents=str(latents), data=str(latents)))
    with pytest.raises(InputFileError, match="no such table"):
        run(PortalOptions(table=str(tmp_path / "none.parquet")))


def test_export_is_a_flag_too():
    from nenya.cli import compose

    assert compose("portal", ["table=a.parquet", "export=b"]).export == "b"
    assert SIDE == 16
