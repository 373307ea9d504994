import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import nenya
from nenya.configs import model_versions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_configs_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {Path(n).stem for n in names if n.startswith("nenya/configs/model/")}
    assert configs == set(model_versions())
    assert {"nenya/py.typed", "nenya/configs/train.yaml", "nenya/configs/extract.yaml"} <= set(names)
    assert any(n.endswith("LICENSE") for n in names)
    assert "nenya/data_files/coastlines.npz" in names
    assert f"-{nenya.__version__}-" in wheel.name


def test_the_wheel_alone_gives_the_command(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    # The dependencies of this environment without nenya's editable link: a path entry runs no .pth file.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, wheel], check=True, capture_output=True)
    command = tmp_path / "v" / "bin" / "nenya"
    version = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"nenya {nenya.__version__}"
    where = subprocess.check_output(
        [python, "-c", "import nenya.cli as c; print(c.config_dir())"], cwd=tmp_path, text=True
    )
    assert where.strip() == str(site / "nenya" / "configs")
    wrong = subprocess.run([command, "extract", "model=v55"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "did you mean v5?" in wrong.stderr


def test_every_dependency_has_a_reason_and_a_pin():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    listed = [line for line in lines[start + 1 : lines.index("]", start)] if line.strip()]
    assert all("#" in line for line in listed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    wanted = [dependency for dependency in wanted if not dependency.startswith("nenya[")]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {dependency.split("[")[0].split(">")[0].split("=")[0].lower().replace("_", "-") for dependency in wanted}
    assert names <= pinned, names - pinned
