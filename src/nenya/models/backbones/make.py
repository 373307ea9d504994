"""The encoder of a name: one of those beside the ResNets, or a class of the user's own."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nenya.errors import NenyaError, OptionError
from nenya.models.backbones.convnext import DEPTHS, ConvNeXt
from nenya.models.backbones.vit import HEADS, ViT
from nenya.options.own import is_dotted, load_named
from nenya.storage.texts import first_words

BACKBONES = (*DEPTHS, *HEADS)
"""Names of encoders in `model.ssl_model`, besides the ResNets."""

FIRST_LAYERS = ("encoder.conv1.weight", "encoder.stem.weight", "encoder.patches.weight")
"""Weights (width, C, h, w) of the layer that sees the image: of ResNets, ConvNeXt, ViT."""

IMAGE_AND_MASK = 2
"""Channels of the first layer of a network that sees masks."""

_MOST = 65_536
_MULTIPLE = 4  # of the width of a ViT, for its positions
_LOST = re.compile(r"(^|\.)(module|_orig_mod)\.")  # prefixes that reading a checkpoint removes


def make_encoder(ssl_model: str, nchannels: int, width: int) -> Any:
    """Return an encoder, a module with the attribute `out_features`.

    Args:
        ssl_model: one of `BACKBONES`, or the dotted name of a class of the user's own.
        nchannels: channels of the images.
        width: of the first stage; see `ConvNeXt` and `ViT`.

    Raises:
        OptionError: An unknown name, a class that cannot be used, or a width that does not suit.
    """
    if ssl_model in DEPTHS:
        return ConvNeXt(ssl_model, nchannels, width)
    if ssl_model in HEADS:
        if width % _MULTIPLE:
            raise OptionError(f"model.width={width}: expected a multiple of {_MULTIPLE} with {ssl_model}")
        return ViT(ssl_model, nchannels, width)
    return _own(ssl_model, nchannels, width)


def _own(name: str, nchannels: int, width: int) -> nn.Module:
    """Return an encoder of the user's own class."""
    given = f"model.ssl_model={name}"
    kind = load_named(name, "model.ssl_model", "a class derived from torch.nn.Module", _is_module_class)
    taken = inspect.signature(kind).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    any_name = any_name and kind.__init__ is not nn.Module.__init__  # which only seems to take any
    settings = {"nchannels": nchannels, "width": width}
    try:
        encoder: nn.Module = kind(**{key: value for key, value in settings.items() if key in taken or any_name})
    except Exception as error:  # whatever the user's code raises
        raise OptionError(
            f"{given}: {name.rpartition('.')[2]}() fails: {type(error).__name__}: {first_words(error)}"
        ) from error
    length = getattr(encoder, "out_features", None)
    if type(length) is not int or length < 1:
        raise OptionError(
            f"{given}: expected an attribute out_features, the length of the features, got "
            f"{'none' if length is None else repr(length)}"
        )
    if lost := next((key for key in encoder.state_dict() if _LOST.search(key)), None):
        raise OptionError(f"{given}: its weights {lost} cannot be read back: rename the part that is called module")
    return encoder


def _is_module_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def features_of_own(encoder: nn.Module, images: Tensor, nchannels: int, name: str) -> Tensor:
    """Return the features (B, d) of images (B, C or 1, H, W) by an encoder of the user's own.

    Raises:
        OptionError: It fails, or returns something else.
    """
    given, length = f"model.ssl_model={name}", encoder.out_features
    try:
        features = encoder(images.expand(-1, nchannels, -1, -1))
    except NenyaError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
        raise OptionError(
            f"{given}: it fails for images of shape {tuple(images.shape)}: {type(error).__name__}: {first_words(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.shape != (len(images), length):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise OptionError(f"{given}: expected features of shape ({len(images)}, {length}), got {got}")
    return features


def first_weight(net: nn.Module) -> Tensor:
    """Return the weights (width, C, h, w) of the layer of a network that sees the image."""
    tensors: Mapping[str, Tensor] = net.state_dict()
    return next(tensors[name] for name in FIRST_LAYERS if name in tensors)


def infer_backbone(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the architecture by the tensors of a network of `BACKBONES`, else None; two channels: image and mask."""
    last = state_dict.get("head.2.weight")
    stem, patches = (state_dict.get(name) for name in FIRST_LAYERS[1:])
    if last is None:
        return None
    if stem is not None and stem.ndim == 4:  # a convolution
        blocks = sum(re.fullmatch(r"encoder\.stages\.2\.\d+\.scale", name) is not None for name in state_dict)
        name = next((name for name, depths in DEPTHS.items() if depths[2] == blocks), None)
        first, width = stem, stem.shape[0]
    elif patches is not None and patches.ndim == 4:
        bias = state_dict.get("encoder.blocks.0.qkv_bias", torch.empty(0, 0, 0))
        heads = bias.shape[1] if bias.ndim == 3 else 0  # (3, heads, width)
        name = next((name for name, count in HEADS.items() if count == heads), None)
        first, width = patches, bias.shape[-1]
    else:
        return None
    if not name:
        return None
    found = {"ssl_model": name, "feat_dim": last.shape[0], "nchannels": first.shape[1], "width": width}
    return {**found, "nchannels": 1, "mask_channel": True} if first.shape[1] == IMAGE_AND_MASK else found


def recorded_own(state_dict: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the architecture of a network with an encoder of its author's own, by what is recorded; else None.

    Nothing is imported.
    """
    name, last = options.get("ssl_model"), state_dict.get("head.2.weight")
    if not is_dotted(name) or last is None or last.ndim != 2:  # a linear layer
        return None
    counts = {key: options.get(key) for key in ("nchannels", "width")}
    if not all(type(count) is int and 0 < count <= _MOST for count in counts.values()):
        return None
    return {"ssl_model": name, "feat_dim": last.shape[0], **counts}
