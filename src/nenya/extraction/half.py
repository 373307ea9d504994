"""Extraction in bfloat16 on a CPU: who converts the network, and how far its latents are from those of float32.

Letters in shapes: n cutouts, C channels, H x W pixels, D the length of a latent.
"""

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nenya.data.blocks import Block, BlocksDataModule, cut_blocks
from nenya.data.cutouts import CutoutFile
from nenya.extraction.journal import BlockStore
from nenya.models.contrastive import ContrastiveModule, demeaned
from nenya.models.inference import backend_of, choose_backend
from nenya.models.resnet import ContrastiveNet
from nenya.options.sections import Options, TrainerOptions

log = logging.getLogger(__name__)

HALF = "bf16-true"
NEIGHBOURS = 10
_LEAST, _MOST, _SHARE = 32, 256, 100
_LOW = 0.999


def is_half(options: Options, net: ContrastiveNet) -> bool:
    """Return whether an extraction computes in bfloat16 by `packed`, on a CPU."""
    trainer = options.trainer
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.accelerator.is_available())
    if trainer.precision != HALF or not on_cpu:
        return False
    return backend_of(net, choose_backend(options.model.backend, "cpu", HALF, 0, may_compile=False)) == "packed"


def trainer_options(options: Options, net: ContrastiveNet) -> TrainerOptions:
    """Return the options of Lightning's Trainer for an extraction.

    With bfloat16 by `packed`, the network stays in float32: its batch norms are folded into the convolutions first, and
    the result is rounded once. Lightning would round the weights and the statistics of batch norm themselves.
    """
    return replace(options.trainer, precision="32-true") if is_half(options, net) else options.trainer


def agreement(
    options: Options, module: ContrastiveModule, file: CutoutFile, store: BlockStore, batch_size: int
) -> dict[str, str]:
    """Compare the latents of some cutouts of a file, in bfloat16, with those in float32.

    Args:
        options: of the extraction.
        module: the network.
        file: the cutout file.
        store: the finished latents.
        batch_size: cutouts of a forward pass.

    Returns:
        `bfloat16_agreement` for the attributes of the latents file, as JSON: the number of cutouts, the least cosine,
        and the share of the nearest neighbours among these cutouts that are the same. Empty for other extractions, and
        where fewer than two cutouts have latents.
    """
    if not is_half(options, module.net):
        return {}
    name = max(store.rows, key=lambda partition: store.rows[partition])
    images = _first_cutouts(options, file, name, store.rows[name])
    raw = np.frombuffer(store.read(Block(0, name, range(len(images)))), np.float32)
    half = torch.from_numpy(raw.reshape(len(images), store.width)[:, : store.dim].copy())
    known = torch.isfinite(half).all(dim=1)
    if int(known.sum()) < 2:
        return {}
    exact = _exact(module, images[known], batch_size)
    found = {"cutouts": len(exact), **compared(exact, half[known])}
    said = "bfloat16 against float32, %d cutouts: least cosine %.6f, %.1f %% of the %d nearest neighbours are the same"
    level = logging.WARNING if found["least_cosine"] < _LOW else logging.INFO
    log.log(level, said, len(exact), found["least_cosine"], 100 * found["same_neighbours"], found["neighbours"])
    return {"bfloat16_agreement": json.dumps(found)}


def _first_cutouts(options: Options, file: CutoutFile, name: str, rows: int) -> Tensor:
    """Return the first cutouts (n, C, H, W) of a partition, as the network sees them: one in 100, from 32 to 256."""
    wanted = min(rows, _MOST, max(_LEAST, rows // _SHARE))
    one = replace(file, partitions={name: file.partitions[name]})
    blocks = cut_blocks(one, options.loader.block_size, {name: wanted})[:1]
    data = BlocksDataModule(one, blocks, masked=options.preprocess.masked)
    try:
        batch: dict[str, Any] = next(iter(data.predict_dataloader()))
    finally:
        data.teardown("predict")
    if "error" in batch:
        raise batch["error"]
    images: Tensor = torch.as_tensor(batch["images"])
    return demeaned(images) if options.preprocess.file == "demean" else images


@torch.no_grad()
def _exact(module: ContrastiveModule, images: Tensor, batch_size: int) -> Tensor:
    """Return the latents (n, D) of images (n, C, H, W) in float32, in batches of one shape."""
    run = module.runner((batch_size, *images.shape[1:]), half=False)
    found = []
    for part in torch.split(images, batch_size):
        padded = torch.nn.functional.pad(part, (0, 0) * 3 + (0, batch_size - len(part)))
        found.append(run(padded)[: len(part)].float())
    return torch.cat(found)


def compared(exact: Tensor, half: Tensor) -> dict[str, float]:
    """Return the least cosine of latents (n, D) with those in float32, and the share of common nearest neighbours."""
    units = [torch.nn.functional.normalize(latents.double(), dim=1) for latents in (exact, half)]
    k = min(NEIGHBOURS, len(exact) - 1)
    near = []
    for unit in units:
        cosines = unit @ unit.T
        cosines.fill_diagonal_(-2.0)
        near.append(cosines.topk(k, dim=1).indices)
    same = (near[0][:, :, None] == near[1][:, None, :]).any(dim=2).double().mean()
    return {
        "least_cosine": round(float((units[0] * units[1]).sum(dim=1).min()), 7),
        "neighbours": k,
        "same_neighbours": round(float(same), 4),
    }
