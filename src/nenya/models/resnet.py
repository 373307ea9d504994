"""The network: a ResNet for small images and a projection head.

Letters in shapes: B images, C channels, H and W pixels, D the head's output length (`feat_dim`).
Tensor names, order and shapes are those of the `.pth` files that users hold.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nenya.data.pyramid import clear_mean, fill_pyramid
from nenya.errors import InputFileError, OptionError
from nenya.models.backbones.make import BACKBONES, features_of_own, first_weight, make_encoder
from nenya.options.own import is_dotted

_IMAGE_AND_MASK = 2  # channels

MINIMUM_IMAGE_SIZE = 8
"""Shortest side of an image, px: the three strides of 2 leave one pixel of it in the last stage."""

SCALING = 0.5
"""Power of an image's standard deviation by which a network that scales its images divides them."""

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_LEAST_VARIANCE = 1e-6  # K^2: of an image of one value


@dataclass(frozen=True)
class Architecture:
    """A ResNet: whether its blocks are bottlenecks, how many each stage has, whether images are `scaled` first."""

    bottleneck: bool
    blocks: tuple[int, int, int, int]
    scaled: bool = False

    @property
    def expansion(self) -> int:
        """Channels out of a block over the stage's width."""
        return 4 if self.bottleneck else 1


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(bottleneck=False, blocks=(2, 2, 2, 2)),
    "resnet34": Architecture(bottleneck=False, blocks=(3, 4, 6, 3)),
    "resnet50": Architecture(bottleneck=True, blocks=(3, 4, 6, 3)),
    "resnet101": Architecture(bottleneck=True, blocks=(3, 4, 23, 3)),
    "resnet18_scaled": Architecture(bottleneck=False, blocks=(2, 2, 2, 2), scaled=True),
}


def check_image_size(height: int, width: int) -> None:
    """Check that the network can see something in images of this size; they need not be square.

    Args:
        height: Rows, px.
        width: Columns, px.

    Raises:
        InputFileError: A side is shorter than `MINIMUM_IMAGE_SIZE`.
    """
    if min(height, width) < MINIMUM_IMAGE_SIZE:
        raise InputFileError(
            f"images of {height} x {width} px are too small for the network: "
            f"each side needs at least {MINIMUM_IMAGE_SIZE} px"
        )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added (He 2016, fig. 5 left)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, width, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class _Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions around which the input is added (He 2016, fig. 5 right)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, 4 width, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return functional.relu(out + self.shortcut(x))


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return the identity where the shapes allow it, else a 1x1 convolution with batch norm."""
    if stride == 1 and channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))


def _stage(architecture: Architecture, stage: int, channels: int, width: int, stride: int) -> nn.Sequential:
    """Chain the blocks of one stage. The first block takes `channels` and strides."""
    block = _Bottleneck if architecture.bottleneck else _BasicBlock
    rest = [block(architecture.expansion * width, width, 1) for _ in range(architecture.blocks[stage] - 1)]
    return nn.Sequential(block(channels, width, stride), *rest)


class _Encoder(nn.Module):
    """ResNet with a first convolution of 3x3 and stride 1, without max-pool; average-pooled at the end."""

    def __init__(self, architecture: Architecture, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width * 2**stage for stage in range(4)]
        inputs = [width, *(architecture.expansion * stage_width for stage_width in widths)]
        self.layer1 = _stage(architecture, 0, inputs[0], widths[0], stride=1)
        self.layer2 = _stage(architecture, 1, inputs[1], widths[1], stride=2)
        self.layer3 = _stage(architecture, 2, inputs[2], widths[2], stride=2)
        self.layer4 = _stage(architecture, 3, inputs[3], widths[3], stride=2)
        self.out_features = inputs[4]
        if architecture.scaled:  # among the weights, so that they tell which network they belong to
            self.register_buffer("scaling", torch.tensor(SCALING))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C or 1, H, W) to pooled features (B, out_features)."""
        out = functional.relu(self.bn1(self._first(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        return out.mean(dim=(2, 3))

    def _first(self, x: Tensor) -> Tensor:
        """Apply the first convolution; by linearity C equal channels see the sum of its weights over them."""
        weight = self.conv1.weight
        if x.shape[1] == 1 and weight.shape[1] > 1:
            weight = weight.sum(dim=1, keepdim=True)
        return functional.conv2d(x, weight, padding=1)


class ContrastiveNet(nn.Module):
    """Encoder and projection head of SimCLR and SupCon (Chen 2020, Khosla 2020), for small images.

    Args:
        ssl_model: The encoder: a depth, a key of `ARCHITECTURES`; one of `BACKBONES`; or the dotted name of a class of
            the user's own, see `nenya.models.backbones.make`.
        feat_dim: Length D of the latent.
        nchannels: Channels of the images that the first convolution is made for.
        width: Channels of the first stage; 64 is the published network. The encoder's features have length
            8 `width` (resnet18, 34) or 32 `width` (resnet50, 101).
        mask_channel: Whether a second channel says which pixels are masked (1) and clear (0); see `refilled`. Its
            weights begin at 0.

    Raises:
        OptionError: An unknown `ssl_model`, a number below 1, or a mask channel beside several channels.
    """

    def __init__(
        self,
        ssl_model: str = "resnet50",
        feat_dim: int = 256,
        nchannels: int = 1,
        width: int = 64,
        *,
        mask_channel: bool = False,
    ) -> None:
        super().__init__()
        if ssl_model not in (*ARCHITECTURES, *BACKBONES) and not is_dotted(ssl_model):
            raise OptionError(
                f"model.ssl_model={ssl_model!r}: expected one of {', '.join((*ARCHITECTURES, *BACKBONES))}, or the "
                "dotted name of a class of your own"
            )
        for name, value in (("feat_dim", feat_dim), ("nchannels", nchannels), ("width", width)):
            if value < 1:
                raise OptionError(f"model.{name}={value}: expected at least 1")
        if mask_channel and nchannels != 1:
            raise OptionError(f"model.nchannels={nchannels}: expected 1 beside model.mask_channel=true")
        if mask_channel and is_dotted(ssl_model):
            known = ", ".join((*ARCHITECTURES, *BACKBONES))
            raise OptionError(f"model.ssl_model={ssl_model}: expected one of {known} with model.mask_channel=true")
        self.ssl_model, self.feat_dim, self.nchannels, self.width = ssl_model, feat_dim, nchannels, width
        self.mask_channel = mask_channel
        self.encoder: Any = (
            _Encoder(ARCHITECTURES[ssl_model], self.channels, width)
            if ssl_model in ARCHITECTURES
            else make_encoder(ssl_model, self.channels, width)
        )
        if mask_channel:
            nn.init.zeros_(first_weight(self)[:, 1:])
        length = self.encoder.out_features
        self.head = nn.Sequential(nn.Linear(length, length), nn.ReLU(inplace=True), nn.Linear(length, feat_dim))

    @property
    def channels(self) -> int:
        """Channels of the first convolution: those of the images, and the mask."""
        return self.nchannels + self.mask_channel

    @property
    def scales(self) -> bool:
        """Whether images are `scaled` before the first convolution."""
        return self.ssl_model in ARCHITECTURES and ARCHITECTURES[self.ssl_model].scaled

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments that make a network of this shape; `mask_channel` only where it has one."""
        return {
            "ssl_model": self.ssl_model,
            "feat_dim": self.feat_dim,
            "nchannels": self.nchannels,
            "width": self.width,
            **({"mask_channel": True} if self.mask_channel else {}),
        }

    def encode(self, x: Tensor) -> Tensor:
        """Return the features under the projection head.

        Args:
            x: (B, C, H, W) floating point images, C = `nchannels`, or C = 1 for one channel repeated; with a mask
                channel C = 2, the filled image and its mask, or C = 1 for a clear image.

        Returns:
            (B, d) pooled features, d = `encoder.out_features`.

        Raises:
            ValueError: `x` has another number of dimensions or channels.
        """
        if x.ndim != 4:
            raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(x.shape)}")
        if self.mask_channel and x.shape[1] not in (1, self.channels):
            raise ValueError(f"expected images with 2 channels, image and mask, got {x.shape[1]}")
        if not self.mask_channel and x.shape[1] not in (1, self.nchannels):
            wanted = "1 channel" if self.nchannels == 1 else f"1 or {self.nchannels} channels"
            raise ValueError(f"expected images with {wanted}, got {x.shape[1]}")
        if is_dotted(self.ssl_model):
            return features_of_own(self.encoder, x, self.nchannels, self.ssl_model)
        features: Tensor = self.encoder(seen(x, mask_channel=self.mask_channel, is_scaled=self.scales))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return the latents.

        Args:
            x: (B, C, H, W) floating point images, as for `encode`.

        Returns:
            (B, D) head output of length 1 in each row, float32 where the network computes in less: half
            precision is too coarse for the norm.

        Raises:
            ValueError: `x` has another number of dimensions or channels.
        """
        return normalise(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """Return the head's output (B, D) itself, of any length, for images as for `encode`."""
        projected: Tensor = self.head(self.encode(x))
        return projected


def check_encoder(net: ContrastiveNet, size: int) -> None:
    """Check that an encoder of the user's own gives features for images of `size` x `size` pixels.

    Raises:
        OptionError: It fails, or returns something else.
    """
    if is_dotted(net.ssl_model):
        weights, training = next(net.parameters()), net.training
        with torch.no_grad():
            net.eval().encode(torch.zeros(2, 1, size, size, dtype=weights.dtype, device=weights.device))
        net.train(training)


def refilled(x: Tensor) -> Tensor:
    """Return what a network with a mask channel sees of images and masks (B, 2, H, W), or of clear images (B, 1, H, W).

    Masked pixels are filled from the clear ones, whatever was filled in before, and the mean of the clear pixels is
    removed: latents depend on clear pixels and the mask alone. A clear image only loses its mean.
    """
    image = x[:, :1]
    mask = x[:, 1:] if x.shape[1] > 1 else torch.zeros_like(image)
    clear = 1 - mask
    return torch.cat([fill_pyramid(image - clear_mean(image, clear), clear), mask], dim=1)


def scaled(x: Tensor) -> Tensor:
    """Return images (B, C, H, W) divided by the square root of their standard deviation in K; a mask stays.

    Contrasts of quiet seas and of fronts differ by a factor of forty before, and of six afterwards. So the network sees
    the patterns of both. The standard deviation is that of the first channel's clear pixels.

    Args:
        x: image and mask, as `refilled` returns them, or images without a mask.
    """
    exact = x[:, :1].to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[1] == _IMAGE_AND_MASK:
        clear = 1 - x[:, 1:].to(exact.dtype)
        variance = (exact.square() * clear).mean((2, 3), keepdim=True) / clear.mean((2, 3), keepdim=True).clamp(
            min=1e-6
        )
    else:
        variance = exact.var((2, 3), keepdim=True, correction=0)
    factor = variance.clamp(min=_LEAST_VARIANCE).pow(-SCALING / 2).to(x.dtype)
    return torch.cat([x[:, :1] * factor, x[:, 1:]], dim=1) if x.shape[1] == _IMAGE_AND_MASK else x * factor


def seen(x: Tensor, *, mask_channel: bool, is_scaled: bool) -> Tensor:
    """Return what the first convolution of a network sees of images (B, C, H, W): `refilled`, `scaled`."""
    x = refilled(x) if mask_channel else x
    return scaled(x) if is_scaled else x


def normalise(projected: Tensor) -> Tensor:
    """Return the head's output (B, D) with rows of length 1, in float32 at least."""
    if projected.dtype in _LOW_PRECISION:
        projected = projected.float()
    return functional.normalize(projected, dim=1)
