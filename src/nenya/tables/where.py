"""Check of SQL conditions: only columns, values, comparisons and functions with bounded results are allowed.

The database itself has functions that can use all memory (`lpad`, `repeat`), and subqueries.
"""

import re
from collections.abc import Iterator

from nenya.errors import OptionError
from nenya.options.declare import suggest

FUNCTIONS = (
    *("abs", "ceil", "exp", "floor", "ln", "log", "log10", "log2", "power", "pow", "round", "sign", "signum", "sqrt"),
    *("trunc", "acos", "asin", "atan", "atan2", "cos", "degrees", "pi", "radians", "sin", "tan", "isnan", "nanvl"),
    *("coalesce", "nullif", "nvl", "greatest", "least", "cast", "try_cast"),
    *("lower", "upper", "trim", "btrim", "ltrim", "rtrim", "left", "right", "substr", "substring", "split_part"),
    *("length", "char_length", "character_length", "octet_length", "strpos", "starts_with", "ends_with", "contains"),
    *("regexp_like", "date_part", "date_trunc", "date_bin", "to_timestamp", "to_date", "make_date", "now"),
)
"""Functions whose results are at most about as large as their arguments."""

_WORDS = ("and", "or", "not", "in", "between", "like", "ilike", "is", "as", "escape", "varchar", "char")
_PANICS = ("decimal", "numeric", "dec")
_MOST_LETTERS = 10**6
_MOST_WORDS = 10_000  # names, operators and parentheses; numbers and strings of a list are ignored
_DEPTH = 16
_CHAIN = 200  # consecutive operators, which the database nests within each other
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
_LONGEST = 10_000  # characters of one name, number or string
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<refused>--|/\*|\$|#|(?!(?i:and|or|not|in|i?like|between|escape|timestamp|date|interval)')"
    r"[a-zA-Z&]+')|(?P<text>'(?:[^']|'')*')|(?P<name>`[^`]*`|\"(?:[^\"]|\"\")*\")"
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<word>[^\W\d]\w*)|(?P<other>.)",
    re.DOTALL,
)


def check_condition(sql: str) -> None:
    """Refuse a condition that could exhaust memory or time, before the database sees it.

    Args:
        sql: one condition, as given by `where=`; the database checks its syntax.

    Raises:
        OptionError: It is too long, nested too deeply, calls a function that is not in `FUNCTIONS`, or is a query.
    """
    if len(sql) > _MOST_LETTERS:
        raise OptionError(f"where={_short(sql)}: expected at most {_MOST_LETTERS:,} characters, got {len(sql):,}")
    depth = words = chain = 0
    before = ("", "")
    for kind, token in _tokens(sql):
        word = token.lower() if kind == "word" else ""
        if len(token) > _LONGEST:
            raise OptionError(
                f"where={_short(sql)}: expected words of at most {_LONGEST:,} characters, got {len(token):,}"
            )
        if kind == "refused" or (
            kind == "text" and "\\'" in token
        ):  # other quotes, which hide the rest of the condition
            raise OptionError(
                f"where={_short(sql)}: {token[:20]} begins a comment or a quoted string, which is not allowed"
            )
        if word in _PANICS:
            raise OptionError(f"where={_short(sql)}: {token} is not an allowed type: use double or bigint")
        if token in _OPENING:
            _check_call(sql, before)
        depth += (token in _OPENING) - (token in _CLOSING)
        signed = token == "-" and before[1] in ("(", ",")  # in a list of numbers
        words += kind in ("word", "name") or (kind == "other" and token != "," and not signed)
        chain = 0 if word in ("and", "or") else chain + (word in _WORDS or (kind == "other" and not signed))
        chain -= token in (",", *_OPENING, *_CLOSING)
        if depth > _DEPTH or words > _MOST_WORDS or chain > _CHAIN:
            raise OptionError(
                f"where={_short(sql)}: at most {_MOST_WORDS:,} words, {_CHAIN} signs between AND and OR and {_DEPTH} "
                "parentheses within each other go: make it simpler"
            )
        before = (kind, token)


def _check_call(sql: str, before: tuple[str, str]) -> None:
    """Check the name of a function before its arguments; a parenthesis alone is no function."""
    kind, token = before
    name = token.strip('`"').lower()
    if kind not in ("word", "name") or (kind == "word" and name in _WORDS) or name in FUNCTIONS:
        return
    raise OptionError(
        f"function {_short(token)} is not allowed in conditions{suggest(name, list(FUNCTIONS))}: where={_short(sql)}; "
        'expected SQL such as "lat > 30 AND abs(DT) > 1"'
    )


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(sql):
        if found.lastgroup != "space":
            yield str(found.lastgroup), found[0]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
