"""Results of a command, on standard output; progress, warnings and errors go to standard error."""

import sys

from nenya.storage.texts import Lines, cut, printed


def say(text: str) -> None:
    """Write one line of a result; several lines only from `nenya.storage.texts.Lines`."""
    said = printed(text, lines=True) if isinstance(text, Lines) else cut(printed(text))
    coding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(said.encode(coding, "backslashreplace").decode(coding) + "\n")
