"""Small files, JSON and YAML: regular files of bounded size, with plain values of bounded nesting and number; links."""

import itertools
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.storage.texts import quoted

MOST_BYTES = 10 * 2**20
_DEPTH = 50
_VALUES = 200_000
_LETTERS = 2**16  # characters of one YAML scalar
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^][{}]+")
_INTERPOLATION = re.compile(r"\$\{(?!\w+\})")


def kind_of(mode: int) -> str:
    """Return what a file of this mode is; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((what for test, what in _KINDS if test(mode)), "not a regular file")


def check_regular(path: str | os.PathLike[str], what: str, error: type[NenyaError] = InputFileError) -> None:
    """Check that an existing file is a regular one, so that reading it ends.

    Args:
        path: the file; links are followed.
        what: the expected content, such as "a table", for the message.
        error: the kind of error.

    Raises:
        NenyaError: It is a folder, pipe, socket or device.
    """
    try:
        kind = kind_of(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if kind:
        raise error(f"{path}: expected a regular file with {what}, got {kind}; check the path")


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file or a link to one; opening anything else may block forever."""
    try:
        return not kind_of(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def refuse_link(path: Path) -> Path:
    """Return a path at which nenya writes or removes, after checking that it is not a link.

    Raises:
        OutputError: It is one.
    """
    if path.is_symlink():
        raise OutputError(
            f"{path} is a link to {quoted(os.readlink(path))}, and links are not followed when writing or removing: "
            "remove the link, or choose another path"
        )
    return path


def refuse_links(folder: Path, *, below: bool = False) -> Path:
    """Return a folder of nenya's own, after checking that it holds only regular files and folders, or does not exist.

    Args:
        folder: the folder.
        below: the folder is named by the user, and may itself be reached by a link.

    Raises:
        OutputError: It or something below it is a link, a pipe or a device.
    """
    if not below:
        refuse_link(folder)
    for place, folders, names in os.walk(folder):  # which follows no link
        for name in (*folders, *names):
            path = Path(place, name)
            refuse_link(path)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # removed by another process
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise OutputError(f"{path} is a pipe, socket or device, expected only files and folders: remove it")
    return folder


def read_small(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Read a complete regular file; a pipe or device is refused without waiting for it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, or has more than `most` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if kind := kind_of(os.fstat(descriptor).st_mode):
            raise ValueError(f"expected a regular file, got {kind}")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"expected at most {most:,} bytes, got more")
    return data


def strict_json(data: bytes | str, deepest: int = _DEPTH) -> Any:
    """Return the value of a JSON text: UTF-8, finite numbers, each key once in its object, bounded nesting.

    Args:
        data: the text.
        deepest: levels of nesting that are allowed.

    Raises:
        ValueError: The text is anything else.
    """
    text = data.decode() if isinstance(data, bytes) else data
    if _is_deep(text, deepest):
        raise ValueError(f"expected at most {deepest} levels of nesting, got more")
    return json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number)


def _is_deep(text: str, deepest: int) -> bool:
    """Return whether a text nests brackets deeper than allowed; unbalanced ones are left to the parser."""
    left = _NO_BRACKETS.sub("", _STRING.sub("", text))
    for _ in range(deepest):
        if not left:
            return False
        left = left.replace("[]", "").replace("{}", "")
    depths = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in left)
    return any(depth > deepest for depth in depths) or len(left) > _VALUES


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text[:20]}")
    return value


def parse_options_json(data: bytes | str) -> Any:
    """Return the values of a JSON option file; as `strict_json`, with a bounded number of values.

    Raises:
        ValueError: It is not such a JSON text.
    """
    return _bounded(strict_json(data))


def parse_yaml(data: bytes | str) -> Any:
    """Return the values of YAML: plain types, without aliases, each key once in its mapping.

    Raises:
        ValueError: It is not such YAML, is nested too deeply, or has too many values.
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
    """Refuse strings that Hydra would interpolate, such as `${oc.env:HOME}`: an option file contains values only.

    Raises:
        ValueError: There is one.
    """
    for value in _values_of(values):
        if isinstance(value, str) and _INTERPOLATION.search(value):
            raise ValueError(
                f"{value[:60]} is an interpolation, which option files may not contain: write the value itself"
            )


def _loader() -> Any:
    """Return YAML's safe loader, in C if available, that refuses duplicate keys."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            _once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
            return found

    return Loader


def _check_events(events: Any) -> None:
    """Check a document before objects are constructed from it."""
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases are not allowed (*{event.anchor[:60]}): write the values out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _LETTERS:
            raise ValueError(f"expected values of at most {_LETTERS} characters, got more")
        if depth > _DEPTH or count > _VALUES:
            raise ValueError(f"expected at most {_VALUES:,} values and {_DEPTH} levels of nesting, got more")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"duplicate key {twice[:60]}")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _bounded(values: Any) -> Any:
    for count, value in enumerate(_values_of(values)):
        if count > _VALUES:
            raise ValueError(f"expected at most {_VALUES:,} values, got more")
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError("expected integers of at most 64 bits, got a larger one")
    return values


def _values_of(values: Any) -> Iterator[Any]:
    """Yield all values, nested ones included.

    Raises:
        ValueError: They are nested too deeply.
    """
    left = [(values, 1)]
    while left:
        value, depth = left.pop()
        if depth > _DEPTH:
            raise ValueError(f"expected at most {_DEPTH} levels of nesting, got more")
        yield value
        if isinstance(value, dict):
            left += [(inner, depth + 1) for inner in (*value.keys(), *value.values())]
        elif isinstance(value, list | tuple | set):
            left += [(inner, depth + 1) for inner in value]


def unfit(error: Exception) -> str:
    """Return in a few words why `read_small` or a parser failed."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())[:200]


def read_yaml_file(path: Path, *, own: bool = False) -> Any:
    """Return the values of a YAML file.

    Args:
        path: the file.
        own: whether it is one of nenya's, in which Hydra may interpolate values.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a small file of plain values.
    """
    values = parse_yaml(read_small(path))
    if not own:
        refuse_interpolation(values)
    return values
