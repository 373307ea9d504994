"""What is released: wheel, source archive, extras, versions, licences."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import nenya
from nenya.options.extras import EXTRAS
from nenya.options.files import model_versions

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE, OPTIONAL = PROJECT["dependencies"], PROJECT["optional-dependencies"]

# Run in an environment with one extra alone: what it is for works, what the others are for says how to get it.
ALONE = """
import importlib, os, pkgutil, subprocess, sys
import pandas as pd
import nenya
from nenya.tables.conditions import rows_where
from nenya.errors import OptionError
from nenya.options.extras import EXTRAS, need

extra = sys.argv[1]
there = set(EXTRAS) if extra == "dev" else {extra} & set(EXTRAS)
there |= {"publish"} if "dask" in there else set()  # distributed brings dask
for name, modules in EXTRAS.items():
    try:
        need(name, "this")
        assert name in there, f"{name} is there"
        for module in modules:
            importlib.import_module(module)
    except OptionError as error:
        assert name not in there and f"pip install 'nenya[{name}]'" in str(error), error
table = pd.DataFrame({"lat": [1.0, 50.0]})
if "search" in there:
    assert list(rows_where(table, "lat > 30")) == [False, True]
for module in pkgutil.walk_packages(nenya.__path__, "nenya."):
    if "portal" in there or not module.name.startswith("nenya.portal"):
        importlib.import_module(module.name)
command = os.path.join(os.path.dirname(sys.executable), "nenya")
said = subprocess.run([command, "--help"], capture_output=True, text=True)
assert said.returncode == 0 and "extract" in said.stdout, said
said = subprocess.run([command, "search", "index=none.index", "like=1"], capture_output=True, text=True)
assert said.returncode == 2, said
assert ("nenya[search]" in said.stderr) == ("search" not in there), said
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


def test_the_wheel_carries_configs_coastlines_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {Path(n).stem for n in names if n.startswith("nenya/configs/model/")}
    assert configs == set(model_versions())
    ours = {f"nenya/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert ours == {n for n in names if n.startswith("nenya/configs/")}
    assert {"nenya/py.typed", "nenya/data_files/coastlines.npz", "nenya/data_files/ocean.safetensors"} <= set(names)
    assert any(n.endswith("LICENSE") for n in names)
    assert f"-{nenya.__version__}-" in wheel.name
    sources = {f"nenya/{p.relative_to(ROOT / 'src/nenya')}" for p in (ROOT / "src/nenya").rglob("*.py")}
    assert sources == {n for n in names if n.endswith(".py")}


def test_the_source_archive_holds_what_its_readers_need(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = "LICENSE README.md CHANGELOG.md CITATION.cff CONTRIBUTING.md SECURITY.md Makefile pyproject.toml"
    wanted += " constraints.txt constraints-oldest.txt docs/licences.md docs/migrate.md configs/train.yaml"
    assert set(wanted.split()) <= names
    assert {f"tests/{p.name}" for p in (ROOT / "tests").glob("*.py")} <= names
    assert not [n for n in names if "outputs" in n or n.endswith((".h5", ".pth"))]


@pytest.fixture
def fresh(wheel, tmp_path, monkeypatch) -> Path:
    """The folder of an environment with the wheel and its dependencies, and nothing else of this checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    # The dependencies of this environment without nenya's editable link: a path entry runs no .pth file.
    (site_of(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    return tmp_path / "v"


def site_of(python: Path) -> Path:
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.check_output(ask, text=True).strip())


def test_the_wheel_alone_gives_the_command(fresh, tmp_path):
    command, python = fresh / "bin" / "nenya", fresh / "bin" / "python"
    version = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"nenya {nenya.__version__}"
    where = subprocess.check_output(
        [python, "-c", "import nenya.options.files as c; print(c.config_dir())"], cwd=tmp_path, text=True
    )
    assert where.strip() == str(site_of(python) / "nenya" / "configs")
    wrong = subprocess.run([command, "extract", "model=v55"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "did you mean v5?" in wrong.stderr


NO_NETWORK = """
import socket

def refuse(self, address, *more):
    raise OSError(f"no network, and {address} was asked")

socket.socket.connect = socket.socket.connect_ex = refuse
"""


@pytest.mark.slow
def test_the_wheel_alone_gives_latents_without_a_network(fresh, tmp_path, shared):
    real_file = shared / "data" / "real_sst_preproc.h5"
    (site_of(fresh / "bin" / "python") / "sitecustomize.py").write_text(NO_NETWORK)
    for words in (
        ["extract", "model=ocean", f"data={real_file}", "out=latents"],
        ["search", f"latents/{real_file.stem}_latents.h5", "like=3", "k=2"],
        ["search", f"latents/{real_file.stem}_latents.h5", f"image={real_file}:train:1", "model=ocean", "k=2"],
    ):
        done = subprocess.run([fresh / "bin" / "nenya", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert " 1.0000 " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["core", *sorted(OPTIONAL)])
def test_each_extra_installs_and_imports_alone(wheel, tmp_path, monkeypatch, extra):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    wanted = f"nenya[{extra}] @ {wheel.as_uri()}" if extra != "core" else str(wheel)
    plain = tmp_path / "plain.txt"  # pip takes no hashes together with a wheel that has none
    plain.write_text("".join(f"{name}=={version}\n" for name, version in all_pins().items()))
    pip = [python, "-m", "pip", "install", "--quiet", "-c", plain, wanted]
    subprocess.run(pip, check=True, capture_output=True)
    done = subprocess.run([python, "-c", ALONE, extra], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([python, "-m", "pip", "check"], capture_output=True, check=False).returncode == 0


def test_without_an_extra_its_commands_say_how_to_get_it(nenya_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("nenya.options.extras._there", lambda module: False)
    (tmp_path / "t.csv").write_text("lat,DT\n1,2\n")
    for name, args, extra in (
        ("search", ["index=a.index", "like=1"], "search"),
        ("index", ["data=a_latents.h5"], "search"),
        ("statistics", ["table=t.csv", "where=lat > 0"], "search"),
        ("figures", ["table=t.csv", "where=lat > 0"], "search"),
        ("portal", ["table=t.csv"], "portal"),
        ("prepare", ["data=a.nc", "out=a.h5", "dask=tcp://127.0.0.1:1"], "dask"),
        ("metrics", ["data=a_latents.h5", "dask=tcp://127.0.0.1:1"], "dask"),
        ("extract", ["--multirun", "hydra/launcher=slurm", "data=a.h5"], "slurm"),
    ):
        code, said = nenya_cli(name, args)
        assert code == 2 and f"pip install 'nenya[{extra}]'" in said, (name, said)
    assert not list(tmp_path.glob("outputs/*"))


def test_nothing_of_the_extras_is_loaded_by_the_core():
    names = "nenya.cli, nenya.latents.index, nenya.commands.search, nenya.tables.statistics"
    code = f"import sys, {names}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {module for modules in EXTRAS.values() for module in modules} & set(loaded)


def test_the_extras_are_those_that_the_code_asks_for():
    assert set(EXTRAS) | {"dev"} == set(OPTIONAL)
    for extra, modules in EXTRAS.items():
        assert {names(OPTIONAL[extra])[0] for _ in modules} <= set(names(OPTIONAL[extra]))
        for module in modules:
            assert module.rpartition(".")[2].replace("_", "-") in names(OPTIONAL[extra])
    assert not {name for extra in EXTRAS for name in names(OPTIONAL[extra])} & set(names(CORE))


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w.-]+", wanted)[0].lower().replace("_", "-") for wanted in requirements]


def pins(path: Path) -> dict[str, str]:
    asked = (Requirement(line.rstrip("\\ ")) for line in path.read_text().splitlines() if re.match(r"[\w.-]+==", line))
    here = [one for one in asked if one.marker is None or one.marker.evaluate()]
    return {one.name.lower().replace("_", "-"): str(one.specifier).removeprefix("==") for one in here}


HASHED = ("constraints.txt", "constraints-sdist.txt", "constraints-cuda.txt", "constraints-cpu.txt")


def all_pins() -> dict[str, str]:
    return pins(ROOT / "constraints.txt") | pins(ROOT / "constraints-sdist.txt")


@pytest.mark.parametrize("name", HASHED)
def test_every_pin_has_a_hash(name):
    text = re.sub(r" \\\n +", " ", (ROOT / name).read_text())
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) >= 1
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+", line), line[:100]
    assert {path.name for path in ROOT.glob("constraints*.txt")} == {*HASHED, "constraints-oldest.txt"}


def test_an_installation_takes_only_files_of_known_hashes():
    lines = (ROOT / "Makefile").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("$(STAMP):"))
    recipe = lines[start : lines.index("", start)]
    brought = [line for line in recipe if "pip install" in line or "PINNED)" in line]
    for installer in ("PINNED", "UV_PINNED"):
        assert next(line for line in lines if line.startswith(installer)).endswith("--no-deps --require-hashes")
    known = ("$(PINNED)", "$(UV_PINNED)", "--no-deps --no-build-isolation -e .")
    assert all(any(one in line for one in known) for line in brought)
    assert {n for line in brought for n in re.findall(r"-r (\S+)", line)} == {*HASHED, ".venv/uv.txt"}
    (taken,) = [line for line in recipe if line.endswith("> .venv/uv.txt")]
    assert "constraints.txt" in taken.split(), "uv's own hash comes from the pins"
    assert all("--only-binary :all:" in line for line in brought if "-r " in line and "sdist" not in line)
    assert set(pins(ROOT / "constraints-sdist.txt")) == {"antlr4-python3-runtime"}, "code of these runs at once"


def test_no_pin_is_below_the_lowest_version_that_the_project_allows():
    asked = [Requirement(text) for text in CORE + [d for extra in OPTIONAL.values() for d in extra]]
    pinned = all_pins()
    below = {one.name for one in asked if one.name != "nenya" and pinned[names([one.name])[0]] not in one.specifier}
    assert not below
    (cpu,) = pins(ROOT / "constraints-cpu.txt").items()
    assert cpu == ("torch", f"{pinned['torch']}+cpu")


def test_every_dependency_has_a_reason_and_a_pin():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    listed = [line for line in lines[start + 1 : lines.index("]", start)] if line.strip()]
    assert all("#" in line for line in listed)
    wanted = set(names(CORE + [d for extra in OPTIONAL.values() for d in extra])) - {"nenya"}
    assert wanted <= set(all_pins())


def test_the_oldest_versions_are_those_that_the_project_states():
    oldest = pins(ROOT / "constraints-oldest.txt")
    lowest = {}
    for wanted in CORE + [d for extra in EXTRAS for d in OPTIONAL[extra]]:
        lowest[names([wanted])[0]] = re.search(r">=([\d.]+)", wanted)[1]
    assert oldest.keys() == lowest.keys()
    different = {name for name in oldest if oldest[name] != lowest[name]}
    assert different == {"torch"}, "of torch alone the lowest could not be tried"


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    assignment = f'__version__ = "{nenya.__version__}"'
    assert [p for p in (ROOT / "src").rglob("*.py") if assignment in p.read_text()] == [ROOT / "src/nenya/__init__.py"]
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "docs/conf.py"]:
        assert nenya.__version__ not in path.read_text(), path


def test_the_citation_says_what_the_readme_says():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["license"] == PROJECT["license"]
    readme = " ".join((ROOT / "README.md").read_text().replace(">", " ").split())
    paper = cited["preferred-citation"]
    assert paper["title"] in readme and str(paper["year"]) in readme
    assert all(f"{author['given-names']} {author['family-names']}" in readme for author in paper["authors"])


def test_the_licences_of_all_that_is_brought_are_listed():
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| ([^|]+) \| (\S+) \|$", (ROOT / "docs/licences.md").read_text(), re.M)
    listed = {name: (version, licence.strip()) for name, version, licence, _ in rows}
    wanted = set(names(CORE + [d for extra in EXTRAS for d in OPTIONAL[extra]]))
    assert wanted <= set(listed)
    assert not [name for name, (_, licence) in listed.items() if licence in ("", "unknown") or "GPL" in licence]
    pinned = all_pins()
    old = {
        name for name, (version, _) in listed.items() if name in pinned and version.partition("+")[0] != pinned[name]
    }
    assert not old, f"{old}: make licences writes them anew"


def test_the_commands_that_developers_need_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in ("CONTRIBUTING.md", "README.md"):
        assert set(re.findall(r"`make ([\w-]+)`", (ROOT / page).read_text())) <= targets
