"""The option files of the first nenya, of all years: older names of options, and keys that have no effect here."""

import functools
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from nenya.errors import OptionError

log = logging.getLogger(__name__)

OLDER: dict[str, str] = {
    "batch_size": "batch_size_train",
    "valid_batch_size": "batch_size_valid",
    "batch_size_eval": "batch_size_valid",
    "model": "ssl_model",
    "method": "ssl_method",
    "data_key": "train_key",
    "eval_key": "valid_key",
    "dataset": "model_root",
    "modis_file": "images_file",
    "random_cropjitter": "random_jitter",
}
"""Older and newer names -> ours. Of several values the one under our name counts, where they may differ."""

_MAY_DIFFER = ("batch_size_eval", "eval_key", "dataset")  # they had a meaning of their own, which has no effect here

DERIVED = ("model_name", "model_folder", "latents_folder", "save_folder")
WARM_UP = ("warmup_from", "warmup_to", "warm_epochs", "warmup_epochs")

IGNORED: dict[str, str] = {
    "cuda_use": "the accelerator is chosen by trainer.accelerator",
    "n_cuda": "the devices are chosen by trainer.devices",
    "print_freq": "see trainer.log_every_n_steps",
    "nenya_data": "every file is read the same way",
    "modis_data": "every file is read the same way",
    "llc_data": "every file is read the same way",
    "dataset": "model_root names the data",
    "eval_root": "extraction is given its files",
    "eval_dataset": "extraction is given its files",
    "eval_key": "extraction reads all partitions",
    "batch_size_eval": "extraction uses batch_size_valid",
    "num_workers_eval": "extraction uses num_workers",
    "valid_folder": "validation reads valid_key of the training file",
    "size": "the size is the file's",
    "mean": "cutouts are not standardised",
    "std": "cutouts are not standardised",
    "tb_freq": "see logger",
    **dict.fromkeys((*DERIVED, *WARM_UP), "derived from the other options"),
}
"""Keys that have no effect, and why."""


def current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Translate the keys of an option file of any year.

    Args:
        values: keys and values as they stand in the file.

    Returns:
        The values under today's names, and those that have no effect.

    Raises:
        OptionError: Two names of one option have different values.
    """
    older = "method" in values or "model" in values
    found = {key: value for key, value in values.items() if key not in OLDER and key not in IGNORED}
    ignored = {key: value for key, value in values.items() if key in IGNORED and key not in (*DERIVED, *OLDER)}
    for key, name in OLDER.items():
        value = values.get(key)
        if value is None:
            continue
        if found.get(name) is None:
            found[name] = value
        elif key in _MAY_DIFFER:
            ignored[key] = value
        elif found[name] != value:
            raise OptionError(f"{name}={found[name]} and {key}={value} are the same option: give one of them")
    if "batch_size" in values and found.get("batch_size_valid") is None:
        found["batch_size_valid"] = values["batch_size"]
    if found.get("random_jitter") == 0:
        found.setdefault("augment", "v3")
    if older:
        found |= _older_places(values)
    return {key: value for key, value in found.items() if value is not None or key not in _MAY_BE_NULL}, ignored


_MAY_BE_NULL = ("random_jitter", "data_folder", "tbl_file", "images_file", "sensor", "model_root", "s3_outdir", "trial")


def _older_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of the first years, when the model's name had the data in it and the folders were given."""
    data = values.get("dataset")
    if not data:
        return {}
    models = values.get("model_folder") or f"./experiments/{values.get('method')}/{data}_models"
    return {"data_name": data, "models_place": models, "latents_place": values.get("latents_folder") or ""}


def warm_up_values(learning_rate: float, decay_rate: float, epochs: int, cosine: bool) -> dict[str, Any]:
    """Return the three numbers of the warm-up that the first nenya added to the options.

    `warmup_to` is the cosine's rate at epoch 10, which for 10 epochs or fewer is not where our schedule ends it; see
    `nenya.models.schedule`.
    """
    lowest = learning_rate * decay_rate**3
    cosines = (1 + math.cos(math.pi * 10 / epochs)) / 2
    end = lowest + (learning_rate - lowest) * cosines if cosine else learning_rate
    return {"warmup_from": 0.01, "warm_epochs": 10, "warmup_to": end}


def recorded(text: str) -> dict[str, Any]:
    """Return the keys without effect that `archive.other` records as JSON."""
    values = json.loads(text) if text else {}
    return values if isinstance(values, dict) else {}


@functools.cache
def say_ignored(source: str, keys: tuple[str, ...]) -> None:
    """Log, once per file, which of its keys have no effect."""
    if keys:
        log.info("%s: recorded without effect: %s", source, ", ".join(f"{key} ({IGNORED[key]})" for key in keys))
