"""Completion of commands, options and choices in bash, zsh and fish: scripts that are made of the declarations.

A script holds all names, so that a shell completes without starting Python. It is written by `nenya completion SHELL`.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nenya.commands.compose import GROUPS, about, command_names, options_of, takes_group
from nenya.errors import OptionError
from nenya.options.declare import suggest
from nenya.options.files import config_dir
from nenya.options.sections import keys_of, taken

FLAGS = ("--help", "--cfg", "--multirun")
_MORE = {"help": "explain a command, an option or a choice", "completion": "write the completion of a shell"}


@dataclass(frozen=True)
class Choice:
    """An option of a command.

    Attributes:
        name: on the command line, such as `loader.cache_dir`.
        values: its possible values, if they can be listed.
        meaning: in a line.
    """

    name: str
    values: tuple[str, ...]
    meaning: str


def script(shell: str) -> str:
    """Return the completion script for a shell.

    Raises:
        OptionError: There is none for this shell.
    """
    if shell not in _SCRIPTS:
        raise OptionError(f"completion {shell}: expected one of {', '.join(_SCRIPTS)}{suggest(shell, list(_SCRIPTS))}")
    return _SCRIPTS[shell]({name: choices_of(name) for name in command_names()})


def choices_of(command: str) -> list[Choice]:
    """Return the options of a command: its own, those of its sections, and its groups."""
    kind = options_of(command)
    names = [name for name in taken(kind) if name != "given"]
    found = [Choice(group, _files_of(group), f"a choice of {group}") for group in GROUPS if takes_group(kind, group)]
    for field in fields(kind):
        if field.name not in names:
            continue
        inner = keys_of(kind, field.name) if is_dataclass(field.type) else []
        for part in fields(field.type) if is_dataclass(field.type) else []:
            if part.name in inner:
                found.append(_choice(f"{field.name}.{part.name}", part))
        if not is_dataclass(field.type):
            found.append(_choice("archive" if field.name == "archive_dir" else field.name, field))
    return found


def topics() -> list[str]:
    """Return what `nenya help` explains: commands, groups and options."""
    options = {choice.name for name in command_names() for choice in choices_of(name)}
    return [*command_names(), *sorted({*GROUPS, *options})]


def _choice(name: str, field: Any) -> Choice:
    check = field.metadata.get("check")
    listed = check[0].partition("one of ")[2] if check and check[0].startswith("one of ") else ""
    values = ("true", "false") if field.type is bool else tuple(listed.split(", ")) if listed else ()
    return Choice(name, values, str(field.metadata.get("doc", "")).replace("\n", " "))


def _files_of(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (config_dir() / group).glob("*.yaml")))


def _firsts() -> dict[str, str]:
    return {**{name: about(name) for name in command_names()}, **_MORE}


def _bash(options: dict[str, list[Choice]]) -> str:
    values = {(command, c.name): " ".join(c.values) for command, found in options.items() for c in found if c.values}
    shared: dict[tuple[str, str], list[str]] = {}
    for (command, name), listed in values.items():
        shared.setdefault((name, listed), []).append(command)
    return "\n".join((
        "# Completion of nenya for bash, made by `nenya completion bash`.",
        "_nenya() {",
        '    local line="${COMP_LINE:0:COMP_POINT}" word key="" names="" values=""',
        "    local -a words",
        '    word="${line##*[[:space:]]}"',
        '    read -ra words <<< "$line"',
        "    COMPREPLY=()",
        '    if (( ${#words[@]} < 2 || (${#words[@]} == 2 && ${#word} > 0) )); then',
        f'        COMPREPLY=($(compgen -W "{" ".join([*_firsts(), "--help", "--version"])}" -- "$word"))',
        "        return",
        "    fi",
        '    case "${words[1]}" in',
        *(f'        {name}) names="{" ".join([*(c.name + "=" for c in found), *FLAGS])}" ;;' for name, found in
          options.items()),
        f'        help) names="{" ".join(topics())}" ;;',
        f'        completion) names="{" ".join(_SCRIPTS)}" ;;',
        "    esac",
        '    if [[ "$word" != *=* ]]; then',
        '        COMPREPLY=($(compgen -W "$names" -- "$word"))',
        '        [[ "${COMPREPLY[0]}" == *= ]] && compopt -o nospace',
        '        if [[ "${words[1]}" != help && "${words[1]}" != completion ]]; then',
        '            compopt -o filenames && mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$word")',
        "        fi",
        "        return",
        "    fi",
        '    key="${word%%=*}"',
        '    word="${word#*=}"',
        '    case "${words[1]} $key" in',
        *(f'        {"|".join(shlex.quote(f"{command} {name}") for command in commands)}) values="{listed}" ;;'
          for (name, listed), commands in shared.items()),
        "    esac",
        '    if [[ -n "$values" ]]; then',
        '        COMPREPLY=($(compgen -W "$values" -- "$word"))',
        "    else",
        '        compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "$word")',
        "    fi",
        '    if [[ "$COMP_WORDBREAKS" != *=* ]]; then COMPREPLY=("${COMPREPLY[@]/#/$key=}"); fi',
        "}",
        "complete -F _nenya nenya",
    ))  # fmt: skip


def _described(name: str, meaning: str) -> str:
    return shlex.quote(f"{name}:{meaning}")


def _zsh(options: dict[str, list[Choice]]) -> str:
    lines = [
        "#compdef nenya",
        "# Completion of nenya for zsh, made by `nenya completion zsh`.",
        "_nenya() {",
        "    local -a names values",
        "    local key",
        "    if (( CURRENT == 2 )); then",
        f"        names=({' '.join(_described(name, words) for name, words in _firsts().items())})",
        "        _describe command names",
        "        return",
        "    fi",
        "    if compset -P 1 '*='; then",
        '        key="${IPREFIX%=}"',
        '        case "${words[2]} $key" in',
    ]
    for command, found in options.items():
        for choice in found:
            if choice.values:
                listed = " ".join(map(shlex.quote, choice.values))
                lines.append(f"            {shlex.quote(f'{command} {choice.name}')}) values=({listed}) ;;")
    lines += [
        "        esac",
        "        if (( ${#values} )); then compadd -- $values; else _files; fi",
        "        return",
        "    fi",
        '    case "${words[2]}" in',
    ]
    for command, found in options.items():
        described = " ".join(_described(f"{choice.name}=", choice.meaning) for choice in found)
        lines.append(f"        {command}) names=({described}) ;;")
    return "\n".join((
        *lines,
        f"        help) compadd -- {' '.join(topics())}; return ;;",
        f"        completion) compadd -- {' '.join(_SCRIPTS)}; return ;;",
        "    esac",
        "    _describe option names -S ''",
        "    _files",
        "}",
        'if [[ "$funcstack[1]" == _nenya ]]; then _nenya "$@"; else compdef _nenya nenya; fi',
    ))  # fmt: skip


def _fish(options: dict[str, list[Choice]]) -> str:
    def line(condition: str, word: str, meaning: str, *more: str) -> str:
        quoted = [_fish_quote(text) for text in (condition, word, meaning)]
        return " ".join(("complete -c nenya", *more, "-n", quoted[0], "-a", quoted[1], "-d", quoted[2]))

    lines = ["# Completion of nenya for fish, made by `nenya completion fish`."]
    lines += [line("__fish_use_subcommand", name, words, "-f") for name, words in _firsts().items()]
    for command, found in options.items():
        seen = f"__fish_seen_subcommand_from {command}"
        for choice in found:
            if not choice.values:
                lines.append(line(seen, f"{choice.name}=", choice.meaning))
            lines += [line(seen, f"{choice.name}={value}", choice.meaning) for value in choice.values]
    lines += [line("__fish_seen_subcommand_from help", " ".join(topics()), "topic", "-f")]
    lines += [line("__fish_seen_subcommand_from completion", " ".join(_SCRIPTS), "shell", "-f")]
    return "\n".join(lines)


def _fish_quote(text: str) -> str:
    """Return a word in fish's single quotes, in which only these two signs are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: dict[str, Callable[[dict[str, list[Choice]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
