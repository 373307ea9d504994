"""The table of what is handed in and what stops it: each row names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reference" / "security.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line.rpartition(" | ")[2]]


def test_every_row_names_tests_that_exist():
    assert len(ROWS) > 30
    missing, functions = [], {}
    for row in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            if path not in functions:
                tree = ast.parse((TESTS / path).read_text())
                functions[path] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            if name not in functions[path]:
                missing.append(f"{path}::{name}")
    assert missing == []
