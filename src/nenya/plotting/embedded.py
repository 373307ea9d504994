"""Pictures inside a page, so that it is one file."""

import base64
from collections.abc import Mapping
from pathlib import Path

_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def embedded(figures: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Return title and address (`data:` URL) of figures, which are .svg or .png files."""
    return [
        (title, f"data:{_MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}")
        for title, path in figures.items()
    ]
