"""What a command was asked for, on the standard output; progress, warnings and errors go to the error output."""

import sys


def say(text: str) -> None:
    """Write lines of an answer."""
    sys.stdout.write(text + "\n")
