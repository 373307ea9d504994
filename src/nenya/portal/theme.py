"""Colours of the portal's page, light and dark, and common parts of its figures."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.models import ColorBar, ColorMapper, ColumnDataSource, Glyph, Text
from bokeh.palettes import Viridis256
from matplotlib.colors import to_hex

from nenya.plotting.colours import colours_of

_GREYS = ("#dfe3e8", "#c3c9d1", "#a8b0ba", "#8f98a4")
_DARK_GREYS = ("#2c333d", "#3a434f", "#4a5462", "#5b6675")


def between(colours: Sequence[str], count: int = 256) -> list[str]:
    """Return `count` colours interpolated between the given ones."""
    points = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], float)
    at = np.linspace(0, len(points) - 1, count)
    mixed = np.column_stack([np.interp(at, np.arange(len(points)), points[:, i]) for i in range(3)])
    return ["#" + "".join(f"{round(v):02x}" for v in row) for row in mixed]


@functools.lru_cache(maxsize=64)
def anomaly(low: float, high: float) -> tuple[str, ...]:
    """Return 256 colours from one temperature to another, K: those of figures, with 0 at the neutral colour.

    Blue is for cold, red for warm; ends of the same sign have a map without a neutral colour.
    """
    found, _ = colours_of(np.empty(0), limits=(low, high if high > low else low + 1))
    return tuple(to_hex(colour) for colour in found(np.arange(256)))


@dataclass(frozen=True)
class Theme:
    """Colours of a page: light or dark."""

    dark: bool = False

    @property
    def ink(self) -> str:
        """Text and axes."""
        return "#dde3ea" if self.dark else "#1f2933"

    @property
    def paper(self) -> str:
        """Behind figures."""
        return "#161b22" if self.dark else "#ffffff"

    @property
    def rest(self) -> str:
        """Rows that are not selected."""
        return "#4a5462" if self.dark else "#c9d0d8"

    @property
    def mark(self) -> str:
        """The primary image and the selection's outline."""
        return "#ff7a59" if self.dark else "#d1340f"

    @property
    def chosen(self) -> str:
        """Bars of the selection."""
        return "#5aa9e6" if self.dark else "#2f6db5"

    @property
    def land(self) -> str:
        """Land on the map."""
        return "#2a2f37" if self.dark else "#e9e6df"

    @property
    def counts(self) -> tuple[str, ...]:
        """Number of cutouts, and means of metrics: the lowest colour still differs from the background."""
        return tuple(Viridis256[72:] if self.dark else Viridis256)

    @property
    def greys(self) -> list[str]:
        """Density of rows that are not selected."""
        return between(_DARK_GREYS if self.dark else _GREYS)


def plain(text: str) -> str:
    """Return a text for a label of a figure, which Bokeh must not take for TeX mathematics.

    An invisible word joiner separates the characters of each TeX delimiter (dollar signs, backslash and bracket).
    """
    return re.sub(r"\$(?=\$)|\\(?=[(\[])", "\\g<0>\N{WORD JOINER}", text)


def paint(plot: Any, theme: Theme) -> None:
    """Apply the colours of the page to a figure."""
    plot.background_fill_color = plot.border_fill_color = theme.paper
    plot.outline_line_color = theme.rest
    plot.title.text_color = theme.ink
    plot.title.text_font_size = "12px"
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = theme.ink
        axis.axis_line_color = axis.major_tick_line_color = theme.rest
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_size = "11px"
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = "10px"
    for grid in plot.grid:
        grid.update(grid_line_color=theme.rest, grid_line_alpha=0.25)
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [f":host > .bk-divider {{ background-color: {theme.rest}; }}"]
    plot.min_border = 4


def bar_of(mapper: ColorMapper, theme: Theme, title: str) -> ColorBar:
    """Return the colour bar of a figure."""
    return ColorBar(
        color_mapper=mapper,
        width=10,
        padding=2,
        margin=2,
        title=plain(title),
        title_text_font_size="10px",
        title_text_font_style="normal",
        title_text_color=theme.ink,
        major_label_text_font_size="10px",
        major_label_text_color=theme.ink,
        background_fill_color=theme.paper,
        major_tick_line_color=theme.ink,
        bar_line_color=None,
    )


def add_glyph(plot: Any, source: ColumnDataSource, glyph: Glyph, **settings: Any) -> Any:
    """Add a glyph without variants, and return its renderer.

    Methods of figures add three variants (selected, not selected, muted): a quarter of the models of a page,
    and the number of models determines the time to open it.
    """
    return plot.add_glyph(source, glyph, selection_glyph=None, nonselection_glyph=None, muted_glyph=None, **settings)


def name_glyph(theme: Theme) -> Text:
    """Return texts with a background, for names within a figure."""
    return Text(
        text="name", text_font_size="11px", text_color=theme.ink, text_align="center", text_baseline="middle",
        background_fill_color=theme.paper, background_fill_alpha=0.8, padding=1,
    )  # fmt: skip


def size_of(plot: Any) -> tuple[int, int]:
    """Return width and height of a figure's frame on the screen; 0 until the browser reports them."""
    try:
        return int(plot.inner_width or 0), int(plot.inner_height or 0)
    except UnsetValueError:
        return 0, 0


def image_source() -> ColumnDataSource:
    """Return the empty source of an image."""
    empty = np.full((1, 1), np.nan, np.float32)
    return ColumnDataSource({"image": [empty], "x": [0.0], "y": [0.0], "dw": [1.0], "dh": [1.0]})
