"""Two selections against each other: links, undo, swap and drop; what panels show; the numbers of `nenya compare`."""

import json

import numpy as np
import pytest
from portal_data import write_archive

from nenya.errors import InputFileError
from nenya.io import read_table

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts = write_archive(tmp_path_factory.mktemp("pair"))
    found = open_dataset(table, Latents([latents]), str(cutouts))
    found.place = table
    return found


class Now:
    """Runs the work of a session at once."""

    def submit_for(self, _who, wanted, run):
        if wanted():
            run()


@pytest.fixture(scope="module")
def shared(dataset):
    from nenya.portal.jobs import Pools
    from nenya.portal.session import Session
    from nenya.portal.theme import Theme

    made = Session(dataset, Pools(Now(), Now(), Now(), None), lambda function: function(), Theme(dark=False))
    made.refresh()
    return made


@pytest.fixture
def session(shared):
    from nenya.portal.state import View

    shared.go_to(View())
    shared._difference = None
    return shared


def two(session, a="lat > 10", b="lat < -10"):
    session.ask(a)
    session.act("against:a")
    session.ask(b)


def test_a_is_held_and_the_next_selection_is_b(session, dataset):
    lat = dataset.columns.values("lat")
    session.ask("lat > 10")
    session.act("against:a")
    assert session.pair is None and "Now make another selection" in session.texts["against"]
    assert session.tab == "against"
    session.ask("lat < -10")
    assert f"{(lat > 10).sum()} cutouts" in session.texts["against"]
    assert f"{(lat < -10).sum()} cutouts" in session.texts["against"]
    assert "(the present selection)" in session.texts["against"]
    assert "in A" in session.texts["legend"] and "in both" not in session.texts["legend"]
    session.act("against:b")
    session.ask("lat > 40")  # both are held: the present selection changes nothing
    assert f"{(lat < -10).sum()} cutouts" in session.texts["against"] and session.mask.sum() == (lat > 40).sum()


def test_swap_drop_undo_redo_and_links_keep_both(session, dataset):
    from nenya.portal.pair import pair_of
    from nenya.portal.state import View, read_view

    two(session)
    session.act("against:b")
    pair = session.pair
    session.act("against:swap")
    assert session.pair == type(pair)(pair.b, pair.a)
    text = session.selection.view.to_text()
    assert read_view(text, dataset.columns) == session.selection.view
    session.act("undo")
    assert session.pair == pair
    session.act("against:drop")
    assert session.pair is None and session.selection.view.held == (None, None)
    assert "in A" not in session.texts["legend"] and all(
        not len(chart.pair.data["x"]) and chart.source.data["chosen"].any() for chart in session.histograms.values()
    )
    session.act("undo")
    assert session.pair == pair
    session.act("against:nothing")
    assert session.pair == pair and pair_of(View()) is None
    session.go_to(read_view(text, dataset.columns))
    assert session.pair == type(pair)(pair.b, pair.a)


@pytest.mark.parametrize(
    "held",
    [7, [], [None], [None, None, None], [[["range", {"column": "nope", "low": 0, "high": 1}]], None], "ab", [7, 7]],
)
def test_hostile_held_selections_in_links_are_refused(dataset, held):
    import base64
    import zlib

    from nenya.errors import OptionError
    from nenya.portal.state import read_view

    values = {"f": [], "r": None, "c": "count", "s": "shared", "h": held}
    text = base64.urlsafe_b64encode(zlib.compress(json.dumps(values).encode())).decode()
    with pytest.raises(OptionError, match="the view in this link"):
        read_view(text, dataset.columns)


def test_all_panels_show_both(session, dataset):
    from nenya.portal.pair import COLOURS

    two(session, "lat > 10", "lat > -10, lat < 30")
    lat = dataset.columns.values("lat")
    sets = [lat > 10, (lat > -10) & (lat < 30)]
    for name, plane in session.planes.items():
        points = plane.points.source.data
        colours = dict(zip(np.asarray(points["row"]).tolist(), points["colour"], strict=True))
        wanted = {
            int(row): COLOURS[2 if all(s[row] for s in sets) else 0 if sets[0][row] else 1]
            for row in np.flatnonzero(sets[0] | sets[1])
        }
        assert colours == wanted, name
    for name, chart in session.histograms.items():
        values, data = dataset.columns.binned(name), chart.pair.data
        for side, mask in zip("ab", sets, strict=True):
            counts = np.bincount(values.codes[mask], minlength=49)[: len(data[side]) - 1]
            assert np.allclose(data[side][:-1], counts / mask.sum()), (name, side)
        assert not chart.source.data["chosen"].any()
    frames = session.gallery.frames.data["colour"]
    half = session.gallery.most // 2
    assert frames == [COLOURS[0]] * half + [COLOURS[1]] * half
    assert sets[0][session.gallery_rows[:half]].all() and sets[1][session.gallery_rows[half:]].all()
    first = session.gallery_rows.tolist()
    session.act("sheet:1")
    assert not set(first) & set(session.gallery_rows.tolist())
    session.act("tab:stats")
    assert session.texts["stats"].count("<th>A</th>") == 4, "regions, seasons, years, medians"
    session.act("against:drop")
    assert not len(session.gallery.frames.data["x"]) and "selected" in session.texts["stats"]


def test_cells_are_of_the_denser_set(dataset):
    from nenya.portal import pair, points
    from nenya.portal.jobs import Ticket
    from nenya.portal.state import make_range

    both = pair.Pair((make_range("US0", -99, 0),), (make_range("US0", -2, 99),))
    ends = (-10.0, 10.0, -10.0, 10.0)
    most, pair.MOST_POINTS = pair.MOST_POINTS, 0
    try:
        whole, chosen, near = pair.plane_of(dataset, "umap", ends, both, Ticket(lambda _: None))
    finally:
        pair.MOST_POINTS = most
    known = np.isfinite(dataset.columns.values("US0"))
    assert near is None and points.MOST_POINTS == most and np.nansum(whole) == known.sum()
    side = chosen.shape[1] / 20  # cells of a unit of US0: A alone, then both, then B alone
    for part, code in ((chosen[:, : int(7.9 * side)], 0), (chosen[:, int(10.1 * side) + 1 :], 1)):
        assert set(part[np.isfinite(part)].tolist()) == {code}
    assert 2 in chosen[:, int(8.1 * side) + 1 : int(9.9 * side)], "the two are about as dense for their sizes"


def test_the_differences_are_those_of_nenya_compare(session, dataset, nenya_cli):
    from nenya.commands.compare import sets_of
    from nenya.commands.compose import compose
    from nenya.latents.comparison import Settings, compare, two_sets

    two(session)
    session.compare(json.dumps([500, 3]))
    pair, found = session._difference
    assert pair == session.pair
    table = dataset.place
    options = compose(
        "compare", [f"data={table.with_name('a_preproc_latents.h5')}", f"table={table}", "a=lat > 10", "b=lat < -10"]
    )
    latents, tables, _ = sets_of(options)
    settings = Settings(permutations=199, sample=500, seed=3)
    whole, _ = compare(two_sets(latents, tables, settings), settings)
    assert found.compared == whole and np.isfinite(whole.latents["auc"].p)
    text = session.texts["against"]
    for part in ("AUC", "p = ", "95 %: ", "drawn with the seed 3", "coverage of A by B"):
        assert part in text, part
    session.ask("lat < -20")
    assert "AUC" not in session.texts["against"], "of other selections"
    assert len(read_table(table))


def test_rows_in_both_and_samples_are_said(session, dataset):
    two(session, "lat > 10", "lat > -10, lat < 30")
    lat = dataset.columns.values("lat")
    session.compare("[500, 0]")
    common = int(((lat > 10) & (lat < 30)).sum())
    assert f"{common} cutouts are in both selections" in session.texts["against"]
    known = dataset.latent_of >= 0
    a = int(((lat >= 30) & known).sum())
    assert f"{a} of {a} cutouts of A" in session.texts["against"]


def test_numbers_that_no_page_sends_are_refused(session):
    two(session)
    for text in ("[500]", "[7, 0]", "[500, -1]", "[500, 1.5]", '["500", 0]', "[500, true]", "7", "x"):
        with pytest.raises((InputFileError, ValueError, TypeError)):
            session.compare(text)
    assert session._difference is None


def test_too_few_cutouts_and_one_selection_are_said(session):
    with pytest.raises(InputFileError, match="no two selections"):
        session.compare("[500, 0]")
    two(session, "lat > 10", "lat > 59.9999")
    session.compare("[500, 0]")
    assert "B has 0 cutouts with latents of its own" in session.texts["status"]


def test_a_comparison_is_cancelled(dataset):
    from nenya.portal.dataset import Cancelled
    from nenya.portal.jobs import Ticket
    from nenya.portal.pair import Pair
    from nenya.portal.pair_compare import compare_pair
    from nenya.portal.state import make_range

    pair, shares = Pair((make_range("lat", 10, 90),), (make_range("lat", -90, -10),)), []

    class Stopped(Ticket):
        def tick(self, share):
            if shares and shares[-1] == 0.0:
                self.cancel()
            shares.append(share)
            super().tick(share)

    with pytest.raises(Cancelled):
        compare_pair(dataset, pair, 500, 0, Stopped(lambda _: None))
    assert 0 < shares[-1] < 1
