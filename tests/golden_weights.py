"""Weights drawn from the names of tensors alone, as the golden values were made with."""

import math
import zlib

import numpy as np
import torch

SEED = 11


def golden_state_dict(shapes, *, damped=False):
    """Draw a state dict for `shapes`, a list of (name, shape, dtype).

    `damped` multiplies by 0.25 the gain of the last batch norm of each residual branch.
    """
    names = {name for name, _, _ in shapes}
    state = {}
    for name, shape, _ in shapes:
        values = _draw(name, tuple(shape), names)
        if damped and _ends_a_branch(name, names):
            values = values * np.float32(0.25)
        state[name] = torch.from_numpy(values)
    return state


def _draw(name, shape, names):
    generator = np.random.default_rng(zlib.crc32(name.encode()) + SEED)
    prefix, _, kind = name.rpartition(".")
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_mean":
        values = generator.normal(0, 0.1, shape)
    elif kind == "running_var":
        values = generator.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        values = generator.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    elif kind == "weight":
        values = generator.uniform(0.5, 1.5, shape)
    else:
        values = generator.normal(0, 0.1 if f"{prefix}.running_mean" in names else 0.01, shape)
    return values.astype(np.float32)


def _ends_a_branch(name, names):
    block, _, rest = name.rpartition(".bn")
    if not block.startswith("encoder.layer"):
        return False
    return rest == ("3.weight" if f"{block}.bn3.weight" in names else "2.weight")
