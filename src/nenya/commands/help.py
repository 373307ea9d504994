"""The text of `nenya COMMAND --help`: the purpose of the command, and its options with values and meanings."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from nenya.commands.compose import GROUPS, about, command_names, compose, options_of, own_first, takes_group
from nenya.errors import OptionError
from nenya.options.declare import suggest
from nenya.options.files import config_dir, read_yaml
from nenya.options.sections import Options, keys_of, taken

_COLUMN = 34
_WIDTH = 112
_TOPICS = {
    "model": "model versions: network, augmentation, preprocessing and published weights",
    "sensor": "recipes of nenya prepare",
    "trainer": "machines to train on",
    "logger": "logs of a training run, beside its own folder",
}


def overview() -> str:
    """Return the help of `nenya` itself: its commands, and how to ask for more."""
    names = command_names()
    return "\n".join((
        "usage: nenya COMMAND key=value ...",
        "",
        *(f"  {name:10s} {about(name)}" for name in names),
        "",
        "nenya COMMAND --help          its purpose and options",
        "nenya help TOPIC              a command, an option such as loader.cache_dir, or one of",
        *(f"  {name:10s} {words}" for name, words in _TOPICS.items()),
        "nenya completion SHELL        completion for bash, zsh or fish, to be sourced by the shell",
    ))  # fmt: skip


def topic_text(words: Sequence[str]) -> str:
    """Return the help on a topic: a command, a group of choices, a section or an option.

    Raises:
        OptionError: There is no such topic.
    """
    if not words:
        return overview()
    topic = words[0].rstrip("=") if len(words) == 1 else ".".join(words)
    if topic in command_names():
        return help_text(topic, compose(topic, []))
    group = next((group for group in GROUPS if topic in (group, f"{group}s")), "")
    if group:
        return "\n".join((f"{group}=   {_TOPICS[group]}", *_described(group)))
    found: dict[str, list[str]] = {}
    for name in command_names():
        for text in _of_option(name, topic):
            found.setdefault(text, []).append(name)
    if not found:
        keys = {inner or _shown(key) for name in command_names() for key, inner in _keys(options_of(name))}
        known = [*command_names(), *GROUPS, *sorted(keys)]
        raise OptionError(
            f"{topic}: expected a command, a group ({', '.join(GROUPS)}) or an option{suggest(topic, known)}"
        )
    return "\n".join(f"nenya {', '.join(names)}\n{text}" for text, names in found.items())


def _described(group: str) -> Iterator[str]:
    """Yield each choice of a group, with the first comment in its file."""
    for path in sorted((config_dir() / group).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        words = next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")
        yield f"  {path.stem:14s} {words}".rstrip()


def _keys(options_type: type[Options]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command: name and "", or section and key."""
    for field in fields(options_type):
        if field.name in taken(options_type):
            yield field.name, ""
            yield from ((field.name, key) for key in keys_of(options_type, field.name))


def _of_option(name: str, topic: str) -> Iterator[str]:
    """Yield the lines of a section or of options that are named by the topic, in the help of a command."""
    options = options_of(name)()
    for key, inner in _keys(type(options)):
        full = f"{_shown(key)}.{inner}" if inner else _shown(key)
        if topic in (full, inner or full):
            lines = _lines(getattr(options, key), inner) if inner else _lines(options, key)
            yield "\n".join(f"  {line.replace(inner, full, 1) if inner else line}" for line in lines)


def help_text(name: str, options: Options) -> str:
    """Return the help of a command.

    Args:
        name: the command, which has a file in `configs/`.
        options: with the values to show.
    """
    about = str(read_yaml(config_dir() / f"{name}.yaml", own=True)["hydra"]["help"]["template"])
    names = set(taken(type(options))) - {"given"}
    listed = [line for f in fields(own_first(type(options))) if f.name in names for line in _lines(options, f.name)]
    choices = [line for group in GROUPS if takes_group(type(options), group) for line in _choices(group)]
    return about.replace("$CONFIG", "\n".join(listed)).replace("$CHOICES", "\n".join(choices))


def _choices(group: str) -> Iterator[str]:
    """Yield the lines that name the choices of a group."""
    names = [path.stem for path in sorted((config_dir() / group).glob("*.yaml"))]
    line = f"{group + '=':11s} {names[0]}"
    for name in itertools.islice(names, 1, None):
        if len(line) + len(name) + 2 > _WIDTH:
            yield line + ","
            line = f"{'':11s} {name}"
        else:
            line += f", {name}"
    yield line


def _shown(key: str) -> str:
    """Return the name of an option on the command line."""
    return "archive" if key == "archive_dir" else key


def _lines(options: Any, key: str, indent: str = "") -> Iterator[str]:
    """Yield the lines of an option, or of a section and its options."""
    value = getattr(options, key)
    if is_dataclass(value):
        yield f"{indent}{key}:"
        for inner in keys_of(type(options), key):
            yield from _lines(value, inner, indent + "  ")
        return
    declared = next(field for field in fields(options) if field.name == key)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    start = f"{indent}{_shown(key)}: {shown}"
    yield f"{start:{_COLUMN}s}  # {declared.metadata.get('doc', '')}".rstrip(" #")
