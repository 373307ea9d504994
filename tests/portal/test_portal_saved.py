"""Named views beside the archive: two portals lose nothing, damaged and hostile files are refused, sizes limited."""

import json
import threading

import pytest

from nenya.errors import InputFileError, OutputError
from nenya.portal.saved import MOST_VIEWS, SavedViews, listed
from nenya.portal.state import MOST_TEXT


@pytest.fixture
def saved(tmp_path):
    return SavedViews(tmp_path / "a.views.json")


def test_views_are_saved_replaced_and_removed(saved):
    assert saved.read() == {} and not saved.path.exists()
    saved.save("winter  fronts ", "abc")
    saved.save("agulhas", "def")
    saved.save("winter fronts", "ghi")
    assert saved.read() == {"agulhas": "def", "winter fronts": "ghi"} and [*saved.read()] == [
        "agulhas",
        "winter fronts",
    ]
    saved.forget("agulhas")
    saved.forget("never saved")
    assert SavedViews(saved.path).read() == {"winter fronts": "ghi"}


def test_two_people_at_once_lose_nothing(saved):
    def save(who):
        for number in range(8):
            SavedViews(saved.path).save(f"{who} {number}", "x")

    threads = [threading.Thread(target=save, args=(who,)) for who in "abc"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(saved.read()) == 24


@pytest.mark.parametrize(
    ("name", "text"), [("", "x"), ("  ", "x"), ("n" * 61, "x"), ("a", ""), ("a", "x" * (MOST_TEXT + 1))]
)
def test_names_and_views_have_limits(saved, name, text):
    with pytest.raises(InputFileError, match="expected a name of 1 to 60 characters"):
        saved.save(name, text)
    assert not saved.path.exists()


def test_the_number_of_views_is_limited(saved):
    saved.path.write_text(json.dumps({"views": {f"v{n}": "x" for n in range(MOST_VIEWS)}}))
    with pytest.raises(InputFileError, match="the largest number allowed"):
        saved.save("one more", "x")
    saved.save("v0", "y")
    assert len(saved.read()) == MOST_VIEWS


@pytest.mark.parametrize("text", ["", "[]", '{"views": 7}', '{"views": {"a": "x"}', "[" * 5000, "\xff", '{"a": 1}'])
def test_a_damaged_file_is_refused_and_kept(saved, text):
    saved.path.write_bytes(text.encode("latin-1"))
    for act in (saved.read, lambda: saved.save("a", "x")):
        with pytest.raises(InputFileError, match=r"expected named views|cannot be read"):
            act()
    assert saved.path.read_bytes() == text.encode("latin-1")


def test_entries_that_no_portal_writes_are_left_out(saved):
    views = {"good": "x", "": "x", "n" * 99: "x", "number": 7, "huge": "x" * (MOST_TEXT + 1)}
    saved.path.write_text(json.dumps({"views": views}))
    assert saved.read() == {"good": "x"}


def test_a_link_is_not_followed(saved, tmp_path):
    saved.path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(OutputError):
        saved.save("a", "x")
    assert not (tmp_path / "elsewhere.json").exists()


def test_names_are_escaped_in_the_list(saved):
    saved.save("<img src=x onerror=alert(1)>'\"", "x")
    found = listed(saved)
    assert "<img" not in found and "&lt;img" in found and "'&#34;" not in found.replace("&#39;&#34;", "")


def test_the_command_places_them_beside_the_table_or_in_the_archive(tmp_path):
    from nenya.commands.portal import _saved
    from nenya.errors import OptionError
    from nenya.options.commands import PortalOptions

    assert _saved(PortalOptions(table=str(tmp_path / "a.parquet"))).path == tmp_path / "a.views.json"
    assert _saved(PortalOptions(archive_dir=str(tmp_path))).path == tmp_path / "portal_views.json"
    assert _saved(PortalOptions(archive_dir="s3://bucket/archive")) is None
    with pytest.raises(OptionError, match="views=true needs a folder"):
        _saved(PortalOptions(archive_dir="s3://bucket/archive", views=True))
