"""The HTML pages of commands: one head, one style, no script, and all texts escaped."""

import re
from pathlib import Path

import pytest

from nenya.plotting import audit_page, comparison_page, metrics_page

NOTHING = {"verdicts": {}, "columns": [], "folds": {}, "left_out": {"<i>x": "why"}, "made_by": {"seed": 1}}


def pages(tmp_path: Path) -> dict[str, str]:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    of_metrics = {"provenance": {}, "made_by": {"seed": 1}, "pca_file": "a.npz"}
    return {
        "audit": audit_page.page("<b>name", NOTHING),
        "metrics": metrics_page.page("<b>name", {"N95": "4"}, of_metrics, {"<i>x": picture}),
        "compare": comparison_page.comparison_page("<b>name", ["<i>x"], [], {"a": picture}, {"seed": 1}),
    }


@pytest.mark.parametrize("name", ["audit", "metrics", "compare"])
def test_pages_share_their_head_and_run_nothing(name, tmp_path):
    every = pages(tmp_path)
    text = every[name]
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">') and text.rstrip().endswith("</body></html>")
    assert "default-src 'none'" in text and "<script" not in text
    assert "&lt;b&gt;name" in text and "<b>name" not in text and "&lt;i&gt;x" in text and "<i>x" not in text
    assert "<h2>Definitions</h2>" in text and "<tr><th>seed</th><td>1</td></tr>" in text
    rules = [set(re.findall(r"^\w.*\{.*\}$", page, re.M)) for page in every.values()]
    assert len(set.intersection(*rules)) >= 4
    assert (name == "audit") != ('src="data:image/png;base64,iVBORw==' in text)
