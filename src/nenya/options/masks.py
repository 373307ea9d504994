"""Options of what is masked in a field, shared by the preparation and the update of an archive."""

import math
from dataclasses import dataclass
from typing import Any

from nenya.options.declare import Check, one_of, option, within
from nenya.options.sections import Options


def numbers(*, whole: bool, low: float) -> Check:
    """Return the check of a pair of numbers, each at least `low`."""

    def check(value: Any) -> bool:
        kinds: tuple[type, ...] = (int,) if whole else (int, float)
        return isinstance(value, list) and len(value) == 2 and all(type(v) in kinds and v >= low for v in value)

    return check


def is_bounds(value: Any) -> bool:
    """Return whether a value is a pair of numbers [min, max]."""
    return numbers(whole=False, low=-math.inf)(value) and value[0] < value[1]


def _is_flags(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return bool(items) and all(isinstance(item, str) and item.strip() for item in items)


def _is_bits(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return bool(items) and all(type(item) is int and 0 <= item < 64 for item in items)


@dataclass
class MaskOptions(Options):
    """Options of flags, and of values that cannot be."""

    mask_flags: Any = option(
        None,
        "names of flags that mask a pixel, such as [land,ice]; * stands for any letters",
        ("names of flags, such as [land,ice], or null", _is_flags),
    )
    mask_bits: Any = option(
        None,
        "numbers of bits that mask a pixel, from 0, such as [1,9]",
        ("numbers of bits from 0 to 63, such as [1,9], or null", _is_bits),
    )
    possible: Any = option(
        None,
        "possible values, in degrees Celsius or metres; default by the quantity, such as -3 to 45 for temperatures",
        ("two numbers [min, max], or null", is_bounds),
    )
    impossible_most: float = option(
        5.0, "largest percentage of impossible values that is masked; beyond it a field is refused", within(0, 100)
    )
    valid_range: str = option(
        "file", "the file's valid_min, valid_max and valid_range: applied or ignored", one_of("file", "ignore")
    )
    mask_constant: bool = option(
        True, "mask regions of one exact value that stand out from the field: land, or an undeclared fill value"
    )
