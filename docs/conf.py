"""Sphinx's settings: `make docs` builds the pages in `outputs/docs/html`."""

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import nenya  # noqa: E402  # of this checkout

project = "nenya"
copyright = "the authors of nenya"
author = project
version = release = nenya.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and the notebook as it was executed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "option_tables",
]
exclude_patterns = ["paper_figure.py"]
templates_path = ["_templates"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"

default_role = "code"  # docstrings say `name`
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are described once

html_theme = "furo"
html_title = f"nenya {release}"
html_static_path = ["_static"]
html_css_files = ["print.css"]
html_context = {"versions_page": bool(os.environ.get("NENYA_VERSIONS"))}  # docs/make_site.py
html_sidebars = {
    "**": [
        *("sidebar/brand.html", "versions.html", "sidebar/search.html", "sidebar/scroll-start.html"),
        *("sidebar/navigation.html", "sidebar/scroll-end.html"),
    ]
}
html_theme_options = {
    "source_repository": "",
    "light_css_variables": {"color-brand-primary": "#0b5a7a", "color-brand-content": "#0b5a7a"},
    "dark_css_variables": {"color-brand-primary": "#6cc3e0", "color-brand-content": "#6cc3e0"},
}

STUDY_DATA = "<!-- study data -->"
"""Where a page says which granules its build used."""

# Files outside this folder that a page here includes.
ELSEWHERE = {
    "../../benchmarks/README.md": "/reference/speed.md",
    "../benchmarks/README.md": "/reference/speed.md",
    "../CHANGELOG.md": "/reference/changes.md",
    "../CONTRIBUTING.md": "/reference/contributing.md",
    "../SECURITY.md": "/reference/security.md",
}


def plain_bars(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Let |x| in a docstring's formula be what it says, and no substitution."""
    lines[:] = [
        "`".join(re.sub(r"\|", r"\\|", p) if i % 2 == 0 else p for i, p in enumerate(line.split("`"))) for line in lines
    ]


def short_arrays(*arguments: Any) -> tuple[str | None, str | None]:
    """Say NDArray[float32] for what Python spells out."""

    def short(text: str | None) -> str | None:
        return text and re.sub(r"ndarray\[tuple\[(?:Any|int), \.\.\.\], dtype\[([^\[\]]*)\]\]", r"NDArray[\1]", text)

    return short(arguments[-2]), short(arguments[-1])


def links_inside(_app: Any, _page: str, source: list[str]) -> None:
    """Lead links to files that are included here to the page that includes them."""
    for outside, inside in ELSEWHERE.items():
        source[0] = source[0].replace(f"({outside}", f"({inside}")
    said = Path(__file__).parent / "pictures" / "study_data.txt"
    if STUDY_DATA in source[0]:
        source[0] = source[0].replace(STUDY_DATA, said.read_text().strip())


def without_source(app: Any) -> list[Any]:
    """Leave modules without a source, such as builtins, out of the list of sources, where they are dead links."""
    app.env._viewcode_modules = {name: found for name, found in app.env._viewcode_modules.items() if found}
    return []


# What axe-core finds in the theme's pages, and what it should be.
FOR_ALL = {
    'role="heading">': 'role="heading" aria-level="2">',
    '<aside class="sidebar-drawer"': '<aside aria-label="All pages" class="sidebar-drawer"',
    '<aside class="toc-drawer': '<aside aria-label="Contents of this page" class="toc-drawer',
    "<pre>": '<pre tabindex="0">',
    '<div class="content-icon-container">': '<div role="region" aria-label="Tools" class="content-icon-container">',
}


def readable_for_all(app: Any, error: Exception | None) -> None:
    """Give parts of the theme the names and the keyboard access that they lack."""
    for page in Path(app.outdir).rglob("*.html") if error is None and app.builder.format == "html" else ():
        text = page.read_text(encoding="utf-8")
        for found, better in FOR_ALL.items():
            text = text.replace(found, better)
        page.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("build-finished", readable_for_all)
    app.connect("autodoc-process-docstring", plain_bars)
    app.connect("autodoc-process-signature", short_arrays)
    app.connect("source-read", links_inside)
    app.connect("html-collect-pages", without_source, priority=100)  # before viewcode's own
