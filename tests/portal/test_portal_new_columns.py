"""Columns that analyses add to a table (rarity, density_ratio, split, near_duplicate) in the portal and in searches."""

import numpy as np
import pytest
from portal_data import write_archive

from nenya.io import read_table, write_table

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A table with what outliers, compare, split and a hand-made tag add; some values are missing."""
    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("columns"))
    frame, rng = read_table(table), np.random.default_rng(0)
    frame["rarity"] = rng.gamma(2, 0.1, len(frame))
    frame["density_ratio"] = np.exp(rng.normal(size=len(frame)))
    frame.loc[:19, ["rarity", "density_ratio"]] = np.nan
    frame["split"] = rng.choice(["train", "valid", "none"], len(frame))
    frame["near_duplicate"] = rng.random(len(frame)) < 0.2
    write_table(frame, table)
    return table, latents, cutouts, frame


@pytest.fixture(scope="module")
def dataset(archive):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts, _ = archive
    return open_dataset(table, Latents([latents]), str(cutouts))


def test_they_are_numbers_and_categories(dataset, archive):
    frame = archive[3]
    assert dataset.columns.categories()["split"] == ["none", "train", "valid"]
    for name in ("rarity", "density_ratio", "near_duplicate"):
        assert dataset.columns.is_number(name)
        np.testing.assert_allclose(dataset.columns.values(name), frame[name].to_numpy(float), rtol=1e-6)
    assert (dataset.columns.has_value("split", ("valid",)) == (frame["split"] == "valid")).all()


def test_they_are_conditions_of_a_search(archive, nenya_cli):
    table, latents, *_ = archive
    where = "rarity > 0.2 AND split = 'train' AND NOT near_duplicate"
    code, said = nenya_cli(
        "search", [f"data={latents}", f"table={table}", "like=30", f"where={where}", "k=5", "out=found.parquet"]
    )
    assert code == 0, said
    found = read_table("found.parquet")
    assert len(found) == 5 and (found["rarity"] > 0.2).all() and (found["split"] == "train").all()
    assert not found["near_duplicate"].any()


@pytest.mark.slow
def test_the_page_colours_by_them_and_filters(dataset, archive, tmp_path):
    from portal_page import CHROMIUM, FakeEncoder, Page, chromium, serve

    from nenya.portal.holding import Portal

    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    frame = archive[3]
    portal = Portal(dataset, "a.parquet", FakeEncoder(), limit_mb=1)
    portal.url, stop = serve(portal)
    try:
        with chromium(tmp_path) as browser:
            page = Page(browser, portal)
            for label in ("rarity", "density ratio"):
                choice = page.page.locator("[aria-label=UMAP] select option").filter(has_text=f"{label}").first
                page.page.locator("[aria-label=UMAP] select").select_option(value=choice.get_attribute("value"))
                page.until(lambda label=label: page.session.planes["umap"].bar.title.startswith(label))
                page.idle()
            page.page.locator("[aria-label=UMAP] select").select_option(label="near duplicate")
            counts = f"0 {(~frame['near_duplicate']).sum()} 1 {frame['near_duplicate'].sum()}"  # classes, not a bar
            page.until(lambda: counts in " ".join(page.page.locator(".classes").inner_text().split()), 60)
            page.idle()
            page.page.get_by_role("button", name="Rarest first").click()
            page.until(lambda: page.session.selection.view.order == "rarity")
            page.idle()
            assert page.session.gallery_rows[0] == frame["rarity"].argmax()
            page.page.locator("#tab_filter").click()
            page.page.select_option("#range_column", "rarity")
            page.page.fill("#range_low", "0.2")
            page.page.locator("#range_form button").click()
            page.idle()
            assert page.selected == (frame["rarity"] >= 0.2).sum()
            page.page.select_option("#category", "valid")
            page.page.locator("#category_form button").click()
            page.idle()
            assert page.selected == ((frame["rarity"] >= 0.2) & (frame["split"] == "valid")).sum()
            page.act('range:["near_duplicate", 1, 1]')
            page.idle()
            mask = (frame["rarity"] >= 0.2) & (frame["split"] == "valid") & frame["near_duplicate"]
            assert page.selected == mask.sum() > 0
            page.check_quiet()
    finally:
        stop()
