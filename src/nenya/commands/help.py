"""The text of `nenya COMMAND --help`: the purpose of the command, and its options with values and meanings."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from nenya.commands.compose import own_first
from nenya.options.files import config_dir, read_yaml
from nenya.options.sections import Options, taken

_COLUMN = 34


def help_text(name: str, options: Options) -> str:
    """Return the help of a command.

    Args:
        name: the command, which has a file in `configs/`.
        options: with the values to show.
    """
    about = str(read_yaml(config_dir() / f"{name}.yaml", own=True)["hydra"]["help"]["template"])
    names = set(taken(type(options))) - {"given"}
    listed = [line for f in fields(own_first(type(options))) if f.name in names for line in _lines(options, f.name)]
    return about.replace("$CONFIG", "\n".join(listed) + "\n")


def _lines(options: Any, key: str, indent: str = "") -> Iterator[str]:
    """Yield the lines of an option, or of a section and its options."""
    value = getattr(options, key)
    if is_dataclass(value):
        yield f"{indent}{key}:"
        for inner in fields(value):
            yield from _lines(value, inner.name, indent + "  ")
        return
    declared = next(field for field in fields(options) if field.name == key)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    name = "archive" if key == "archive_dir" else key  # the name on the command line
    start = f"{indent}{name}: {shown}"
    yield f"{start:{_COLUMN}s}  # {declared.metadata.get('doc', '')}".rstrip(" #")
