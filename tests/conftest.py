"""Fixtures that several test modules share."""

import contextlib
import io
import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from s3_server import s3_bucket, s3_proxy, s3_server, s3_service  # noqa: F401  # fixtures

# Networks as small as the tests' lose more by waiting for each other's threads than they win, where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the tests run as a background job, whose programs ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

QUICK = ["model=demo", "model.width=4", "loader.batch_size_train=16", "trainer=cpu", "trainer.max_epochs=3"]
QUICK += ["trainer.precision=32-true", "model.layout=contiguous"]  # the same on every processor
"""Options of a training of seconds."""


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


def red_noise(rows: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Draw cutouts (rows, side, side), float32, of red noise with mean 0 and standard deviation 1."""
    waves = np.fft.fftfreq(side)
    k = np.hypot(waves[:, None], waves)
    k[0, 0] = np.inf
    white = np.random.default_rng(seed).standard_normal((rows, side, side))
    fields = np.fft.ifft2(np.fft.fft2(white) / k).real
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def write_cutouts(path: Path, **partitions: np.ndarray) -> Path:
    """Write arrays as data sets of an HDF5 file, (N, H, W) as (N, 1, H, W), everything else as it is."""
    with h5py.File(path, "w") as file:
        for name, values in partitions.items():
            file[name] = values[:, None] if values.ndim == 3 else values
    return path


@pytest.fixture(scope="session")
def small_file(tmp_path_factory) -> Path:
    """A file of 40 training and 24 validation cutouts of 32 x 32 pixels, not to be changed."""
    path = tmp_path_factory.mktemp("small") / "small_preproc.h5"
    return write_cutouts(path, train=red_noise(40, seed=1), valid=red_noise(24, seed=2))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Weights of an untrained network of `model=demo`, in the users' layout."""
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net
    from nenya.options.flat import flat_view

    options = compose("extract", ["model=demo"])
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    save_pth(path, make_net(options), options=flat_view(options), epoch=1)
    return path


@pytest.fixture
def nenya_cli(tmp_path, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Run a command in this process, in `tmp_path`: (name, args) -> (exit code, text of both outputs).

    Environment and loggers are afterwards as before.
    """
    from nenya.cli import run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nenya.storage.texts._names", {})
    logger = logging.getLogger("nenya")

    def call(name: str, args: Sequence[object] = ()) -> tuple[int, str]:
        before = dict(os.environ), logger.handlers[:], logger.level, logger.propagate
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = run_command(name, [str(arg) for arg in args])
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            logger.handlers[:], logger.propagate = before[1], before[3]
            logger.setLevel(before[2])
        return code, said.getvalue()

    return call
