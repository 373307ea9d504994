import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import probes


def test_what_counts_as_beaten():
    r2 = {name: dict.fromkeys(probes.TARGETS, 0.3) for name in ("untrained projection", "untrained encoder")}
    r2["image PCA, 4 squared"] = dict.fromkeys(probes.TARGETS, 0.5)
    r2["trained projection"] = dict.fromkeys(probes.TARGETS, 0.6)
    r2["trained encoder"] = dict.fromkeys(probes.TARGETS, 0.51)
    found = probes.beats(r2)
    assert all(found["projection"].values())
    assert not any(found["encoder"].values()), "a difference below the margin is chance"


@pytest.mark.slow
def test_short_training_brings_out_the_slope(tmp_path):
    found = probes.measure(tmp_path, (1536, 512), 7, ["trainer.max_epochs=5"])
    r2 = found["r2"]
    assert all(value <= 1 for of in r2.values() for value in of.values())
    assert probes.beats(r2)["projection"]["true_slope"]
    assert r2["trained projection"]["true_DT"] > r2["image PCA, 64 squared"]["true_DT"]
