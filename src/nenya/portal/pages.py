"""HTML of the portal: templates with automatic escaping, and their Content-Security-Policy."""

import functools
import hashlib
import secrets
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def file_policy(scripts: Sequence[str]) -> str:
    """Return the policy of a page in a file, for its `meta` tag: only the given scripts run.

    Args:
        scripts: contents of its script tags.
    """
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return f"{_ALWAYS}; script-src {hashes or repr('none')}; style-src 'unsafe-inline'; img-src 'self' data: blob:"


def make_nonce() -> str:
    """Return a nonce."""
    return secrets.token_urlsafe(18)


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return found


def render(template: str, **values: Any) -> str:
    """Return a page; all values are escaped as text.

    Args:
        template: its name.
        values: its variables.
    """
    return str(_environment().get_template(template).render(**values))
