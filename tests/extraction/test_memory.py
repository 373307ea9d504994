import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cutouts(tmp_path):
    from memory import compare

    result = compare(tmp_path, few=2_000, many=60_000, side=32)
    images = 60_000 * 32 * 32 * 4 / 2**20
    assert images > 200, "large enough to show"
    assert result["difference_MB"] < 60, result
