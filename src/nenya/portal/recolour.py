"""Change of a page between light and dark, without opening it again."""

from collections.abc import Iterable
from typing import Any

from bokeh.models import Toolbar

from nenya.portal.theme import Theme

_ROLES = ("ink", "paper", "rest", "mark", "chosen", "land")


_NAMES: dict[str, tuple[str, ...]] = {}


def _colour_names(kind: str, model: Any) -> tuple[str, ...]:
    """Return the properties of a class of models that hold colours."""
    if kind not in _NAMES:
        _NAMES[kind] = tuple(n for n in model.properties() if n.endswith("_color") or n == "palette")
    return _NAMES[kind]


def recolour(models: Iterable[Any], old: Theme, new: Theme) -> None:
    """Replace the colours of one theme by those of another in all models of a page.

    Args:
        models: of the page.
        old: the theme that they have; its colours differ from each other.
        new: the theme to give them.
    """
    single = {getattr(old, role): getattr(new, role) for role in _ROLES}
    palettes = {tuple(old.greys): list(new.greys), tuple(old.counts): list(new.counts)}
    for model in models:
        changes: dict[str, Any] = {}
        for name in _colour_names(type(model).__qualified_model__, model):
            value = getattr(model, name)
            value = getattr(value, "value", value)  # of a glyph: one colour for all
            if isinstance(value, str) and value in single:
                changes[name] = single[value]
            elif name == "palette" and tuple(value) in palettes:
                changes[name] = palettes[tuple(value)]
        if isinstance(model, Toolbar):
            changes["stylesheets"] = [
                sheet.replace(old.rest, new.rest) if isinstance(sheet, str) else sheet for sheet in model.stylesheets
            ]
        if changes:
            model.update(**changes)
