"""Two machines on one file: two network namespaces with hostnames of their own, torchrun in each, a shared folder."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.231.77.1", "10.231.77.2")
ROWS = {"train": 500, "valid": 100}
NAME = "both_latents.h5"

pytestmark = pytest.mark.slow


def ip(*args, check=True):
    return subprocess.run(["ip", *args], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes():
    """The names of two network namespaces with a cable between them."""
    names = [f"nenya-{os.getpid()}-{i}" for i in range(2)]
    try:
        if ip("netns", "add", names[0], check=False).returncode:
            pytest.skip("no right to make network namespaces")
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


@pytest.fixture
def start(nodes, tiny_weights, tmp_path):
    """Start the command on both nodes: (overrides) -> the two processes, each the first of its group."""
    path = write_cutouts(tmp_path / "both.h5", **{name: red_noise(rows, seed=rows) for name, rows in ROWS.items()})
    started = []

    def call(*overrides):
        port = 29000 + len(started)
        processes = []
        for i, (name, address) in enumerate(zip(nodes, ADDRESSES, strict=True)):
            command = [
                "ip",
                "netns",
                "exec",
                name,
                "unshare",
                "--uts",
                "sh",
                "-c",
                'hostname "$0"; exec "$@"',
                f"node-{i}",
            ]
            command += [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
            command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{port}", "--rdzv-id=test"]
            command += [f"--rdzv-conf=is_host={int(i == 0)}", f"--local-addr={address}"]
            command += [ROOT / "scripts" / "extract.py", "model=demo", f"data={path}", f"ckpt={tiny_weights}"]
            command += [f"out={tmp_path / 'out'}", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
            command += ["trainer.devices=2", "trainer.num_nodes=2", *overrides]
            log = (tmp_path / f"said-{i}-{len(started)}").open("wb")
            env = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=tmp_path, stderr=log, env=env)
            process.log = Path(log.name)
            processes.append(process)
        started.extend(processes)
        return processes

    yield call
    for name in nodes:
        power_off(name)
    for process in started:
        process.wait()


def power_off(node):
    for pid in ip("netns", "pids", node).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def wanted(nenya_cli, start, tiny_weights, tmp_path):
    """The data sets that one process makes."""
    args = [
        f"data={tmp_path / 'both.h5'}",
        f"out={tmp_path / 'one'}",
        f"ckpt={tiny_weights}",
        "trainer.accelerator=cpu",
    ]
    code, said = nenya_cli("extract", ["model=demo", *args])
    assert code == 0, said
    return read(tmp_path / "one" / NAME)


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def assert_whole(tmp_path, wanted):
    got = read(tmp_path / "out" / NAME)
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-6)
    assert os.listdir(tmp_path / "out") == [NAME]
    assert not [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]


def test_two_nodes_make_what_one_process_makes(start, wanted, tmp_path):
    processes = start()
    for process in processes:
        assert process.wait(600) == 0, process.log.read_text()
    assert_whole(tmp_path, wanted)
    text = processes[0].log.read_text()
    assert "train 500, valid 100 rows of 64 dimensions" in text


def finished(tmp_path):
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for path in (tmp_path / "out" / f"{NAME}.partial").glob("journal-*"):
            lines += path.read_bytes().splitlines()
    return len(lines)


def test_a_node_that_dies_ends_the_run_which_can_be_gone_on_with(nodes, start, wanted, tmp_path):
    small = ["loader.block_size=1", "loader.batch_size_valid=8"]
    first, _ = start(*small)
    deadline = time.monotonic() + 600
    while finished(tmp_path) < 20:
        assert first.poll() is None and time.monotonic() < deadline, first.log.read_text()
        time.sleep(0.005)
    power_off(nodes[1])
    assert first.wait(600) != 0
    text = first.log.read_text()
    assert "another process of this run has ended" in text
    assert "the same command resumes there" in text
    before = finished(tmp_path)
    assert 20 <= before < sum(ROWS.values())
    processes = start(*small)
    for process in processes:
        assert process.wait(600) == 0, process.log.read_text()
    assert f"{before} of them from an earlier run" in processes[0].log.read_text()
    assert_whole(tmp_path, wanted)
