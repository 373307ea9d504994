"""Which of the networks in a checkpoint of a training is that of extraction, and its last layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NET, _PARTS, _TEACHER = "net.", "objective.", "objective.teacher."
_NORM = "objective.expander.0."
_WEIGHT, _BIAS = "head.2.weight", "head.2.bias"


def extracted(tensors: Any, options: Any) -> Any:
    """Return the tensors of the network of extraction among those of a training.

    That is the network that was trained, or its teacher where the options choose it; an expander's first batch norm
    becomes part of the head, see `folded`.

    Args:
        tensors: Of a file: name -> tensor. Anything that is not of one of our trainings is returned as it is.
        options: Of the same file; `extracted` in them says `teacher` or `student`.
    """
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and name.startswith((_NET, _PARTS)) and isinstance(value, Tensor)
        for name, value in tensors.items()
    ):
        return tensors
    teacher = isinstance(options, Mapping) and options.get("extracted") == "teacher"
    wanted = _TEACHER if teacher and any(name.startswith(_TEACHER) for name in tensors) else _NET
    found = {name.removeprefix(wanted): value for name, value in tensors.items() if name.startswith(wanted)}
    norm = {name.removeprefix(_NORM): value for name, value in tensors.items() if name.startswith(_NORM)}
    return folded(found, norm)


def folded(tensors: Mapping[str, Tensor], norm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network, with the batch norm at the end of its head folded into the last layer.

    VICReg and Barlow Twins do not change if a constant is added to the head's output, so without this step latents of
    length 1 could all point the same way.

    Args:
        tensors: of a `ContrastiveNet`.
        norm: of the `torch.nn.BatchNorm1d` behind its head; empty, or not of its size: the tensors stay as they are.
    """
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias = tensors.get(_WEIGHT), tensors.get(_BIAS)
    if weight is None or bias is None or any(n not in norm or norm[n].shape != bias.shape for n in names):
        return dict(tensors)
    gain, shift, mean, variance = (norm[name].double() for name in names)
    scale = gain / (variance + torch.nn.BatchNorm1d(1).eps).sqrt()
    return {
        **tensors,
        _WEIGHT: (weight.double() * scale[:, None]).to(weight.dtype),
        _BIAS: ((bias.double() - mean) * scale + shift).to(bias.dtype),
    }
