"""Declaration and check of an option: default, meaning, type and possible values."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, TypeVar

from nenya.errors import OptionError

T = TypeVar("T")

_MOST_NAMES, _LONGEST = 2000, 100  # compared with an unknown name, which takes time; characters of each


_QUERY = re.compile(r"^(https?://[^?#]*)[?#].*", re.DOTALL | re.IGNORECASE)


Check = Callable[[Any], bool]


SHA256: tuple[str, Check] = (
    "64 hexadecimal digits",
    lambda value: re.fullmatch(r"[0-9a-f]{64}", value) is not None,
)
"""The description and the check of a SHA-256."""


def one_of(*choices: str | float) -> tuple[str, Check]:
    """Return the description and the check of a choice."""
    return "one of " + ", ".join(map(str, choices)), lambda value: value in choices


def at_least(low: float) -> tuple[str, Check]:
    """Return the description and the check of a finite number of at least `low`."""
    return f"a number of at least {low:g}", lambda value: math.isfinite(value) and value >= low


def within(low: float, high: float) -> tuple[str, Check]:
    """Return the text and the check of a number from `low` to `high`, both included."""
    return f"a number from {low:g} to {high:g}", lambda value: low <= value <= high


def above(low: float) -> tuple[str, Check]:
    """Return the description and the check of a finite number above `low`."""
    return f"a number above {low:g}", lambda value: math.isfinite(value) and value > low


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(value: Any) -> int:
    """Return the bytes that a size such as `500MB`, `1.5GB` or a number of bytes means.

    Raises:
        ValueError: It is not a size above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?B?)", str(value).strip().upper().replace("E+", "E"), re.I)
    unit = match[2].replace("I", "") if match else ""
    size = float(match[1]) * _UNITS[unit if unit.endswith("B") or not unit else unit + "B"] if match else 0.0
    if not size >= 1:
        raise ValueError(f"expected a size such as 500MB, got {value}")
    return int(size)


def is_size(value: Any) -> bool:
    """Return whether a value is a size that `parse_size` reads."""
    try:
        return parse_size(value) > 0
    except ValueError:
        return False


def option(default: Any, doc: str, check: tuple[str, Check] | None = None) -> Any:
    """Declare an option: default, meaning and (description, check) of possible values."""
    metadata = {"doc": doc, "check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_jitter(value: Any) -> bool:
    """Return whether a value is `[crop, jitter]`, two non-negative integers, or 0."""
    return value == 0 or (isinstance(value, list) and len(value) == 2 and all(type(v) is int and v >= 0 for v in value))


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def suggest(name: str, known: list[str]) -> str:
    """Return '; did you mean X?' for the nearest of the known names, else an empty string."""
    possible = [one for one in known[:_MOST_NAMES] if len(one) <= _LONGEST]
    near = difflib.get_close_matches(name, possible, n=1) if len(name) <= _LONGEST else []
    return f"; did you mean {near[0]}?" if near else ""


def check_keys(values: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise OptionError for the first key that is not among the known ones."""
    for key in values:
        if key not in known:
            raise OptionError(
                f"unknown option {where}{key}{suggest(key, known)} (possible: {', '.join(sorted(known))})"
            )


_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list of integers",
}


def _convert(value: Any, annotation: Any, name: str) -> Any:
    """Convert a plain value to the annotated type, or raise OptionError."""
    if annotation is Any:
        return value
    kinds = [k for k in getattr(annotation, "__args__", (annotation,)) if k is not type(None)]
    if getattr(annotation, "__origin__", None) is list:
        kinds = [list]
    elif value is None:
        if annotation not in kinds:
            return None
        raise OptionError(f"{name} is empty: expected {_WORDS[annotation]}")
    kind = kinds[0]
    if kind is list:
        return _int_list(value, name)
    good = {
        bool: isinstance(value, bool),
        int: type(value) is int or (isinstance(value, float) and value.is_integer()),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str | int | float) and not isinstance(value, bool),
    }[kind]
    if not good:
        raise OptionError(f"{name}={value}: expected {_WORDS[kind]}")
    return kind(value)


def _int_list(value: Any, name: str) -> list[int]:
    """Return a list of integers from a list or from a string such as '700, 800, 900'."""
    items = value.strip("[] ").split(",") if isinstance(value, str) else value
    if isinstance(items, int):
        items = [items]
    try:
        return [int(v) for v in items if str(v).strip()]
    except (TypeError, ValueError):
        raise OptionError(f"{name}={value}: expected {_WORDS[list]}") from None


def build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Build and check one section, or all options, from plain values."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_keys(values, list(fields), prefix)
    built: dict[str, Any] = {}
    for key, value in values.items():
        declared, name = fields[key], prefix + key
        if dataclasses.is_dataclass(declared.type):
            if not isinstance(value, Mapping):
                raise OptionError(f"{name}={value}: expected a section with keys, such as {name}.key=value")
            built[key] = build(declared.type, value, name + ".")  # type: ignore[arg-type]
            continue
        if key == "random_jitter" and isinstance(value, str):
            value = _int_list(value, name)
        built[key] = _convert(value, declared.type, name)
        check = declared.metadata.get("check")
        if check and built[key] is not None and not _holds(check[1], built[key]):
            raise OptionError(f"{name}={value}: expected {check[0]} ({declared.metadata['doc']})")
    return cls(**built)


def to_dict(options: Any) -> dict[str, Any]:
    """Return options (or a section) as plain nested dicts."""
    return dataclasses.asdict(options)


def for_records(value: Any) -> Any:
    """Return options as plain nested dicts to be written down: web addresses lose what may be a secret, their query."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return for_records(to_dict(value))
    if isinstance(value, dict):
        return {key: for_records(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [for_records(inner) for inner in value]
    return _QUERY.sub(r"\1", value) if isinstance(value, str) else value


def _holds(check: Check, value: Any) -> bool:
    """Return whether a value passes a check; one that overflows or has another type does not."""
    try:
        return check(value)
    except (OverflowError, TypeError):
        return False
