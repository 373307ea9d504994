"""What messages show of texts from outside."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya.cli import run_command
from nenya.errors import OptionError
from nenya.io import write_table
from nenya.storage import texts
from nenya.storage.paths import expand
from nenya.storage.texts import (
    LineFormatter,
    Lines,
    counted,
    first_words,
    lines_of,
    printed,
    remember_name,
    visible,
)

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202egpj\u2066\u2069\u200b\ufeff"
"""Colours, a title, a cleared screen, a return to the line's beginning, a name turned around, what is not seen."""

_BAD = [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]


def run(*args: object, cwd: Path, **settings) -> tuple[int, bytes]:
    """Run `nenya` in a process of its own; returns the exit code and the bytes of both outputs."""
    code = "import sys; from nenya.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=cwd, capture_output=True, timeout=600, stdin=subprocess.DEVNULL, **settings,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def assert_harmless(said: str) -> None:
    assert not [c for c in said if c in _BAD and c not in "\n\t"]


def test_what_does_not_print_is_escaped():
    assert visible(EVIL).startswith(r"\x1b[31mred\x1b]0;title\x07\x9b2J\x0d\u202egpj\u2066\u2069")
    assert visible("a\nb") == r"a\nb".replace(r"\n", r"\x0a")
    assert visible("a\nb", lines=True) == "a\nb"
    assert visible(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\xe9"
    plain = "Ångström 30 °C 海 ok"
    assert visible(plain) == plain
    for character in map(chr, [*range(0x3000), *range(0xD800, 0xE100), 0xFEFF, 0xFFF9, 0xE0001, 0x1F30A]):
        assert visible(character).encode("utf-8")
        assert visible(character).isprintable() or character == "\t"


def test_arguments_of_log_lines_make_no_lines_of_their_own(caplog):
    formatter = LineFormatter("%(message)s")

    def line(message, *args):
        return formatter.format(logging.LogRecord("nenya", logging.INFO, "", 0, message, args, None))

    assert line("%s: %d of %.1f\nnext: %s", f"a\n{EVIL}", 3, 0.5, Path("b\n")).count("\n") == 1
    assert line("%s", lines_of(["a\nb", "c"])) == "a\\x0ab\nc"
    assert line("%s", Lines("a\nb")) == "a\nb"
    assert_harmless(line("%s", OSError(2, "no", EVIL)))


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "extract", "repack", "spectra", "embed", "clusters", "metrics", "outliers"]
)
def test_names_in_error_lines_print(nenya_cli, command):
    more = ["model=demo", f"ckpt={EVIL}.pth"] if command == "extract" else ["k=3"] if command == "clusters" else []
    code, said = nenya_cli(command, [*more, f"data={EVIL}.h5"])
    assert (code, said.count("\n")) == (2, 1)
    assert_harmless(said)
    code, said = nenya_cli(command, [f"{EVIL}=1"])
    assert code == 2
    assert_harmless(said)


def test_texts_in_files_print(nenya_cli, tmp_path):
    table = pd.DataFrame({"lat": [1.0, 2.0], "lon": [2.0, 3.0], EVIL: [f"{EVIL}\nall is well", "b"], "pp_file": EVIL})
    write_table(table, tmp_path / "t.parquet")
    write_cutouts(tmp_path / "a.h5", train=red_noise(8))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["made_by"] = f"{EVIL}\nBAD"
    torch.save({"model": {f"a{EVIL}\n": torch.ones(2)}}, tmp_path / "w.pth")
    (tmp_path / "opts.json").write_text('{"\\u001b[31m\\n": 1}')
    for name, args in (
        ("inspect", ["t.parquet"]), ("inspect", ["a.h5", "sheet=false"]), ("inspect", ["w.pth"]),
        ("extract", ["model=demo", "data=a.h5", "ckpt=w.pth"]), ("train", ["model=opts.json"]), ("migrate", ["."]),
        ("statistics", ["table=t.parquet", f"where=`{EVIL}` = 1 AND"]),
        ("figures", ["table=t.parquet", "kind=map", f"metric={EVIL}"]),
    ):  # fmt: skip
        said = nenya_cli(name, args)[1]
        assert_harmless(said)
        assert said
        assert not [line for line in said.splitlines() if line.startswith(("all is well", "BAD"))]


def test_long_texts_in_files_are_cut(nenya_cli, tmp_path):
    """A name or value of a megabyte fills no screen, whichever command shows it."""
    big = "B" * 300_000
    table = pd.DataFrame({"lat": [1.0, 2.0], "lon": [2.0, 3.0], big: [big, "b"], "pp_file": big})
    write_table(table, tmp_path / "t.parquet")
    write_cutouts(tmp_path / "a.h5", train=red_noise(8))
    rows = np.eye(8, dtype=np.float32)
    for name, source in (("l", "a.h5"), ("m", big)):
        with h5py.File(tmp_path / f"{name}_latents.h5", "w") as file:
            file["train"] = rows
            file.attrs["model_version"], file.attrs["source"] = "v", source
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"model: {{name: {big[:60000]}}}\nseed: {big[:60000]}\n")
    for name, args, wanted in (
        ("inspect", ["t.parquet"], 0), ("inspect", ["run"], 0), ("migrate", ["."], 0),
        ("search", ["data=l_latents.h5", "table=t.parquet", "like=1"], 2),
        ("search", ["data=m_latents.h5", "like=1"], 2), ("index", ["data=m_latents.h5", "out=b.index"], 2),
    ):  # fmt: skip
        code, said = nenya_cli(name, args)
        assert code == wanted, said[:300]
        assert said and max(map(len, said.splitlines())) < 5000, name
    assert not (tmp_path / "b.index").exists()


def test_names_that_are_no_utf8_print(tmp_path):
    name = b"caf\xe9\n\x1b[31m.csv"
    (Path(os.fsdecode(bytes(tmp_path) + b"/" + name))).write_text("lat,lon\n1,2\n")
    for coding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": coding, "LC_ALL": "C.UTF-8"}
        code, said = run(b"inspect", b"data=" + name, cwd=tmp_path, env=environment)
        assert code == 0
        assert rb"caf\xe9\x0a\x1b[31m.csv: table, 1 row" in said
        assert b"\x1b" not in said


def test_tracebacks_keep_their_lines_and_nothing_else(nenya_cli):
    code, said = nenya_cli("inspect", [f"data={EVIL}.h5", "traceback=true"])
    assert code == 2
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.count("\n") > 5
    assert_harmless(said)


def test_names_of_variables_are_shown_instead_of_values(nenya_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("SEA", str(tmp_path / "value-of-sea"))
    monkeypatch.setenv("OTHER", "hunter2-is-secret")
    for args in (["extract", "model=demo", "data=$SEA/a.h5", "ckpt=${OTHER}/w.pth"], ["inspect", "data=$SEA/t.csv"],
                 ["statistics", "table=${OTHER}.csv", "where=lat > 1"], ["embed", "data=$OTHER"],
                 ["extract", "model=demo", "data=$OTHER", "ckpt=$OTHER", "traceback=true"]):  # fmt: skip
        code, said = nenya_cli(args[0], args[1:])
        assert code == 2
        assert "value-of-sea" not in said
        assert "hunter2" not in said
        assert "$SEA" in said or "$OTHER" in said
    write_cutouts(tmp_path / "value-of-sea.h5", train=red_noise(4))
    code, said = nenya_cli("inspect", ["${SEA}.h5", "sheet=false"])
    assert code == 0
    assert said.startswith("$SEA.h5: cutouts")


def test_names_are_filled_into_paths_only(nenya_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("OTHER", "hunter2-is-secret")
    write_table(pd.DataFrame({"lat": np.arange(3.0), "name": ["$OTHER", "b", "hunter2-is-secret"]}), tmp_path / "t.csv")
    code, said = nenya_cli("statistics", ["table=t.csv", "where=name = '$OTHER' AND lat > 0"])
    assert code == 2  # no row: the name is a text of its own
    assert "hunter2" not in said
    code, said = nenya_cli("statistics", ["table=t.csv", "where=$OTHER > 1"])
    assert code == 2
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MY_PASSWORD", "WANDB_API_KEY"])
def test_secrets_are_not_filled_in(monkeypatch, name):
    monkeypatch.setattr(texts, "_names", {})
    monkeypatch.setenv(name, "hunter2-is-secret")
    with pytest.raises(OptionError, match=f"{name} looks like a secret"):
        expand(f"${{{name}}}/a.h5")


def test_values_are_hidden_where_they_are_words(monkeypatch):
    monkeypatch.setattr(texts, "_names", {})
    remember_name("SHORT", "/dat")
    assert printed("/dat/a.h5 and /data/b.h5") == "$SHORT/a.h5 and /data/b.h5"


def test_warnings_of_libraries_print(nenya_cli, monkeypatch, capfd):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    nenya_cli("inspect", ["none.h5"])
    said = warnings.formatwarning(f"a {EVIL}\nb", UserWarning, "file.py", 3)
    assert said.count("\n") == 1
    assert_harmless(said)


def test_an_unknown_command_prints(capsys):
    from nenya.cli import main

    assert main([EVIL]) == 2
    assert_harmless(capsys.readouterr().err)
    assert run_command("inspect", ["a" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 5000


def test_messages_of_libraries_end_with_a_sentence():
    assert first_words(ValueError("Not ISO 8601. You might want to try:\n - a\n - b")) == "Not ISO 8601."
    assert first_words(ValueError("Unknown names:\n  a, b\nand more")) == "Unknown names: a, b"
    assert first_words(ValueError("")) == "no message" and first_words("\n one line \n") == "one line"
    assert first_words("First sentence. " + 400 * "x") == "First sentence."
    assert first_words(99 * "word ", 20).endswith("word ...")


@pytest.mark.parametrize(
    ("number", "one", "two"),
    [(1, "row", "row is"), (2, "rows", "rows are"), (0, "rows", "rows are"), (1.5, "rows", "rows are")],
)
def test_a_number_has_its_noun(number, one, two):
    assert counted(number, "row") == f"{number} {one}"
    assert counted(number, "row is", "rows are") == f"{number} {two}"


def test_a_number_is_formatted():
    assert (counted(12345, "row", form=","), counted(1.0, "day", form="g")) == ("12,345 rows", "1 day")
