"""Named views, kept in a file beside the archive; several portals may write it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.portal.pages import part
from nenya.portal.state import MOST_TEXT
from nenya.storage.disk import atomic_path
from nenya.storage.lock import one_at_a_time
from nenya.storage.small_files import read_small, refuse_link, strict_json
from nenya.storage.texts import visible

MOST_VIEWS = 200
"""Named views of an archive, at most."""
_LONGEST = 60  # characters of a name
_MOST_BYTES = MOST_VIEWS * (MOST_TEXT + 1000)


@dataclass(frozen=True)
class SavedViews:
    """The named views of an archive.

    Args:
        path: of their file, which the first view that is saved creates.
    """

    path: Path

    def read(self) -> dict[str, str]:
        """Return the texts of the views by name, in order of the names.

        Raises:
            InputFileError: The file is damaged, or is not one of views.
        """
        try:
            data = read_small(self.path, _MOST_BYTES)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputFileError(f"{self.path}: cannot be read as named views ({error})") from error
        try:
            found = strict_json(data)
            views = {name: text for name, text in found["views"].items() if _fits(name, text)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputFileError(f"{self.path}: expected named views of the portal; move the file away") from error
        return dict(sorted(views.items()))

    def save(self, name: str, text: str) -> None:
        """Save a view; one of the same name is replaced.

        Raises:
            InputFileError: The name is empty or too long, there are too many views, or the file is damaged.
            OutputError: The file cannot be written.
        """
        name = " ".join(visible(name).split())
        if not _fits(name, text):
            raise InputFileError(f"expected a name of 1 to {_LONGEST} characters for the view, got {len(name)}")
        self._change(name, text)

    def forget(self, name: str) -> None:
        """Remove a view, if there is one of this name.

        Raises:
            InputFileError: The file is damaged.
            OutputError: The file cannot be written.
        """
        self._change(name, None)

    def _change(self, name: str, text: str | None) -> None:
        refuse_link(self.path)
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            with one_at_a_time(lock):
                views = self.read()
                views.pop(name, None)
                if text is not None:
                    views[name] = text
                if len(views) > MOST_VIEWS:
                    raise InputFileError(f"{MOST_VIEWS} views are saved, the largest number allowed: remove one first")
                with atomic_path(self.path) as temporary:
                    temporary.write_text(json.dumps({"views": dict(sorted(views.items()))}, indent=1))
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


def _fits(name: object, text: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(text, str)
        and 0 < len(name) <= _LONGEST
        and 0 < len(text) <= MOST_TEXT
        and text.isascii()
    )


def listed(saved: SavedViews) -> str:
    """Return the list of named views, for the page."""
    return part("saved", names=list(saved.read()), place=os.path.basename(saved.path))
