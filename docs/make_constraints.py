"""Write `constraints*.txt`: exact versions of all that `make install` brings, with the hashes of their files.

Versions stay as they are, unless `pyproject.toml` asks for others; `--upgrade` brings the newest of all.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11.7"  # the oldest for which all packages have releases
FILES = {
    "constraints.txt": "Exact, tested versions of all that `make install` brings, wheels only",
    "constraints-sdist.txt": "Of these there is no wheel: built with the pinned setuptools, after all else",
    "constraints-cuda.txt": "What PyTorch's own build for CUDA needs as well; a build for CPUs needs none of it",
}
NO_WHEEL = ("antlr4-python3-runtime",)
CUDA = ("cuda-", "nvidia-", "triton==")
CPU = """\
# The build of PyTorch for CPUs, taken where an index or a folder that pip knows has it; else it is PyPI's build
torch==2.13.0+cpu \\
    --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
"""  # for Python 3.11 on Linux, x86_64


def file_of(pin: str) -> str:
    """Return the file that a pin belongs to."""
    if pin.startswith(CUDA):
        return "constraints-cuda.txt"
    return "constraints-sdist.txt" if pin.startswith(NO_WHEEL) else "constraints.txt"


def resolve(upgrade: bool) -> str:
    """Return all pins with their hashes, for every platform and each Python from the oldest on."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "all.txt"
        out.write_text("".join((ROOT / name).read_text() for name in FILES if (ROOT / name).exists()))
        uv = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-config", "--universal"]
        what = ["--python-version", PYTHON, "--generate-hashes", "--no-header", "--no-annotate", "--extra", "dev"]
        subprocess.run([*uv, *what, *["--upgrade"] * upgrade, "-o", out, "pyproject.toml"], cwd=ROOT, check=True)
        return out.read_text()


def main() -> None:
    """Write the files."""
    found: dict[str, list[str]] = {name: [f"# {said}\n"] for name, said in FILES.items()}
    for pin in re.findall(r"^\S.*\\\n(?:    --hash.*\n)+", resolve("--upgrade" in sys.argv), re.M):
        found[file_of(pin)].append(pin)
    for name, pins in found.items():
        (ROOT / name).write_text("".join(pins))
    (ROOT / "constraints-cpu.txt").write_text(CPU)


if __name__ == "__main__":
    main()
