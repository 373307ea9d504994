"""Completion in real shells: words typed into bash, zsh and fish come out complete."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nenya.cli import main
from nenya.commands.completion import choices_of, script, topics
from nenya.commands.compose import GROUPS, command_names, compose, options_of, prepare
from nenya.commands.compose import _annotation as annotation_of
from nenya.commands.help import help_text, topic_text
from nenya.errors import OptionError
from nenya.options.files import model_versions


@contextmanager
def terminal(*command: str, **environment: str) -> Iterator[int]:
    """A shell at a terminal of its own, and the end of it that a person would hold."""
    child, end = pty.fork()
    if child == 0:
        os.execvpe(command[0], command, {**os.environ, "TERM": "dumb", "PS1": "$ ", **environment})
    try:
        yield end
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(end)


def typed(end: int, text: str, until: str, seconds: float = 60) -> str:
    """Type a text and return what came until a pattern was there."""
    os.write(end, text.encode())
    seen, last = "", time.monotonic() + seconds
    while not re.search(until, seen):
        ready, _, _ = select.select([end], [], [], max(last - time.monotonic(), 0))
        assert ready, f"no {until!r} in {seen!r}"
        seen += os.read(end, 65536).decode(errors="replace")
    return seen


def test_a_script_has_all_commands_and_their_options():
    for shell in ("bash", "zsh", "fish"):
        text = script(shell)
        assert all(name in text for name in command_names())
    for command in command_names():
        names = [choice.name for choice in choices_of(command)]
        assert len(set(names)) == len(names)
        keys = [key for key in names if key not in GROUPS]
        assert keys and all(annotation_of(options_of(command), key) for key in keys if key != "archive")
        assert "archive" not in keys or prepare(command, ["archive=folder"])
    train = help_text("train", compose("train", []))
    assert all(re.search(rf"^ *{c.name.rpartition('.')[2]}[:=]", train, re.MULTILINE) for c in choices_of("train"))
    assert next(c for c in choices_of("train") if c.name == "model").values == tuple(model_versions())
    assert next(c for c in choices_of("extract") if c.name == "clobber").values == ("true", "false")
    assert next(c for c in choices_of("generate") if c.name == "kind").values == ("ocean", "white", "power2", "power4")


def test_topics_are_explained():
    assert {"search", "model", "loader.cache_dir"} <= set(topics())
    for topic in topics()[:: len(topics()) // 12]:
        assert topic_text([topic])


def test_an_unknown_shell_is_one_line(capsys):
    with pytest.raises(OptionError, match="expected one of bash, zsh, fish; did you mean fish"):
        script("fis")
    assert main(["completion", "tcsh"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["completion", "bash"]) == 0 and "complete -F _nenya nenya" in capsys.readouterr().out


def test_bash_completes_what_is_typed(tmp_path):
    (tmp_path / "completion.bash").write_text(script("bash"))
    (tmp_path / "cutouts_preproc.h5").touch()
    (tmp_path / "two words.h5").touch()
    with terminal("bash", "--norc", "--noprofile", "-i", HOME=str(tmp_path)) as end:
        typed(
            end, f"cd {tmp_path}; source completion.bash; nenya() {{ printf '<%s>' \"$@\"; }}; echo rea''dy\n", "ready"
        )
        line = "nenya ext\tmodel=oce\t loader.cache_d\t/tmp clobber=t\t data=cut\t ckpt=two\t\n"
        words = re.findall(r"<([^<>]*)>", typed(end, line, "<ckpt=[^>]*>"))
        assert words == [
            *("extract", "model=ocean", "loader.cache_dir=/tmp", "clobber=true", "data=cutouts_preproc.h5"),
            "ckpt=two words.h5",
        ]
        assert "<train><cutouts_preproc.h5>" in typed(end, "nenya trai\tcut\t\n", "<train><.*>")
        assert "<help><search>" in typed(end, "nenya hel\tsear\t\n", "<help><.*>")
        typed(end, "COMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n", r"\$ ")
        assert "<extract><model=ocean>" in typed(end, "nenya extract model=oce\t\n", "<extract><.*>")


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes_what_is_typed(tmp_path):
    (tmp_path / "completion.zsh").write_text(script("zsh"))
    (tmp_path / "cutouts_preproc.h5").touch()
    with terminal("zsh", "-f", "-i", HOME=str(tmp_path)) as end:
        setup = f"cd {tmp_path}; autoload -U compinit; compinit -u -D; source ./completion.zsh; "
        typed(end, setup + "nenya() { printf '<%s>' $@ }; echo rea''dy\n", "\nready")
        line = "nenya ext\tmodel=oce\tloader.cache_d\t/tmp clobber=t\tdata=cut\t\n"
        words = re.findall(r"<([^<>%]*)>", typed(end, line, "<data=[^>]*>"))
        assert words == ["extract", "model=ocean", "loader.cache_dir=/tmp", "clobber=true", "data=cutouts_preproc.h5"]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_what_is_typed(tmp_path):
    (tmp_path / "completion.fish").write_text(script("fish"))
    (tmp_path / "cutouts_preproc.h5").touch()

    def answers(line: str) -> list[str]:
        command = f"source completion.fish; complete -C '{line}'"
        home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
        done = subprocess.run(
            ["fish", "--no-config", "-c", command], cwd=tmp_path, check=True, capture_output=True, text=True,
            env={**os.environ, **home},
        )  # fmt: skip
        return [found.partition("\t")[0] for found in done.stdout.splitlines()]

    assert answers("nenya extr") == ["extract"]
    assert answers("nenya extract model=oce") == ["model=ocean"]
    assert answers("nenya extract loader.cache_d") == ["loader.cache_dir="]
    assert answers("nenya extract data=cut") == ["data=cutouts_preproc.h5"]
    assert "search" in answers("nenya help sea")
