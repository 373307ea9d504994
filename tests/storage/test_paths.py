"""Patterns that name files, also where links lead back to folders that were entered before."""

import os

import pytest

from nenya.errors import InputFileError
from nenya.storage.names import entry_of, parse_json, refuse_overlaps
from nenya.storage.paths import find_paths, find_sources


@pytest.fixture
def tree(tmp_path):
    for name in ("a.h5", "sub/b.h5", "sub/deep/c.h5", ".hidden/d.h5", "sub/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(found, folder):
    return [os.path.relpath(path, folder) for path in found]


def test_two_stars_stand_for_any_folders(tree):
    assert names(find_paths(f"{tree}/**/*.h5"), tree) == ["a.h5", "sub/b.h5", "sub/deep/c.h5"]
    assert names(find_paths(f"{tree}/*/*.h5"), tree) == ["sub/b.h5"]
    assert names(find_paths(f"{tree}/**/deep/**"), tree) == ["sub/deep/c.h5"]
    assert find_paths(f"{tree}/**/*.nc") == []


def test_links_that_lead_back_end(tree):
    for name in ("x", "y", "sub/up"):
        (tree / name).symlink_to(tree)
    found = find_paths(f"{tree}/**/*.h5")
    assert sorted(os.path.basename(path) for path in found) == ["a.h5", "b.h5", "c.h5"], "each folder is entered once"
    assert len(find_sources(f"{tree}/**/*.h5")) == 3


@pytest.mark.parametrize("listed", [["x", "x/y"], ["x/y", "x"], ["x", "x"]])
def test_files_of_a_manifest_are_no_folders_of_each_other(listed):
    rows = ",".join(f'["{name}", 1, "{"0" * 64}"]' for name in listed)
    found = parse_json(f"[{rows}]", "about-1.json")
    with pytest.raises(InputFileError, match="none of them a folder of another"):
        refuse_overlaps([entry_of(item) for item in found.items()], found)
