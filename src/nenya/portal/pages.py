"""HTML of the portal: its template files, and their Content-Security-Policy."""

import functools
import hashlib
import secrets
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nenya.runtime import templates

FOLDER = Path(__file__).parent / "page"

_ALWAYS = "default-src 'none'; base-uri 'none'; object-src 'none'"


def policy(nonce: str) -> str:
    """Return the Content-Security-Policy of a page of the server.

    Scripts run only from the tags that carry the nonce: no inline ones, no handlers in attributes, no `eval`. Styles
    may be inline, as Bokeh writes them into its shadow roots; requests to other origins are forbidden.

    Args:
        nonce: new for each response.
    """
    return (
        f"{_ALWAYS}; script-src 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'"
    )


def file_policy(scripts: Sequence[str], style: str) -> str:
    """Return the policy of a page in a file, for its `meta` tag: only the given scripts and styles are used.

    Args:
        scripts: contents of its script tags.
        style: content of its style tag.
    """
    hashes = " ".join(map(_hash, scripts))
    return (
        f"{_ALWAYS}; script-src {hashes or repr('none')}; style-src {_hash(style)}; img-src 'self' data: blob:; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def make_nonce() -> str:
    """Return a nonce."""
    return secrets.token_urlsafe(18)


def render(template: str, **values: Any) -> str:
    """Return a page; all values are escaped as text.

    Args:
        template: its name.
        values: its variables.
    """
    return templates.render(FOLDER / template, **values)


def part(name: str, **values: Any) -> str:
    """Return a part of the page, a macro of `parts.html`; all values are escaped as text.

    Args:
        name: of the macro.
        values: its arguments.
    """
    return templates.render_part(FOLDER / "parts.html", name, **values)


@functools.cache
def text_of(name: str) -> str:
    """Return the text of a file of the page."""
    return (FOLDER / name).read_text()
