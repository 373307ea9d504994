"""The network as users' scripts make it.

Importing this module lets a plain `torch.load(path)` read the checkpoints of the original nenya, whose options
are instances of a class `Params`: harmless stubs replace it, and other types that could run code stay refused.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nenya.errors import OptionError
from nenya.io import as_options
from nenya.models.checkpoint import register_params_stubs
from nenya.models.contrastive import make_net
from nenya.models.losses import contrastive_loss
from nenya.models.resnet import ContrastiveNet
from nenya.options.sections import Options

register_params_stubs()


class ContrastiveLoss(nn.Module):
    """The contrastive loss as a module; see `nenya.models.losses.contrastive_loss`.

    Args:
        temperature: divides the cosines.
        contrast_mode: 'all': every view is an anchor; 'one': the first view of each image only.
    """

    def __init__(self, temperature: float = 0.07, contrast_mode: str = "all") -> None:
        super().__init__()
        self.temperature, self.contrast_mode = temperature, contrast_mode

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of features (B, V, D) of V views of B images, with labels (B,) or without."""
        return contrastive_loss(features, labels, temperature=self.temperature, contrast_mode=self.contrast_mode)


def set_model(opt: Any, cuda_use: bool | None = None) -> tuple[ContrastiveNet, ContrastiveLoss]:
    """Return a network and its training loss.

    The network's tensors have the names of the original's checkpoints without `module.`, so that
    `load_state_dict` accepts these. Its initial weights are drawn from the seed of the options.

    Args:
        opt: options of `nenya.io.load_opt`.
        cuda_use: put both on the GPU; by default if there is one.

    Raises:
        OptionError: A GPU is requested, but there is none.
    """
    available = torch.cuda.is_available()
    if cuda_use and not available:
        raise OptionError("cuda_use=True: torch finds no GPU here; give cuda_use=False")
    options = as_options(Options, opt)
    device = torch.device("cuda" if (available if cuda_use is None else cuda_use) else "cpu")
    criterion = ContrastiveLoss(options.loss.temp, options.loss.contrast_mode)
    return make_net(options).to(device), criterion.to(device)
