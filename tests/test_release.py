"""What a release promises: its version, citation, requirements, containers, and the Pythons that it supports."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import nenya

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
SUPPORTED = [
    name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)
]  # 3.11, ...
# conda-forge's names, where they are not PyPI's
CONDA = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "huggingface-hub": "huggingface_hub",
    "cf-xarray": "cf_xarray",
}


def test_version_changelog_and_citation_name_the_same_release():
    base = Version(nenya.__version__).base_version
    newest = re.search(r"^## (\S+) \(([^)]*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest[1] == base == cited["version"]
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
    assert recipe["context"]["version"] == base
    if not Version(nenya.__version__).is_devrelease:
        assert newest[2] == str(cited["date-released"]), "a release has its date in CHANGELOG.md and CITATION.cff"


def test_the_conda_recipe_asks_for_what_pyproject_asks_for():
    recipe = yaml.safe_load((ROOT / "packaging/conda/recipe.yaml").read_text())
    asked = dict(line.split(" ", 1) for line in recipe["requirements"]["run"])
    wanted = {"python": PROJECT["requires-python"]}
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["portal"], *extras["search"]]):
        wanted[CONDA.get(requirement.name, requirement.name).lower()] = str(requirement.specifier)
    assert {n: set(s.split(",")) for n, s in asked.items()} == {n: set(s.split(",")) for n, s in wanted.items()}


def test_each_supported_python_is_in_the_matrix():
    assert SUPPORTED == WORKFLOWS["ci"]["jobs"]["pythons"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={SUPPORTED[0]}"


def test_workflows_run_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    steps = [s for w in WORKFLOWS.values() for job in w["jobs"].values() for s in job["steps"] if "run" in s]
    made = {name for s in steps for names in re.findall(r"^make (.+)$", s["run"], re.M) for name in names.split()}
    assert made >= {"test", "test-slow", "test-oldest", "release", "audit"} and made <= targets


def test_what_the_container_copies_is_there_and_not_ignored():
    container = (ROOT / "packaging/Containerfile").read_text()
    copied = [n for line in re.findall(r"^COPY (?!--from)(.+) \S+$", container, re.M) for n in line.split()]
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = [pattern.removeprefix("!") for pattern in ignored if pattern.startswith("!")]
    assert ignored[0] == "*" and len(copied) >= 8
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(Path(name).match(pattern) for pattern in kept), f"{name} is kept out by .dockerignore"


@pytest.mark.slow
@pytest.mark.parametrize("python", SUPPORTED)
def test_every_pin_has_a_wheel_for(python, tmp_path):
    uv = Path(sys.executable).with_name("uv")
    files = [f"-c={ROOT / f'constraints{kind}.txt'}" for kind in ("", "-cuda", "-sdist")]
    command = [uv, "pip", "compile", "--no-config", "--python-version", f"{python}.7", "--no-annotate", "--no-header"]
    only = ["--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime", "--extra", "dev", *files]
    found = subprocess.run([*command, *only, ROOT / "pyproject.toml"], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert len(re.findall(r"^[\w.-]+==", found.stdout, re.M)) > 150


@pytest.mark.slow
@pytest.mark.parametrize("python", SUPPORTED[1:])
def test_types_hold_under(python, tmp_path):
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-version", python, "--cache-dir", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stdout[-2000:]
