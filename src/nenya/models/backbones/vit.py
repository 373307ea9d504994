"""A Vision Transformer for small images.

Dosovitskiy et al. 2021 (arXiv:2010.11929), in the plain form of Beyer, Zhai and Kolesnikov 2022 (arXiv:2205.01580):
fixed sine and cosine positions in two dimensions and the mean of all tokens, so that any image size has the same
weights. Patches are of 4 pixels, for images of 32 to 128. There is no dropout, so a training needs no random numbers
besides those of its views.

Letters in shapes: B images, C channels, H and W pixels, T tokens (patches), d length of a token.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 4
"""Pixels along a side of a patch."""

LAYERS = 12
HEADS = {"vit_tiny": 3, "vit_small": 6}
"""Attention heads; each has `width` dimensions, so that a width of 64 gives the published sizes."""


class _Block(nn.Module):
    """Attention and two layers, each after a layer norm, around which the input is added."""

    def __init__(self, length: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(length, eps=1e-6), nn.LayerNorm(length, eps=1e-6)
        self.qkv, self.join = nn.Linear(length, 3 * length, bias=False), nn.Linear(length, length)
        self.qkv_bias = nn.Parameter(torch.zeros(3, heads, length // heads))  # its shape tells the heads
        self.widen, self.narrow = nn.Linear(length, 4 * length), nn.Linear(4 * length, length)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, d) to the same shape."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)) + self.qkv_bias
        parts = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.join(seen.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.narrow(functional.gelu(self.widen(self.norm2(x))))
        return out


class ViT(nn.Module):
    """Encoder: images to pooled features.

    Args:
        name: a key of `HEADS`.
        nchannels: channels of the images.
        width: dimensions of a head, a multiple of 4 (the paper: 64).

    Attributes:
        out_features: length d of the features, heads times `width`.
    """

    def __init__(self, name: str, nchannels: int, width: int) -> None:
        super().__init__()
        self.out_features = HEADS[name] * width
        self.patches = nn.Conv2d(nchannels, self.out_features, PATCH, stride=PATCH)
        self.blocks = nn.Sequential(*(_Block(self.out_features, HEADS[name]) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(self.out_features, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C or 1, H, W) to features (B, out_features)."""
        weight = self.patches.weight
        if x.shape[1] == 1 and weight.shape[1] > 1:  # one channel counts for each of them
            weight = weight.sum(dim=1, keepdim=True)
        rows, columns = (-side % PATCH for side in x.shape[-2:])
        if rows or columns:  # no pixel is lost
            x = functional.pad(x, (0, columns, 0, rows), mode="replicate")
        tokens = functional.conv2d(x, weight, self.patches.bias, stride=PATCH)
        places = positions(tokens.shape[-2], tokens.shape[-1], self.out_features).to(tokens)
        features: Tensor = self.norm(self.blocks(tokens.flatten(2).transpose(1, 2) + places)).mean(dim=1)
        return features


def positions(rows: int, columns: int, length: int) -> Tensor:
    """Return fixed codes (rows * columns, length) of positions: sines and cosines of rows and of columns.

    Args:
        rows: of patches.
        columns: of patches.
        length: a multiple of 4.
    """
    rates = 10_000.0 ** -(torch.arange(length // 4, dtype=torch.float64) / (length // 4))
    y, x = (torch.arange(count, dtype=torch.float64)[:, None] * rates for count in (rows, columns))
    parts = [y.sin(), y.cos()], [x.sin(), x.cos()]
    down, across = (torch.cat(part, dim=1) for part in parts)
    codes = torch.cat([down.repeat_interleave(columns, 0), across.repeat(rows, 1)], dim=1)
    return codes.float()
