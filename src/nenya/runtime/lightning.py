"""Lightning, imported quickly; see `nenya.runtime.lean`. The other modules take its names from here."""

from nenya.runtime.lean import import_lightning

import_lightning()

# ruff: noqa: E402
import lightning
import lightning.pytorch as pl
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver as ChildProcessObserver
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import Profiler

__all__ = [
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "ChildProcessObserver",
    "ModelCheckpoint",
    "Profiler",
    "TorchCheckpointIO",
    "lightning",
    "pl",
]
