"""Every parser against damage: some cases of each, what went wrong once, and that the fuzzer sees what it must."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fuzz.mutators import mutate_bytes, mutate_json, mutate_npy, mutate_png, mutate_text, mutate_zip
from fuzz.readers import write_pictures, write_weights
from fuzz.runner import CORPUS, corpus, run, table
from fuzz.targets import NAMES, PROBES, TARGETS

FEW, MANY = 1, 150
CASES = {
    "good": [(name, -1) for name in NAMES if name != "cutouts-known"],
    "damaged": [(name, number) for name in NAMES for number in range(FEW)],
    "corpus": corpus(),
    "probes": [(name, 1) for name in PROBES if name != "probe-hang"],  # which takes as long as any case may
}


@pytest.fixture(scope="module")
def results():
    """Read all cases in one process, whose libraries take longer than the cases."""
    found = run(case for cases in CASES.values() for case in cases)
    parts, start = {}, 0
    for kind, cases in CASES.items():
        parts[kind] = found[start : start + len(cases)]
        start += len(cases)
    return parts


def test_good_files_are_read(results):
    refused = {result.target for result in results["good"] if result.outcome == "refused"}
    assert refused == {"upload-tiff"}, table(results["good"])  # which is no kind that is taken
    assert {result.outcome for result in results["good"]} == {"read", "refused"}


def test_some_damaged_files_of_every_kind(results):
    wrong = [result for result in results["damaged"] if result.bad]
    assert not wrong, wrong
    assert sum(result.outcome == "refused" for result in results["damaged"]) > len(NAMES) // 2


def test_what_went_wrong_once_is_read_or_refused(results):
    wrong = [result for result in results["corpus"] if result.bad]
    assert not wrong, wrong


def test_what_no_parser_may_do_is_seen(results):
    seen = {result.target: result.outcome for result in results["probes"]}
    wanted = {name: name.removeprefix("probe-").upper() for name in PROBES if name != "probe-hang"}
    assert seen == wanted, results["probes"]


@pytest.mark.slow
def test_an_endless_loop_is_seen():
    assert [result.outcome for result in run([("probe-hang", 1)])] == ["HANG"]


@pytest.mark.slow
def test_many_damaged_files_of_every_kind(capsys):
    cases = [(name, number) for number in range(1000, 1000 + MANY) for name in NAMES]
    cases.sort(key=lambda case: case[0])
    with ThreadPoolExecutor(2) as pool:
        found = [result for part in pool.map(run, (cases[::2], cases[1::2])) for result in part]
    with capsys.disabled():
        print("\n" + table(found))  # noqa: T201
    wrong = [result for result in found if result.bad]
    assert not wrong, wrong


def test_the_corpus_is_of_parsers_that_there_are():
    assert {path.name for path in CORPUS.iterdir()} <= set(NAMES)
    assert all(path.suffix in (".bin", ".zip") and path.stat().st_size < 10**5 for path in CORPUS.glob("*/*"))
    assert not [path for path in CORPUS.rglob("*") if path.is_symlink()]


def test_a_case_is_always_the_same(tmp_path, monkeypatch):
    years = itertools.cycle(range(1990, 2090))  # a clock that no two readings of agree
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((next(years), 1, 1, 0, 0, 0, 0, 1, 0)))
    write_weights(tmp_path)
    write_pictures(tmp_path)
    for change, name in (
        *((mutate_bytes, "a.pth"), (mutate_zip, "a.pth"), (mutate_npy, "a.npy"), (mutate_png, "grey.png")),
        *((mutate_text, "a.npy"), (lambda data, rng: mutate_json(b'{"a": [1, {"b": "c"}]}', rng), "a.npy")),
    ):
        data = (tmp_path / name).read_bytes()
        made = [[change(data, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) > 5


def test_a_case_of_the_corpus_stands_where_a_good_file_would(tmp_path):
    case = tmp_path / "odd name.npy.bin"
    case.write_bytes(b"x")
    (tmp_path / "in").mkdir()
    assert TARGETS["upload-npy"].place(case, tmp_path / "in").name == "odd name.npy"
