"""The files beside `model.safetensors` in a folder of `nenya export`: what the network is, and what it wants to see.

They may come from anybody, so they are checked as data: known keys, plain values, the checks of the options. A class
of somebody's own (`model.ssl_model=package.Class`) is only named; it is imported if the user names it too.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, OptionError
from nenya.options.declare import build
from nenya.options.sections import ModelOptions, PreprocessOptions
from nenya.storage.names import Json, is_plain, read_json

WEIGHTS, CONFIG, PREPROCESSOR, CARD = "model.safetensors", "config.json", "preprocessor.json", "README.md"
"""Names of the files."""

FORMAT, FORMAT_VERSION = "nenya", 1

MODEL_KEYS = (*("name", "ssl_model", "feat_dim", "nchannels", "width", "mask_channel", "latent", "image_size"),)
"""Options of the section `model` that are written."""

PREPROCESS = {"file": "preprocess_file", "image": "preprocess_image", "masked": "masked", "dt_crop": "dt_crop"}
"""Options of the section `preprocess` -> their names among stored options."""

LONGEST_NAME = 100

_MOST = 2**20
_HINT = "take an undamaged copy of the folder"
_CONFIG = ("format", "format_version", "nenya_version", "model", "latent_dim", "weights", "license", "training")
_PREPROCESSOR = ("format", "format_version", "preprocess", "input", "steps")


@dataclass(frozen=True)
class Said:
    """What the files say.

    Attributes:
        options: flat options, as a checkpoint stores them.
        sha256: of the weights that they belong to.
    """

    options: dict[str, Any]
    sha256: str


def read_said(config: Path, preprocessor: Path) -> Said:
    """Read `config.json` and `preprocessor.json`.

    Raises:
        InputFileError: One is missing, damaged, of another program, or says what cannot be.
    """
    about, seen = _opened(config, _CONFIG), _opened(preprocessor, _PREPROCESSOR)
    model = _section(ModelOptions, about["model"], MODEL_KEYS)
    preprocess = _section(PreprocessOptions, seen["preprocess"], tuple(PREPROCESS))
    if not is_name(model["name"]):
        about["model"]["name"].refuse("a plain name")
    if model["mask_channel"] != (preprocess["masked"] == "mask"):
        seen["preprocess"]["masked"].refuse("mask if, and only if, the network has a mask channel")
    weights = about["weights"]
    weights.object(("file", "sha256"))
    if weights["file"].text() != WEIGHTS:
        weights["file"].refuse(WEIGHTS)
    return Said(flat_said(model, preprocess), weights["sha256"].sha256())


def is_name(name: str) -> bool:
    """Return whether a text may be the name of a model in a folder of weights."""
    return is_plain(name, one=True) and len(name) <= LONGEST_NAME


def flat_said(model: dict[str, Any], preprocess: dict[str, Any]) -> dict[str, Any]:
    """Return the sections as a checkpoint stores them, flat."""
    flat = {("model_version" if key == "name" else key): model[key] for key in MODEL_KEYS}
    return {**flat, **{name: preprocess[key] for key, name in PREPROCESS.items()}}


def _opened(path: Path, known: tuple[str, ...]) -> Json:
    """Return the content of one of the files."""
    if not path.is_file():
        raise InputFileError(f"{path}: no such file; {_HINT}")
    found = read_json(path, hint=_HINT, most=_MOST)
    if not isinstance(found.value, dict) or found.value.get("format") != FORMAT:
        raise InputFileError(f"{path}: expected a file of nenya export, got one of another program")
    version = found["format_version"].count()
    if version > FORMAT_VERSION:
        raise InputFileError(f"{path}: format_version {version} is of a newer nenya: update nenya")
    found.object(known)
    return found


def _section(kind: type[Any], found: Json, keys: Any) -> dict[str, Any]:
    """Return the checked values of a section; every key is required."""
    given = found.object(keys)
    try:
        section = build(kind, {key: found[key].value for key in keys}, "")
    except OptionError as error:
        raise InputFileError(f"{found.place}: {found.key}.{error}") from error
    assert len(given) == len(keys)
    return dataclasses.asdict(section)
