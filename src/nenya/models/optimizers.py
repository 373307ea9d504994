"""The optimizers of a training, and the parameters that they do not decay."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nenya.options.sections import Options, optimizer_of

_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


class LARS(torch.optim.Optimizer):
    """SGD with momentum; the rate of each tensor is scaled by the norm of its weights over that of its gradient.

    You, Gitman and Ginsburg 2017 (arXiv:1708.03888), eq. 6, in the form of SimCLR, BYOL, Barlow Twins and VICReg, where
    `decay` is the weight decay and every tensor has its own `scale`::

        g <- g + decay * w
        g <- g * scale,   scale = trust * |w| / |g|   (1 where either length is 0)
        v <- momentum * v + g
        w <- w - lr * v

    A group with `adapted=False` takes the plain gradient, without decay and scale.

    Args:
        groups: parameter groups; `adapted`, `lr` and `weight_decay` may differ between them.
        lr: learning rate.
        momentum: share of the last step that is kept.
        weight_decay: L2 penalty.
        trust: trust coefficient.
    """

    def __init__(
        self, groups: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        usual = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapted": True}
        super().__init__(groups, usual)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step.

        Args:
            closure: computes loss and gradients again; its result is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._step(weights, group)
        return loss

    def _step(self, weights: Tensor, group: dict[str, Any]) -> None:
        """Change one tensor."""
        gradient, state = weights.grad, self.state[weights]
        assert gradient is not None
        if group["adapted"]:
            gradient = gradient.add(weights, alpha=group["weight_decay"])
            ours, its = weights.norm(), gradient.norm()
            scale = torch.where((ours > 0) & (its > 0), group["trust"] * ours / its, 1.0)
            gradient = gradient * scale
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        weights.sub_(state["momentum_buffer"], alpha=group["lr"])


def make_optimizer(options: Options, trained: nn.Module, *, on_gpu: bool) -> torch.optim.Optimizer:
    """Return the optimizer of a training.

    SGD decays all parameters, as the published models did; LARS and AdamW neither biases nor the weights of norms nor
    other tensors of one dimension, and LARS does not scale the steps of these.

    Args:
        options: `optim` is used, and the method of `loss`.
        trained: its parameters with gradients are optimised.
        on_gpu: whether they are on a GPU, where SGD and AdamW run in one kernel unless `optim.fused` says otherwise.
    """
    o, kind = options.optim, optimizer_of(options)
    fused = o.fused if o.fused is not None else True if on_gpu else None
    rate, decay = o.learning_rate, o.weight_decay
    if kind == "SGD":
        every = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        made = torch.optim.SGD(every, lr=rate, momentum=o.momentum, weight_decay=decay, fused=fused)
        if fused and o.momentum:  # the one kernel needs all buffers, also of parameters that get gradients later
            for parameter in every:
                made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    plain = set(map(id, undecayed(trained)))
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for parameter in trained.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in plain]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if kind == "AdamW":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=fused)
    for group in groups:
        group["adapted"] = "weight_decay" not in group
    return LARS(groups, rate, o.momentum, decay, o.trust)


def undecayed(trained: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters without weight decay: biases, all of norms, and others of one dimension."""
    for module in trained.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NORMS) or name.endswith("bias") or parameter.ndim <= 1:
                yield parameter
