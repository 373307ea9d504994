import pytest

from nenya.errors import InputFileError
from nenya.storage.paths import is_latents_name, key_of
from nenya.tables.names import NamedFile, cutout_names, cutouts_of, folder_of, latents_names, match_names


@pytest.mark.parametrize(
    "text",
    [
        "a.v1_preproc",
        "a.v1_preproc.h5",
        "a.v1_preproc.HDF5",
        "s3://b/c/a.v1_preproc.h5",
        r"C:\d\a.v1_preproc.h5",
        r"d\e/a.v1_preproc ",
    ],
)
def test_the_name_counts_not_folder_separator_or_suffix(text):
    assert key_of(text) == "a.v1_preproc"


@pytest.mark.parametrize(
    ("cutouts", "ours", "older"),
    [
        ("X_preproc.h5", "X_preproc_latents.h5", "X_latents.h5"),
        ("X_preproc_std.h5", "X_preproc_std_latents.h5", "X_latents_std.h5"),
        ("p/X_preproc_viirs_std.h5", "X_preproc_viirs_std_latents.h5", "X_latents_viirs_std.h5"),
    ],
)
def test_latents_have_two_names_and_both_lead_back(cutouts, ours, older):
    assert latents_names(cutouts) == (ours, older)
    for name in (ours, older):
        assert is_latents_name(name) and key_of(cutouts) in cutout_names(name)


def test_names_that_are_no_latents():
    for name in ("X_preproc.h5", "X_latents.parquet", "X_latents_std_UMAP.h5", "X_latentspace.h5", "latents.h5"):
        assert not is_latents_name(name)
    assert latents_names("plain.h5") == ("plain_latents.h5",)
    assert cutout_names("plain.h5") == ("plain",)


def named(path, *keys):
    return NamedFile(path, keys or ("x",), (folder_of(path),))


@pytest.mark.parametrize(
    ("texts", "files", "found"),
    [
        (["x", "b/x.h5"], [named("d/x_latents.h5")], [0, 0]),  # the same file, written in two ways
        (["A/x.h5", "B/x.h5"], [named("d/A/x_latents.h5"), named("d/B/x_latents.h5")], [0, 1]),
        (["p/A/x.h5", "q/A/x.h5"], [named("p/A/x_latents.h5"), named("q/A/x_latents.h5")], [0, 1]),
        (["A/x.h5", "B/x.h5"], [named("d/A/x_latents.h5")], [0, -1]),
        (["y.h5", "x.h5"], [named("x_latents.h5")], [-1, 0]),
    ],
)
def test_the_folder_decides(texts, files, found):
    assert match_names(texts, files) == found


@pytest.mark.parametrize(
    ("texts", "files", "said"),
    [
        (["x.h5"], [named("A/x_latents.h5"), named("B/x_latents.h5")], "A/x_latents.h5 and B/x_latents.h5"),
        (["C/x.h5"], [named("A/x_latents.h5"), named("B/x_latents.h5")], "A/x_latents.h5 and B/x_latents.h5"),
        (["A/x.h5", "B/x.h5"], [named("d/x_latents.h5")], "A/x.h5 and B/x.h5"),
        (["x.h5", "A/x.h5", "B/x.h5"], [named("d/A/x_latents.h5")], "A/x.h5 and B/x.h5"),
        (["x.h5", "x_preproc.h5"], [named("x_latents.h5", "x", "x_preproc")], "x.h5 and x_preproc.h5"),
    ],
)
def test_nothing_is_guessed(texts, files, said):
    with pytest.raises(InputFileError, match=said):
        match_names(texts, files)


def test_many_files_of_one_name_are_told_apart_in_a_walk_through_them():
    days = [f"{year}/{day:03d}" for year in range(2010, 2020) for day in range(365)]
    files = [named(f"lat/{day}/x_latents.h5") for day in days]
    assert match_names([f"s3://b/{day}/x.h5" for day in reversed(days)], files) == list(range(len(days)))[::-1]


def test_the_cutouts_of_a_latents_file():
    places = ["s3://b/one/x_preproc.h5", "s3://b/two/x_preproc.h5", "y.h5"]
    assert cutouts_of("/lat/two/x_latents.h5", places) == places[1]
    assert cutouts_of("/lat/z_latents.h5", places) is None
    with pytest.raises(InputFileError, match=r"one/x_preproc.h5 and s3://b/two/x_preproc.h5"):
        cutouts_of("/lat/x_preproc_latents.h5", places)
