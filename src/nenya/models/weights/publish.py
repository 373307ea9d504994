"""Writes a folder of weights: `model.safetensors`, `config.json`, `preprocessor.json` and the model card."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nenya
from nenya.errors import OptionError, OutputError
from nenya.models.checkpoint import Checkpoint, to_safetensors
from nenya.models.resnet import ContrastiveNet
from nenya.models.weights.card import model_card, preprocess_words
from nenya.models.weights.folder import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    LONGEST_NAME,
    MODEL_KEYS,
    PREPROCESSOR,
    WEIGHTS,
    flat_said,
    is_name,
)
from nenya.options.flat import FLAT
from nenya.options.sections import ModelOptions, Options
from nenya.storage.disk import atomic_path, check_folder, check_output, together

FILES = (WEIGHTS, CONFIG, PREPROCESSOR, CARD)

_PUBLIC = ("loss", "augment", "optim", "trainer")  # sections without paths and places
_ALSO = ("batch_size_train", "extracted", "sensor")
_PRIVATE = ("cloud_masks", "extra")


def check_place(folder: Path, name: str, *, clobber: bool) -> None:
    """Check that the files of a folder can be written; others in it stay.

    Args:
        folder: the folder.
        name: of the model, which is written into them.
        clobber: whether existing ones may be overwritten.

    Raises:
        OptionError: The name is not plain.
        OutputError: One exists, or the folder cannot be created or written.
    """
    if not is_name(name):
        raise OptionError(f"model.name={name}: expected a plain name of at most {LONGEST_NAME} characters")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, expected a folder: choose another path with out=")
    check_folder(folder)
    for name in FILES:
        check_output(folder / name, clobber)


def latent_length(net: ContrastiveNet, latent: str) -> int:
    """Return the length of a latent."""
    return int(net.feat_dim if latent == "projection" else net.encoder.out_features)


def described(options: Options, net: ContrastiveNet) -> ModelOptions:
    """Return the section `model` for a network; its number of channels may come from its file."""
    return dataclasses.replace(options.model, **{"mask_channel": False, **net.architecture})


def write_folder(folder: Path, options: Options, checkpoint: Checkpoint, net: ContrastiveNet, licence: str) -> None:
    """Write the files of a folder: all of them appear, or none.

    Args:
        folder: created if missing; other files in it stay.
        options: `model` and `preprocess` are used.
        checkpoint: the weights.
        net: the network that holds them.
        licence: of the weights, an identifier such as `cc-by-4.0`.

    Raises:
        OutputError: They cannot be written.
    """
    model, training = described(options, net), public_options(checkpoint.options)
    section = {key: getattr(model, key) for key in MODEL_KEYS}
    preprocess = dataclasses.asdict(options.preprocess)
    dim = latent_length(net, model.latent)
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    stored = {**training, **flat_said(section, preprocess)}
    weights = to_safetensors(checkpoint, {"source_sha256": checkpoint.sha256}, options=stored)
    facts = {
        **{"license": licence, "latent_dim": dim, "parameters": sum(p.numel() for p in net.parameters())},
        **{"weights_sha256": hashlib.sha256(weights).hexdigest(), "source_sha256": checkpoint.sha256},
        "nenya_version": nenya.__version__,
    }
    config = {
        **head,
        **{"nenya_version": nenya.__version__, "model": section, "latent_dim": dim},
        "weights": {"file": WEIGHTS, "sha256": facts["weights_sha256"]},
        **{"license": licence, "training": training},
    }
    steps = preprocess_words(model, options.preprocess)
    seen = {**head, "preprocess": preprocess, "input": input_of(model), "steps": steps}
    with together():
        _write(folder / WEIGHTS, weights)
        _write(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        _write(folder / PREPROCESSOR, (json.dumps(seen, indent=2) + "\n").encode())
        _write(folder / CARD, model_card(model, options.preprocess, facts, training).encode())


def input_of(model: ModelOptions) -> dict[str, Any]:
    """Return what a network takes, in words of the files."""
    side = model.image_size
    channels = ["field", "mask"] if model.mask_channel else ["field"]
    return {"shape": ["n", len(channels), side, side], "dtype": "float32", "channels": channels}


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a training that say how it was done, without paths and names of places."""
    names = {name for name, (section, _) in FLAT.items() if section in _PUBLIC}
    return {
        key: value
        for key, value in options.items()
        if (key in names or key in _ALSO) and key not in _PRIVATE and value is not None
    }


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
