"""The flat option names of users' scripts and JSON files: a view of the sections."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nenya.options.declare import check_keys
from nenya.options.objectives import LossOptions
from nenya.options.old_keys import IGNORED, OLDER, current_names, recorded
from nenya.options.sections import AugmentOptions, ModelOptions, OptimOptions, Options, PublishedOptions

_WITHOUT = ("name", "backend", "layout")  # how a network is computed, not what it is
# Flat name -> section and key.
FLAT: dict[str, tuple[str, str]] = {
    **{f.name: ("loss", f.name) for f in dataclasses.fields(LossOptions)},
    **{f.name: ("model", f.name) for f in dataclasses.fields(ModelOptions) if f.name not in _WITHOUT},
    **{f.name: ("augment", f.name) for f in dataclasses.fields(AugmentOptions) if f.name != "recipe"},
    **{f.name: ("optim", f.name) for f in dataclasses.fields(OptimOptions) if f.name != "fused"},
    **{f.name: ("archive", f.name) for f in dataclasses.fields(PublishedOptions) if f.name != "other"},
    **{
        name: ("loader", name)
        for name in ("batch_size_train", "batch_size_valid", "num_workers", "train_key", "valid_key")
    },
    "augment": ("augment", "recipe"),
    "random_cropjitter": ("augment", "random_jitter"),
    "dt_crop": ("preprocess", "dt_crop"),
    "masked": ("preprocess", "masked"),
    "epochs": ("trainer", "max_epochs"),
    "syncBN": ("trainer", "sync_batchnorm"),
    "valid_freq": ("trainer", "check_val_every_n_epoch"),
    "save_freq": ("checkpoint", "save_freq"),
}


def from_flat(values: Mapping[str, Any], name: str = "custom") -> dict[str, dict[str, Any]]:
    """Return the sections for the flat names of a JSON option file.

    Args:
        values: flat option names and values; without `nchannels` the network has three channels.
        name: name of the model version.

    Returns:
        section -> key -> value, ready for `build_options`.

    Raises:
        OptionError: A key is unknown, or two names of one option are given with different values.
    """
    check_keys(values, [*FLAT, *OLDER, *IGNORED], "")
    found, ignored = current_names(values)
    sections: dict[str, dict[str, Any]] = {"model": {"name": name, "nchannels": 3}}
    for key, value in found.items():
        section, inner = FLAT[key]
        sections.setdefault(section, {})[inner] = value
    if ignored:
        sections.setdefault("archive", {})["other"] = json.dumps(ignored)
    return sections


def flat_name(options: Options) -> str:
    """Return the users' derived `model_name`, such as `SimCLR_resnet50_lr_0.05_..._trial_5_cosine_warm`."""
    o = options
    data = f"{o.archive.data_name}_" if o.archive.data_name else ""
    name = (
        f"{o.loss.ssl_method}_{data}{o.model.ssl_model}_lr_{o.optim.learning_rate}_decay_{o.optim.weight_decay}"
        f"_bsz_{o.loader.batch_size_train}_temp_{o.loss.temp}_trial_{o.archive.trial}"
    )
    name += "_cosine" if o.optim.cosine else ""
    return name + ("_warm" if warm_up(o) else "")


def warm_up(options: Options) -> bool:
    """Return whether training warms up: if requested, and always for batches over 256."""
    return options.optim.warm or options.loader.batch_size_train > 256


def folders(options: Options) -> dict[str, str]:
    """Return the users' derived folders.

    Returns:
        `model_folder` and `latents_folder`, and `save_folder`, that of the run's files: in the option files of the
        first years a folder of its own within `model_folder`, else the same.
    """
    name, archive = flat_name(options), options.archive
    models = archive.models_place or str(Path("models") / archive.model_root / name)
    latents = archive.latents_place or str(Path("latents") / archive.model_root / name)
    save = str(Path(models) / name) if archive.data_name else models
    return {"model_folder": models, "latents_folder": latents, "save_folder": save}


def flat_view(options: Options) -> dict[str, Any]:
    """Return the users' flat names with their values, as plain types: the `opt` of a checkpoint or JSON file.

    Keys of the option file that have no effect come along as they were.
    """
    flat = {name: getattr(getattr(options, section), key) for name, (section, key) in FLAT.items()}
    return {**recorded(options.archive.other), **flat, "model_name": flat_name(options), **folders(options)}
