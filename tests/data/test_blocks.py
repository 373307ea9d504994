import threading
import time

import h5py
import numpy as np
import pytest

from nenya.data import blocks as module
from nenya.data.blocks import BlockRows, cut_blocks
from nenya.data.cutouts import inspect_cutouts
from nenya.errors import InputFileError
from nenya.runtime.process import Threads


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as h5:
        for name, rows in (("train", 90), ("valid", 25)):
            values = np.random.default_rng(rows).standard_normal((rows, 1, 16, 16)).astype(np.float32)
            h5.create_dataset(name, data=values, chunks=(10, 1, 4, 4), compression="gzip")
    return inspect_cutouts(path)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_blocks_come_whole_and_in_order(file, ahead, count):
    order = cut_blocks(file, 20)
    data = BlockRows(file, order, ahead=ahead, threads=count)
    with h5py.File(file.path) as h5:
        for block in order:
            batch = data.__getitems__(block)
            wanted = h5[block.partition][block.rows.start : block.rows.stop]
            np.testing.assert_array_equal(batch["images"].numpy(), wanted)
    data.close()


@pytest.mark.parametrize(("room", "most"), [(10**9, 2), (2 * 20 * 16 * 16 * 4, 2), (1, 1)])
def test_reading_ahead_is_bounded_by_blocks_and_bytes(file, monkeypatch, room, most):
    monkeypatch.setattr(module, "_AHEAD_BYTES", room)
    order = cut_blocks(file, 20, {"valid": 0})
    data = BlockRows(file, order, ahead=True)
    for place, block in enumerate(order):
        data.__getitems__(block)
        assert len(data._pending) == min(most, len(order) - place - 1)
    data.close()


def test_an_error_ahead_is_told_with_its_own_block(file):
    order = cut_blocks(file, 10)
    with h5py.File(file.path, "r+") as h5:
        h5["train"].id.write_direct_chunk((20, 0, 0, 0), b"no gzip")
    data = BlockRows(file, order, ahead=True, threads=2)
    for block in order[:2]:
        assert len(data.__getitems__(block)["images"]) == 10
    with pytest.raises(InputFileError, match="rows 20 to 29 of 'train'"):
        data.__getitems__(order[2])
    data.close()


def test_threads_keep_the_order_and_leave_nothing_running():
    running, lock, seen, together = [0], threading.Lock(), set(), threading.Barrier(3)

    def work(job):
        if (name := threading.current_thread().name) not in seen:
            seen.add(name)
            together.wait(300)
        with lock:
            running[0] += 1
        time.sleep(0.002)
        with lock:
            running[0] -= 1
        if job == 7:
            raise ValueError("seven")
        return job * job

    with Threads(3) as pool:
        assert list(pool.spread(work, (i for i in range(100, 140)))) == [i * i for i in range(100, 140)]
        assert len(seen) == 3
        with pytest.raises(ValueError, match="seven"):
            pool.spread(work, range(40))
        assert running == [0]
        assert list(pool.spread(work, [])) == []
