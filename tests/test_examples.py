"""The examples in docstrings are true, and the functions that people call by themselves have one."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if re.search(r"^ +>>> ", path.read_text(), re.M)
)
WITHOUT = {  # functions of these modules that have no example, as they need a network, an archive or the reader's files
    "nenya.defs": set(),
    "nenya.data.spectra": {"power", "density_factor", "file_spectrum"},
    "nenya.latents.difference": {"compare_sides"},
    "nenya.latents.metrics": {"neighbour_agreement", "same_values"},
    "nenya.latents.similarity": {"closest_of", "rank"},
    "nenya.models.losses": {"gather_views"},
    "nenya.models.objectives.barlow_twins": set(),
    "nenya.models.objectives.byol": set(),
    "nenya.models.objectives.moco": set(),
    "nenya.models.objectives.vicreg": set(),
    "nenya.prepare.synthetic": {"published_blocks", "stream_cutouts", "turbulent_cutouts"},
    "nenya.tables.grids": set(),
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0 and found.attempted > 0


@pytest.mark.parametrize("name", WITHOUT)
def test_functions_that_are_called_by_themselves_have_an_example(name):
    module = importlib.import_module(name)
    functions = {
        n: f for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == name and n[0] != "_"
    }
    lacking = {n for n, f in functions.items() if ">>>" not in (inspect.getdoc(f) or "")}
    assert lacking == WITHOUT[name]
