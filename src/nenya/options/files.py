"""The Hydra configs and the users' JSON option files, as plain values."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import nenya
from nenya.errors import MissingOptionFileError, NenyaError, NoOptionsError, OptionError, OptionFileError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.options.sections import Options
from nenya.storage.paths import is_s3
from nenya.storage.s3.service import store
from nenya.storage.small_files import parse_options_json, read_small, read_yaml_file, refuse_interpolation, unfit


def config_dir() -> Path:
    """Return the folder of the Hydra configs: inside an installed package, or at the top of the repository."""
    inside = Path(nenya.__file__).parent / "configs"
    return inside if inside.is_dir() else Path(nenya.__file__).resolve().parents[2] / "configs"


def model_versions() -> list[str]:
    """Return the names of the known model versions.

    Examples:
        >>> {"v5", "ocean", "demo"} <= set(model_versions())
        True
    """
    return sorted(p.stem for p in (config_dir() / "model").glob("*.yaml"))


def read_group(group: str, name: str) -> dict[str, Any]:
    """Return the values in a file of a config group.

    Raises:
        OptionError: The file does not exist; the message lists the existing ones.
    """
    from omegaconf import OmegaConf

    known = sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))
    if name not in known:
        more = ", or the path of a .json option file" if group == "model" else ""
        raise OptionError(f"{group}={name} is unknown{suggest(name, known)} (possible: {', '.join(known)}{more})")
    values = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"))
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def recipe_keys() -> list[str]:
    """Return the options that a recipe of `prepare` may set: how cutouts are made.

    Options that only the user decides are excluded: input, output, overwriting, and the processes and machines used.
    """
    others = {f.name for f in fields(Options)} - {"seed"} | {"workers", "dask"}
    return [f.name for f in fields(PrepareOptions) if f.name not in others]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a user's own recipe, a YAML file.

    Raises:
        OptionError: The file does not exist, is not a YAML mapping, or sets an option that a recipe may not.
    """
    values = read_yaml(path)
    known, every = recipe_keys(), {f.name for f in fields(PrepareOptions)}
    for key in values:
        if key in every and key not in known:
            raise OptionError(f"{path}: a recipe may not set {key}: give {key}= on the command line")
    return values


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON option file, from a local path or an s3:// address.

    Raises:
        OptionError: The file does not exist, or is not JSON.
        NoOptionsError: It is JSON, but not an object.
        StorageError: The service does not return it.
    """
    try:
        text = store().read_bytes(str(path)) if is_s3(path) else read_small(Path(path).expanduser())
        values = parse_options_json(text)
        refuse_interpolation(values)
    except NenyaError:
        raise
    except OSError as error:
        kind = MissingOptionFileError if isinstance(error, FileNotFoundError) else OptionFileError
        raise kind(f"{path}: cannot read the option file ({error.strerror}); check the path") from error
    except ValueError as error:
        raise OptionError(f"{path}: not a JSON option file ({unfit(error)}); correct the file there") from error
    if not isinstance(values, dict):
        raise NoOptionsError(
            f"{path}: expected a JSON object of option names and values, got a {type(values).__name__}"
        )
    return values


def read_yaml(path: str | Path, *, own: bool = False) -> dict[str, Any]:
    """Read a YAML file of option names and values.

    Args:
        path: the file.
        own: whether it is one of nenya's, in which Hydra may interpolate values.

    Raises:
        OptionError: The file does not exist, or is not a small YAML mapping of plain values.
    """
    try:
        values = read_yaml_file(Path(path).expanduser(), own=own)
    except NenyaError:
        raise
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot read the option file ({unfit(error)}); check the path") from error
    if not isinstance(values, dict):
        raise OptionError(f"{path}: expected a mapping of names and values, got a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
