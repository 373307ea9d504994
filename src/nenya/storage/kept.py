"""Finished steps of a long command, kept in a file beside its output until that is complete: a rerun resumes."""

import json
import os
from pathlib import Path
from typing import Any

from nenya.errors import OutputError


class Kept:
    """Results under names that tell all they depend on, such as a hash of the inputs.

    A line of the file is one result; the last line of a killed run may be half written, and is left out.

    Args:
        path: the file; it is created with the first result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, Any] = {}
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                name, value = json.loads(line)
            except (ValueError, TypeError):
                continue
            if isinstance(name, str):
                self._found[name] = value

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: str) -> Any | None:
        """Return a result as JSON values, None if there is none."""
        return self._found.get(name)

    def put(self, name: str, value: Any) -> None:
        """Add a result, JSON values; it is on the disk when this returns.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(("\n" + json.dumps([name, value]) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._found[name] = value

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
