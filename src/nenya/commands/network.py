"""The network of a command: what its checkpoint says, unless the command line says it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from nenya.errors import CheckpointError, OptionError
from nenya.models.weights.folder import PREPROCESS
from nenya.options.commands import UpdateOptions
from nenya.options.declare import build, to_dict
from nenya.options.files import config_dir, read_group
from nenya.options.own import is_dotted
from nenya.options.sections import MASKED, ModelOptions, Options, PreprocessOptions, PublishedOptions

O = TypeVar("O", bound=Options)  # noqa: E741  # the type of the options of one command

_FREE = ("model.backend", "model.weights", "model.name")  # of the model, and yet nothing about the network
_KNOWN_BY_OPTIONS = ("latent", "image_size", "image_sizes")
_NEEDED = {
    "SearchOptions": "image",
    "MetricsOptions": "images",
    "AuditOptions": "images",
    "ProbeOptions": "images",
}  # with which a network is used


def with_network(options: O, overrides: Sequence[str]) -> O:
    """Return the options with the network of `ckpt=`, unless they name a model or a part of one.

    Weights with a `config.json` beside them (those of `nenya export out=folder/`, and of the Hub) say all of network
    and preprocessing; what the command line says of either holds instead.

    Args:
        options: of a command.
        overrides: its command line.

    Raises:
        CheckpointError: The file is missing, damaged, refused, or holds another network.
        StorageError: An S3 service, a hub or a server does not deliver it.
    """
    own = options.model.ssl_model
    keys = {override.partition("=")[0] for override in overrides}
    named = [key for key in keys if key == "model" or (key.startswith("model.") and key not in _FREE)]
    if "model" in named or not _encodes(options):
        return options
    from nenya.models.contrastive import find_weights_of, read_weights

    own_class = named == ["model.ssl_model"] and is_dotted(own)
    ckpt = str(getattr(options, "ckpt"))  # noqa: B009  # not every command has it
    weights = find_weights_of(options, ckpt)
    if not weights.said and ((named and not own_class) or isinstance(options, UpdateOptions)):
        return options
    checkpoint = read_weights(weights, options.loader.cache_dir)
    architecture = checkpoint.architecture
    if own_class:  # the user's own class, with the sizes of the checkpoint
        architecture = {**architecture, "ssl_model": own}
    elif is_dotted(name := architecture["ssl_model"]) and "model.ssl_model" not in named:
        raise CheckpointError(
            f"checkpoint {weights.text} is of an encoder of its author's own, {name}: give model.ssl_model={name} "
            "if you have that code and trust it; nothing was imported"
        )
    said = {key: value for key, value in checkpoint.options.items() if value is not None}
    kept: dict[str, Any] = {"backend": options.model.backend, "weights": options.model.weights}
    network = {**architecture, **{key: said[key] for key in _KNOWN_BY_OPTIONS if key in said}}
    given = {key.partition(".")[2]: getattr(options.model, key.partition(".")[2]) for key in named}
    try:
        name = options.model.name if "model.name" in keys else str(said.get("model_version", "custom"))
        values = {"name": name, **kept, **network, **given}
        model = build(ModelOptions, values, "model.")
        preprocess = build(PreprocessOptions, _preprocess_of(options.preprocess, keys, said, model), "preprocess.")
    except OptionError as error:
        raise CheckpointError(f"checkpoint {weights.text}: {error}") from error
    return replace(options, model=model, preprocess=preprocess, archive=PublishedOptions())


def _preprocess_of(
    given: PreprocessOptions, keys: set[str], said: dict[str, Any], model: ModelOptions
) -> dict[str, Any]:
    """Return the section `preprocess`: what the command line says, else what the checkpoint says, else as it is."""
    found = {key: said[name] for key, name in PREPROCESS.items() if name in said}
    found["masked"] = _masked_of(said, model)
    if not isinstance(found.get("dt_crop", 0), int):
        del found["dt_crop"]
    return {**to_dict(given), **{key: value for key, value in found.items() if f"preprocess.{key}" not in keys}}


def _masked_of(said: dict[str, Any], model: ModelOptions) -> str:
    """Return what a network sees of masked pixels, as its checkpoint says; a mask channel leaves no choice."""
    if model.mask_channel:
        return "mask"
    masked = said.get("masked")
    return masked if masked in MASKED and masked != "mask" else "nan"


def _encodes(options: Options) -> bool:
    """Return whether a command computes latents with the weights of `ckpt=`."""
    if not getattr(options, "ckpt", None) or (
        getattr(options, "archive_dir", None) and not isinstance(options, UpdateOptions)
    ):
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
            if value != usual[key] and key != "layout"  # of trainings alone
        ]
    return found
