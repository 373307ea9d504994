"""What a condition of SQL may consist of: columns, values, comparisons and a list of functions that cannot grow.

The database itself knows functions that take all memory (`lpad`, `repeat`), and queries within conditions.
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
"""Functions whose answers are at most about as large as what they are given."""

_WORDS = ("and", "or", "not", "in", "between", "like", "ilike", "is", "as", "escape", "varchar", "char")
_PANICS = ("decimal", "numeric", "dec")
_MOST_LETTERS = 10**6
_MOST_WORDS = 10_000  # names, operators and parentheses; numbers and texts of a list do not count
_DEPTH = 16
_CHAIN = 200  # operators on end, each of which the database takes up within the one before
_OPENING, _CLOSING = ("(", "[", "{"), (")", "]", "}")
_LONGEST = 10_000  # letters of one name, number or text
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<refused>--|/\*|\$|#|(?!(?i:and|or|not|in|i?like|between|escape|timestamp|date|interval)')"
    r"[a-zA-Z&]+')|(?P<text>'(?:[^']|'')*')|(?P<name>`[^`]*`|\"(?:[^\"]|\"\")*\")"
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<word>[^\W\d]\w*)|(?P<other>.)",
    re.DOTALL,
)


def check_condition(sql: str) -> None:
    """Refuse a condition that could take the machine's memory or time, before the database sees it.

    Args:
        sql: one condition, as `where=` has it; whether it is well formed is the database's affair.

    Raises:
        OptionError: It is too long, nested too deep, calls a function that is not in `FUNCTIONS`, or is a query.
    """
    if len(sql) > _MOST_LETTERS:
        raise OptionError(f"where={_short(sql)}: a condition of {len(sql):,} letters, at most {_MOST_LETTERS:,} go")
    depth = words = chain = 0
    before = ("", "")
    for kind, token in _tokens(sql):
        word = token.lower() if kind == "word" else ""
        if len(token) > _LONGEST:
            raise OptionError(f"where={_short(sql)}: a name or text of {len(token):,} letters, {_LONGEST:,} go")
        if kind == "refused" or (kind == "text" and "\\'" in token):  # other quotes, which hide what follows
            raise OptionError(
                f"where={_short(sql)}: {token[:20]} begins a comment or a quoted text that is not known here"
            )
        if word in _PANICS:
            raise OptionError(f"where={_short(sql)}: {token} is no type of conditions: take double or bigint")
        if token in _OPENING:
            _check_call(sql, before)
        depth += (token in _OPENING) - (token in _CLOSING)
        signed = token == "-" and before[1] in ("(", ",")  # of a list of numbers
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
    """Check the function whose arguments begin; a parenthesis by itself is none."""
    kind, token = before
    name = token.strip('`"').lower()
    if kind not in ("word", "name") or (kind == "word" and name in _WORDS) or name in FUNCTIONS:
        return
    raise OptionError(
        f"there is no function {_short(token)} in conditions{suggest(name, list(FUNCTIONS))}: where={_short(sql)}; "
        'wanted is SQL such as "lat > 30 AND abs(DT) > 1"'
    )


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(sql):
        if found.lastgroup != "space":
            yield str(found.lastgroup), found[0]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
