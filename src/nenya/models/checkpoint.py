"""Reading and writing weights: the users' `.pth`, our Lightning `.ckpt`, and `.safetensors`.

Nothing in a checkpoint is ever executed: all is read with `weights_only=True`. The users' files hold an
instance of a class `Params`, pickled under the name of one of several modules; a stub replaces it.
"""

import errno
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nenya.errors import CheckpointError, InputFileError, MissingCheckpointError, NenyaError, OutputError
from nenya.models.backbones.make import IMAGE_AND_MASK, infer_backbone, recorded_own
from nenya.models.objectives.extracted import extracted
from nenya.models.pickled import PARAMS_NAMES, ParamsStub, check_torch_file, plain_options
from nenya.models.resnet import ARCHITECTURES, SCALING, ContrastiveNet
from nenya.models.stand_ins import stand_ins, without_attributes
from nenya.storage.disk import atomic_path, sha256_file
from nenya.storage.names import parse_json
from nenya.storage.small_files import check_regular

_SHOWN = 3
_FIRST = "encoder.conv1.weight"
_OTHER_KEYS = ("model_state_dict", "network", "net", "weights")
_NUMBERS = ("weight", "bias", "running_mean", "running_var")


_SAFE_GLOBALS: list[Any] = [(ParamsStub, name) for name in PARAMS_NAMES]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: The file.
        layout: 'pth' (the users'), 'ckpt' (Lightning's) or 'safetensors'.
        state_dict: Tensors by their names in `ContrastiveNet`, on the CPU.
        options: Stored options, flat and of plain types; empty if there are none.
        epoch: The epoch in which it was written, counted from 1; None if unknown.
        sha256: Of the file's bytes, in hexadecimal.
        origin: Attributes that say where it was fetched from by name; none for local files and S3.
    """

    path: Path
    layout: str
    state_dict: dict[str, Tensor] = field(repr=False)
    options: dict[str, Any]
    epoch: int | None
    sha256: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of the `ContrastiveNet` that these tensors belong to.

        Raises:
            CheckpointError: They belong to no `ContrastiveNet`.
        """
        if own := recorded_own(self.state_dict, self.options):
            return own
        try:
            return infer_architecture(self.state_dict)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error


def register_params_stubs() -> None:
    """Let a plain `torch.load(path, weights_only=True)` read the users' checkpoints too."""
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any known layout; the content shows the layout.

    Args:
        path: A local `.pth`, `.ckpt` or `.safetensors` file.

    Raises:
        CheckpointError: The file is missing, empty, damaged, not a checkpoint, or would run code.
    """
    path = Path(path)
    check_regular(path, "weights", CheckpointError)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise MissingCheckpointError(f"checkpoint {path} {what}: give the path of a .pth, .ckpt or .safetensors file")
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"checkpoint {path} is empty: copy it again")
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if what := _other_kind(path):
            raise CheckpointError(f"checkpoint {path} is {what}: give weights in a .pth, .ckpt or .safetensors file")
        return _from_pickle(path, _load_pickle(path))
    except NenyaError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error


def _other_kind(path: Path) -> str:
    """Return the kind of a file that is not a checkpoint, by its first bytes; empty if it may be one."""
    with path.open("rb") as file:
        head = file.read(8)
    kinds = {b"\x89HDF\r\n\x1a\n": "an HDF5 file, as cutouts, latents and projectors are", b"PAR1": "a parquet table"}
    return next((what for start, what in kinds.items() if head.startswith(start)), "")


def _load_pickle(path: Path) -> Any:
    """Read a file of torch.save, without executing anything in it."""
    try:
        # Not torch's context of safe globals, which on exit also removes those that others registered.
        register_params_stubs()
        with stand_ins(), warnings.catch_warnings():
            check_torch_file(path)
            # torch warns of pickle protocols that it then refuses with an error anyway.
            warnings.simplefilter("ignore", UserWarning)
            return without_attributes(torch.load(path, map_location="cpu", weights_only=True))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        system = isinstance(error, OSError) and not isinstance(error, NenyaError)
        if system and getattr(error, "errno", None) != errno.EINVAL:  # an offset before the start of the file
            raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"checkpoint {path} is refused: it would load {refused[1]}, which could run code; nothing "
                "was executed. Ask its authors for a .safetensors file"
            ) from error
        raise CheckpointError(
            f"checkpoint {path} is damaged, truncated or not a checkpoint "
            f"({_first_line(error)}); nothing was executed. Copy it again"
        ) from error


def _from_pickle(path: Path, content: Any) -> Checkpoint:
    """Convert the dictionary of a `.pth` or `.ckpt`, or one of weights alone."""
    if _is_weights(content):
        content = {"model": content}
    key, layout = ("model", "pth")
    if isinstance(content, dict) and (
        "pytorch-lightning_version" in content or ("model" not in content and "state_dict" in content)
    ):
        key, layout = ("state_dict", "ckpt")
    elif path.suffix == ".ckpt" and "model" not in content:
        key = "state_dict"
    if isinstance(content, dict) and key not in content:
        key = next((other for other in _OTHER_KEYS if _is_weights(content.get(other))), key)
    if not isinstance(content, dict) or key not in content:
        found = _some(content) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"checkpoint {path}: expected weights under '{key}', got {found}")
    options, epoch = content.get("opt", content.get("hyper_parameters")), content.get("epoch")
    if layout == "ckpt" and isinstance(epoch, int):
        epoch += 1  # Lightning counts from 0
    return Checkpoint(
        path=path,
        layout=layout,
        state_dict=_clean_names(path, extracted(content[key], options)),
        options=_options(path, options),
        epoch=epoch if isinstance(epoch, int) else None,
        sha256=sha256_file(path),
    )


def _read_safetensors(path: Path) -> Checkpoint:
    """Read a `.safetensors`, with our metadata if it has them."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        options = parse_json(metadata.get("options", "{}"), "options").value
        epoch = parse_json(metadata.get("epoch", "null"), "epoch").value
    except (safetensors.SafetensorError, InputFileError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged, truncated or not a safetensors file ({_first_line(error)}). Copy it again"
        ) from error
    return Checkpoint(
        path=path,
        layout="safetensors",
        state_dict=_clean_names(path, tensors),
        options=_options(path, options),
        epoch=epoch if isinstance(epoch, int) else None,
        sha256=sha256_file(path),
    )


def _options(path: Path, options: Any) -> dict[str, Any]:
    try:
        return plain_options(options)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is refused: {error}; ask its authors for another copy") from error


def _clean_names(path: Path, tensors: Any) -> dict[str, Tensor]:
    """Remove any prefix from the names, such as those of DataParallel, torch.compile and LightningModules."""
    if not isinstance(tensors, Mapping) or not tensors:
        raise CheckpointError(f"checkpoint {path}: expected a dictionary of weights, got {type(tensors).__name__}")
    wrong = [name for name, value in tensors.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong:
        raise CheckpointError(f"checkpoint {path}: expected tensors as weights, got other types for {_some(wrong)}")
    _check_tensors(path, tensors)
    cleaned = {re.sub(r"module\.|_orig_mod\.", "", name): value for name, value in tensors.items()}
    prefixes = [name.removesuffix(_FIRST) for name in cleaned if f".{name}".endswith(f".{_FIRST}")]
    if len(prefixes) > 1 and "" not in prefixes:
        raise CheckpointError(
            f"checkpoint {path} holds several networks, {_some(prefixes)}: give a file with the weights of one of them"
        )
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    if not prefix and prefixes and _FIRST not in tensors:  # all prefixes were removed; the rest is not the network's
        return {name: value for name, value in cleaned.items() if name.startswith(("encoder.", "head."))}
    return {name.removeprefix(prefix): value for name, value in cleaned.items() if name.startswith(prefix)}


def _is_weights(content: Any) -> bool:
    """Return whether an object is a dictionary of tensors, with names of an encoder."""
    return (
        isinstance(content, Mapping)
        and all(isinstance(value, Tensor) for value in content.values())
        and any(str(name).endswith(_FIRST.removeprefix("encoder.")) for name in content)
    )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are dense floating-point tensors, and entirely in the file."""
    for name, tensor in tensors.items():
        what = ""
        if tensor.layout != torch.strided or tensor.is_nested:
            what = "sparse or nested"
        elif tensor.is_quantized or (not tensor.is_floating_point() and name.endswith(_NUMBERS)):
            what = str(tensor.dtype).removeprefix("torch.")
        elif tensor.device.type == "meta":
            what = "without values"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            what = f"of shape {tuple(tensor.shape)}, larger than their data in the file"
        if what:
            raise CheckpointError(
                f"checkpoint {path} holds weights that are {what}: {_some([name])}; expected dense floating-point "
                "numbers, such as float32"
            )


def infer_architecture(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the architecture of the network from the names and shapes of its tensors.

    Returns:
        `ssl_model`, `feat_dim`, `nchannels`, `width`: the arguments of `ContrastiveNet`; `mask_channel` where the
        first convolution has two channels.

    Raises:
        CheckpointError: The tensors are not those of a `ContrastiveNet`.
    """
    if found := infer_backbone(state_dict):
        return found
    needed = ("encoder.conv1.weight", "encoder.layer1.0.conv1.weight", "head.2.weight")
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise CheckpointError(
            f"expected the weights of a ResNet with a two-layer head, got {len(state_dict)} tensors without "
            f"{_some(missing)}"
        )
    names = [re.match(r"encoder\.layer(\d)\.(\d+)\.conv1\.weight$", name) for name in state_dict]
    stages = [match[1] for match in names if match]
    blocks = tuple(stages.count(stage) for stage in "1234")
    bottleneck = "encoder.layer1.0.conv3.weight" in state_dict
    first, last = state_dict["encoder.conv1.weight"], state_dict["head.2.weight"]
    scaled = _scales(state_dict.get("encoder.scaling"))
    for ssl_model, architecture in ARCHITECTURES.items():
        like = (architecture.blocks, architecture.bottleneck, architecture.scaled)
        if like == (blocks, bottleneck, scaled) and first.ndim == 4:
            masked = first.shape[1] == IMAGE_AND_MASK
            return {
                "ssl_model": ssl_model,
                "feat_dim": last.shape[0],
                "nchannels": 1 if masked else first.shape[1],
                "width": first.shape[0],
                **({"mask_channel": True} if masked else {}),
            }
    kind = "bottleneck" if bottleneck else "basic"
    raise CheckpointError(
        f"expected the blocks of one of {', '.join(ARCHITECTURES)}, got stages of {blocks} {kind} blocks"
    )


def _scales(scaling: Tensor | None) -> bool:
    """Return whether weights belong to a network that scales its images, by the power that they record."""
    if scaling is not None and not scaling.is_meta and scaling.flatten().tolist() != [SCALING]:
        raise CheckpointError(
            f"expected images divided by their standard deviation to the power of {SCALING} (encoder.scaling), got "
            f"{str(scaling.flatten().tolist())[:20]}: use a newer nenya"
        )
    return scaling is not None


def mask_words(architecture: Mapping[str, Any]) -> str:
    """Return what a network sees of a mask, and the options that set it, as text for errors."""
    if architecture.get("mask_channel", False):
        return "the network sees the mask as a second channel: set model.mask_channel=true preprocess.masked=mask"
    return "the network has no mask channel: set model.mask_channel=false preprocess.masked=nan, fill or mean"


def load_weights(net: ContrastiveNet, checkpoint: Checkpoint, wanted: Mapping[str, Any] | None = None) -> None:
    """Copy a checkpoint's tensors into a network, all of them or none.

    Args:
        net: The network, changed in place.
        checkpoint: Where the weights come from.
        wanted: The requested architecture, where it says more than `net.architecture`.

    Raises:
        CheckpointError: The checkpoint has another architecture, or tensors are missing, unknown or of
            the wrong size.
    """
    asked = {**net.architecture, **(wanted or {})}
    try:
        came = infer_architecture(checkpoint.state_dict)
    except CheckpointError:
        came = {}
    if came and came.get("mask_channel", False) != asked.get("mask_channel", False):
        raise CheckpointError(f"checkpoint {checkpoint.path}: {mask_words(came)}")
    differing = [key for key in came if key in asked and came[key] != asked[key]]
    if differing:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: expected a {_describe(asked)}, got a {_describe(came)}: set "
            + " ".join(f"model.{key}={came[key]}" for key in differing)
        )
    own, given = net.state_dict(), checkpoint.state_dict
    sizes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {what}: {_some(found)}"
        for what, found in (
            ("missing", [name for name in own if name not in given]),
            ("unexpected", [name for name in given if name not in own]),
            ("of different size", sizes),
        )
        if found
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit a {_describe(asked)}: tensors {'; '.join(problems)}"
        )
    bad = [name for name, tensor in given.items() if not bool(torch.isfinite(tensor.float()).all())]
    if bad:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: {len(bad)} of {len(given)} weights hold NaN or infinity ({_some(bad)}), so "
            "latents would be NaN: use the weights of an earlier epoch, or copy the file again"
        )
    below = [name for name, tensor in given.items() if name.endswith("running_var") and bool((tensor < 0).any())]
    if below:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: {len(below)} variances are negative ({_some(below)}), so the "
            "weights are damaged: use an undamaged copy"
        )
    net.load_state_dict(dict(given), strict=True)


def save_pth(
    path: str | Path,
    net: nn.Module,
    *,
    options: Mapping[str, Any],
    epoch: int,
    optimizer_state: dict[str, Any] | None = None,
) -> None:
    """Write the users' layout; `opt` is a plain dictionary that needs no class to be read.

    Args:
        path: Final name; the file appears there complete.
        net: The network.
        options: Stored as `opt`; values that are not of plain types are stored as text.
        epoch: Number of epochs done.
        optimizer_state: Stored as `optimizer` if given.

    Raises:
        OutputError: The file cannot be written.
    """
    content = {
        "opt": plain_options(options),
        "model": {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()},
        "epoch": int(epoch),
    }
    if optimizer_state is not None:
        content["optimizer"] = optimizer_state
    write_torch(content, Path(path))


def write_torch(content: Any, path: Path) -> None:
    """Write an object in torch's format; an existing file stays until the new one is complete.

    Args:
        content: tensors and plain types.
        path: final name.

    Raises:
        OutputError: The file cannot be written, for instance on a full disk.
    """
    buffer = io.BytesIO()  # torch's own writer hides errors of the disk
    torch.save(content, buffer)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def save_safetensors(
    path: str | Path,
    source: ContrastiveNet | Checkpoint,
    metadata: Mapping[str, str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    epoch: int | None = None,
) -> None:
    """Write the exchange format, see `to_safetensors`; the file appears complete.

    Raises:
        CheckpointError: The checkpoint's tensors are not those of a `ContrastiveNet`.
        OutputError: The file cannot be written.
    """
    data = to_safetensors(source, metadata, options=options, epoch=epoch)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data)


def to_safetensors(
    source: ContrastiveNet | Checkpoint,
    metadata: Mapping[str, str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    epoch: int | None = None,
) -> bytes:
    """Return the exchange format: tensors, and JSON in the metadata under `architecture`, `options`, `epoch`.

    Args:
        source: The network, or a checkpoint; its options and epoch are kept unless given here.
        metadata: Further entries, such as a licence or a source.
        options: Options to store.
        epoch: Epochs done, counted from 1.

    Raises:
        CheckpointError: The checkpoint's tensors are not those of a `ContrastiveNet`.
    """
    if isinstance(source, Checkpoint):
        tensors = source.state_dict
        options = source.options if options is None else options
        epoch = source.epoch if epoch is None else epoch
    else:
        tensors = source.state_dict()
    described = {
        **(metadata or {}),
        "format": "pt",
        "architecture": json.dumps(source.architecture),
        "options": json.dumps(plain_options(options)),
        "epoch": json.dumps(epoch),
    }
    # Copies, because the format refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, described)  # its own writer has temporary files and errors of its own


def _describe(architecture: Mapping[str, Any]) -> str:
    """Return an architecture as text for errors."""
    words = "{ssl_model} with feat_dim {feat_dim}, {nchannels} channel(s), width {width}"
    return words.format_map(architecture)


def _some(names: Any) -> str:
    """Return the first few names, and the number of further ones, as text."""
    listed = [str(name)[:80] if isinstance(name, str | int | float) else f"a {type(name).__name__}" for name in names]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _first_line(error: Exception) -> str:
    """Return the first line of another library's error."""
    words = f"{type(error).__name__}: {error}".split("\n")[0].split(". ")[0]
    return words[:120].rstrip(" :")
