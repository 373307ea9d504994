"""The report's figures come from the measurements, and the checks that a page names exist."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (DOCS / "checks.md").read_text())


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    import make_report

    yield make_report
    sys.modules.pop("make_report")


def test_every_check_named_on_the_page_is_a_test():
    assert len(NAMED) > 30
    for path, name in NAMED:
        tests = [f.name for f in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(f, ast.FunctionDef)]
        assert not name or name in tests, f"{path}::{name}"


@pytest.mark.parametrize("page", ["checks.md", "report.md"])
def test_every_program_named_on_the_page_exists(page):
    programs = re.findall(r"python (benchmarks/\w+\.py)", (DOCS / page).read_text())
    assert all((ROOT / program).is_file() for program in programs)
    assert page == "report.md" or len(programs) >= 4


def test_the_first_figure_shows_the_measurements(report):
    shown = dict(report.ratios())
    extraction = json.loads((ROOT / "benchmarks/results/extraction.json").read_text())["cutouts_per_second"]
    ratio = extraction["nenya"] / extraction["original"]
    assert shown["extraction, ResNet50 / original's loop"] == pytest.approx(ratio)
    (axes,) = report.speed().axes
    widths = {
        label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
    }
    assert widths == pytest.approx(shown)


def test_the_report_shows_every_figure_that_is_drawn(report, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "PICTURES", tmp_path)
    report.main()
    shown = re.findall(r"\]\(pictures/([^)]+)\)", (DOCS / "report.md").read_text())
    assert sorted(shown) == sorted(path.name for path in tmp_path.iterdir())
