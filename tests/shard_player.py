"""A worker that does a share of a command in small pieces: `shard_player.py COMMAND key=value ...`.

Environment: PIECE_ROWS, rows of a piece; DIE_AFTER, the number of pieces after which the worker kills itself, as a
machine that goes away does.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from distributed import LocalCluster

from nenya.cli import run_command
from nenya.latents.kept_answers import KeptAnswers

PIECES = (
    *("nenya.latents.embed.BLOCK_ROWS", "nenya.latents.rarity._KEPT_ROWS", "nenya.latents.rarity_cells._KEPT_ROWS"),
    "nenya.latents.index_build.BATCH_ROWS",
)


def fit_layout(rows, parameters, epochs):
    """A layout that costs nothing in place of UMAP's."""
    return 9 * rows[:, :2]


def dying(check, pieces):
    """Return `KeptAnswers.check`, which is called before an answer is kept, for a worker that does so many pieces."""
    left = [pieces]

    def checked(self):
        if self._lock is not None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        check(self)

    return checked


@contextlib.contextmanager
def machines(piece_rows: int) -> Iterator[Callable[..., subprocess.Popen]]:
    """Give a function that starts a worker on a machine with a name and processes of its own, which shares the disk."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        pytest.skip("namespaces are needed")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    space = ["unshare", *user, *"--uts --pid --mount-proc --kill-child --fork".split()]
    if subprocess.run([*space, "true"], capture_output=True).returncode:
        pytest.skip("no right to make namespaces")
    started: list[subprocess.Popen] = []

    def start(host: str, command: str, args: list[str], **env: str) -> subprocess.Popen:
        line = [*space, "sh", "-c", f'hostname {host}; "$@"; exit $?', "sh", sys.executable, __file__, command, *args]
        env = {**os.environ, "PIECE_ROWS": str(piece_rows), "OMP_NUM_THREADS": "1", **env}
        process = subprocess.Popen(line, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextlib.contextmanager
def losing_cluster(victim: Callable[[LocalCluster], int | None]) -> Iterator[tuple[str, list[int]]]:
    """Give the address of a Dask cluster of two workers, and the list of the killed: at most one.

    Args:
        victim: asked again and again which process is to be killed now; None for none yet.
    """
    lost, ended = [], threading.Event()

    def lose(cluster):
        while not lost and not ended.wait(0.01):
            if (process := victim(cluster)) is not None:
                os.kill(process, signal.SIGKILL)
                lost.append(process)

    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        thread = threading.Thread(target=lose, args=(cluster,))
        thread.start()
        try:
            yield cluster.scheduler_address, lost
        finally:
            ended.set()
            thread.join()


def main() -> int:
    for name in PIECES:
        mock.patch(name, int(os.environ["PIECE_ROWS"])).start()
    mock.patch("nenya.latents.projector._fit_layout", fit_layout).start()
    if pieces := os.environ.get("DIE_AFTER"):
        mock.patch.object(KeptAnswers, "check", dying(KeptAnswers.check, int(pieces))).start()
    return run_command(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
