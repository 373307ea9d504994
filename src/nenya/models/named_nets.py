"""The networks by the names in users' training loops."""

from typing import Any

from torch import Tensor, nn

from nenya.errors import OptionError
from nenya.models.resnet import ARCHITECTURES, ContrastiveNet, normalise


class SupConResNet(ContrastiveNet):
    """`ContrastiveNet` by the arguments of the first nenya.

    Args:
        name: depth: resnet18, resnet34, resnet50, resnet101.
        head: of two layers, 'mlp', or one, 'linear'.
        feat_dim: length of the latent.
        nchannels: channels of the images; one channel alone counts for each of three.

    Raises:
        OptionError: An unknown depth or head.
    """

    def __init__(self, name: str = "resnet50", head: str = "mlp", feat_dim: int = 128, nchannels: int = 1) -> None:
        super().__init__(name, feat_dim, nchannels)
        if head not in ("mlp", "linear"):
            raise OptionError(f"head={head!r}: expected 'mlp' or 'linear'")
        if head == "linear":
            self.head: Any = nn.Linear(self.encoder.out_features, feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return latents (B, D) of length 1 of images (B, C, H, W)."""
        return normalise(self.head(self.encode(x)))


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
