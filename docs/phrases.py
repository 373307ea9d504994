"""Looks for phrases that are hard to read, in the pages, the help, the messages and the docstrings.

    python docs/phrases.py            # exit code 1 if there is one
    python docs/phrases.py --long     # also lists long sentences, as advice

A text is a page without its code, a configuration's comments, or a string constant of the source. Each phrase has the
words to use instead. An exception names the file and says why the phrase is right there.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHRASES = {
    r"wanted (?:is|are|was|were)": "expected ..., got ...",
    r"came[;,:] (?:it )?wanted": "expected ..., got ...",
    r"came in(?:stead)? of": "expected ..., got ...",
    r"what (?:is|was|were|are) there": "existing files, the existing output; name it",
    r"there already": "exists",
    r"already there": "exists",
    r"(?:or|is|are|was|were) not there": "is absent, does not exist",
    r"(?:is|are|was|were|and|or|written|kept|comes?) whole": "is complete",
    r"whole or": "complete or",
    r"(?<!as a )whole(?! number)": "complete, all, entire",
    r"whole numbers?": "integer",
    r"anew": "again",
    r"mend(?:s|ed|ing)?": "fix",
    r"go(?:es)? on": "resumes, continues",
    r"going on": "happening; name it",
    r"(?:was|is|are|were|been) asked for": "requested; the request",
    r"what (?:is|was) asked": "the request",
    r"(?:is|are|was|were) said": "is reported, is stated; name who reports it",
    r"says? so": "reports it; name what is reported",
    r"(?:do|does) not count": "is ignored; has no effect",
    r"\d+ numbers": "dimensions",
    r"has? a place on": "is placed on the UMAP",
    r"pickled maps?": "pickled UMAPs",
    r"(?:on|in) (?:one|a|the same) map of (?:\d|the latents|latents)": "on a UMAP of",
    r"maps? of (?:their|its|the) latents": "UMAP of the latents",
    r"maps?, groups": "UMAP, clusters",
    r"groups? of `?clusters": "clusters",
    r"and (?:its|their) kin": "and similar ones",
    r"have no like": "have no counterpart",
    r"one's own": "your own",
    r"as ever": "as before, as without it",
    r"be (?:it|they) ": "whether",
    r"is told (?:in|by)": "is described in, is recognised by",
    r"(?:shall|ought)": "must, should",
    r"nothing is to be said": "no option is needed",
    r"cannot be got": "cannot be recovered",
    r"makes? of (?:it|them|a|an|each|every)": "computes from",
    r"of (?:its|their) kind are": "such ... are",
    r"thereof|therein|whereof|hereby|heretofore": "of it, in it",
    r"made by hand": "written manually",
}
"""A regular expression of a phrase, between borders of words, and what to write instead."""

ALLOWED = {
    ("docs/phrases.py", None): "this list itself",
    ("src/nenya/tables/comparison.py", r"(?<!as a )whole(?! number)"): "the name of a column",
    ("src/nenya/tables/statistics.py", r"(?<!as a )whole(?! number)"): "the name of a column",
}
"""(file, phrase or None for all) -> why it is right there."""

LONG = 35
"""Words of a sentence that is reported as long."""

_CODE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1$|^(?: {4}|\t)[^\n]*$", re.MULTILINE | re.DOTALL)
_SPANS = re.compile(r"``[^`]+``|`[^`\n]+(?:\n[^`\n]+)?`|\]\([^)]*\)|<!--.*?-->|https?://\S+", re.DOTALL)
_KEYS = re.compile(r"^[ \t]*\w+(?:, \w+)*: ?", re.MULTILINE)
_ANY = re.compile("|".join(PHRASES), re.IGNORECASE)
_PATTERNS = {phrase: re.compile(rf"(?<![\w=]){phrase}(?![\w=])", re.IGNORECASE) for phrase in PHRASES}


@dataclass(frozen=True)
class Text:
    """A piece of prose.

    Attributes:
        path: of its file.
        line: where it begins.
        words: the prose, with its line breaks.
    """

    path: Path
    line: int
    words: str

    @property
    def name(self) -> str:
        """The file, from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name


@dataclass(frozen=True)
class Hit:
    """A phrase in a text.

    Attributes:
        text: where it is.
        phrase: the key of `PHRASES`.
        line: of the file.
        near: the words around it.
    """

    text: Text
    phrase: str
    line: int
    near: str

    def __str__(self) -> str:
        """Return the place, the words, and what to write instead."""
        return f"{self.text.name}:{self.line}: ... {self.near} ... (instead: {PHRASES[self.phrase]})"


def pages() -> list[Path]:
    """Return the pages."""
    return [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Return a text without what a pattern finds; lines keep their numbers."""
    return pattern.sub(lambda match: "\n" * match[0].count("\n") or "·", text)


def texts_of_page(path: Path) -> Iterator[Text]:
    """Yield the prose of a page, without its code."""
    yield Text(path, 1, _blank(_SPANS, _blank(_CODE, path.read_text(encoding="utf-8"))))


def texts_of_source(path: Path) -> Iterator[Text]:
    """Yield the string constants of a module: docstrings, messages and descriptions of options.

    Identifiers are no prose: single words, and the names of arguments and attributes in docstrings.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield Text(path, node.lineno, _KEYS.sub("", _blank(_SPANS, node.value)))


def texts_of_comments(path: Path) -> Iterator[Text]:
    """Yield the comments of a YAML file and, as they are shown by --help, the texts of a command's file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if "#" in line or re.match(r"\s+(header|template|\S+ \S+ )", line):
            yield Text(path, number, line)


def comments_of_source(path: Path) -> Iterator[Text]:
    """Yield the comments of a module."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], _blank(_SPANS, token.string))


def all_texts() -> Iterator[Text]:
    """Yield the prose of the project."""
    for path in pages():
        yield from texts_of_page(path)
    for folder in ("src", "scripts", "docs", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from texts_of_source(path)
            yield from comments_of_source(path)
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yield from texts_of_comments(path)


def hits_of(text: Text) -> Iterator[Hit]:
    """Yield the phrases of a text that have no exception."""
    flat = text.words.replace("\n", " ")
    if not _ANY.search(flat):
        return
    for phrase, pattern in _PATTERNS.items():
        if (text.name, None) in ALLOWED or (text.name, phrase) in ALLOWED:
            continue
        for match in pattern.finditer(flat):
            near = " ".join(flat[max(match.start() - 40, 0) : match.end() + 40].split())
            yield Hit(text, phrase, text.line + text.words.count("\n", 0, match.start()), near)


def long_sentences(text: Text) -> Iterator[str]:
    """Yield the sentences of a page with more than `LONG` words; tables and lists end a sentence."""
    words = re.sub(r"^\s*\|.*$|^#.*$", "\n\n", text.words, flags=re.MULTILINE)
    for part in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", words):
        for sentence in re.split(r"(?<=[.?!])\s+", " ".join(part.split())):
            if len(sentence.split()) > LONG:
                yield sentence


def main() -> int:
    """Print each phrase that was found; return 1 if there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"list sentences of pages with more than {LONG} words")
    arguments = parser.parse_args()
    found = [hit for text in all_texts() for hit in hits_of(text)]
    sys.stdout.writelines(f"{hit}\n" for hit in found)
    if arguments.long:
        for page in pages():
            for text in texts_of_page(page):
                for sentence in long_sentences(text):
                    sys.stdout.write(f"advice: {text.name}: {len(sentence.split())} words: {sentence[:100]} ...\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
