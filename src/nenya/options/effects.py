"""Options that have an effect only beside others: one that has none is refused, not ignored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nenya.errors import OptionError

_SHOWN = {"archive_dir": "archive"}  # names on the command line


def check_effects(options: Any, only_with: Mapping[str, str], not_with: Mapping[str, str]) -> None:
    """Check that every option that differs from its default has an effect.

    Args:
        options: of a command.
        only_with: option -> the option that it needs, or `name=value|value` with the values that it needs.
        not_with: option -> the option beside which it has no effect.

    Raises:
        OptionError: An option has none.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value == default:
            continue
        given = f"{_SHOWN.get(field.name, field.name)}={value}"
        if (needed := only_with.get(field.name)) and not _is_met(options, needed):
            name, _, values = needed.partition("=")
            shown = " or ".join(f"{_SHOWN.get(name, name)}={one}" for one in values.split("|"))
            raise OptionError(f"{given}: has an effect only with {shown}; add it, or leave {field.name}= out")
        if (other := not_with.get(field.name)) and _is_met(options, other):
            raise OptionError(f"{given}: has no effect with {_SHOWN.get(other, other)}=; leave out one of them")


def _is_met(options: Any, condition: str) -> bool:
    name, equals, values = condition.partition("=")
    value = getattr(options, name)
    return str(value) in values.split("|") if equals else value not in (None, False, "", [])
