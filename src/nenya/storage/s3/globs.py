"""Globs of object keys as regular expressions."""

import re

_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_regex(pattern: str) -> str:
    """Return the regular expression of a glob: `*`, `?` and `[]` do not cross a slash, `**` does."""
    made = []
    for token in re.findall(r"\*\*/|\*\*|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token in _GLOB:
            made.append(_GLOB[token])
        elif token.startswith("[") and len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace("^", "\\^")
            made.append("(?!/)[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]")
        else:
            made.append(re.escape(token))
    return "".join(made)
