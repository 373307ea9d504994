"""`nenya compare` from files to JSON, tables and page."""

import importlib
import itertools
import json
import os
import shutil
import signal

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import write_cutouts

from nenya.io import read_table

QUICK = ["permutations=49", "sample=200"]
MEASURES = ("energy", "auc", "coverage_of_a", "coverage_of_b", "density")
QUANTITIES = ("DT", "slope", "mean_temperature")


def write_set(folder, name: str, rows: int, *, seed: int, shift: float = 0.0, sha: str = "ab") -> pd.DataFrame:
    """Write latents and a table of granules of five cutouts; the first 30 latents are shifted too."""
    rng = np.random.default_rng(seed)
    granule = np.arange(rows) // 5
    latents = 0.5 * rng.standard_normal((rows // 5, 8))[granule] + rng.standard_normal((rows, 8))
    latents[:, 0] += shift
    with h5py.File(folder / f"{name}_preproc_latents.h5", "w") as file:
        file["valid"] = latents.astype(np.float32)
        file.attrs.update(checkpoint_sha256=sha * 32, source=f"{name}_preproc.h5", latent="projection")
    table = pd.DataFrame(
        {
            "pp_file": f"{name}_preproc.h5",
            "pp_type": 0,
            "pp_idx": np.arange(rows),
            "granule": [f"{name}{number} 2012-01-01T00:00:00" for number in granule],
            "lat": rng.uniform(-60, 60, rows),
            "lon": rng.uniform(-180, 180, rows),
            "datetime": pd.Timestamp("2012-01-01") + pd.to_timedelta(granule * 3, unit="D"),
            "T10": 10.0,
            "T90": 10 + rng.exponential(1, rows),
            "slope": rng.normal(-2, 0.3, rows),
            "mean_temperature": rng.normal(20, 3, rows),
            "US0": rng.standard_normal(rows),
            "US1": rng.standard_normal(rows),
            "UID": np.arange(rows) + 2**60 + 1000 * seed,
            "twin": np.arange(rows) + 2**60 + 1000,
            "sensor": np.where(granule % 2, "VIIRS", "MODIS"),
        }
    ).sample(frac=1, random_state=seed)
    table.to_parquet(folder / f"{name}.parquet")
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("sets")
    write_set(found, "one", 150, seed=1)
    write_set(found, "two", 120, seed=2, shift=1.5)
    write_set(found, "other", 120, seed=3, sha="cd")
    for name, rows in (("one", 150), ("two", 120)):
        write_cutouts(found / f"{name}_preproc.h5", valid=np.random.default_rng(0).standard_normal((rows, 8, 8)))
    return found


def sets(folder, a: str = "one", b: str = "two") -> list[str]:
    given = [f"{side}={folder / name}_preproc_latents.h5" for side, name in (("a", a), ("b", b))]
    return [*given, *(f"{side}_table={folder / name}.parquet" for side, name in (("a", a), ("b", b))), *QUICK]


@pytest.fixture(scope="module")
def answer(folder, tmp_path_factory):
    from nenya.cli import run_command

    out = tmp_path_factory.mktemp("answer")
    images = [f"{side}_images={folder / name}_preproc.h5" for side, name in (("a", "one"), ("b", "two"))]
    words = [*sets(folder), *images, "by=[season,cell,sensor]", "side=1", "pair=twin", f"out={out}"]
    assert run_command("compare", words) == 0
    return out


def test_the_answer_has_all_measures_of_the_whole_and_of_strata(answer):
    found = json.loads((answer / "compare.json").read_text())
    strata = found["strata"]
    assert {"season=DJF", "sensor=VIIRS", "sensor=MODIS"} <= set(strata)
    for one in (found["whole"], *strata.values()):
        for measures in (one, *(one[name] for name in QUANTITIES)):
            for name in MEASURES:
                assert {"value", "low", "high", "p"} <= set(measures[name])
    whole = found["whole"]
    assert whole["auc"]["value"] > 0.7 and whole["auc"]["p"] == 0.02
    assert 0.35 < whole["DT"]["auc"]["value"] < 0.65 and whole["rows_of_a"] == 150 and whole["blocks_of_b"] == 24
    assert whole["auc"]["low"] <= whole["auc"]["value"] <= whole["auc"]["high"]
    assert "q" in strata["sensor=VIIRS"]["auc"] and "lon" in strata[next(s for s in strata if s.startswith("cell="))]
    assert whole["pairs"]["closer"]["value"] == pytest.approx(0.5, abs=0.1)


def test_the_page_says_it_first_in_words_and_the_figures_are_there(answer):
    page = (answer / "compare.html").read_text()
    words = page.split("<p>")[1]
    assert words.startswith("one_preproc and two_preproc differ: a classifier separates")
    assert "<script" not in page and page.count("data:image/png;base64,") == 5
    figures = {path.name for path in answer.glob("*.png")}
    assert figures == {"strata.png", "globe.png", "umap.png", "gallery_a.png", "gallery_b.png"}


def test_the_tables_have_a_density_ratio_and_the_long_table_the_numbers(answer, folder):
    whole = json.loads((answer / "compare.json").read_text())["whole"]
    for side, name in (("a", "one"), ("b", "two")):
        table, own = read_table(answer / f"{side}_density_ratio.parquet"), read_table(folder / f"{name}.parquet")
        assert (table["UID"].to_numpy() == own["UID"].to_numpy()).all() and (table["density_ratio"] > 0).all()
    rows = read_table(answer / "compare.csv")
    row = rows[(rows["label"] == "whole") & (rows["measured"] == "slope") & (rows["measure"] == "energy")]
    assert row["value"].item() == pytest.approx(whole["slope"]["energy"]["value"])


def test_order_of_rows_and_of_sets_changes_nothing(nenya_cli, answer, folder, tmp_path):
    for name in ("one", "two"):
        read_table(folder / f"{name}.parquet").sample(frac=1, random_state=7).to_parquet(tmp_path / f"{name}.parquet")
    words = [word.replace(f"table={folder}", f"table={tmp_path}") for word in sets(folder, "two", "one")]
    code, said = nenya_cli("compare", [*words, "out=turned"])
    assert code == 0, said
    places = (answer, tmp_path / "turned")
    first, turned = (json.loads((place / "compare.json").read_text())["whole"] for place in places)
    assert turned["energy"] == first["energy"] and turned["auc"] == first["auc"]
    assert turned["density"] == first["density"] and turned["coverage_of_b"] == first["coverage_of_a"]
    assert turned["DT"]["coverage_of_a"] == first["DT"]["coverage_of_b"]


@pytest.fixture
def unusual(folder, tmp_path):
    """Write sets that are like the first one but for their latents or their table."""

    def write(name: str, latents: np.ndarray | None = None, **columns) -> list[str]:
        table = read_table(folder / "one.parquet")
        if latents is not None:
            write_set(tmp_path, name, 150, seed=1)
            with h5py.File(tmp_path / f"{name}_preproc_latents.h5", "r+") as file:
                file["valid"][:] = latents
            table["pp_file"] = f"{name}_preproc.h5"
        drop = [key for key, value in columns.items() if value is None]
        table = table.drop(columns=drop).assign(**{key: v for key, v in columns.items() if key not in drop})
        table.to_parquet(tmp_path / f"{name}.parquet")
        words = sets(folder)
        words[2] = f"a_table={tmp_path}/{name}.parquet"
        return [f"a={tmp_path}/{name}_preproc_latents.h5", *words[1:]] if latents is not None else words

    return write


def test_sets_that_cannot_be_compared_leave_nothing(nenya_cli, unusual, tmp_path):
    for name, words, said in (
        ("missing", unusual("missing", np.full((150, 8), np.nan)), "a has 0 cutouts with finite latents"),
        ("blocks", unusual("blocks", granule=None, datetime=None), "the table of a: block=granule needs a column"),
        ("keys", unusual("keys", pp_idx=None), "expected the columns pp_file, pp_type, pp_idx"),
    ):
        code, line = nenya_cli("compare", [*words, f"out={name}"])
        assert code == 2 and said in line and not (tmp_path / name).exists(), line


def test_equal_latents_and_small_strata_have_an_answer(nenya_cli, unusual, tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.runtime.process._SECONDS_BETWEEN_LINES", -1)
    few, every = np.where(np.arange(150) < 3, "few", "MODIS"), ""
    for name, words in (
        ("equal", unusual("equal", np.ones((150, 8)))),
        ("few", [*unusual("few", sensor=few), "by=sensor"]),
        ("apart", [*unusual("apart", sensor="none of b's"), "by=sensor"]),
    ):
        code, said = nenya_cli("compare", [*words, f"out={name}"])
        assert code == 0, said
        every += said
    strata = json.loads((tmp_path / "few" / "compare.json").read_text())["strata"]
    assert strata["sensor=few"]["auc"]["value"] is None and strata["sensor=few"]["rows_of_a"] == 3
    assert strata["sensor=MODIS"]["auc"]["value"] > 0.6
    assert "None of the 3 strata can be tested" in said and "sensor=MODIS, stratum 1 of 3: " in every


def test_two_conditions_on_one_table(nenya_cli, folder):
    words = [f"data={folder}/one_preproc_latents.h5", f"table={folder}/one.parquet", *QUICK, "out=halves"]
    code, said = nenya_cli("compare", [*words, "a=sensor = 'VIIRS'", "b=sensor = 'MODIS'"])
    assert code == 0 and "No difference between sensor = 'VIIRS' and sensor = 'MODIS' is seen" in said


def test_a_set_of_one_block_is_said_to_be_too_small(nenya_cli, tmp_path, folder):
    table = read_table(folder / "one.parquet").assign(granule="one field 2012-01-01T00:00:00")
    table.to_parquet(tmp_path / "field.parquet")
    words = [word.replace(f"{folder}/one.parquet", f"{tmp_path}/field.parquet") for word in sets(folder)]
    code, said = nenya_cli("compare", [*words, "out=few"])
    assert code == 0 and "150 cutouts in 1 block of one_preproc" in said and "mean little" in said
    assert said.startswith("Whether one_preproc and two_preproc differ cannot be decided from so few blocks")
    assert "How much of the patterns of one_preproc is covered is unknown" in said
    assert "one_preproc covers" in said and "two_preproc covers" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: sets(f, "one", "other"), "expected those of one network"),
        (lambda f: sets(f)[:1], "expected a= and b="),
        (lambda f: sets(f, "one", "one"), "a and b have 150 cutouts in common"),
        (lambda f: [*sets(f)[:2], *sets(f, "two", "one")[2:]], "no row of the table"),
        (lambda f: [*sets(f), "by=[region,depth]"], "by=depth"),
        (lambda f: [*sets(f), "block=granul"], "did you mean granule"),
        (lambda f: [*sets(f), "by=[seasn]"], "did you mean season"),
        (lambda f: [*sets(f), "pair=twins"], "did you mean twin"),
        (lambda f: [*sets(f), "pair=pp_idx"], "none of its values is a UID"),
        (lambda f: [*sets(f), "permutations=3"], "permutations=3"),
        (lambda f: [*sets(f), f"a_images={f}/two_preproc.h5"], "no row of the table has a cutout"),
        (lambda f: [f"data={f}/one_preproc_latents.h5", "a=DT > 1", "b=DT < 1"], "needs table="),
        (
            lambda f: [f"data={f}/one_preproc_latents.h5", f"table={f}/one.parquet", "a=DT > 1", "b=DT > 0"],
            "rows fulfil both",
        ),
        (
            lambda f: [f"data={f}/one_preproc_latents.h5", f"table={f}/one.parquet", "a=DT > 999", "b=DT > 0"],
            "no row of 150 fulfils it",
        ),
        (
            lambda f: [f"data={f}/one_preproc_latents.h5", f"table={f}/one.parquet", "a=DTT > 1", "b=DT > 0"],
            "DTT does not exist: a=DTT > 1",
        ),
        (lambda f: [f"seeds={f}/one_preproc_latents.h5"], "at least two trainings"),
        (
            lambda f: [f"seeds=[{f}/one_preproc_latents.h5,{f}/other_preproc_latents.h5]"],
            "other_preproc_latents.h5 has 0 of the 150 cutouts of",
        ),
        (lambda f: [*sets(f), "seeds=[x,y]"], "seeds= and a=: give one of them"),
        (lambda f: ["seeds=[x,y]", "by=season"], "seeds= and by=: give one of them"),
        (lambda f: [*sets(f), f"table={f}/one.parquet"], "table= is of archive= or data="),
        (lambda f: [*sets(f), "version=v4"], "version= is of archive= or data="),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(nenya_cli, tmp_path, folder, change, said):
    code, line = nenya_cli("compare", [*change(folder), "out=refused"])
    assert code == 2 and said in line and line.strip().count("\n") == 0, line
    assert not (tmp_path / "refused").exists()


def killed_after(calls: int, words: list[str], module: str, name: str) -> int:
    """Run the command in a process that a SIGKILL ends at a call of a function; returns its exit code."""
    from nenya.cli import run_command

    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        place = importlib.import_module(module)
        function, counted = getattr(place, name), itertools.count()

        def counting(*args, **kwargs):
            if next(counted) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(place, name, counting)
        run_command("compare", words)
    finally:
        os._exit(99)


def contents(folder) -> dict[str, object]:
    answer = json.loads((folder / "compare.json").read_text())
    answer.pop("made_by")
    return answer | {name: read_table(folder / name) for name in ("a_density_ratio.parquet", "b_density_ratio.parquet")}


def test_a_killed_comparison_continues_to_the_same_answer(nenya_cli, folder, tmp_path, monkeypatch):
    words = [*sets(folder), "by=[sensor]", "pair=twin"]
    whole = nenya_cli("compare", [*words, "out=whole"])
    assert whole[0] == 0 and not (tmp_path / "whole" / "compare.partial").exists(), whole
    # Four comparisons of the whole, then four of each of two strata; two passes for the density ratio.
    for module, name, calls in (("comparison", "compare_sides", 9), ("density_ratio", "density_ratios", 1)):
        assert killed_after(calls, [*words, "out=cut"], f"nenya.latents.{module}", name) == -signal.SIGKILL
        assert {path.name for path in (tmp_path / "cut").iterdir()} == {"compare.partial"}
    kept = sorted(path.name[:7] for path in (tmp_path / "cut" / "compare.partial").rglob("*") if path.is_file())
    assert kept == ["ratios-", "stratum", "stratum", "whole"]
    monkeypatch.setattr("nenya.latents.comparison.compare_sides", None)  # whatever is compared again fails
    code, said = nenya_cli("compare", [*words, "out=cut"])
    assert code == 0 and "resuming: 3 of 3 strata are compared already" in said, said
    assert not (tmp_path / "cut" / "compare.partial").exists()
    for name, found in contents(tmp_path / "cut").items():
        expected = contents(tmp_path / "whole")[name]
        if isinstance(found, pd.DataFrame):
            pd.testing.assert_frame_equal(found, expected)
        else:
            assert found == expected, name


@pytest.mark.parametrize("change", ["seed", "file", "damage"])
def test_answers_of_other_inputs_and_damaged_ones_are_not_taken(nenya_cli, folder, tmp_path, change):
    for name in ("one", "two"):
        shutil.copy(folder / f"{name}_preproc_latents.h5", tmp_path)
    words = [
        word.replace(f"{folder}/one_pre", "one_pre").replace(f"{folder}/two_pre", "two_pre") for word in sets(folder)
    ]
    assert killed_after(1, [*words, "out=cut"], "nenya.latents.density_ratio", "density_ratios") == -signal.SIGKILL
    (kept,) = (tmp_path / "cut" / "compare.partial").glob("*/whole")
    if change == "damage":
        kept.write_bytes(kept.read_bytes()[:-9] + b"123456789")
    if change == "file":
        with h5py.File(tmp_path / "two_preproc_latents.h5", "r+") as file:
            file["valid"][:, 0] += 1
    words += ["seed=5"] if change == "seed" else []
    code, said = nenya_cli("compare", [*words, "out=cut"])
    assert code == 0 and "resuming" not in said and not (tmp_path / "cut" / "compare.partial").exists(), said
    assert nenya_cli("compare", [*words, "out=fresh"])[0] == 0
    first, other = (json.loads((tmp_path / name / "compare.json").read_text())["whole"] for name in ("cut", "fresh"))
    assert first == other


def test_a_killed_comparison_of_trainings_continues(nenya_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("nenya.latents.agreement._READ", 50)
    rows = np.random.default_rng(0).standard_normal((180, 6))
    for name in ("11", "22"):
        with h5py.File(tmp_path / f"run{name}_latents.h5", "w") as file:
            file["valid"] = (rows + 0.3 * np.random.default_rng(int(name)).standard_normal(rows.shape)).astype("f4")
            file.attrs.update(checkpoint_sha256=name * 32, source="cut_preproc.h5")
    words = ["seeds=[run11_latents.h5,run22_latents.h5]"]
    assert nenya_cli("compare", [*words, "out=whole"])[0] == 0
    assert killed_after(8, [*words, "out=cut"], "nenya.latents.agreement", "unit_rows") == -signal.SIGKILL
    assert len(list((tmp_path / "cut" / "compare.partial").rglob("shares-*"))) == 3
    assert nenya_cli("compare", [*words, "out=cut"])[0] == 0
    answers = [read_table(tmp_path / name / "stability.parquet") for name in ("cut", "whole")]
    pd.testing.assert_frame_equal(*answers)
    assert not (tmp_path / "cut" / "compare.partial").exists()


def test_trainings_are_compared_by_what_holds(nenya_cli, tmp_path):
    rows = np.random.default_rng(0).standard_normal((200, 6))
    for name, sha, noise in (("run1", "11", 0.0), ("run2", "22", 0.1), ("run3", "33", 0.1)):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "cut_preproc_latents.h5", "w") as file:
            made = rows + noise * np.random.default_rng(int(sha)).standard_normal(rows.shape)
            file["valid"] = made.astype(np.float32)
            file.attrs.update(checkpoint_sha256=sha * 32, source="cut_preproc.h5")
    (tmp_path / "seeds").mkdir()
    for name in ("compare.json", "globe.png"):  # of an earlier comparison
        (tmp_path / "seeds" / name).write_text("old")
    code, said = nenya_cli("compare", ["seeds=[run1,run2,run3]", "out=seeds"])
    assert code == 2 and "clobber=true" in said
    code, said = nenya_cli("compare", ["seeds=[run1,run2,run3]", "out=seeds", "clobber=true"])
    assert code == 0 and not (tmp_path / "seeds" / "globe.png").exists(), said
    found = json.loads((tmp_path / "seeds" / "compare.json").read_text())
    assert len(found["pairs"]) == 3 and found["whole"]["neighbours"]["value"] > 0.6
    assert read_table(tmp_path / "seeds" / "stability.parquet")["stability"].between(0, 1).all()
    assert "3 trainings of one recipe share" in (tmp_path / "seeds" / "compare.html").read_text()
