"""The network of a command: what its checkpoint says, unless the command line says it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from nenya.errors import CheckpointError
from nenya.options.declare import to_dict
from nenya.options.files import config_dir, read_group
from nenya.options.own import is_dotted
from nenya.options.sections import MASKED, ModelOptions, Options, PublishedOptions

O = TypeVar("O", bound=Options)  # noqa: E741  # the type of the options of one command

_FREE = ("model.backend", "model.weights")  # of the model, and yet nothing about the network
_KNOWN_BY_OPTIONS = ("latent", "image_size", "image_sizes")
_NEEDED = {
    "SearchOptions": "image",
    "MetricsOptions": "images",
    "AuditOptions": "images",
}  # with which a network is used


def with_network(options: O, overrides: Sequence[str]) -> O:
    """Return the options with the network of `ckpt=`, unless they name a model or a part of one.

    Args:
        options: of a command.
        overrides: its command line.

    Raises:
        CheckpointError: The file is missing, damaged, refused, or holds another network.
        StorageError: An S3 service does not deliver it.
    """
    own = options.model.ssl_model
    keys = {override.partition("=")[0] for override in overrides}
    named = [key for key in keys if key == "model" or (key.startswith("model.") and key not in _FREE)]
    if (named and (named != ["model.ssl_model"] or not is_dotted(own))) or not _encodes(options):
        return options
    from nenya.models.contrastive import checkpoint_of

    ckpt = str(getattr(options, "ckpt"))  # noqa: B009  # not every command has it
    checkpoint = checkpoint_of(options, ckpt)
    architecture = checkpoint.architecture
    if named:  # the user's own class, with the sizes of the checkpoint
        architecture = {**architecture, "ssl_model": own}
    elif is_dotted(name := architecture["ssl_model"]):
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is of an encoder of its author's own, {name}: give model.ssl_model={name} "
            "if you have that code and trust it; nothing was imported"
        )
    said = {key: value for key, value in checkpoint.options.items() if value is not None}
    kept: dict[str, Any] = {"backend": options.model.backend, "weights": options.model.weights}
    network = {**architecture, **{key: said[key] for key in _KNOWN_BY_OPTIONS if key in said}}
    model = ModelOptions(name=str(said.get("model_version", "custom")), **kept, **network)
    preprocess = options.preprocess
    if "preprocess.masked" not in keys:
        preprocess = replace(preprocess, masked=_masked_of(said, model))
    if "preprocess.dt_crop" not in keys and isinstance(said.get("dt_crop"), int):
        preprocess = replace(preprocess, dt_crop=said["dt_crop"])
    return replace(options, model=model, preprocess=preprocess, archive=PublishedOptions())


def _masked_of(said: dict[str, Any], model: ModelOptions) -> str:
    """Return what a network sees of masked pixels, as its checkpoint says; a mask channel leaves no choice."""
    if model.mask_channel:
        return "mask"
    masked = said.get("masked")
    return masked if masked in MASKED and masked != "mask" else "nan"


def _encodes(options: Options) -> bool:
    """Return whether a command computes latents with the weights of `ckpt=`."""
    if not getattr(options, "ckpt", None) or getattr(options, "archive_dir", None):
        return False
    needed: Any = _NEEDED.get(type(options).__name__)
    return needed is None or getattr(options, needed) is not None


def model_arguments(options: Options) -> list[str]:
    """Return the arguments by which another command uses the same network and preprocessing."""
    known = [path.stem for path in (config_dir() / "model").glob("*.yaml")]
    name = options.model.name if options.model.name in known else "custom"
    stated = read_group("model", name)
    found = [f"model={name}"]
    for section in ("model", "preprocess"):
        own = getattr(options, section)
        usual = {**{f.name: getattr(type(own)(), f.name) for f in fields(own)}, **stated.get(section, {})}
        found += [
            f"{section}.{key}={'null' if value is None else value}"
            for key, value in to_dict(own).items()
            if value != usual[key]
        ]
    return found
