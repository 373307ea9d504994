"""Settings that determine the results of a model version: given once, recorded, and then fixed."""

import dataclasses
from pathlib import Path
from typing import Any

from nenya.archive.manifest import CLUSTERS, MAP, MASKED, SECTIONS, Manifest
from nenya.errors import OptionError
from nenya.extraction.clearness import default_place
from nenya.options.commands import ExtractOptions, PrepareOptions, UpdateOptions
from nenya.options.declare import to_dict
from nenya.options.sections import Options, build_options
from nenya.prepare.writer import recipe_values
from nenya.storage.disk import sha256_file
from nenya.storage.paths import fetch, is_s3, local_path

Settings = dict[str, Any]

CALIBRATION = "calibration.h5"
"""Name of the calibration in the folder of a version."""


def settings_of(options: UpdateOptions) -> Settings:
    """Return the settings in the options; `sensor` is None if no recipe is given."""
    values = to_dict(options)
    found: Settings = {name: {key: values[name][key] for key in keys} for name, keys in SECTIONS.items()}
    for name, (key, usual) in MASKED.items():
        if values[name][key] != usual:
            found[name][key] = values[name][key]
    found["seed"] = options.seed
    found["map"] = {key: values[key] for key in MAP} | {"projector_sha256": _hash(options.projector)}
    found["clusters"] = {key: values[key] for key in CLUSTERS}
    found["sensor"] = _recipe(options) if "recipe" in (options.given or []) else None
    return found


def _recipe(options: UpdateOptions) -> dict[str, Any]:
    return recipe_values(prepare_options(options, None))


def _hash(projector: str | None) -> str | None:
    if projector is None:
        return None
    path = local_path(projector)
    if not path.is_file():
        raise OptionError(f"projector={projector}: no such file; nenya embed writes one")
    return sha256_file(path)


def prepare_options(options: UpdateOptions, recipe: dict[str, Any] | None, **more: Any) -> PrepareOptions:
    """Return the options of `prepare`: those of the command with the recorded recipe and given values."""
    values = to_dict(options)
    own = {f.name: values[f.name] for f in dataclasses.fields(PrepareOptions)}
    return build_options(PrepareOptions, {**own, **(recipe or {}), **more})


def extract_options(options: UpdateOptions, settings: Settings, **more: Any) -> ExtractOptions:
    """Return the options of `extract`: those of the command with the recorded settings and given values."""
    values = to_dict(options)
    own = {f.name: values[f.name] for f in dataclasses.fields(Options)}
    for section in SECTIONS:
        own[section] = {**own[section], **settings[section]}
    devices = own["trainer"]["devices"]
    one = (
        devices if isinstance(devices, list) and len(devices) == 1 else 1
    )  # several devices would run the complete command
    own["trainer"] = {**own["trainer"], "devices": one, "num_nodes": 1, "strategy": "auto"}
    return build_options(ExtractOptions, {**own, "seed": settings["seed"], "clobber": False, **more})


def new_calibration(options: UpdateOptions, settings: Settings, weights: str) -> Path | None:
    """Return the calibration with which a version is begun: the one given, or that beside its weights; None without."""
    chosen = extract_options(options, settings, ckpt=options.ckpt)
    if chosen.preprocess.masked == "nan":
        return None
    if options.calibration:
        return fetch([options.calibration if is_s3(options.calibration) else local_path(options.calibration)], None)[0]
    beside = default_place(chosen, weights)
    return beside if beside is not None and beside.is_file() else None


def choose_versions(options: UpdateOptions, manifest: Manifest) -> list[str]:
    """Return the versions to update: the given one, or all."""
    if options.version:
        return [options.version]
    if "model.name" in (options.given or []) or not manifest:
        return [options.model.name]
    return list(manifest)


def check_settings(options: UpdateOptions, name: str, recorded: Settings) -> None:
    """Check that options other than `new=` agree with the settings of the version.

    Raises:
        OptionError: One differs.
    """
    wanted, given = settings_of(options), set(options.given or [])
    pairs: list[tuple[str, Any, Any]] = []
    for section, keys in SECTIONS.items():
        pairs += [(f"{section}.{key}", wanted[section][key], recorded[section][key]) for key in keys]
        if section in MASKED:
            key, usual = MASKED[section]
            pairs.append((f"{section}.{key}", wanted[section].get(key, usual), recorded[section].get(key, usual)))
    pairs.append(("seed", wanted["seed"], recorded["seed"]))
    for section in ("map", "clusters"):
        pairs += [(key, wanted[section].get(key), value) for key, value in recorded[section].items()]
    if recorded["sensor"]:
        new = _recipe(options)
        pairs += [(key, new.get(key), value) for key, value in recorded["sensor"].items()]
    if options.projector and wanted["map"]["projector_sha256"] != recorded["map"]["projector_sha256"]:
        given.add("projector_sha256")
    for key, now, was in pairs:
        if key in given and now != was:
            key = "sensor" if key == "recipe" else key  # the name on the command line
            raise OptionError(
                f"{key}={now}: expected {key}={was}, with which version {name} was begun; leave "
                "the option out, or begin another version by version="
            )
