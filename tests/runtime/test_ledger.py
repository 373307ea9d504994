"""Where the time goes: stages within stages, other threads, and the lines that tell it."""

import re
import threading
import time
from pathlib import Path

import pytest
from conftest import QUICK

from nenya.runtime import trainer as ledgers
from nenya.runtime.trainer import Ledger


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(ledgers.time, "monotonic", lambda: now[0])
    return now


def spend(ledger, clock, action, seconds, within=()):
    with ledger.profile(action):
        clock[0] += seconds
        for inner in within:
            spend(ledger, clock, *inner)


def test_a_stage_within_a_stage_is_taken_out_of_it(clock):
    ledger = Ledger()
    clock[0] += 1
    inner = [("[Strategy]SingleDeviceStrategy.training_step", 2), ("[Strategy]SingleDeviceStrategy.backward", 3)]
    spend(ledger, clock, "[LightningModule]M.optimizer_step", 0.5, inner)
    spend(
        ledger,
        clock,
        "[Strategy]SingleDeviceStrategy.batch_to_device",
        0.25,
        [("[LightningDataModule]D.on_after_batch_transfer", 4)],
    )
    spend(ledger, clock, "run_training_batch", 0.125, [("[_TrainingEpochLoop].train_dataloader_next", 1)])
    wanted = {"wait": 1, "transfer": 0.25, "augment": 4, "forward": 2, "backward": 3, "optimizer": 0.5, "rest": 1.125}
    assert ledger.seconds() == wanted
    assert sum(wanted.values()) == ledger.wall


def test_an_error_closes_the_stages_that_it_leaves_open(clock):
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.profile("[LightningModule]M.optimizer_step"):
        ledger.start("[Strategy]SingleDeviceStrategy.backward")
        clock[0] += 2
        raise KeyError
    clock[0] += 1
    spend(ledger, clock, "save_checkpoint", 4)
    assert ledger.seconds() == {"backward": 2, "write": 4, "rest": 1}
    ledger.stop("[Strategy]SingleDeviceStrategy.backward")
    assert ledger.seconds() == {"backward": 2, "write": 4, "rest": 1}


def test_another_thread_is_beside(clock):
    ledger = Ledger()
    thread = threading.Thread(target=spend, args=(ledger, clock, "[Strategy]SingleDeviceStrategy.predict_step", 5))
    thread.start()
    thread.join()
    assert ledger.seconds() == {"rest": 5}


def test_reading_that_the_loop_waits_for_is_no_waiting(clock):
    ledger = Ledger()
    spend(ledger, clock, "[_PredictionLoop].predict_next", 3)
    ledger.add("read", 2, within="wait")
    ledger.add("read", 7)
    assert ledger.seconds() == {"wait": 1, "read": 2, "rest": 0}
    assert ledger.summary() == "time: wait 33%, read 67% of 3.0 s; concurrently read 7.0 s; longest: reading cutouts"


def test_the_largest_part_is_named_whatever_it_is(clock):
    ledger = Ledger()
    spend(ledger, clock, "[Strategy]SingleDeviceStrategy.predict_step", 3)
    ledger.add("prepare", 2, within="forward")
    assert ledger.seconds() == {"prepare": 2, "forward": 1, "rest": 0}
    assert ledger.summary().endswith("longest: preparing or compiling the network")
    clock[0] += 9
    assert "rest 75% of 12.0 s; longest: other work" in ledger.summary()


def test_a_run_with_nothing_to_do_has_a_line(clock):
    assert Ledger().summary().startswith("time: ")


LINE = re.compile(r"time: (?:[a-z]+ [0-9]+%(?:, )?)+ of [0-9.]+ s.*; longest: (?:for|back)ward pass")


def test_extraction_says_where_its_time_went(nenya_cli, small_file, tiny_weights):
    args = ["model=demo", f"data={small_file}", f"ckpt={tiny_weights}", "out=o/", "trainer.accelerator=cpu"]
    code, said = nenya_cli("extract", args)
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if "time: " in line]
    assert line.startswith(f"{small_file.name}: time: ") and "forward" in line


def test_training_says_where_its_time_went(nenya_cli, small_file):
    code, said = nenya_cli("train", [*QUICK, f"data={small_file}", "out=run"])
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if line.startswith("time: ")]
    assert LINE.fullmatch(line), line
    assert all(stage in line for stage in ("forward", "backward", "augment"))


def test_wandb_gets_the_stages_of_an_extraction(nenya_cli, small_file, tiny_weights, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    args = ["model=demo", f"data={small_file}", f"ckpt={tiny_weights}", "out=o/", "trainer.accelerator=cpu"]
    code, said = nenya_cli("extract", [*args, "logger=wandb"])
    assert code == 0, said
    (file,) = Path("outputs/wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 300  # wandb's own process may write a moment later
    while b"ledger/forward" not in (logged := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name in (b"ledger/forward", b"ledger/rest", b"nonfinite_rows", b"git_commit"):
        assert name in logged
