"""The network for inference: backends of the forward pass, and the rule that chooses one.

Backends, all with the same latents up to rounding::

    eager     the network as in training
    folded    each batch norm folded into its convolution, channels last
    packed    folded, by oneDNN: weights laid out for one shape, ReLU and addition done within the convolution; with
              trainer.precision=bf16-true images and weights are bfloat16, each rounded once, sums float32
    compiled  folded, by torch.compile

Letters in shapes: B images, C channels, H x W pixels, D the length of a latent.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nenya.errors import OptionError
from nenya.models.resnet import ARCHITECTURES, ContrastiveNet, normalise, seen
from nenya.options.sections import BACKENDS

log = logging.getLogger(__name__)

COMPILING_PAYS = {"cpu": 2e12, "cuda": 1e15}
"""Multiply-adds above which compiling pays where `packed` is not available; on a CPU per thread, because one thread
does most of the compiling and all share the work.

Measured by `benchmarks/forward.py`: a core of 20 GMAC/s repaid 11 s of compiling, with torch's cache, after 1.4e12.
The value for GPUs is an estimate: 50 s against a tenth of the time at 2 TMAC/s.
"""

Runner = Callable[[Tensor], Tensor]
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def choose_backend(wanted: str, device: str, precision: str, multiply_adds: float, *, may_compile: bool = True) -> str:
    """Return the backend for an amount of work.

    `auto` is `packed` where available (a CPU with oneDNN, float32 or bfloat16), because it costs a tenth of a second
    and is as fast as the result of half a minute of torch.compile; otherwise `compiled` above `COMPILING_PAYS`;
    otherwise `folded`. An unavailable backend is replaced by that of `auto`, with a warning.

    Args:
        wanted: `model.backend`.
        device: kind of device that computes: `cpu`, `cuda` ...
        precision: `trainer.precision`.
        multiply_adds: of all rows: their number times `count_multiply_adds`.
        may_compile: whether `auto` may compile.
    """
    if wanted != "auto":
        reason = obstacle(wanted, device, precision)
        if reason is None:
            return wanted
        found = choose_backend("auto", device, precision, 0)
        _warn_once(f"model.backend={wanted} is not available here ({reason}): using {found}")
        return found
    if obstacle("packed", device, precision) is None:
        return "packed"
    least = COMPILING_PAYS.get(device, float("inf")) * (torch.get_num_threads() if device == "cpu" else 1)
    pays = may_compile and multiply_adds >= least
    return "compiled" if pays and obstacle("compiled", device, precision) is None else "folded"


def backend_of(net: ContrastiveNet, chosen: str) -> str:
    """Return the backend for a network: of an encoder that is not a ResNet nothing is folded or packed."""
    return "eager" if chosen in ("folded", "packed") and net.ssl_model not in ARCHITECTURES else chosen


def obstacle(backend: str, device: str, precision: str) -> str | None:
    """Return why a backend is not available here, None if it is; see `choose_backend`."""
    if backend not in BACKENDS:
        return "unknown to this version of nenya"
    if backend == "packed":
        if device != "cpu" or precision not in ("32-true", "32", "bf16-true"):
            return f"it needs a CPU and trainer.precision=32-true or bf16-true, got {device} and {precision}"
        half = precision == "bf16-true"
        return None if _packs(half=half) else f"torch has no oneDNN {'with bfloat16 ' if half else ''}here"
    return _why_not_compiled(device) if backend == "compiled" else None


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


@cache
def _packs(*, half: bool) -> bool:
    """Test oneDNN's operations in float32 or bfloat16, which torch provides for its compiler only and may rename."""
    if not torch._C._has_mkldnn:
        return False
    pair = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8).eval()
    x = torch.linspace(-1, 1, 2 * 8 * 9 * 9).reshape(2, 8, 9, 9)
    try:
        with torch.no_grad():
            packed, plain = _PackedConvolution(pair, tuple(x.shape), half=half), _Convolution(pair, one_channel=False)
            given = x.to(packed.weight.dtype, memory_format=torch.channels_last)
            return all(
                torch.allclose(packed(given, other).float(), plain(x, again), rtol=0, atol=3e-2 if half else 1e-5)
                for other, again in ((None, None), (given.clone(), x.clone(memory_format=torch.channels_last)))
            )
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def _why_not_compiled(device: str) -> str | None:
    """Test torch.compile on a small function: it needs a C++ compiler, on a GPU triton."""
    try:
        import torch._dynamo.config

        if torch._dynamo.config.disable:
            return "torch.compile is switched off"
        with torch.no_grad():
            torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.zeros(16, device=device))
    except Exception as error:  # from the compiler, the linker, an unwritable folder ...
        return f"torch.compile fails: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def make_runner(
    net: ContrastiveNet, latent: str, backend: str, shape: tuple[int, ...], *, half: bool = False
) -> Runner:
    """Return a function from images to latents.

    Args:
        net: in evaluation mode, on its device; not changed. Its present weights are used.
        latent: `projection`, or `encoder` for the features under the head.
        backend: of `choose_backend`.
        shape: (B, C, H, W) of the images.
        half: compute in bfloat16 with a network in float32 (`packed` only); the latents are float32.

    Returns:
        Images (B, C, H, W) -> latents (B, D), to be called without gradients.
    """
    if backend == "eager":
        return net.encode if latent == "encoder" else net
    if net.ssl_model not in ARCHITECTURES:
        plain: Any = net.encode if latent == "encoder" else net.forward
        return cast("Runner", torch.compile(plain, dynamic=False)) if backend == "compiled" else cast("Runner", plain)
    with torch.inference_mode(False), torch.no_grad():
        folded = _Folded(net, latent, shape, packed=backend == "packed", half=half).eval()
    return _compile(folded) if backend == "compiled" else folded


def _compile(folded: nn.Module) -> Runner:
    import torch._inductor.config
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(folded, dynamic=False)

    def run(images: Tensor) -> Tensor:
        try:
            with torch._inductor.config.patch(freezing=True):  # weights are constants: laid out at compilation
                return cast("Tensor", compiled(images))
        except TorchDynamoException as error:
            raise OptionError(f"torch.compile fails: {_first_line(error)}: give model.backend=folded") from error

    return run


def count_multiply_adds(net: ContrastiveNet, height: int, width: int) -> int:
    """Return the multiply-adds of one image of `height` x `width` pixels and one channel, with its mask if need be.

    Examples:
        >>> from nenya.models.resnet import ContrastiveNet
        >>> net = ContrastiveNet("resnet18", feat_dim=16, width=8)
        >>> count_multiply_adds(net, 64, 64) < count_multiply_adds(net, 128, 128)
        True
    """
    if net.ssl_model not in ARCHITECTURES:
        return _counted(net, height, width)
    total, size = 0, (height, width)
    for shortcut, branch in _blocks(net):
        if shortcut is not None:
            rows, columns = _size_after(shortcut[0], size)
            total += shortcut[0].weight.numel() * rows * columns
        for conv, _ in branch:
            size = _size_after(conv, size)
            weights = conv.weight[:, : 1 + net.mask_channel] if conv is net.encoder.conv1 else conv.weight
            total += weights.numel() * size[0] * size[1]
    return total + sum(layer.weight.numel() for layer in net.head if isinstance(layer, nn.Linear))


def _counted(net: ContrastiveNet, height: int, width: int) -> int:
    """Return the multiply-adds of an image by a forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    first, training = next(net.parameters()), net.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.eval()(torch.zeros(1, 1, height, width, dtype=first.dtype, device=first.device))
    net.train(training)
    return int(counter.get_total_flops()) // 2


def _blocks(net: ContrastiveNet) -> Iterator[tuple[Pair | None, list[Pair]]]:
    """Yield the shortcut, if it has a convolution, and the branch of each block, after the first convolution alone."""
    encoder = cast("Any", net.encoder)
    yield None, [(encoder.conv1, encoder.bn1)]
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in stage:
            numbers = [number for number in (1, 2, 3) if hasattr(block, f"conv{number}")]
            branch = [(getattr(block, f"conv{number}"), getattr(block, f"bn{number}")) for number in numbers]
            yield (tuple(block.shortcut) if len(block.shortcut) else None), branch


def _size_after(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[int, int]:
    step = conv.stride[0]
    return -(-size[0] // step), -(-size[1] // step)  # all are padded by half a kernel


class _Convolution(nn.Module):
    """A convolution with the batch norm after it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, pair: Pair, *, one_channel: bool) -> None:
        super().__init__()
        conv, norm = pair
        kind = conv.weight.dtype
        exact = torch.promote_types(kind, torch.float32)
        terms = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        mean, var, gain, shift = (cast("Tensor", term).to(exact) for term in terms)
        weight = conv.weight.to(exact)
        if one_channel:  # for equal channels the convolution sums over its weights
            weight = weight.sum(dim=1, keepdim=True)
        fused, bias = fuse_conv_bn_weights(weight, None, mean, var, norm.eps, gain, shift)
        self.register_buffer("weight", fused.detach().to(kind).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach().to(kind))
        self.stride, self.padding = list(conv.stride), [side // 2 for side in conv.kernel_size]

    def forward(self, x: Tensor, other: Tensor | None = None, *, relu: bool = True) -> Tensor:
        """Return the convolution of `x`, plus `other`, which may be overwritten, after a ReLU."""
        out = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if other is not None:
            out = out.add_(other)
        return out.relu_() if relu else out


class _PackedConvolution(_Convolution):
    """The same in a single call of oneDNN, with the weights laid out for inputs of one shape."""

    def __init__(self, pair: Pair, shape: tuple[int, ...], *, half: bool) -> None:
        super().__init__(pair, one_channel=shape[1] == 1)
        if half:
            self.weight, self.bias = self.weight.bfloat16(), self.bias.bfloat16()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, self.padding, self.stride, [1, 1], 1, list(shape)
        )

    def forward(self, x: Tensor, other: Tensor | None = None, *, relu: bool = True) -> Tensor:
        """See `_Convolution`."""
        how, last = (self.weight, self.bias, self.padding, self.stride, [1, 1], 1), "relu" if relu else "none"
        if other is None:
            return cast("Tensor", torch.ops.mkldnn._convolution_pointwise(x, *how, last, [], ""))
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return cast("Tensor", add(other, x, *how, "add", 1.0, last, [], ""))


class _FoldedBlock(nn.Module):
    """A residual block: the result of the shortcut, or the input itself, is added to that of the branch."""

    def __init__(self, shortcut: _Convolution | None, branch: list[_Convolution]) -> None:
        super().__init__()
        self.shortcut, self.branch, self.last = shortcut, nn.Sequential(*branch[:-1]), branch[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W); the input may be overwritten."""
        out = self.branch(x)
        return cast("Tensor", self.last(out, x if self.shortcut is None else self.shortcut(x, relu=False)))


class _Folded(nn.Module):
    """The network with its batch norms folded into its convolutions, channels last."""

    def __init__(
        self, net: ContrastiveNet, latent: str, shape: tuple[int, ...], *, packed: bool, half: bool = False
    ) -> None:
        super().__init__()
        self.kind = torch.bfloat16 if half else None
        batch, channels = shape[0], net.channels if net.mask_channel else shape[1]
        size = (shape[2], shape[3])

        def convolution(pair: Pair) -> _Convolution:
            given = channels if pair[0] is net.encoder.conv1 else pair[0].in_channels
            if packed:
                return _PackedConvolution(pair, (batch, given, *size), half=half)
            return _Convolution(pair, one_channel=given == 1)

        parts: list[nn.Module] = []
        for shortcut, branch in _blocks(net):
            aside = None if shortcut is None else convolution(shortcut)
            made = []
            for pair in branch:
                made.append(convolution(pair))
                size = _size_after(pair[0], size)
            parts.append(_FoldedBlock(aside, made) if len(made) > 1 else made[0])
        self.convolutions = nn.Sequential(*parts)
        self.mask_channel, self.scales = net.mask_channel, net.scales
        self.head = net.head if latent == "projection" else None

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to latents (B, D)."""
        x = seen(images, mask_channel=self.mask_channel, is_scaled=self.scales)
        x = x.to(self.kind or x.dtype, memory_format=torch.channels_last)
        features: Tensor = self.convolutions(x).mean(dim=(2, 3), dtype=torch.float32 if self.kind else None)
        return features if self.head is None else normalise(self.head(features))
