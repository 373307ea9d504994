"""What the processor can, and what a training with `auto` takes from it: a fixed table, no measurement.

So the same machine and seed give the same weights. The choice is written into `config.yaml`; a resumed run keeps it.
"""

import logging
import re
from dataclasses import dataclass, replace

import torch

from nenya.errors import OptionError
from nenya.options.commands import TrainOptions
from nenya.options.sections import TrainerOptions, optimizer_of
from nenya.runtime.process import cores

log = logging.getLogger(__name__)

_AMPERE = (8, 0)  # the first generation of GPUs with bfloat16
_LEAST_WIDTH = 8
"""Narrower networks overwrite memory in oneDNN's backward pass if it has AVX2 alone and images are channels last."""
_DESCRIBED = re.compile(r"(\w+)(?:, (\d{1,4}) threads?)?")


@dataclass(frozen=True)
class Choice:
    """What a training takes.

    Attributes:
        precision: `trainer.precision`.
        layout: `model.layout`.
        fused: `optim.fused`.
    """

    precision: str
    layout: str
    fused: bool


CHOICES = {
    "amx_bf16": Choice("bf16-mixed", "channels_last", fused=True),
    "avx512_bf16": Choice("bf16-mixed", "channels_last", fused=True),
    "avx512": Choice("32-true", "channels_last", fused=True),
    "avx2": Choice("32-true", "channels_last", fused=True),
    "cuda_bf16": Choice("bf16-mixed", "channels_last", fused=True),
    "cuda": Choice("32-true", "channels_last", fused=True),
    "other": Choice("32-true", "contiguous", fused=False),
}
"""Kind of processor -> what a training with `auto` takes; measured by `benchmarks/train.py`."""

_CPU_KINDS = {"amx_bf16": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512_f": "avx512", "avx2": "avx2"}


def kind_of_processor(accelerator: str) -> str:
    """Return the kind of the device that computes, a key of `CHOICES`.

    Args:
        accelerator: `trainer.accelerator`.
    """
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return "cuda_bf16" if torch.cuda.get_device_capability() >= _AMPERE else "cuda"
    if accelerator not in ("cpu", "auto") or not torch._C._has_mkldnn:
        return "other"
    able = torch.cpu.get_capabilities()
    return next((kind for name, kind in _CPU_KINDS.items() if able.get(name)), "other")


def described(kind: str) -> str:
    """Return a kind of processor with the threads of this process, as `config.yaml` has it."""
    if kind.startswith("cuda"):
        return kind
    threads = torch.get_num_threads()
    return f"{kind}, {threads} thread{'s' if threads > 1 else ''}"


def settle(options: TrainOptions) -> tuple[TrainOptions, str]:
    """Return the options of a training with a choice in the place of each `auto`, and what was chosen, in a line.

    A resumed run keeps its choice and its number of threads. A warning names a choice for another processor.

    Raises:
        OptionError: This processor cannot train a network so narrow with `model.layout=channels_last`.
    """
    kind = kind_of_processor(options.trainer.accelerator)
    narrow = options.model.width < _LEAST_WIDTH and not kind.startswith("cuda")
    if narrow and options.model.layout == "channels_last" and kind in ("avx2", "other"):
        raise OptionError(
            f"model.layout=channels_last with model.width={options.model.width}: expected a width of {_LEAST_WIDTH} or "
            "more on this processor, as narrower networks crash; give model.layout=contiguous, or for a run that "
            "resumes a processor with AVX-512"
        )
    if options.resume:
        _keep(options, kind)
    precision, layout = options.trainer.precision == "auto", options.model.layout == "auto"
    if not precision and not layout:
        return options, ""
    chosen, said = CHOICES[kind], []
    if not kind.startswith("cuda") and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())
    if precision:
        said.append(f"trainer.precision={chosen.precision}")
        options = replace(options, trainer=replace(options.trainer, precision=chosen.precision))
    if layout:
        name = "contiguous" if narrow else chosen.layout
        said.append(f"model.layout={name}")
        options = replace(options, model=replace(options.model, layout=name))
        if options.optim.fused is None and chosen.fused and optimizer_of(options) != "LARS":
            said.append("optim.fused=true")
            options = replace(options, optim=replace(options.optim, fused=True))
    line = f"chosen for this processor ({described(kind)}): {', '.join(said)}"
    return replace(options, processor=described(kind)), line


def _keep(options: TrainOptions, kind: str) -> None:
    """Use the threads that a run began with, and say what differs from its processor."""
    found = _DESCRIBED.fullmatch(options.processor or "")
    if found is None:
        return
    was, threads = found[1], int(found[2] or 0)
    if was == kind and 0 < threads <= cores():
        torch.set_num_threads(threads)
    if described(kind) != options.processor:
        log.warning(
            "the run began on another processor (%s; this one: %s): it continues with trainer.precision=%s and "
            "model.layout=%s, but the weights will not be the same bit for bit%s",
            options.processor,
            described(kind),
            options.trainer.precision,
            options.model.layout,
            ", and its steps are slow without bfloat16" if _is_emulated(options.trainer, kind) else "",
        )


def _is_emulated(trainer: TrainerOptions, kind: str) -> bool:
    return trainer.precision.startswith("bf16") and CHOICES[kind].precision == "32-true"
