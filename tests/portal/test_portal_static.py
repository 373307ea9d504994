"""The page without a server: what it holds, how large it is, and how well its look-alikes are those of float32."""

import base64
import io
import json
import logging
import re

import numpy as np
import pytest
from portal_data import write_archive

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")

from PIL import Image

from nenya.errors import OptionError
from nenya.latents.files import Latents
from nenya.options.commands import PortalOptions
from nenya.portal import static_near, thumbnails
from nenya.portal.dataset import open_dataset
from nenya.portal.export import write_page
from nenya.portal.theme import anomaly


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("static"))
    return open_dataset(table, Latents([latents]), str(cutouts))


def settings_of(place):
    """Return what a page holds."""
    return json.loads(place.read_text().split('id="settings">')[1].split("</script>")[0])


def decoded(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def clustered(rows, dim, seed=0):
    """Draw latents of length 1 in clusters, as those of cutouts lie."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    found = centres[rng.integers(0, 40, rows)] + 0.5 * rng.normal(size=(rows, dim)) * rng.gamma(2, 0.5, (rows, 1))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dim", [256, 64])
def test_latents_of_eight_bits_find_the_neighbours_of_float32(dim):
    latents, count = clustered(4000, dim), 10
    exact, cosines = static_near.closest(latents, count)
    small = static_near.to_int8(latents)
    assert small.dtype == np.int8 and np.abs(small).max() == 127
    found, rough = static_near.closest(small.astype(np.float32), count)
    recall = np.mean([len(set(a) & set(b)) / count for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert 0.97 < recall < 1, recall
    assert np.abs(rough - cosines).max() < 0.005


def test_the_closest_rows_are_those_of_all_pairs(monkeypatch):
    latents = clustered(1500, 8, seed=3)
    latents[[4, 1200]] = np.nan
    rows, cosines = static_near.closest(latents, 5)
    pairs = latents @ latents.T
    np.fill_diagonal(pairs, np.nan)
    expected = np.argsort(np.where(np.isnan(pairs), -2, pairs), axis=1)[:, ::-1][:, :5]
    known = np.isfinite(latents).all(axis=1)
    np.testing.assert_allclose(cosines[known], np.take_along_axis(pairs, expected, 1)[known], atol=1e-6)
    assert (rows[~known] == -1).all() and not np.isin([4, 1200], rows).any()
    monkeypatch.setattr(static_near, "_PAIRS", 7 * len(latents))
    again = static_near.closest(latents, 5)
    np.testing.assert_allclose(again[1], cosines, atol=1e-6)
    assert static_near.closest(latents[:3], 24)[0].shape == (3, 2)
    assert static_near.closest(latents[:1], 24)[0].shape == (1, 0)


def test_the_page_holds_the_rows_of_the_table(dataset, tmp_path):
    place = write_page(dataset, tmp_path / "page", "a", PortalOptions(sample=120, seed=3))
    found, columns = settings_of(place), dataset.columns
    rows = decoded(found["rows"], "<i4")
    assert len(rows) == 120 == len(set(rows.tolist())) and found["all"] == 300
    for column in found["numbers"]:
        np.testing.assert_array_equal(decoded(column["values"], "<f4"), columns.values(column["name"])[rows])
    (region,) = [c for c in found["classes"] if c["name"] == "region"]
    text = columns.table.column("region").to_pylist()
    assert [region["labels"][k] for k in decoded(region["codes"], "<i2")] == [text[row] for row in rows]
    np.testing.assert_array_equal(decoded(found["keys"]["idx"], "<f8"), columns.table.column("pp_idx").to_numpy()[rows])
    np.testing.assert_array_equal(
        decoded(found["keys"]["type"], "i1"), columns.table.column("pp_type").to_numpy()[rows]
    )
    latents = decoded(found["near"]["latents"], "i1").reshape(120, -1)
    expected = static_near.to_int8(dataset.latents.take(np.maximum(dataset.latent_of[rows], 0)))
    np.testing.assert_array_equal(latents, expected)
    assert not latents[rows == 7].any()  # it has no latent


def test_each_thumbnail_is_that_of_its_row(dataset, tmp_path):
    place = write_page(dataset, tmp_path / "page", "a", PortalOptions(sample=300))
    found = settings_of(place)
    rows, pictures = decoded(found["rows"], "<i4"), found["pictures"]
    low, high = pictures["span"]
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in anomaly(low, high)[:255]])
    assert decoded(pictures["there"], "u1").all() and pictures["files"] == ["thumbs_0000.png"]
    sheet = np.asarray(Image.open(place.parent / "thumbs_0000.png").convert("RGB"))
    side = pictures["side"]
    for k in (0, 19, 20, 151, 299):
        top, left = k // 20 * side, k % 20 * side
        shown = sheet[top : top + side, left : left + side].reshape(-1, 3).astype(int)
        shade = np.array([np.abs(colours - pixel).sum(axis=1).argmin() for pixel in shown]).reshape(side, side) / 254
        image = dataset.cutouts.of(rows[k : k + 1])[0]
        expected = np.clip((thumbnails.thumbnail(image) - low) / (high - low), 0, 1)
        assert np.abs(shade - expected).max() < 0.03


def test_thumbnails_are_means_of_blocks_and_know_gaps():
    image = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    small = thumbnails.thumbnail(image)
    assert small.shape == (32, 32) and small[-1, 0] == image[:2, :2].mean() and small[0, -1] == image[-2:, -2:].mean()
    assert thumbnails.thumbnail(image[:50, :50]).shape == (32, 32) == thumbnails.thumbnail(image[:16, :16]).shape


def test_the_size_is_said_before_and_bounded(dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nenya.portal.export")
    place = write_page(dataset, tmp_path / "page", "a", PortalOptions(sample=300))
    said = float(re.search(r"about ([\d.]+) MB", caplog.text)[1])
    real = sum(path.stat().st_size for path in place.parent.iterdir()) / 1e6
    assert "latents to search" in caplog.text and abs(said - real) < 0.1 + 0.2 * real
    big = PortalOptions(sample=300)
    big.page_mb = 0.25
    with pytest.raises(OptionError, match=r"about \d+ MB, more than page_mb=0.25: sample=\d+ fits") as caught:
        write_page(dataset, tmp_path / "other", "a", big)
    assert not (tmp_path / "other").exists() and "page_mb=1 allows it" in str(caught.value)


def test_beyond_the_limit_the_page_holds_lists(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(static_near, "MOST_SEARCHED", 100)
    place = write_page(dataset, tmp_path / "page", "a", PortalOptions(sample=200))
    found = settings_of(place)
    assert found["near"]["kind"] == "list" and found["near"]["count"] == 24
    assert "found when it was made" in place.read_text()
    rows = decoded(found["rows"], "<i4")
    latents = dataset.latents.take(dataset.latent_of[rows])
    neighbours = decoded(found["near"]["rows"], "<i4").reshape(200, 24)
    cosines = decoded(found["near"]["cosines"], "<i2").reshape(200, 24) / 32767
    known = np.flatnonzero(np.isfinite(latents).all(axis=1))
    for i in known[:20]:
        np.testing.assert_allclose(cosines[i], latents[neighbours[i]] @ latents[i], atol=1e-4)


def test_a_page_without_images_latents_and_places(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"DT": np.linspace(0, 3, 150), "lat": np.linspace(-60, 60, 150), "lon": np.arange(150.0)})
    frame.to_parquet(tmp_path / "b.parquet")
    found = settings_of(
        write_page(open_dataset(tmp_path / "b.parquet", None, None), tmp_path / "p", "b", PortalOptions())
    )
    assert found["near"] is None and found["pictures"] is None and list(found["planes"]) == ["map"]
    assert "keys" not in found and "seconds" not in found


def test_a_sheet_is_a_small_file_of_one_palette(dataset):
    picture, there = next(thumbnails.sheets(dataset.cutouts, np.arange(40), (-1.0, 1.0)))
    with Image.open(io.BytesIO(picture)) as image:
        assert image.mode == "P" and image.size == (640, 64)
    assert there.tolist() == [True] * 40
