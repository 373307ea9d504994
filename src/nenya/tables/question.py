"""Conditions as people type them, parsed by a grammar of nenya's own and evaluated with NumPy, without a database.

The dialect is that of `where=` (names, numbers, 'strings', comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL), with
the options of a search as words: `region=gulfstream`, `season=DJF`, `dates=[2012-01-01,2012-12-31]`, `lon=[170,-170]`,
`month=[12,2]`. A name alone is a condition too, and a comma means AND: `Gulf Stream, winter, DT > 2`.

Letters in shapes: N rows of the table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.options.declare import suggest
from nenya.storage.texts import shown
from nenya.tables import asked
from nenya.tables.asked import Rows, Truth

MOST_LETTERS = 1000
"""Characters of a condition, at most."""
_MOST_TOKENS = 300
_DEPTH = 16
EXAMPLE = "Gulf Stream, winter, DT > 2"

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>'(?:[^']|'')*')|(?P<name>`[^`]+`|\"[^\"]+\")"
    r"|(?P<date>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))|(?P<word>[^\W\d]\w*)"
    r"|(?P<sign><=|>=|<>|!=|==|[<>=(),\[\]+\-*/;&|])"
)
_RESERVED = {
    *("and", "or", "not", "in", "between", "like", "ilike", "is", "null", "to", "union", "except", "intersect", "but"),
    "from",
}
_MEANS = {"dates": "datetime", "date": "datetime", "clear": "clear_fraction"}
_SIGNS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True)
class Node:
    """A part of a condition.

    Attributes:
        kind: `truth`, `number`, `text`, `date`, `word` (text without quotes), `named` (region or season).
        of: computes it for all rows: a `Truth`, or an array or a number.
        literal: its value, if it is one.
        column: its name, if it is one.
    """

    kind: str
    of: Callable[[Rows], Any]
    literal: Any = None
    column: str = ""


def rows_asked(text: str, rows: Rows) -> NDArray[np.bool_]:
    """Return which rows fulfil a condition, (N,) bool.

    Args:
        text: the condition; untrusted.
        rows: of the table.

    Raises:
        OptionError: It is not a condition, too long, or names what does not exist.
    """
    truth: Truth = parse(text, rows).of(rows)
    return np.array(np.broadcast_to(truth.true, rows.count))


def parse(text: str, rows: Rows) -> Node:
    """Return a condition after checking its words against the columns of a table.

    Raises:
        OptionError: As `rows_asked`.
    """
    if len(text) > MOST_LETTERS:
        raise OptionError(f"expected a condition of at most {MOST_LETTERS} characters, got {len(text):,}")
    parser = _Parser(text, rows)
    found = parser.either()
    if parser.here < len(parser.tokens):
        raise parser.wrong(f"{shown(parser.tokens[parser.here][1], 40)} is unexpected")
    return parser.truth(found)


class _Parser:
    """Recursive descent over the tokens of one condition; each method returns a node and moves on."""

    def __init__(self, text: str, rows: Rows) -> None:
        self.text, self.rows, self.here, self.depth = text, rows, 0, 0
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise self.wrong(f"{shown(text[place : place + 12], 20)} cannot be read")
            if found.lastgroup != "space":
                self.tokens.append((str(found.lastgroup), found[0]))
            place = found.end()
        if len(self.tokens) > _MOST_TOKENS:
            raise OptionError(f"expected a condition of at most {_MOST_TOKENS} words, got {len(self.tokens)}")

    def wrong(self, why: str) -> OptionError:
        """Return the error of a condition."""
        return OptionError(f'{why}: expected a condition such as "{EXAMPLE}", got {shown(self.text, 100)}')

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        """Return kind and text of a token; words in lower case."""
        if self.here + ahead >= len(self.tokens):
            return "", ""
        kind, token = self.tokens[self.here + ahead]
        return kind, token.lower() if kind == "word" else token

    def take(self, *wanted: str) -> str:
        """Move over one of the given words or signs if it is next, and return it; otherwise return ''."""
        kind, token = self.peek()
        if kind in ("word", "sign") and token in wanted:
            self.here += 1
            return token
        return ""

    def need(self, sign: str) -> None:
        """Move over a word or sign that must be next."""
        if not self.take(sign):
            found = self.peek()[1]
            raise self.wrong(f"{sign.upper()} is missing {f'before {shown(found, 40)}' if found else 'at the end'}")

    def truth(self, node: Node) -> Node:
        """Return a node that must be a condition."""
        if node.kind == "truth":
            return node
        raise self.wrong(f"{shown(node.column or node.literal or 'a number', 40)} alone is not a condition")

    def either(self) -> Node:
        """Conditions joined by OR, UNION or EXCEPT."""
        self.deeper()
        found = self.every()
        while sign := self.take("or", "union", "|", "except", "but"):
            if sign == "but":
                self.need("not")
            first, second = self.truth(found), self.truth(self.every())
            found = _both(first, second, asked.either if sign in ("or", "union", "|") else asked.without)
        self.depth -= 1
        return found

    def deeper(self) -> None:
        """Count parentheses within each other."""
        self.depth += 1
        if self.depth > _DEPTH:
            raise OptionError(f"expected a condition with at most {_DEPTH} parentheses within each other")

    def every(self) -> Node:
        """Conditions joined by AND, INTERSECT or commas."""
        found = self.negated()
        while self.take("and", ",", ";", "&", "intersect"):
            found = _both(self.truth(found), self.truth(self.negated()), asked.every)
        return found

    def negated(self) -> Node:
        """A condition, or NOT before one."""
        count = 0
        while self.take("not"):
            count += 1
        node = self.comparison()
        if not count % 2:
            return self.truth(node) if count else node
        inner = self.truth(node)
        return Node("truth", lambda rows: asked.negated(inner.of(rows)))

    def comparison(self) -> Node:
        """A comparison of two values, or one value."""
        left = self.sum()
        if sign := self.take(*_SIGNS):
            return self.compared(left, _SIGNS[sign])
        if self.take("is"):
            turned = bool(self.take("not"))
            self.need("null")
            return self.turned(asked.is_missing(left.column or self.no_column(left)), turned=turned)
        if self.peek()[0] in ("number", "date", "sign") and self.is_span():
            return self.span(left, *self.ends("to"))
        turned = (
            self.peek()[1] == "not" and self.peek(1)[1] in ("in", "between", "like", "ilike") and bool(self.take("not"))
        )
        if self.take("between"):
            return self.turned(self.span(left, *self.ends("and")).of, turned=turned)
        if self.take("in"):
            return self.turned(self.listed(left, self.values("(", ")")), turned=turned)
        if word := self.take("like", "ilike"):
            kind, token = self.peek()
            if kind != "text" or left.kind not in ("text", "named") or not left.column:
                raise self.wrong("LIKE needs a text column and a 'string'")
            self.here += 1
            return self.turned(asked.is_like(left.column, _unquoted(token), any_case=word == "ilike"), turned=turned)
        return left

    def turned(self, of: Callable[[Rows], Truth], *, turned: bool) -> Node:
        """A condition, negated or not."""
        return Node("truth", (lambda rows: asked.negated(of(rows))) if turned else of)

    def no_column(self, node: Node) -> str:
        """Refuse what is not a column."""
        raise self.wrong(f"{shown(node.literal, 40)} is not a column")

    def is_span(self) -> bool:
        """Whether a value and TO follow."""
        ahead = 1 if self.peek()[1] == "-" else 0
        return self.peek(ahead)[0] in ("number", "date") and self.peek(ahead + 1)[1] == "to"

    def ends(self, joined: str) -> tuple[Node, Node]:
        """Two values joined by a word."""
        low = self.end()
        self.need(joined)
        return low, self.end()

    def end(self) -> Node:
        """One end of a range."""
        kind, token = self.peek()
        if kind != "date":
            return self.sum()
        self.here += 1
        return self.moment(Node("text", lambda _rows: token, token))

    def values(self, opened: str, closed: str) -> list[Node]:
        """Values between parentheses or brackets."""
        self.need(opened)
        found = [self.value_or_word()]
        while self.take(","):
            found.append(self.value_or_word())
        self.need(closed)
        return found

    def value_or_word(self) -> Node:
        """A value; words that name no column are strings."""
        words: list[str] = []
        while self.peek()[0] == "word" and self.peek()[1] not in _RESERVED and self.peek(1)[1] != "(":
            words.append(self.tokens[self.here][1])
            self.here += 1
        if words:
            name = " ".join(words)
            return Node("word", lambda _rows: name, literal=name)
        return self.sum()

    def compared(self, left: Node, sign: str) -> Node:
        """A comparison, after its left side and sign were read."""
        if sign in ("=", "!=") and self.peek()[1] == "[":
            values = self.values("[", "]")
            is_span = left.kind not in ("text", "named") and len(values) == 2
            of = self.span(left, *values, whole_days=True).of if is_span else self.listed(left, values)
            return self.turned(of, turned=sign == "!=")
        words = left.kind in ("text", "named") or left.column == "DT"
        kind, token = self.peek()
        if words and kind == "word" and not (left.column == "DT" and self.rows.find(token)):
            return self.turned(self.listed(left, [self.value_or_word()]), turned=sign == "!=")
        right = self.sum()
        if left.kind == "named":
            if sign not in ("=", "!="):
                raise self.wrong(f"{left.literal} needs = or IN")
            return self.turned(self.listed(left, [right]), turned=sign == "!=")
        left, right = self.alike(left, right)
        if _is_text(left, right):
            return Node("truth", self.texts(left, sign, right))
        return Node("truth", asked.compared(left.of, sign, right.of))

    def texts(self, left: Node, sign: str, right: Node) -> Callable[[Rows], Truth]:
        """A comparison of a text column with a string."""
        if not left.column:
            left, right, sign = right, left, {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign)
        if right.literal is None or not left.column:
            raise self.wrong(f"{left.column or left.literal} can be compared with a 'string' only")
        return asked.text_compared(left.column, sign, str(right.literal))

    def alike(self, left: Node, right: Node) -> tuple[Node, Node]:
        """Two values of one kind; strings beside dates are dates."""
        kinds = {left.kind, right.kind}
        if "date" in kinds and "text" in kinds:
            left, right = (self.moment(n) if n.kind == "text" else n for n in (left, right))
        elif kinds - {"number", "text", "date"} or len(kinds) > 1:
            said = [shown(node.column or node.literal or "a number", 40) for node in (left, right)]
            raise self.wrong(f"{said[0]} cannot be compared with {said[1]}")
        return left, right

    def moment(self, node: Node) -> Node:
        """A string as a date."""
        moment = asked.moment(str(node.literal))
        return Node("date", lambda _rows: moment, literal=str(node.literal))

    def span(self, left: Node, low: Node, high: Node, *, whole_days: bool = False) -> Node:
        """Values between two, both included; months and longitudes go around."""
        if left.kind == "date":
            texts = [str(node.literal) for node in (low, high)]
            return Node("truth", asked.dated(left.of, texts[0], texts[1], whole_days=whole_days))
        ends = low.literal, high.literal
        if {left.kind, low.kind, high.kind} != {"number"} or None in ends:
            raise self.wrong("a range needs a column of numbers or dates, and two numbers or dates")
        return Node("truth", asked.between(left.of, float(ends[0]), float(ends[1]), left.column))

    def listed(self, left: Node, values: list[Node]) -> Callable[[Rows], Truth]:
        """One of several values."""
        if left.kind == "named":
            given = [(str(v.literal), v.kind == "text") for v in values]
            tests = [asked.named(str(left.literal), name, quoted, self.rows) for name, quoted in given]
            return lambda rows: asked.any_of([test(rows) for test in tests])
        if left.column == "DT" and all(v.kind in ("word", "text") for v in values):
            tests = [asked.interval(left.of, str(v.literal)) for v in values]
            return lambda rows: asked.any_of([test(rows) for test in tests])
        pairs = []
        for value in values:
            value = Node("text", value.of, value.literal) if value.kind == "word" else value
            one, other = self.alike(left, value)
            pairs.append(self.texts(one, "=", other) if _is_text(one, other) else asked.compared(one.of, "=", other.of))
        return lambda rows: asked.any_of([pair(rows) for pair in pairs])

    def sum(self) -> Node:
        """Products joined by + and -."""
        found = self.product()
        while not (found.column and self.is_span()) and (sign := self.take("+", "-")):
            found = self.calculated(found, sign, self.product())
        return found

    def product(self) -> Node:
        """Values joined by * and /."""
        found = self.signed()
        while sign := self.take("*", "/"):
            found = self.calculated(found, sign, self.signed())
        return found

    def signed(self) -> Node:
        """A value, with signs before it."""
        minus = 0
        while sign := self.take("-", "+"):
            minus += sign == "-"
        node = self.value()
        return self.calculated(Node("number", lambda _rows: 0.0, 0), "-", node) if minus % 2 else node

    def calculated(self, left: Node, sign: str, right: Node) -> Node:
        """An operation on two numbers."""
        if {left.kind, right.kind} != {"number"}:
            raise self.wrong(f"{sign} needs numbers")
        literal = None
        if left.literal is not None and right.literal is not None:
            literal = asked.calculate(sign, left.literal, right.literal)
        return Node("number", lambda rows: asked.calculate(sign, left.of(rows), right.of(rows)), literal)

    def value(self) -> Node:
        """A literal, a column, a function, a name, or what is in parentheses."""
        kind, token = self.peek()
        if self.take("("):
            found = self.either()
            self.need(")")
            return found
        if token in ("date", "timestamp") and self.peek(1)[0] == "text":
            self.here += 1
            kind, token = self.peek()
        self.here += 1
        if kind == "number":
            number = int(token) if token.isdigit() and int(token) < 2**63 else float(token)
            return Node("number", lambda _rows: number, number)
        if kind == "text":
            text = _unquoted(token)
            return Node("text", lambda _rows: text, text)
        if kind == "date":
            node = self.moment(Node("text", lambda _rows: token, token))
            if self.peek()[1] == "to" and self.peek(1)[0] == "date":
                self.need("to")
                last = self.value()
                return self.span(self.column("datetime"), node, last, whole_days=True)
            return node
        if kind == "name":
            return self.column(token[1:-1], quoted=True)
        if kind == "word" and token not in _RESERVED:
            self.here -= 1
            return self.word()
        raise self.wrong(f"{shown(token, 40)} is unexpected" if token else "a value is missing at the end")

    def word(self) -> Node:
        """A function, a column, or the name of a region, a season or a month."""
        name = self.tokens[self.here][1]
        if self.peek(1)[1] == "(":
            return self.function(name.lower())
        left = min(4, len(self.tokens) - self.here)
        for length in range(left, 0, -1):
            if all(kind == "word" for kind, _ in self.tokens[self.here : self.here + length]):
                words = " ".join(token for _, token in self.tokens[self.here : self.here + length])
                is_column = length == 1 and (self.rows.find(name) or name.lower() in asked.NAMED)
                if not is_column and (test := asked.phrase(words, self.rows)) is not None:
                    self.here += length
                    return Node("truth", test)
        self.here += 1
        return self.column(name)

    def column(self, name: str, *, quoted: bool = False) -> Node:
        """A column by its name, in any case."""
        known = self.rows.find(name) or self.rows.find(_MEANS.get(name.lower(), ""))
        if name.lower() in asked.NAMED and not quoted:
            return Node("named", lambda _rows: None, name.lower(), known)
        if not known:
            meant = suggest(name, list(self.rows.names))
            columns = ", ".join(shown(column, 30) for column in self.rows.names[:30])
            raise self.wrong(f"{shown(name, 40)} is no column, region, season or month{meant}; columns: {columns}")
        kind = self.rows.kind(known)
        if kind == "other":
            raise self.wrong(f"the column {shown(known, 40)} holds neither numbers nor dates nor strings")
        if kind == "date":
            return Node(kind, lambda rows: rows.moments(), column=known)
        if kind == "number":
            return Node(kind, lambda rows: rows.numbers(known), column=known)
        return Node("text", lambda _rows: None, column=known)

    def function(self, name: str) -> Node:
        """A function of a number, or `date_part`."""
        self.here += 1
        if name == "date_part":
            self.need("(")
            part = self.value()
            self.need(",")
            self.value()
            self.need(")")
            return self.column(str(part.literal))
        if name not in asked.FUNCTIONS:
            raise self.wrong(f"the function {shown(name, 40)} is not allowed{suggest(name, list(asked.FUNCTIONS))}")
        self.need("(")
        self.deeper()
        argument = self.sum()
        self.depth -= 1
        self.need(")")
        if argument.kind != "number":
            raise self.wrong(f"{name} needs one number")
        return Node("number", lambda rows: asked.FUNCTIONS[name](argument.of(rows)))


def _is_text(left: Node, right: Node) -> bool:
    return left.kind == right.kind == "text"


def _both(left: Node, right: Node, join: Callable[[Truth, Truth], Truth]) -> Node:
    return Node("truth", lambda rows: join(left.of(rows), right.of(rows)))


def _unquoted(token: str) -> str:
    return token[1:-1].replace("''", "'")
