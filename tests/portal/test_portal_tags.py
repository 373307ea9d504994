"""Tags in a page's session: given to an image or a selection, selected by, coloured by, undone; off unless allowed."""

import json

import numpy as np
import pytest
from portal_data import write_archive

from nenya.errors import InputFileError, OptionError
from nenya.io import read_table

pytest.importorskip("panel", reason="the portal's packages are not installed: nenya[portal]")


def open_archive(folder, *, writable=True, path=None):
    from nenya.latents.files import Latents
    from nenya.portal.dataset import open_dataset
    from nenya.portal.tag_book import open_tags

    table, latents, cutouts = (
        write_archive(folder) if path is None else (path, folder / "a_preproc_latents.h5", folder / "a_preproc.h5")
    )
    dataset = open_dataset(table, Latents([latents]), str(cutouts))
    dataset.tags, trouble = open_tags(dataset.columns, folder / "a.tags.json", asked=True, writable=writable)
    assert not trouble
    return dataset


class Now:
    """Runs the work of a session at once."""

    def submit_for(self, _who, wanted, run):
        if wanted():
            run()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Return the folder of an archive, its data set, and two sessions of it."""
    folder = tmp_path_factory.mktemp("tags")
    dataset = open_archive(folder)
    return folder, dataset, [session_of(dataset), session_of(dataset)]


def session_of(dataset):
    from nenya.portal.jobs import Pools
    from nenya.portal.session import Session
    from nenya.portal.theme import Theme

    made = Session(dataset, Pools(Now(), Now(), Now(), None), lambda function: function(), Theme(dark=False))
    made.follow_tags()
    return made


@pytest.fixture
def sessions(archive):
    """Return two sessions of an archive without tags."""
    from nenya.portal.state import View

    folder, dataset, found = archive
    (folder / "a.tags.json").unlink(missing_ok=True)
    dataset.tags.look()
    for session in found:
        session.go_to(View())
        session._acts = session._undone = ()
        session.refresh()
    return found


@pytest.fixture
def folder(archive):
    return archive[0]


def tag(session, word, target="selection", on=True):
    session.act("tag:" + json.dumps([word, target, on]))


def tagged(session, word):
    return np.flatnonzero(session.dataset.columns.has_value("tag", (word,))).tolist()


def test_an_image_and_a_selection_are_tagged_and_undone_in_order(sessions):
    session = sessions[0]
    session.show_row(17)
    tag(session, "front", "image")
    assert tagged(session, "front") == [17] and session.dataset.columns.row(17)["tag"] == "front"
    assert "front" in session.texts["facts"] and session.texts["status"].count("front given to 1 cutout")
    session.ask("lat > 20")
    chosen = np.flatnonzero(session.mask).tolist()
    tag(session, " north   hem ")
    assert tagged(session, "north hem") == chosen and 5 < len(chosen) < 300
    session.act("undo")
    assert tagged(session, "north hem") == [] and session.selection.view.filters and tagged(session, "front") == [17]
    session.act("redo")
    assert tagged(session, "north hem") == chosen
    session.act("undo")
    session.act("undo")  # the condition
    assert not session.selection.view.filters and tagged(session, "front") == [17]
    session.act("undo")  # the tag, which was given when nothing was selected
    assert tagged(session, "front") == [] and session.selection.view.row == 17
    session.act("redo")
    session.act("redo")
    session.act("redo")
    assert tagged(session, "front") == [17] and tagged(session, "north hem") == chosen
    session.act("undo")
    session.act("undo")
    session.ask("lat < 0")  # what comes after cannot be redone
    session.act("redo")
    assert tagged(session, "north hem") == []


def test_a_step_that_fails_can_be_made_again(sessions, folder):
    session, path = sessions[0], folder / "a.tags.json"
    session.show_row(5)
    tag(session, "front", "image")
    tag(session, "eddy", "image")
    kept = path.read_text()
    for step, left in (("undo", []), ("redo", [5])):
        path.write_text("{")
        session.act(step)
        assert "expected tags" in session.texts["status"] and tagged(session, "eddy") != left
        path.write_text(kept)
        session.act(step)
        assert tagged(session, "eddy") == left and tagged(session, "front") == [5]
        kept = path.read_text()
    session.act("undo")
    session.act("undo")
    assert tagged(session, "front") == [] == tagged(session, "eddy"), "a step that was made is not made twice"


def test_an_undo_of_what_another_has_undone_leaves_no_step(sessions):
    one, other = sessions
    one.show_row(5)
    tag(one, "front", "image")
    other.show_row(5)
    tag(other, "front", "image", on=False)
    one.act("undo")
    assert "no cutout changed" in one.texts["status"]
    one.act("redo")
    assert tagged(one, "front") == [] and "no cutouts to tag" not in one.texts["status"]


def test_undo_takes_only_what_was_given(sessions):
    one, other = sessions
    other.show_row(3)
    tag(other, "front", "image")
    one.ask("lat > 20")
    chosen = set(np.flatnonzero(one.mask).tolist())
    tag(one, "front")
    tag(other, "eddy", "image")
    one.act("undo")
    assert tagged(one, "front") == [3] and tagged(one, "eddy") == [3], chosen
    assert one.dataset.columns.row(3)["tag"] == "eddy, front"


def test_conditions_categories_and_colours_follow_the_tags(sessions):
    from nenya.portal.state import read_view

    session, other = sessions
    columns = session.dataset.columns
    session.set_colour("tag")
    assert "no tags yet" in session.texts["legend"]
    session.ask("lat > 30")
    tag(session, "front")
    session.ask("")
    session.ask("lat > 20")
    tag(session, "eddy")
    both = columns.values("lat") > 30
    for text, wanted in {
        "tag = front": both,
        "tag = 'eddy', tag != front": (columns.values("lat") > 20) & ~both,
        "tag in (front, eddy)": columns.values("lat") > 20,
        "tag is null": columns.values("lat") <= 20,
        "not tag = front": (columns.values("lat") > 20) & ~both,
        "tag = none": np.zeros(columns.rows, bool),
    }.items():
        session.ask(text)
        assert np.array_equal(session.mask, wanted), text
    with pytest.raises(OptionError, match="tag = 'eddy' AND tag = 'front' selects the cutouts with all"):
        session.ask("tag = 'eddy, front'")
    session.ask("tag = 'eddy' AND tag = 'front'")
    assert np.array_equal(session.mask, both)
    session.ask("")
    session.act("tagged:front")
    assert np.array_equal(session.mask, both)
    classes = columns.classes("tag")
    assert classes.values == ("eddy", "eddy, front") and classes.counts()[1] == both.sum()
    session.set_colour("tag")
    session.act("class:1")
    assert np.array_equal(session.mask, both), "a class of two tags has the rows that have both"
    text = session.selection.view.to_text()
    assert read_view(text, columns) == session.selection.view
    other.ask("lat > 50")
    tag(other, "front", on=False)
    assert session.mask.sum() == (both & (columns.values("lat") <= 50)).sum(), "it follows the tag that was taken"


def test_downloads_have_the_column_and_the_file_fits_the_sorted_table(sessions, folder):
    import io

    import pandas as pd

    from nenya.portal.downloads import KINDS

    session = sessions[0]
    session.ask("lat > 30")
    tag(session, "front")
    made = pd.read_parquet(io.BytesIO(b"".join(KINDS["rows.parquet"](session, lambda _: None))))
    assert set(made["tag"]) == {"front"} and (made["lat"] > 30).all()
    assert "tag" in b"".join(KINDS["rows.csv"](session, lambda _: None)).decode().splitlines()[0]
    table = read_table(folder / "a.parquet").sample(frac=0.5, random_state=2)
    table.to_parquet(folder / "half.parquet")
    half = open_archive(folder, path=folder / "half.parquet")
    found = half.columns.table.column("tag").to_pylist()
    assert [text == "front" for text in found] == (table["lat"].to_numpy(np.float32) > 30).tolist()
    assert half.tags.note.endswith("tagged cutouts are not in the table")
    from nenya.portal.tag_words import tag_list

    assert half.tags.note in tag_list(half.tags, [], {}, "")


def test_two_portals_of_one_file_see_each_others_tags(sessions, folder):
    one, other = sessions[0], open_archive(folder, path=folder / "a.parquet")
    one.show_row(5)
    tag(one, "front", "image")
    assert not other.columns.has_value("tag", ("front",)).any()
    assert other.tags.change(np.array([6]), "eddy", on=True).tolist() == [6]
    assert np.flatnonzero(other.columns.has_value("tag", ("front",))).tolist() == [5] and tagged(one, "eddy") == []
    one.dataset.tags.look()
    assert tagged(one, "eddy") == [6] and one.dataset.tags.counts_in(None) == {"eddy": 1, "front": 1}


@pytest.mark.parametrize("refused", [False, True])
def test_a_change_by_another_just_after_ones_own_is_seen(sessions, folder, monkeypatch, refused):
    """Another portal waits for the lock, and writes at the moment when this one lets it go."""
    from contextlib import contextmanager

    from nenya.tables import tag_file

    book, other = sessions[0].dataset.tags, open_archive(folder, path=folder / "a.parquet").tags
    locked = tag_file.one_at_a_time

    @contextmanager
    def then_another(path):
        monkeypatch.setattr(tag_file, "one_at_a_time", locked)
        if refused:
            other.change(np.array([6]), "eddy", on=True)
        with locked(path):
            yield
        if not refused:
            other.change(np.array([6]), "eddy", on=True)

    monkeypatch.setattr(tag_file, "one_at_a_time", then_another)
    if refused:  # it has read the other's tags, but shows nothing
        monkeypatch.setattr(tag_file, "MOST_MARKS", 1)
        with pytest.raises(InputFileError, match="at most 1 tagged"):
            book.change(np.array([5]), "front", on=True)
    else:
        book.change(np.array([5]), "front", on=True)
    assert book.counts_in(None) == ({} if refused else {"front": 1}), "the other's tag is not shown yet"
    book.look()
    assert book.counts_in(None) == ({"eddy": 1} if refused else {"eddy": 1, "front": 1})


def test_a_damaged_file_is_said_and_the_tags_stay(sessions, folder, caplog):
    session = sessions[0]
    session.show_row(5)
    tag(session, "front", "image")
    (folder / "a.tags.json").write_text("{")
    session.dataset.tags.look()
    assert "expected tags" in caplog.text and tagged(session, "front") == [5]
    tag(session, "eddy", "image")
    assert "expected tags" in session.texts["status"] and tagged(session, "eddy") == []
    with pytest.raises(InputFileError, match="expected tags"):
        open_archive(folder, path=folder / "a.parquet")


def test_texts_that_no_page_sends_change_nothing(sessions, folder):
    from nenya.portal.app import _act

    sessions[0].show_row(3)
    wrong = ("", "7", "[]", '["a"]', '["a","image",1]', '["a","all",true]', '[7,"image",true]', "{" * 4000, '"a')
    for number, text in enumerate(wrong):
        _act(sessions[0], f"{number}|tag:{text}")
    assert not (folder / "a.tags.json").exists()
    _act(sessions[0], '9|tag:["a","image",true]')
    assert (folder / "a.tags.json").exists()


def test_tagging_is_off_unless_allowed(tmp_path):
    dataset = open_archive(tmp_path, writable=False)
    session = session_of(dataset)
    session.show_row(3)
    with pytest.raises(InputFileError, match="tagging is off"):
        tag(session, "front", "image")
    with pytest.raises(OptionError, match="tagging is off"):
        dataset.tags.change(np.array([3]), "front", on=True)
    assert not (tmp_path / "a.tags.json").exists()


def test_a_script_is_text_wherever_a_tag_is_shown(sessions):
    session, word = sessions[0], "<img src=x onerror=alert(1)>'\""
    session.show_row(3)
    session.set_colour("tag")
    tag(session, word, "image")
    session.act("tab:tags")
    session.act(f"tagged:{word}")
    assert tagged(session, word) == [3] and session.mask.sum() == 1
    for name in ("facts", "tags", "legend", "filters"):
        assert "<img src=x" not in session.texts[name] and "&lt;img" in session.texts[name], name
    assert "onerror=alert(1)\\u003e" in session.texts["tags"], "inside an attribute it is JSON"


def test_the_command_opens_them_where_they_are_allowed(tmp_path):
    from nenya.commands.portal import _tag
    from nenya.latents.files import Latents
    from nenya.options.commands import PortalOptions
    from nenya.portal.dataset import open_dataset

    table, latents, cutouts = write_archive(tmp_path)

    def opened(**options):
        dataset = open_dataset(table, Latents([latents]), str(cutouts))
        _tag(dataset, PortalOptions(table=str(table), **options))
        return dataset

    assert opened().tags is None and opened(tags=False).tags is None
    book = opened(tags=True).tags
    assert book.writable and book.path == tmp_path / "a.tags.json" and not book.path.exists()
    book.change(np.array([4]), "front", on=True)
    for options in ({}, {"tags": str(book.path)}):
        found = opened(**options)
        assert not found.tags.writable and found.columns.row(4)["tag"] == "front"
    assert opened(tags=False).tags is None
    book.path.write_text("[1]")
    assert opened().tags is None and any("no tags: " in note for note in opened().notes)
    with pytest.raises(InputFileError, match="expected tags"):
        opened(tags=True)
