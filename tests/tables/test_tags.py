"""Tags: kept by the keys of cutouts, joined to sorted and grown tables, refused where a file is damaged or hostile."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nenya.errors import InputFileError, OptionError, OutputError
from nenya.tables.conditions import rows_where
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Packed
from nenya.tables.tag_conditions import tag_terms
from nenya.tables.tag_file import TagFile
from nenya.tables.tags import LONGEST, MOST_MARKS, MOST_TAGS, column_of, place_of_tags, with_tags

N = 60


@pytest.fixture
def table():
    files = np.where(np.arange(N) < 40, "s3://bucket/a_preproc.h5", "b_preproc.h5")
    return pd.DataFrame(
        {"pp_file": files, "pp_type": np.arange(N) % 2, "pp_idx": np.arange(N) // 2, "DT": np.arange(N) / 10.0}
    )


@pytest.fixture
def book(tmp_path, table):
    """Return a function that changes tags of rows of a table, and the file."""
    file = TagFile(tmp_path / "a.tags.json")

    def change(rows, word, on=True, of=table):
        keys = read_keys(of)
        return file.change(keys, Packed(keys), np.asarray(rows, np.int64), word, on=on)[0].tolist()

    change.file = file
    return change


def tags_of(table, file):
    found = column_of(file.read(), Packed(read_keys(table)))
    return [None if code < 0 else found.labels[code] for code in found.codes]


def test_tags_are_given_taken_and_say_what_changed(table, book):
    assert book.file.read().words == () and not book.file.path.exists()
    assert book([5, 3, 50], "front") == [5, 3, 50]
    assert book([3, 4], "front") == [4] and book([3], "eddy") == [3]
    found = tags_of(table, book.file)
    assert {row: tag for row, tag in enumerate(found) if tag} == {
        3: "eddy, front", 4: "front", 5: "front", 50: "front"
    }  # fmt: skip
    assert book([3, 9], "front", on=False) == [3] and tags_of(table, book.file)[3] == "eddy"
    assert book([3], "eddy", on=False) == [3] and book.file.read().words == ("front",)


def test_a_sorted_table_under_other_names_fits_and_lost_rows_are_said(table, book, caplog):
    book([0, 1, 59], "front")
    other = table.rename(columns={"pp_file": "ulmo_pp_file", "pp_type": "ulmo_pp_type"})
    other["ulmo_pp_file"] = other["ulmo_pp_file"].str.replace("s3://bucket/", "/data/").str.replace(".h5", "")
    other = other.sample(frac=1, random_state=3)
    grown = pd.concat([other, other.assign(pp_idx=other["pp_idx"] + 1000)], ignore_index=True)
    assert sorted(np.flatnonzero(with_tags(grown, book.file.path)["tag"] == "front")) == sorted(
        [*other.index.get_indexer([0, 1, 59])]
    )
    with caplog.at_level("WARNING"):
        less = with_tags(table[5:], book.file.path)
    assert less["tag"].notna().sum() == 1 and "2 of 3 tagged cutouts are not in the table" in caplog.text
    with pytest.raises(InputFileError, match="none of its 3 tagged cutouts is in the table"):
        with_tags(table[5:9], book.file.path)
    with pytest.raises(OptionError, match="has a column tag already"):
        with_tags(table.assign(tag="x"), book.file.path)


def test_another_name_of_the_same_file_adds_no_second_mark(table, book):
    book([0], "front")
    renamed = table.assign(pp_file=table["pp_file"].str.replace("s3://bucket/", ""))
    assert book([0], "front", of=renamed) == [] and book([0], "front", on=False, of=renamed) == [0]
    assert len(book.file.read()) == 0


def test_a_table_of_one_file_needs_no_name(table, book):
    alone = table[:40].drop(columns="pp_file")
    assert book([2], "front", of=alone) == [2] and book([3], "front", of=table[:40]) == [3]
    assert tags_of(alone, book.file)[2:5] == ["front", "front", None] == tags_of(table[:40], book.file)[2:5]


def test_rows_without_a_cutout_are_refused(table, book):
    table.loc[7, "pp_type"] = -1
    with pytest.raises(InputFileError, match="1 of 2 cutouts cannot be tagged"):
        book([6, 7], "front")
    with pytest.raises(InputFileError, match="no cutouts to tag"):
        book([], "front")


@pytest.mark.parametrize(
    "word", ["", " ", "a,b", "x" * (LONGEST + 1), "a\x1bb", "a\u202eb", "=1+1", "@x", "-x", 7, None]
)
def test_words_have_limits(book, word):
    with pytest.raises(InputFileError, match=f"expected a tag of 1 to {LONGEST} characters"):
        book([1], word)
    assert not book.file.path.exists()


def test_numbers_have_limits(book):
    many = {f"t{n}": {"a_preproc.h5": {"train": [n]}} for n in range(MOST_TAGS)}
    book.file.path.write_text(json.dumps({"nenya_tags": 1, "tags": many}))
    with pytest.raises(InputFileError, match="100 different tags"):
        book([1], "one more")
    book.file.path.write_text(
        json.dumps({"nenya_tags": 1, "tags": {"t": {"z.h5": {"train": list(range(MOST_MARKS))}}}})
    )
    with pytest.raises(InputFileError, match="expected at most 500,000 tagged cutouts"):
        book([1], "t")


def test_words_are_kept_as_they_are(table, book):
    words = ["<script>alert(1)</script>", "it's", "front 2", "größe", "in"]
    for word in words:
        book([1], f"  {word.replace(' ', '   ')} ")
    assert sorted(book.file.read().words) == sorted(words)


def test_two_spellings_of_a_letter_are_one_tag(table, book):
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert book([1, 2], apart) == [1, 2] and book([2, 3], composed) == [3]
    assert book.file.read().words == (composed,) and book([1], composed, on=False) == [1]
    both = {apart: {"b_preproc.h5": {"train": [20, 22]}}, composed: {"b_preproc.h5": {"train": [22, 24]}}}
    book.file.path.write_text(json.dumps({"nenya_tags": 1, "tags": both}))
    found = book.file.read()  # of an earlier nenya
    assert found.words == (composed,) and found.keys.row.tolist() == [20, 22, 24]
    terms = tag_terms(f"tag = '{apart}' OR tag IN ('{apart}')", lambda words, _: str(words))
    assert terms == f"['{composed}'] OR ['{composed}']"


def _tag_rows(path, start):
    files = np.where(np.arange(N) < 40, "a_preproc.h5", "b_preproc.h5")
    table = pd.DataFrame({"pp_file": files, "pp_type": np.arange(N) % 2, "pp_idx": np.arange(N) // 2})
    keys = read_keys(table)
    for row in range(start, N, 3):
        TagFile(path).change(keys, Packed(keys), np.array([row]), f"w{start}" if row % 2 else "all", on=True)


def test_several_programs_at_once_lose_nothing(table, book):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_tag_rows, args=(book.file.path, start)) for start in range(3)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert tags_of(table, book.file) == [f"w{row % 3}" if row % 2 else "all" for row in range(N)]


KILLED = """
import os, sys
import numpy as np, pandas as pd
from pathlib import Path
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Packed
from nenya.tables.tag_file import TagFile
keys = read_keys(pd.DataFrame({"pp_file": "a.h5", "pp_type": 1, "pp_idx": np.arange(20000)}))
packed, file = Packed(keys), TagFile(Path(sys.argv[1]))
for row in range(20000):
    file.change(keys, packed, np.arange(row, min(row + 2000, 20000)), "front", on=True)
    print(row, flush=True)
"""


def test_a_killed_writer_leaves_what_it_said_and_no_lock(tmp_path):
    path = tmp_path / "a.tags.json"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        said = [int(process.stdout.readline()) for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.strip()]
    assert len(TagFile(path).read()) >= said[-1] + 2000
    _tag_rows(path, 0)
    assert "all" in TagFile(path).read().words


HOSTILE = {
    "nothing": "",
    "a list": "[]",
    "another file": '{"views": {}}',
    "a later version": '{"nenya_tags": 2, "tags": {}}',
    "deep": "[" * 5000,
    "bytes": "\xff\xfe",
    "twice": '{"nenya_tags": 1, "tags": {}, "tags": {}}',
    "tags are a number": '{"nenya_tags": 1, "tags": 7}',
    "a tag with a comma": '{"nenya_tags": 1, "tags": {"a,b": {}}}',
    "a hidden character": '{"nenya_tags": 1, "tags": {"a\\u202eb": {}}}',
    "a formula": '{"nenya_tags": 1, "tags": {"=cmd()": {}}}',
    "rows are text": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": "12"}}}}',
    "rows are a number": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": 12}}}}',
    "a row below 0": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": [-1]}}}}',
    "a huge row": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": [99999999999999999999]}}}}',
    "a row that is true": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": [true]}}}}',
    "a fraction": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"train": [1.5]}}}}',
    "no partition": '{"nenya_tags": 1, "tags": {"a": {"x.h5": {"tests": [1]}}}}',
    "a long file name": f'{{"nenya_tags": 1, "tags": {{"a": {{"{"x" * 2000}": {{"train": [1]}}}}}}}}',
    "many tags": json.dumps({"nenya_tags": 1, "tags": {f"t{n}": {} for n in range(MOST_TAGS + 1)}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_one_line_and_kept(table, book, name):
    book.file.path.write_bytes(HOSTILE[name].encode("latin-1"))
    for act in (book.file.read, lambda: book([1], "front"), lambda: with_tags(table, book.file.path)):
        with pytest.raises(InputFileError, match="expected tags, as nenya portal") as found:
            act()
        assert "\n" not in str(found.value) and len(str(found.value)) < 600
    assert book.file.path.read_bytes() == HOSTILE[name].encode("latin-1")


def test_links_and_pipes_are_refused(tmp_path, table, book):
    (tmp_path / "elsewhere.json").write_text("{}")
    book.file.path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(OutputError, match="is a link"):
        book([1], "front")
    assert (tmp_path / "elsewhere.json").read_text() == "{}"
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputFileError, match="cannot be read as tags"):
        with_tags(table, tmp_path / "pipe.json")
    with pytest.raises(InputFileError, match="no such file"):
        with_tags(table, tmp_path / "none.json")


def test_places(tmp_path):
    assert place_of_tags(None, "a.parquet", None) is place_of_tags(False, "a.parquet", None) is None
    assert place_of_tags(True, str(tmp_path / "a.parquet"), None) == tmp_path / "a.tags.json"
    assert place_of_tags(True, None, str(tmp_path)) == tmp_path / "portal_tags.json"
    assert place_of_tags(str(tmp_path / "x.json"), "a.parquet", None) == tmp_path / "x.json"
    for place in ({"table": None, "archive": "s3://bucket/a"}, {"table": None, "archive": None}):
        with pytest.raises(OptionError, match="tags=true needs"):
            place_of_tags(True, **place)


def spelled(words, positive):
    return f"{'+' if positive else '-'}{words}"


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("tag = 'a'", "+['a']"),
        ("DT>1 and TAG='it''s' or lat > 2", 'DT>1 and +["it\'s"] or lat > 2'),
        ("not (`tag` <> 'a')", "not (-['a'] )"),
        ("tag in ('a', 'b') AND x", "+['a', 'b'] AND x"),
        ("\"tag\" NOT IN ('a')", "-['a']"),
        ("tag is null", "-[]"),
        ("tag IS NOT NULL", "+[]"),
        ("name = 'tag = ''a''' and mytag = 'a' and tag like 'a%'", None),
        ("tag in (1, 2) or tag = 3 or tag", None),
    ],
)
def test_conditions_on_tags_are_replaced_and_others_are_not(sql, wanted):
    assert tag_terms(sql, spelled) == (sql if wanted is None else wanted)


@pytest.mark.parametrize(
    "sql", ["tag = 'a, b'", "DT > 1 AND tag != 'a, b'", "tag IN ('c', 'a, b')", "tag NOT IN ('a,b')"]
)
def test_a_condition_on_two_tags_as_one_is_refused_with_the_way_to_ask(sql, table, book):
    pytest.importorskip("lancedb")
    book([1, 2], "a")
    book([2, 3], "b")
    found = with_tags(table, book.file.path)
    with pytest.raises(OptionError, match=r"a tag has no comma.*tag = 'a' AND tag = 'b' selects the cutouts with all"):
        rows_where(found, sql)


def test_a_row_has_each_of_its_tags_in_sql(table, book):
    pytest.importorskip("lancedb")
    book([1, 2, 3], "front")
    book([3, 4], "eddy")
    found = with_tags(table, book.file.path)
    for sql, rows in {
        "tag = 'front'": [1, 2, 3],
        "tag = 'eddy' AND tag = 'front'": [3],
        "tag != 'front'": [4],
        "tag IN ('eddy', 'front') AND DT < 0.4": [1, 2, 3],
        "tag NOT IN ('eddy')": [1, 2],
        "tag IS NULL AND DT < 0.25": [0],
        "tag = 'none such'": [],
        "tag LIKE 'front%'": [1, 2],
    }.items():
        assert np.flatnonzero(rows_where(found, sql)).tolist() == rows, sql
