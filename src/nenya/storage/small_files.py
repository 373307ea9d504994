"""Small files of options, JSON and YAML: plain values, bounded in size, depth and number, from ordinary files only."""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, NenyaError

MOST_BYTES = 10 * 2**20
_DEPTH = 50
_VALUES = 200_000
_LETTERS = 2**16  # of one number or text of YAML
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_INTERPOLATION = re.compile(r"\$\{(?!\w+\})")


def kind_of(mode: int) -> str:
    """Return what a file of this mode is, if it is no ordinary one; empty for an ordinary file."""
    if stat.S_ISREG(mode):
        return ""
    return next((what for test, what in _KINDS if test(mode)), "no ordinary file")


def check_regular(path: str | os.PathLike[str], what: str, error: type[NenyaError] = InputFileError) -> None:
    """Check that a file that is there is an ordinary one, so that reading it ends.

    Args:
        path: the file; links are followed.
        what: what it should be, such as "a table", for the message.
        error: the kind of error.

    Raises:
        NenyaError: It is a folder, pipe, socket or device.
    """
    try:
        kind = kind_of(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if kind:
        raise error(f"{path}: this is {kind}; expected an ordinary file with {what}: check the path")


def read_small(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Read a file whole; it is not waited for, as pipes and devices would have it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no ordinary file, or has more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if kind := kind_of(os.fstat(descriptor).st_mode):
            raise ValueError(f"this is {kind}, expected an ordinary file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is longer than {most:,} bytes")
    return data


def parse_json(data: bytes | str) -> Any:
    """Return the values of JSON: finite numbers, each name once in its object.

    Raises:
        ValueError: It is no JSON, or is nested too deep.
    """
    try:
        values = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEPTH} deep") from None
    return _bounded(values, finite=True)


def parse_yaml(data: bytes | str) -> Any:
    """Return the values of YAML: plain types, without aliases, each name once in its mapping.

    Raises:
        ValueError: It is no YAML of that kind, or is nested too deep, or has too many values.
    """
    import yaml

    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        _check_events(yaml.parse(text, Loader=_loader()))
        return _bounded(yaml.load(text, Loader=_loader()))  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)[:200]) from error


def refuse_interpolation(values: Any) -> None:
    """Refuse texts that Hydra would fill in, such as `${oc.env:HOME}`: a file has values, and asks for none.

    Raises:
        ValueError: There is one.
    """
    for value in _values_of(values):
        if isinstance(value, str) and _INTERPOLATION.search(value):
            raise ValueError(f"{value[:60]} is filled in from elsewhere, which a file may not ask for: write the value")


def _loader() -> Any:
    """Return YAML's safe loader, in C where there is one, that refuses names that are there twice."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            _once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
            return found

    return Loader


def _check_events(events: Any) -> None:
    """Check a document before anything is made of it."""
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it repeats a part by an alias (*{event.anchor[:60]}): write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _LETTERS:
            raise ValueError(f"it has a value of more than {_LETTERS} letters")
        if depth > _DEPTH or count > _VALUES:
            raise ValueError(f"it has more than {_VALUES:,} values, or is nested more than {_DEPTH} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:60]} is there twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _bounded(values: Any, *, finite: bool = False) -> Any:
    for count, value in enumerate(_values_of(values)):
        if count > _VALUES:
            raise ValueError(f"it has more than {_VALUES:,} values")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("it has a whole number of more than 64 bits")
        if finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it has a number that is not finite")
    return values


def _values_of(values: Any) -> Iterator[Any]:
    """Yield all values, those within others too.

    Raises:
        ValueError: They are nested too deep.
    """
    left = [(values, 1)]
    while left:
        value, depth = left.pop()
        if depth > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} deep")
        yield value
        if isinstance(value, dict):
            left += [(inner, depth + 1) for inner in (*value.keys(), *value.values())]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]


def unfit(error: Exception) -> str:
    """Return in a few words why `read_small` or a parser did not give values."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())[:200]


def read_yaml_file(path: Path, *, own: bool = False) -> Any:
    """Return the values of a YAML file.

    Args:
        path: the file.
        own: whether it is one of nenya's, in which Hydra may fill in values.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a small file of plain values.
    """
    values = parse_yaml(read_small(path))
    if not own:
        refuse_interpolation(values)
    return values
