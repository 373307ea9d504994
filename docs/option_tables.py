"""A directive for the pages: the commands, and the options of one, as the program declares them."""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from nenya.commands.compose import about, command_names, options_of
from nenya.options.sections import Options, taken

_SHARED = {field.name for field in fields(Options)}


class OptionTable(SphinxDirective):
    """`{nenya-options}`: the options that commands share."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return self.parse_text_to_nodes(_table(_rows(Options, "")))


class CommandSections(SphinxDirective):
    """`{nenya-commands}`: the commands, and a section on the options of each."""

    def run(self) -> list[nodes.Node]:
        """Return a table of the commands, and the sections."""
        lines = ["| command | does |", "| --- | --- |"]
        lines += [f"| [{name}](#{name}) | {about(name)} |" for name in command_names()]
        for name in command_names():
            kind = options_of(name)
            rows = [row for row in _rows(kind, "") if row[0].strip("`").split(".")[0] not in _SHARED]
            own = _table(rows) if rows else "It has no options of its own."
            lines += ["", f"## {name}", "", f"To {about(name)}.", "", own, "", _also(kind)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _also(kind: type[Options]) -> str:
    names = [name for name in taken(kind) if name in _SHARED and name != "traceback"]
    sections = [f.name for f in fields(Options) if f.name in names and is_dataclass(f.type)]
    plain = [name for name in names if name not in sections]
    parts = [f"the sections {', '.join(f'`{name}`' for name in sections)}"] if sections else []
    parts += [", ".join(f"`{name}=`" for name in plain)] if plain else []
    return f"It also takes {' and '.join(parts)}." if parts else ""


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _rows(kind: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for field in fields(kind):
        if is_dataclass(field.type):
            yield from _rows(field.type, f"{prefix}{field.name}.")
        else:
            check = field.metadata.get("check")
            meaning = field.metadata["doc"] + (f" ({check[0]})" if check else "")
            yield f"`{prefix}{field.name}`", f"`{_default(field)}`", meaning.replace("<", "&lt;").replace("*", "\\*")


def _default(field: Field[Any]) -> Any:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("nenya-options", OptionTable)
    app.add_directive("nenya-commands", CommandSections)
    return {"parallel_read_safe": True}
