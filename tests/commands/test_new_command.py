"""A new command is four files: its module, its YAML, its script and a line in the pages. Tried on a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''"""`nenya toy`: counts to k."""

from dataclasses import dataclass
from typing import ClassVar

from nenya.storage.texts import say
from nenya.options.declare import at_least, option
from nenya.options.sections import Options


@dataclass
class ToyOptions(Options):
    """Options of the toy."""

    uses: ClassVar = ("seed",)

    k: int = option(3, "number to count to", at_least(1))


def run(options: ToyOptions) -> int:
    """Count to k.

    Returns:
        0.
    """
    say(" ".join(str(number) for number in range(1, options.k + 1)))
    return 0
'''
YAML = """# Counts: nenya toy k=5
defaults:
  - schema_toy
  - trainer: default
  - logger: none
  - model: custom
  - _self_
hydra:
  help:
    app_name: toy
    header: count to a number
    template: |
      Counts to k.

        python scripts/toy.py k=5

      == All options with their values (section.key=value changes one) ==
      $CONFIG
"""
SCRIPT = '''"""Count: `python scripts/toy.py k=5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("toy"))
'''
FILES = {
    "src/nenya/commands/toy.py": MODULE,
    "configs/toy.yaml": YAML,
    "scripts/toy.py": SCRIPT,
    "docs/toy.md": "`nenya toy k=5` counts to 5.\n",
}
NENYA = [sys.executable, "-c", "import sys; from nenya.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs a command line with a copy of the package that has `nenya toy`."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src" / "nenya", root / "src" / "nenya", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", root / "configs")
    for name, text in FILES.items():
        place = root / name
        place.parent.mkdir(exist_ok=True)
        assert not place.exists()
        place.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, timeout=600)

    return call


def test_the_command_runs_by_name_and_by_script(run):
    for words in ([*NENYA, "toy", "k=5"], [sys.executable, "scripts/toy.py", "k=5"]):
        done = run(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 2 3 4 5\n", "")


def test_the_command_is_listed_and_has_a_help(run):
    listed = run(*NENYA, "--help")
    assert listed.returncode == 0 and "  toy        count to a number\n" in listed.stdout
    helped = run(*NENYA, "toy", "--help")
    assert helped.returncode == 0 and "Counts to k." in helped.stdout and "number to count to" in helped.stdout
    assert "loss:" not in helped.stdout and "seed:" in helped.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [("loss.temp=3", "loss.temp"), ("k=0", "k=0"), ("k=many", "expected an integer"), ("kk=3", "k")],
)
def test_other_options_are_refused_in_one_line(run, word, said):
    done = run(*NENYA, "toy", word)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("nenya toy: ") and said in done.stderr
