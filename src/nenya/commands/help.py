"""The text of `nenya COMMAND --help`: what the command does, and its options with their values and meanings."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from nenya.options.files import config_dir, read_yaml

_READING = ("loader",)
_NETWORK = ("model", "preprocess", "loader")
_SECTIONS = {  # of the commands to which the other sections mean nothing
    **dict.fromkeys(("embed", "clusters", "figures", "statistics", "index", "spectra", "inspect"), _READING),
    **dict.fromkeys(("verify", "generate", "repack", "status", "migrate"), _READING),
    "search": _NETWORK,
    "metrics": (*_NETWORK, "augment"),
    "portal": (*_NETWORK, "trainer"),
}
_COLUMN = 34


def help_text(name: str, options: Any, order: list[str]) -> str:
    """Return the help of a command.

    Args:
        name: the command, which has a file in `configs/`.
        options: with the values that are shown.
        order: names of the options and sections, as they are listed.
    """
    about = str(read_yaml(config_dir() / f"{name}.yaml", own=True)["hydra"]["help"]["template"])
    wanted = _SECTIONS.get(name)
    listed = [
        line
        for key in order
        if wanted is None or key in wanted or not is_dataclass(getattr(options, key))
        for line in _lines(options, key)
    ]
    left = [key for key in order if is_dataclass(getattr(options, key)) and wanted is not None and key not in wanted]
    note = f"\n(of no use to {name} are the sections {', '.join(left)})\n" if left else ""
    return about.replace("$CONFIG", "\n".join(listed) + "\n" + note)


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
    start = f"{indent}{key}: {shown}"
    yield f"{start:{_COLUMN}s}  # {declared.metadata.get('doc', '')}".rstrip(" #")
