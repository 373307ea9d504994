import json
from itertools import pairwise

import numpy as np
import pytest

from nenya.errors import OptionError
from nenya.models.schedule import Schedule

CASES = [
    "v4",
    "v5",
    "viirs_v1",
    "viirs_test_5ep",
    "step_nowarm_700",
    "step_nowarm_20_35_45",
    "step_warm_20_35_45",
    "cosine_nowarm",
    "bs512_warm_forced",
]
FIELDS = ("learning_rate", "epochs", "cosine", "warm", "lr_decay_rate", "lr_decay_epochs")


def test_all_golden_schedules_are_tested(goldens):
    assert sorted(json.loads((goldens / "golden_public.json").read_text())["lr"]) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_rates_equal_the_goldens(goldens, case):
    options = json.loads((goldens / "golden_public.json").read_text())["lr"][case]
    schedule = Schedule(**{name: options[name] for name in FIELDS})
    with np.load(goldens / "golden_public.npz", allow_pickle=False) as file:
        by_epoch, by_step = file[f"lr/epoch/{case}"], file[f"lr/step/{case}"]
    if options["warm"]:
        assert schedule.warmup_to == pytest.approx(options["warmup_to"], rel=1e-12)
    epochs = range(1, schedule.epochs + 1)
    ours = [[schedule.at_step(epoch, step, 100) for step in range(100)] for epoch in epochs]
    np.testing.assert_allclose([schedule.at_epoch(epoch) for epoch in epochs], by_epoch, rtol=1e-12)
    np.testing.assert_allclose(ours, by_step, rtol=1e-12)


@pytest.mark.parametrize("epochs", [1, 5, 7, 10])
def test_a_training_no_longer_than_its_warm_up_only_rises_towards_the_rate(epochs):
    schedule = Schedule(learning_rate=0.05, epochs=epochs, cosine=True, warm=True)
    assert schedule.warmup_to == 0.05
    rates = [schedule.at_step(epoch, step, 7) for epoch in range(1, epochs + 1) for step in range(7)]
    assert rates[0] == 0.01
    assert all(before < after <= 0.05 for before, after in pairwise(rates))


def test_no_jump_where_the_warm_up_meets_the_cosine():
    schedule = Schedule(learning_rate=0.05, epochs=50, cosine=True, warm=True)
    assert schedule.at_step(10, 100, 100) == pytest.approx(schedule.at_epoch(10), rel=1e-12)


def test_cosine_ends_at_its_lowest_rate():
    schedule = Schedule(learning_rate=0.05, epochs=50, cosine=True, warm=True)
    assert schedule.at_step(50, 3, 100) == pytest.approx(5e-5, rel=1e-12)


def test_steps_count_epochs_strictly_below():
    schedule = Schedule(0.05, 50, cosine=False, warm=False, lr_decay_epochs=(20, 35))
    rates = [schedule.at_epoch(epoch) for epoch in (20, 21, 35, 36)]
    assert rates == pytest.approx([0.05, 0.005, 0.005, 0.0005])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("epochs", 0),
        ("lr_decay_rate", 0.0),
        ("lr_decay_rate", 1.5),
        ("lr_decay_epochs", (0, 5)),
        ("warm_epochs", 0),
        ("warmup_from", -0.1),
    ],
)
def test_values_outside_their_range_are_refused(name, value):
    options = {"learning_rate": 0.05, "epochs": 50, "cosine": True, "warm": True, name: value}
    with pytest.raises(OptionError, match=rf"optim\.{name}="):
        Schedule(**options)
