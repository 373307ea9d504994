"""Conditions on tags in SQL: `tag = 'front'` means that a row has this tag, among others or alone.

The database sees the column as one string, so that conditions on it are replaced by others of the same meaning.
"""

import re
from collections.abc import Callable

from nenya.tables.tags import COLUMN, asked_tag

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>'(?:[^']|'')*')|(?P<name>`[^`]*`|\"(?:[^\"]|\"\")*\")|(?P<word>\w+)|(?P<sign><>|!=|==|.)",
    re.DOTALL,
)
_EQUAL = {"=": True, "==": True, "!=": False, "<>": False}


Has = Callable[[list[str], bool], str]
"""Returns the SQL of "has one of these tags", or of "has tags, but none of these"; no tags stand for any tag."""


def tag_terms(sql: str, has: Has) -> str:
    """Return a condition in which comparisons of the column of tags with strings or NULL are replaced.

    Args:
        sql: a condition.
        has: makes the replacements; rows without tags must fulfil neither form with tags.

    Raises:
        OptionError: A string holds a comma, as no tag does.
    """
    tokens = [(str(found.lastgroup), found[0]) for found in _TOKEN.finditer(sql)]
    solid = [place for place, (kind, _) in enumerate(tokens) if kind != "space"]
    made, here = [], 0
    while here < len(solid):
        found = _term([tokens[place] for place in solid[here:]], has) if _is_column(tokens[solid[here]]) else None
        used = 1 if found is None else found[1]
        stop = solid[here + used] if here + used < len(solid) else len(tokens)
        made += [token for _, token in tokens[solid[here] : stop]] if found is None else [found[0], " "]
        here += used
    return "".join(made).strip()


def _is_column(token: tuple[str, str]) -> bool:
    kind, text = token
    return (kind == "word" and text.lower() == COLUMN) or (kind == "name" and text[1:-1].lower() == COLUMN)


def _term(tokens: list[tuple[str, str]], has: Has) -> tuple[str, int] | None:
    """Return the replacement of a term that begins with the column, and the number of its tokens; None for others."""
    words = [text.lower() if kind == "word" else text for kind, text in tokens[:4]]
    if len(words) > 2 and words[1] in _EQUAL and tokens[2][0] == "text":
        return has([asked_tag(_unquoted(words[2]))], _EQUAL[words[1]]), 3
    for form, positive in ((["is", "null"], False), (["is", "not", "null"], True)):
        if words[1 : 1 + len(form)] == form:
            return has([], positive), 1 + len(form)
    for form, positive in ((["in", "("], True), (["not", "in", "("], False)):
        if words[1 : 1 + len(form)] == form:
            start = 1 + len(form)
            stop = next((n for n in range(start, len(tokens)) if tokens[n][1] == ")"), len(tokens))
            values = tokens[start:stop:2]
            commas = tokens[start + 1 : stop : 2]
            if stop < len(tokens) and values and {kind for kind, _ in values} == {"text"}:
                if len(commas) == len(values) - 1 and {text for _, text in commas} <= {","}:
                    return has([asked_tag(_unquoted(text)) for _, text in values], positive), stop + 1
    return None


def _unquoted(token: str) -> str:
    return token[1:-1].replace("''", "'")
