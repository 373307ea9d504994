"""Options stored in checkpoints, as plain values."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from nenya.models.stand_ins import StandIn

_DEPTH = 20
_VALUES = 100_000
_BITS = 64
_LETTERS = 1000  # characters kept of other values


class ParamsStub:
    """Stub for the pickled options: accepts attributes, does nothing."""


def plain_options(options: Any) -> dict[str, Any]:
    """Turn options of any kind into a dictionary of plain types.

    Raises:
        ValueError: They contain themselves, are nested too deeply, or have too many values.
    """
    plain = _Plain().value(options, 0)
    return plain if isinstance(plain, dict) else {}


class _Plain:
    """Counts the values, because a file may refer to one list many times, within others referred to likewise."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, value: Any, depth: int) -> Any:
        """Turn a value into None, bool, int, float, str, or lists and dictionaries of these."""
        self.count += 1
        if depth > _DEPTH or self.count > _VALUES:
            raise ValueError(f"its options have more than {_VALUES:,} values, or more than {_DEPTH} levels")
        if isinstance(value, str):
            self.count += len(value) // 100
        elif isinstance(value, int) and value.bit_length() > _BITS:
            raise ValueError(f"its options have an integer of more than {_BITS} bits")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, ParamsStub):
            value = vars(value)
        if isinstance(value, StandIn):
            return self.value(value.plain(), depth + 1)
        if isinstance(value, Mapping):
            return {_key(key): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in value]
        if getattr(value, "ndim", None) == 0:
            return _number(value)
        return _text(value)


def _number(value: Any) -> Any:
    """Return the value of a zero-dimensional array or tensor; without a value, its type as text."""
    try:
        found = value.item()
    except (RuntimeError, NotImplementedError, ValueError):
        return _text(value)
    return found if type(found) in (bool, int, float) else _text(found)


def _key(key: Any) -> str:
    return str(key) if isinstance(key, str | int | float) or key is None else _text(key)


def _text(value: Any) -> str:
    """Return a text for a value of another type; only the type if it may be large."""
    small = isinstance(value, str | int | float | complex | PurePath) or type(value).__module__ == "torch"
    if small and not hasattr(value, "shape") and not isinstance(value, type):
        return str(value)[:_LETTERS]
    if isinstance(value, bytes) and len(value) <= _LETTERS:
        return str(value)
    return f"a {type(value).__name__}"
