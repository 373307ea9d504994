"""Long work, several sessions, and files that are replaced, in a real page."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from portal_data import SIDE, write_archive
from portal_page import FakeEncoder, Page, chromium, needs_chromium, serve, wait

from nenya.io import write_table
from nenya.latents.files import Latents
from nenya.portal import downloads
from nenya.portal.dataset import open_dataset
from nenya.portal.holding import Portal

pytestmark = needs_chromium
ROWS, DIM = 120_000, 8


class SlowLatents(Latents):
    """Latents on a disk that can become slow."""

    pause = 0.0

    def view(self, rows):
        time.sleep(self.pause)
        yield from super().view(rows)


class SlowEncoder(FakeEncoder):
    """A network that can become slow."""

    pause = 0.0

    def encode(self, name, image, dataset, tick):
        for step in range(100 if self.pause else 0):
            time.sleep(self.pause)
            tick(step / 100)
        found = super().encode(name, image, dataset, tick)
        found.latent = np.resize(found.latent, DIM)
        return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


@pytest.fixture(scope="module")
def portal(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(2)
    with h5py.File(folder / "a_preproc_latents.h5", "w") as file:
        file["valid"] = rng.normal(size=(ROWS, DIM)).astype("f4")
    frame = {
        "US0": rng.normal(size=ROWS).astype("f4"),
        "US1": rng.normal(size=ROWS).astype("f4"),
        "DT": rng.gamma(2, 0.5, ROWS),
        "pp_type": np.zeros(ROWS, int),
        "pp_idx": np.arange(ROWS),
    }
    write_table(pd.DataFrame(frame), folder / "a.parquet")
    dataset = open_dataset(folder / "a.parquet", SlowLatents([folder / "a_preproc_latents.h5"]), None)
    portal = Portal(dataset, "a.parquet", SlowEncoder())
    portal.url, stop = serve(portal)
    yield portal
    stop()


@pytest.fixture(scope="module")
def page(browser, portal):
    page = Page(browser, portal)
    yield page
    page.check_quiet()


@pytest.fixture
def slow(portal):
    portal.dataset.latents.pause = 0.5
    yield
    portal.dataset.latents.pause = 0.0


def status(page, words):
    page.page.locator("#status", has_text=words).wait_for(timeout=300_000)
    return page.page.locator("#status [data-busy]").inner_text()


def stop(page, words="stopped"):
    page.page.locator("#stop button").click()
    status(page, words)
    page.until(lambda: not page.session.jobs.busy)


def test_a_search_shows_how_far_it_is_and_stops(page, slow):
    before = page.session.near_rows.tolist()
    page.act("row:77")
    assert "searching similar cutouts" in status(page, "%")
    stop(page)
    assert page.session.near_rows.tolist() == before
    assert "the cutouts shown are those most similar to " in page.page.locator(".note").first.inner_text()
    page.act("row:78")
    status(page, "%")
    page.page.keyboard.press("Escape")
    status(page, "stopped")
    assert page.session.near_rows.tolist() == before


def test_without_pictures_the_table_stands_first_and_the_similar_cutouts_are_a_list(page):
    assert page.page.locator("#panel_table .table tbody tr").first.is_visible()
    page.act("row:90")
    page.idle()
    assert page.page.locator("#heading b").inner_text() == "Cutout" and "row 90" in page.session.texts["heading"]
    assert "row of the table" in page.page.locator(".start").inner_text()
    lines = page.page.locator("#near_rows tbody tr")
    page.until(lambda: lines.count() == 60)
    near = page.session.near_rows.tolist()
    assert 0 < len(page.session.planes["umap"].near.data["x"]) < 60
    assert [int(text) for text in page.page.locator("#near_rows tbody tr td:first-child").all_inner_texts()] == near
    lines.nth(2).focus()
    page.page.keyboard.press("Enter")
    page.idle()
    assert page.session.selection.view.row == near[2]
    row = int(page.session.near_rows[1])
    lines.nth(1).click()
    page.idle()
    assert page.session.selection.view.row == row


def test_the_search_of_one_session_holds_up_no_other(page, browser, portal, slow):
    other = Page(browser, portal)
    page.act("row:80")
    status(page, "%")
    other.act('range:["DT", 0, 0.5]')
    other.until(lambda: other.selected < ROWS)
    assert "searching" in page.page.locator("#status [data-busy]").inner_text() and page.session.jobs.busy
    other.session.jobs.call(other.session.jobs.cancel)
    stop(page)
    other.check_quiet()


def test_a_download_shows_how_far_it_is_and_stops(page, monkeypatch):
    pieces = downloads._slices

    def slowly(session, tick):
        for part in pieces(session, tick):
            time.sleep(0.05)
            yield part

    monkeypatch.setattr(downloads, "_ROWS", 1000)
    monkeypatch.setattr(downloads, "_slices", slowly)
    page.page.locator("#tab_download").click()
    with page.page.expect_download() as waiting:
        page.page.locator("#get_csv").click()
    assert "sending rows.csv" in status(page, "%")
    stop(page)
    assert waiting.value.failure()
    with page.page.expect_download() as waiting:
        page.page.locator("#get_parquet").click()
    status(page, "sending rows.parquet")
    waiting.value.cancel()
    status(page, "was not sent completely")
    page.until(lambda: not page.session.jobs.busy)
    monkeypatch.setattr(downloads, "_slices", pieces)
    with page.page.expect_download() as waiting:
        page.page.locator("#get_parquet").click()
    assert len(pd.read_parquet(waiting.value.path())) == ROWS
    page.until(lambda: not page.session.jobs.busy)


def test_an_upload_shows_how_far_it_is_and_stops(page, portal):
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).normal(size=(SIDE, SIDE)))
    image = {"name": "x.npy", "mimeType": "", "buffer": stream.getvalue()}
    page.page.locator("#tab_upload").click()
    page.page.set_input_files("#upload_file", image)
    answer, send = page.page.locator("#upload_answer"), page.page.locator("#upload_form button").first
    portal.encoder.pause = 0.05
    try:
        send.click()
        assert "encoding x.npy" in status(page, "%")
        assert "encoding x.npy" in answer.inner_text()
        page.page.locator("#upload_stop").click()
        page.page.get_by_text("Stopped.").wait_for()
        page.until(lambda: not page.session.jobs.busy)
        send.click()
        status(page, "%")
        stop(page)
        row = page.session.selection.view.row
        page.page.locator("#upload_answer", has_text=f"Refused: stopped. Still shown: row {row:,} of the").wait_for()
        assert page.session.upload is None and not page.page.locator("#upload_stop").is_visible()
    finally:
        portal.encoder.pause = 0.0
    send.click()
    page.page.locator("#upload_answer", has_text="shown under New image").wait_for()
    page.idle()
    assert page.session.upload.name == "x.npy"


def test_a_page_goes_on_with_its_files_when_they_are_replaced_and_says_so(browser, tmp_path):
    files = write_archive(tmp_path)

    def opened():
        return open_dataset(files[0], Latents([files[1]]), str(files[2]))

    def replace(source):
        for old, new in zip(files, source, strict=True):
            os.replace(new, old)

    def shown(number):
        page.act(f"row:{number}")
        page.idle()
        assert np.array_equal(page.session.primary.source.data["image"][0], images[number])
        cosine = vectors @ vectors[number]
        cosine[(np.arange(len(cosine)) // 5 == number // 5) | np.isnan(cosine)] = -2
        near = page.session.near_rows
        assert near.tolist() == np.argsort(-cosine, kind="stable")[: len(near)].tolist()

    with h5py.File(files[1]) as latents, h5py.File(files[2]) as cutouts:
        vectors = np.concatenate([latents["train"][:], latents["valid"][:]]).astype(np.float64)
        images = np.concatenate([cutouts["train"][:, 0], cutouts["valid"][:, 0]])
    portal = Portal(opened(), "a.parquet", reopen=opened, look_every=0.2)
    portal.url, end = serve(portal)
    try:
        page = Page(browser, portal)
        shown(40)
        (tmp_path / "new").mkdir()
        replace(write_archive(tmp_path / "new", rows=(200, 50), seed=9))
        page.page.get_by_text("The archive has changed: this page shows the earlier one.").wait_for(timeout=300_000)
        page.session.dataset.latents.release()  # what was mapped is mapped anew
        shown(41)
        shown(290)
        assert page.selected == 300
        page.page.locator("#news [data-reload]").click()
        page.until(lambda: page.page.locator("#count[data-selected='250']").count() == 1)
        assert page.page.locator("#news [data-reload]").count() == 0
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 damaged")
        os.replace(tmp_path / "bad.parquet", files[0])
        page.page.get_by_text("cannot be opened (see the server's log)").wait_for(timeout=300_000)
        news = page.page.locator("#news .note").inner_text()
        assert "this page shows the earlier state" in news and str(tmp_path) not in news
        assert len(portal.dataset.latents) == 250
        replace(write_archive(tmp_path / "new", rows=(100, 20), seed=10))
        page.page.locator("#news [data-reload]").click(timeout=300_000)
        page.until(lambda: page.page.locator("#count[data-selected='120']").count() == 1)
        page.check_quiet()
    finally:
        end()


def test_a_page_says_that_its_server_is_gone(browser, tmp_path):
    table, latents, _ = write_archive(tmp_path)
    args = [f"table={table}", f"latents={latents}", "port=0"]
    script = Path(__file__).resolve().parents[2] / "scripts" / "portal.py"
    with subprocess.Popen([sys.executable, script, *args], stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            page = browser.new_page()
            page.goto(address)
            page.locator("#count").wait_for(timeout=300_000)
            wait(page, "Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
            assert not page.locator("#lost").is_visible()
        finally:
            process.kill()
    page.locator("#lost").wait_for()
    assert "connection to the portal is lost" in page.locator("#lost").inner_text()
    page.close()
