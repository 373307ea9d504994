"""ConvNeXt for small images.

Liu et al. 2022 (arXiv:2201.03545): depthwise 7x7 convolutions, layer norms and GELU, with the depths of the paper's T
and S. For small images the first layer halves them, instead of quartering, so that the last stage sees 1/16 of a side.
There is no stochastic depth, so a training needs no random numbers besides those of its views; and no batch norm, so
the gradient of a batch is the sum over its parts.

Letters in shapes: B images, C channels, H and W pixels, c channels of a stage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTHS = {"convnext_tiny": (3, 3, 9, 3), "convnext_small": (3, 3, 27, 3)}
"""Blocks of each stage."""

_LAYER_SCALE = 1e-6


class _Norm(nn.LayerNorm):
    """Layer norm over the channels of (B, c, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, c, H, W)."""
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Fig. 4: depthwise convolution, layer norm, two pointwise layers, around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c, H, W) to the same shape."""
        out = self.depthwise(x).permute(0, 2, 3, 1)
        out = self.scale * self.narrow(functional.gelu(self.widen(self.norm(out))))
        summed: Tensor = x + out.permute(0, 3, 1, 2)
        return summed


class ConvNeXt(nn.Module):
    """Encoder: images to pooled features.

    Args:
        name: a key of `DEPTHS`.
        nchannels: channels of the images.
        width: channels of the first stage (the paper: 96); they double in each further one.

    Attributes:
        out_features: length of the features, 8 `width`.
    """

    def __init__(self, name: str, nchannels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(nchannels, width, 2, stride=2)
        self.stem_norm = _Norm(width, eps=1e-6)
        stages: list[nn.Module] = []
        for stage, depth in enumerate(DEPTHS[name]):
            channels = width * 2**stage
            halve = [_Norm(channels // 2, eps=1e-6), nn.Conv2d(channels // 2, channels, 2, stride=2)] if stage else []
            stages.append(nn.Sequential(*halve, *(_Block(channels) for _ in range(depth))))
        self.stages = nn.Sequential(*stages)
        self.out_features = 8 * width
        self.norm = nn.LayerNorm(self.out_features, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C or 1, H, W), of at least 8 x 8 pixels, to features (B, out_features)."""
        weight = self.stem.weight
        if x.shape[1] == 1 and weight.shape[1] > 1:  # one channel counts for each of them
            weight = weight.sum(dim=1, keepdim=True)
        out = self.stem_norm(functional.conv2d(_filled(x), weight, self.stem.bias, stride=2))
        out = self.stages(out)
        features: Tensor = self.norm(out.mean(dim=(2, 3)))
        return features


def _filled(x: Tensor, step: int = 16) -> Tensor:
    """Repeat the last rows and columns until each side is a multiple of `step`, so that no pixel is lost."""
    rows, columns = (-side % step for side in x.shape[-2:])
    return functional.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x
