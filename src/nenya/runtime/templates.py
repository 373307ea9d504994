"""HTML from template files; values are escaped as text."""

import functools
from pathlib import Path
from typing import Any


@functools.cache
def _environment(folder: Path) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return found


def render(template: Path, **values: Any) -> str:
    """Return a page; all values are escaped as text.

    Args:
        template: its file.
        values: its variables.
    """
    return str(_environment(template.parent).get_template(template.name).render(**values))


def render_part(template: Path, part: str, **values: Any) -> str:
    """Return one part of a page, a macro of a template without variables; all values are escaped as text.

    Args:
        template: the file of the macro.
        part: name of the macro.
        values: its arguments.
    """
    return str(getattr(_environment(template.parent).get_template(template.name).module, part)(**values))
