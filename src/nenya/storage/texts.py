"""Untrusted text in messages: nothing in it moves the cursor, hides, changes direction or starts a new line."""

import logging
import numbers
import re
import sys
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

_LEAST = 3  # characters of a value that is replaced; shorter ones, such as "/", occur in every text
_ALONE = 8  # characters from which a value is also found inside words
_names: dict[str, str] = {}

LONGEST = 4000
"""Characters of a line of a message or a result; it may quote names and values of a file, of any length."""


class Lines(str):
    """A text of several lines, each already passed through `visible`."""

    __slots__ = ()


def lines_of(items: Iterable[object]) -> Lines:
    """Return items as lines of a message."""
    return Lines("\n".join(shown(item, LONGEST) for item in items))


def visible(text: object, *, lines: bool = False) -> str:
    r"""Return a text in which unprintable characters are escaped, as `\x1b`: controls, direction marks, raw bytes.

    Args:
        text: anything; its `str` is taken.
        lines: whether newlines are kept.
    """
    said = str(text)
    if said.isprintable():
        return said
    kept = "\t\n" if lines else "\t"
    return "".join(c if c.isprintable() or c in kept else _escaped(c) for c in said)


def shown(text: object, most: int = 120) -> str:
    """Return a text from a file as it can stand in a message: `visible`, and cut after `most` characters."""
    said = visible(text)
    return said if len(said) <= most else f"{said[:most]}..."


def counted(number: float, one: str, many: str = "", form: str = "") -> str:
    """Return a number and its noun: `1 row`, `2 rows`; with `many`, other plurals and verbs: `1 row is`, `2 rows are`.

    Args:
        number: of things.
        one: the words for a single one.
        many: the words for several, by default `one` and an s.
        form: how the number is formatted.
    """
    return f"{number:{form}} {one if number == 1 else many or f'{one}s'}"


def cut(line: str) -> str:
    """Return a line, or the first `LONGEST` characters of it."""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def quoted(value: object) -> str:
    """Return a value of a file as it can stand in a message: at most 80 characters, texts in quotes."""
    text = f"'{visible(value)}'" if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:76]}...'"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def remember_name(name: str, value: str) -> None:
    """Let messages show `$name` in place of the value of this environment variable."""
    for form in (value, value.rstrip("/"), str(PurePath(value))):
        if len(form) >= _LEAST:
            _names[form] = f"${name}"


def without_values(text: str) -> str:
    """Return a text with the names of environment variables in place of their values in paths."""
    for value in sorted(_names, key=len, reverse=True):
        if value in text:
            pattern = re.escape(value) if len(value) >= _ALONE else rf"(?<![\w.]){re.escape(value)}(?![\w.])"
            text = re.sub(pattern, lambda _, value=value: _names[value], text)  # type: ignore[misc]
    return text


def printed(text: object, *, lines: bool = False) -> str:
    """Return a text for printing: `visible`, without the values of `remember_name`."""
    return visible(without_values(str(text)), lines=lines)


def say(text: str) -> None:
    """Write one line of a result of a command to standard output; several lines only from `Lines`."""
    said = printed(text, lines=True) if isinstance(text, Lines) else cut(printed(text))
    coding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(said.encode(coding, "backslashreplace").decode(coding) + "\n")


class LineFormatter(logging.Formatter):
    """Formats log records with printable arguments only, each on one line unless it is `Lines`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        record = logging.makeLogRecord(vars(record))
        if isinstance(record.args, tuple):
            record.args = tuple(_plain(value) for value in record.args)
        record.exc_text = None
        return "\n".join(cut(line) for line in printed(super().format(record), lines=True).split("\n"))


def _plain(value: Any) -> Any:
    """Return an argument of a message; numbers stay numbers."""
    if isinstance(value, Lines | numbers.Number) or value is None:
        return value
    return visible(value)


def first_words(error: BaseException | str, most: int = 300) -> str:
    """Return the first line of another library's message in complete sentences, in at most about `most` characters.

    A last sentence that only introduces what follows ("You might want to try:") is left out; if there is no other,
    the next line completes it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    found = lines[0]
    if found.endswith(":"):
        before, stop, _ = found.rpartition(". ")
        found = before + "." if stop else " ".join(lines[:2])
    if len(found) > most:
        before, stop, _ = found[:most].rpartition(". ")
        found = before + "." if stop else found[:most].rpartition(" ")[0] + " ..."
    return found
