"""The flat option names of users' scripts and JSON files: a view of the sections."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nenya.errors import OptionError
from nenya.options.declare import check_keys
from nenya.options.sections import ArchiveOptions, AugmentOptions, LossOptions, ModelOptions, OptimOptions, Options

# Flat name -> section and key.
FLAT: dict[str, tuple[str, str]] = {
    **{f.name: ("loss", f.name) for f in dataclasses.fields(LossOptions)},
    **{f.name: ("model", f.name) for f in dataclasses.fields(ModelOptions) if f.name not in ("name", "backend")},
    **{f.name: ("augment", f.name) for f in dataclasses.fields(AugmentOptions) if f.name != "recipe"},
    **{f.name: ("optim", f.name) for f in dataclasses.fields(OptimOptions)},
    **{f.name: ("archive", f.name) for f in dataclasses.fields(ArchiveOptions)},
    **{
        name: ("loader", name)
        for name in ("batch_size_train", "batch_size_valid", "num_workers", "train_key", "valid_key")
    },
    "augment": ("augment", "recipe"),
    "random_cropjitter": ("augment", "random_jitter"),
    "dt_crop": ("preprocess", "dt_crop"),
    "epochs": ("trainer", "max_epochs"),
    "syncBN": ("trainer", "sync_batchnorm"),
    "valid_freq": ("trainer", "check_val_every_n_epoch"),
    "save_freq": ("checkpoint", "save_freq"),
}


# Keys of old option files that have no effect, and why.
IGNORED: dict[str, str] = {
    "cuda_use": "the accelerator is chosen by trainer.accelerator",
    "n_cuda": "the devices are chosen by trainer.devices",
    "print_freq": "see trainer.log_every_n_steps",
    "nenya_data": "every file is read the same way",
    "modis_data": "every file is read the same way",
    "llc_data": "every file is read the same way",
    "dataset": "every file is read the same way",
    "eval_root": "extraction is given its files",
    "eval_dataset": "extraction is given its files",
    "size": "the size is the file's",
    "mean": "cutouts are not standardised",
    "std": "cutouts are not standardised",
    "tb_freq": "see logger",
    "model_name": "derived from the other options",
    "model_folder": "derived from the other options",
    "latents_folder": "derived from the other options",
    "warmup_from": "derived from the other options",
    "warmup_to": "derived from the other options",
    "warm_epochs": "derived from the other options",
    "warmup_epochs": "derived from the other options",
}


def from_flat(values: Mapping[str, Any], name: str = "custom") -> dict[str, dict[str, Any]]:
    """Return the sections for the flat names of a JSON option file.

    Args:
        values: flat option names and values; without `nchannels` the network has three channels.
        name: name of the model version.

    Returns:
        section -> key -> value, ready for `build_options`.

    Raises:
        OptionError: A key is unknown, or both names of the jitter are given with different values.
    """
    check_keys(values, [*FLAT, *IGNORED], "")
    old, new = values.get("random_jitter"), values.get("random_cropjitter")
    if old is not None and new is not None and old != new:
        raise OptionError(f"random_jitter={old} and random_cropjitter={new} are the same option: give one of them")
    sections: dict[str, dict[str, Any]] = {"model": {"name": name, "nchannels": 3}}
    for key, value in values.items():
        if key in IGNORED or (key in ("random_jitter", "random_cropjitter") and value is None):
            continue
        section, inner = FLAT[key]
        sections.setdefault(section, {})[inner] = value
    return sections


def flat_name(options: Options) -> str:
    """Return the users' derived `model_name`, such as `SimCLR_resnet50_lr_0.05_..._trial_5_cosine_warm`."""
    o = options
    name = (
        f"{o.loss.ssl_method}_{o.model.ssl_model}_lr_{o.optim.learning_rate}_decay_{o.optim.weight_decay}"
        f"_bsz_{o.loader.batch_size_train}_temp_{o.loss.temp}_trial_{o.archive.trial}"
    )
    name += "_cosine" if o.optim.cosine else ""
    return name + ("_warm" if warm_up(o) else "")


def warm_up(options: Options) -> bool:
    """Return whether training warms up: if requested, and always for batches over 256."""
    return options.optim.warm or options.loader.batch_size_train > 256


def flat_view(options: Options) -> dict[str, Any]:
    """Return the users' flat names with their values, as plain types: the `opt` of a checkpoint or JSON file."""
    flat = {name: getattr(getattr(options, section), key) for name, (section, key) in FLAT.items()}
    flat["model_name"] = flat_name(options)
    for kind in ("models", "latents"):
        flat[f"{kind.removesuffix('s') if kind == 'models' else kind}_folder"] = str(
            Path(kind) / options.archive.model_root / flat["model_name"]
        )
    return flat
