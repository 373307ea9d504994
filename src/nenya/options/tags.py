"""The option of tags: one name and one meaning in all commands that read them."""

from dataclasses import dataclass
from typing import Any

from nenya.options.declare import option
from nenya.options.sections import Options


def _is_place(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and bool(value))


@dataclass
class TagsOptions(Options):
    """The option of commands that read tags."""

    tags: Any = option(
        None,
        "tags given in the portal, as a column tag: their file, or true for the one beside table= or in archive=; in "
        "the portal, true lets visitors tag",
        ("a path, true or false", _is_place),
    )
