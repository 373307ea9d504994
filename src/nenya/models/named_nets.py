"""The networks by the names in users' training loops."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nenya.errors import OptionError
from nenya.models.resnet import ARCHITECTURES, ContrastiveNet, normalise

_CHANNELS = 3


class SupConResNet(ContrastiveNet):
    """`ContrastiveNet` by the arguments of the first nenya.

    Args:
        name: depth: resnet18, resnet34, resnet50, resnet101.
        head: of two layers, 'mlp', or one, 'linear'.
        feat_dim: length of the latent.
        nchannels: channels of the images; one channel alone counts for each of three. Without it they are three, or
            as many as weights have that are loaded.

    Raises:
        OptionError: An unknown depth or head.
    """

    def __init__(
        self, name: str = "resnet50", head: str = "mlp", feat_dim: int = 128, nchannels: int | None = None
    ) -> None:
        super().__init__(name, feat_dim, nchannels or _CHANNELS)
        self._any_channels = nchannels is None
        if head not in ("mlp", "linear"):
            raise OptionError(f"head={head!r}: expected 'mlp' or 'linear'")
        if head == "linear":
            self.head: Any = nn.Linear(self.encoder.out_features, feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return latents (B, D) of length 1 of images (B, C, H, W)."""
        return normalise(self.head(self.encode(x)))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **named: Any) -> Any:
        """Load weights; see `torch.nn.Module.load_state_dict`."""
        old = self.encoder.conv1
        first: Any = state_dict.get("encoder.conv1.weight", old.weight)
        if self._any_channels and getattr(first, "ndim", 0) == 4 and first.shape[1] != self.nchannels:
            self.nchannels = int(first.shape[1])
            self.encoder.conv1 = nn.Conv2d(self.nchannels, old.out_channels, 3, padding=1, bias=False).to(old.weight)
        return super().load_state_dict(state_dict, *args, **named)


class SupCEResNet(nn.Module):
    """Encoder and a linear classifier on it.

    Args:
        name: depth.
        num_classes: classes.
        nchannels: channels of the images.
    """

    def __init__(self, name: str = "resnet50", num_classes: int = 10, nchannels: int = 3) -> None:
        super().__init__()
        self.encoder = ContrastiveNet(name, num_classes, nchannels).encoder
        self.fc = nn.Linear(self.encoder.out_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (B, `num_classes`) of images (B, C, H, W)."""
        scores: Tensor = self.fc(self.encoder(x))
        return scores


class LinearClassifier(nn.Module):
    """A linear classifier of an encoder's features.

    Args:
        name: depth of the encoder.
        num_classes: classes.
    """

    def __init__(self, name: str = "resnet50", num_classes: int = 10) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            raise OptionError(f"name={name!r}: expected one of {', '.join(ARCHITECTURES)}")
        self.fc = nn.Linear(512 * ARCHITECTURES[name].expansion, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores (B, `num_classes`) of features (B, d)."""
        scores: Tensor = self.fc(features)
        return scores
