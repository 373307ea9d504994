"""Harmless stand-ins for classes of options that training frameworks pickle beside weights; no code of theirs runs."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import torch

_LOCK = threading.Lock()


class StandIn:
    """Keeps what a pickle gives to an object, and does nothing."""

    def __new__(cls, *values: Any) -> "StandIn":
        """Return an object that keeps the values of its constructor."""
        made = object.__new__(cls)
        made.values, made.state = values, None
        return made

    def __init__(self, *values: Any) -> None:
        self.values: tuple[Any, ...] = values
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def plain(self) -> Any:
        """Return the value that this object stood for, of plain types or of further stand-ins."""
        return None


class PathStandIn(StandIn):
    """A path: its parts are the values."""

    def plain(self) -> str:
        """Return the path as text."""
        return str(PurePosixPath(*(part for part in self.values if isinstance(part, str))))


class NamespaceStandIn(StandIn):
    """An object with the options as its attributes."""

    def plain(self) -> Any:
        """Return the attributes."""
        return self.state if isinstance(self.state, dict) else {}


class OmegaConfStandIn(StandIn):
    """A node, list or dictionary of OmegaConf; an interpolation stays as it was written."""

    def plain(self) -> Any:
        """Return the content, without the parent, which refers back to it."""
        state = self.state if isinstance(self.state, dict) else {}
        return state.get("_content", state.get("_val"))


class TypeStandIn(StandIn):
    """A type that is only named."""


def _dictionary(*_: Any) -> "OrderedDict[Any, Any]":
    """Return an empty dictionary, for those that are filled afterwards."""
    return OrderedDict()


_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig"),
    *(f"nodes.{kind}Node" for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Path")),
    *("nodes.InterpolationResultNode", "nodes.UnionNode", "base.UnionNode"),
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_TYPES = (
    *(f"builtins.{kind.__name__}" for kind in (dict, list, tuple, set, str, int, float, bool, bytes, object)),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any"),
)
_ATTRIBUTE_DICTS = tuple(
    f"{package}.{module}.AttributeDict"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for module in ("utilities.parsing", "utilities.data")
)
_ALL: dict[str, Any] = {
    **dict.fromkeys(_TYPES, TypeStandIn),
    **{f"pathlib.{name}": PathStandIn for name in _PATHS},
    **{f"pathlib._local.{name}": PathStandIn for name in _PATHS},
    **{f"omegaconf.{name}": OmegaConfStandIn for name in _OMEGACONF},
    **dict.fromkeys(("argparse.Namespace", "types.SimpleNamespace"), NamespaceStandIn),
    **dict.fromkeys(_ATTRIBUTE_DICTS, OrderedDict),
    "collections.defaultdict": _dictionary,
}
NAMES = frozenset(_ALL)
"""The classes and functions that have a stand-in, by their full names."""


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let `torch.load(weights_only=True)` create stand-ins; afterwards the names that it knows are as before."""
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        others = [known for known in before if _name_of(known) not in NAMES]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*others, *((made, name) for name, made in _ALL.items())])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _name_of(known: Any) -> str:
    """Return the name under which a class is registered with torch."""
    return str(known[1]) if isinstance(known, tuple) else f"{known.__module__}.{known.__qualname__}"


def without_attributes(content: Any) -> Any:
    """Return what a file holds, after removing the attributes of its dictionaries and tensors.

    A pickle can give them any, and so replace their methods by what else it names.
    """
    left, seen = [content], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict | torch.Tensor):
            getattr(one, "__dict__", {}).clear()
        if isinstance(one, dict):
            left += dict.values(one)
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        elif isinstance(one, StandIn):
            left += [one.values, one.state]
        elif not isinstance(one, type):
            left += getattr(one, "__dict__", {}).values()
    return content
