"""Code of the user's own, by its dotted name: imported if the user names it, and never because a file does.

A checkpoint, an option file or the `config.yaml` of a run may come from anybody, and importing a module runs it. So a
name counts only after `permit`, which the command line calls for what stands in its own arguments.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nenya.errors import OptionError
from nenya.storage.texts import first_words

OPTIONS = ("model.ssl_model", "augment.extra")
"""The options that name code."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_permitted: set[str] = set()


def is_dotted(name: Any) -> bool:
    """Return whether a value is a dotted name, such as `my_nets.Net`."""
    return isinstance(name, str) and _DOTTED.fullmatch(name) is not None


def permit(*names: str) -> None:
    """Allow this process to import these dotted names; call it for names that the user has given, only."""
    _permitted.update(names)


def permit_arguments(args: Sequence[str]) -> None:
    """Allow what the arguments of a command line name as code, such as `model.ssl_model=my_nets.Net`."""
    for arg in args:
        key, _, value = arg.partition("=")
        if key in OPTIONS:
            permit(*(found[0] for found in _DOTTED.finditer(value)))


def load_named(name: str, option: str, kind: str, good: Callable[[Any], bool]) -> Any:
    """Import what a dotted name stands for, from the Python path or, last, the working folder.

    Args:
        name: `package.module.Name`.
        option: the option that gives it, for errors.
        kind: what it must be, for errors.
        good: whether the object is that.

    Raises:
        OptionError: The user has not named it, it cannot be imported, or it is something else.
    """
    given = f"{option}={name}"
    if name not in _permitted:
        raise OptionError(
            f"{given}: named by a file, and code is imported only if you name it yourself: give {given} on the command "
            f"line, or call nenya.options.own.permit('{name}') in Python"
        )
    module, _, attribute = name.rpartition(".")
    try:
        with _working_folder():
            found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise OptionError(
            f"{given}: found no module {error.name} in the Python path or the working folder; check the name, or set "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's code raises
        raise OptionError(f"{given}: importing {module} fails: {type(error).__name__}: {first_words(error)}") from error
    if found is None:
        raise OptionError(f"{given}: module {module} has no {attribute}; check the name")
    if not good(found):
        raise OptionError(f"{given}: expected {kind}, got {type(found).__name__} {attribute}")
    return found


@contextmanager
def _working_folder() -> Iterator[None]:
    """Look for modules in the working folder too, after all other places."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)
        sys.path.reverse()
