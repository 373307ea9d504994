"""A short training with BatchNorm frozen, in one or two processes: frozen_run.py WORLD DATA OUT."""

import sys

from torch import nn

from nenya.cli import run_command
from nenya.models.contrastive import ContrastiveModule

START = ContrastiveModule.on_train_epoch_start


def freeze(self: ContrastiveModule) -> None:
    """Put every BatchNorm into evaluation mode."""
    START(self)
    for layer in self.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


if __name__ == "__main__":
    world, data, out = sys.argv[1:]
    ContrastiveModule.on_train_epoch_start = freeze
    args = ["model=demo", "model.width=4", "loader.batch_size_train=16", "trainer.max_epochs=2", f"data={data}"]
    args += ["trainer.accelerator=cpu", f"trainer.devices={world}", f"out={out}", "optim.learning_rate=1e-3"]
    sys.exit(run_command("train", args + (["trainer.strategy=ddp"] if world == "2" else [])))
