"""The measurements of a GPU in one command: each section is on the disk when it ends, whatever the others do."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SECTIONS = ["peak", "forward", "agreement", "whole_runs", "training_step", "profiles"]
NAMES = ["machine", "peak", "forward", "agreement", "runs", "training step", "profiles"]


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Run the program with sections that take no time, but for those given; gives its exit code and what it wrote."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    def call(*args, **sections):
        for name in SECTIONS:
            monkeypatch.setattr(gpu, name, sections.get(name, lambda *_, name=name: {"of": name}))
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device=cpu", "--quick", f"--out={tmp_path}", *args])
        try:
            code = gpu.main()
        except KeyboardInterrupt:
            code = None
        return code, json.loads((tmp_path / "gpu-cpu.json").read_text())

    return call


def failing(*_):
    raise RuntimeError("no kernel image is available")


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_section_that_fails_costs_no_other(measure, tmp_path):
    code, found = measure(agreement=failing)
    assert code == 1 and list(found) == NAMES
    assert "no kernel image" in found["agreement"]["failed"] and found["profiles"] == {"of": "profiles"}
    assert "## training step" in (tmp_path / "gpu-cpu.md").read_text()


def test_what_was_measured_before_an_interruption_is_kept(measure):
    code, found = measure(whole_runs=interrupted)
    assert code is None and list(found) == NAMES[:4]


def test_no_section_begins_when_the_time_is_over(measure):
    code, found = measure("--minutes=0")
    assert code == 0 and all(found[name] == {"left out": "the time was over"} for name in NAMES[1:])


@pytest.mark.slow
def test_all_sections_run_on_a_cpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device=cpu", "--quick", f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(found) == NAMES and not any("failed" in found[name] for name in NAMES)
    assert found["peak"]["bf16_matmul_TFLOPs"] > 0 and found["agreement"]["least_cosine"] > 0.99
    assert found["runs"]["extraction"]["cutouts_per_s"] > 0 and found["runs"]["training"]["samples_per_s"] > 0


@pytest.mark.slow
def test_what_was_measured_before_a_kill_is_kept(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device=cpu", "--quick", f"--out={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = list(itertools.takewhile(lambda line: not line.startswith("agreement"), process.stdout))
        assert process.poll() is None, said
    finally:
        process.kill()
        process.wait()
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(found)[:4] == NAMES[:4] and found["agreement"]["least_cosine"] > 0.99


def test_without_a_gpu_one_line_says_what_can_be_run(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), f"--out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--device cpu --quick" in done.stderr
    assert not list(tmp_path.iterdir())
