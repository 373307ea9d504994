"""What a command was asked for, on the standard output; progress, warnings and errors go to the error output."""

import sys

from nenya.storage.texts import Lines, printed


def say(text: str) -> None:
    """Write one line of an answer; several only of `nenya.storage.texts.Lines`."""
    said = printed(text, lines=isinstance(text, Lines))
    coding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(said.encode(coding, "backslashreplace").decode(coding) + "\n")
