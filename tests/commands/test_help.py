import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nenya.cli import main
from nenya.commands.compose import command_names, compose, options_of
from nenya.commands.help import help_text, overview, topic_text
from nenya.errors import OptionError
from nenya.options.files import model_versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", command_names())
def test_the_help_has_no_place_left_to_fill(name):
    text = help_text(name, compose(name, []))
    assert not re.search(r"\$[A-Z]+_?[A-Z]*\b(?!/)", text.partition("== All options")[0])
    assert name in overview()


def test_the_help_names_the_choices_of_each_command():
    train, prepare = (help_text(name, compose(name, [])) for name in ("train", "prepare"))
    listed = " ".join(train.split())
    assert f"model= {', '.join(model_versions())}" in listed and "trainer= cpu, ddp, default, gpu" in listed
    sensors = ", ".join(sorted(path.stem for path in (ROOT / "configs" / "sensor").glob("*.yaml")))
    assert f"sensor= {sensors}" in " ".join(prepare.split()) and "model=" not in prepare
    assert len(prepare.splitlines()) < 80
    assert not re.search(r"batch_size|train_key|memory_limit|num_workers", prepare) and "cache_dir" in prepare


def test_prepare_refuses_options_of_training(tmp_path):
    assert compose("prepare", ["loader.cache_dir=x"]).loader.cache_dir == "x"
    with pytest.raises(OptionError, match=r"loader\.batch_size_train: has an effect only in a training"):
        compose("prepare", ["loader.batch_size_train=3"])


def test_topics():
    assert topic_text([]) == overview() and topic_text(["search"]) == help_text("search", compose("search", []))
    assert "  demo           A small network" in topic_text(["model"])
    assert topic_text(["models"]) == topic_text(["model"]) and topic_text(["sensors"]) == topic_text(["sensor"])
    for topic in (["loader.cache_dir"], ["cache_dir"], ["loader", "cache_dir"]):
        said = topic_text(topic)
        assert re.search(r"^nenya prepare, .*train, .*\n  loader\.cache_dir: null +# folder of", said), said
    assert "nenya statistics, figures" not in topic_text(["like"]) and "nenya search\n  like: null" in topic_text(
        ["like="]
    )
    assert "an archive of nenya update" in topic_text(["archive"]) and "model_root" in topic_text(["archive"])
    with pytest.raises(OptionError, match=r"cashe_dir: expected a command, a group .*did you mean cache_dir"):
        topic_text(["cashe_dir"])


def test_help_on_the_command_line(capsys):
    assert main(["help", "optim"]) == 0 and "nenya train, demo\n  optim:\n    learning_rate" in capsys.readouterr().out
    assert main(["help", "nothing-of-the-kind"]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert main(["help"]) == 0 and main([]) == 2
    assert main(["hlep"]) == 2 and "did you mean help" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--hydra-help", "-sc", "--shell-completion"])
def test_flags_that_nenya_does_not_have(flag, nenya_cli):
    code, said = nenya_cli("train", [flag])
    assert code == 2 and len(said.splitlines()) == 1 and f"{flag}: expected key=value" in said


@pytest.mark.parametrize("words", [["--help"], ["train", "--cfg", "job"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(words, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "import sys, nenya.cli; sys.exit(nenya.cli.main())", *words]
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


INPUTS = {"train": "data", "extract": "data", "prepare": "data", "search": "data", "clusters": "data", "index": "data",
          "statistics": "table", "figures": "table", "portal": "table", "export": "ckpt", "migrate": "folder",
          "status": "archive_dir", "update": "archive_dir", "inspect": "data", "embed": "data"}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), INPUTS.items())
def test_words_without_a_key_are_the_input_of_every_command(name, key):
    found = getattr(compose(name, ["it's a file, [1]"]), key)
    assert found == (["it's a file, [1]"] if key == "data" else "it's a file, [1]")


def test_words_that_cannot_be_the_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, args, words in [
        ("train", ["clobber"], "clobber: expected key=value, such as clobber=true"),
        ("extract", ["a.h5", "data=b.h5"], r"data=b\.h5 and a\.h5: give the input once"),
        ("statistics", ["a.parquet", "b.parquet"], "expected one table, got 2"),
        ("status", ["a", "archive=b"], "archive=b and a: give the input once: archive=, or"),
        ("generate", ["a.h5"], r"a\.h5: expected key=value, as this command has no input"),
    ]:
        with pytest.raises(OptionError, match=words):
            compose(name, args)
    assert compose("index", ["add", "a.h5"]).add and options_of("index").positional == "data"
    Path("debug").mkdir()
    assert compose("train", ["debug"]).data == ["debug"]
