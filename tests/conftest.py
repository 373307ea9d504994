"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: NENYA_SHARED, or `shared` beside the repository; skips without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("NENYA_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}; NENYA_SHARED names another folder")
    return folder


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Path:
    """The golden values made by the original code."""
    folder = shared / "goldens"
    if not folder.is_dir():
        pytest.skip(f"no golden values in {folder}")
    return folder
