"""Colours of the cells of a figure: counts, means and categories, each with the bar that belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import (
    ColorBar,
    ColorMapper,
    ColumnDataSource,
    FixedTicker,
    LinearColorMapper,
    LogColorMapper,
    NumeralTickFormatter,
    PrintfTickFormatter,
)
from bokeh.models import Image as ImageGlyph

from nenya.portal.theme import Theme, add_glyph, anomaly, bar_of, plain

_NOTHING = "rgba(0,0,0,0)"
_LEAST_RATIO = 2.0  # of the end of colours of ratios to 1
_MARKS = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
_COUNTS = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]


@dataclass
class _Kind:
    """One kind of colours: its mapper, the cells drawn with it, and its bar if it has one."""

    mapper: Any
    cells: Any
    bar: ColorBar | None

    def set_visible(self, *, visible: bool) -> None:
        """Show or hide the cells and their bar."""
        self.cells.visible = visible
        if self.bar is not None:
            self.bar.visible = visible


class CellColours:
    """Colours of an image of cells, by counts, means or categories.

    Each kind has a mapper and a bar of its own, created at its first use, and only those in use are visible: a drawn
    bar follows neither another ticker nor another mapper.

    Args:
        plot: the figure.
        source: of the image.
        theme: colours.

    Attributes:
        kind: `counts`, `means`, `logarithms`, `ratios` or `categories`.
        held: whether the ends of the colours may only move apart, so that pictures that follow each other compare.
    """

    def __init__(self, plot: Any, source: ColumnDataSource, theme: Theme) -> None:
        self._plot, self._source, self.theme = plot, source, theme
        self._kinds: dict[str, _Kind] = {}
        self.kind, self.held = "", False
        self.by_counts(1)

    @property
    def cells(self) -> list[Any]:
        """The renderers of all kinds."""
        return [kind.cells for kind in self._kinds.values()]

    @property
    def bar(self) -> ColorBar | None:
        """The bar that is shown; None for categories."""
        return self._kinds[self.kind].bar

    @property
    def mapper(self) -> Any:
        """The mapper in use."""
        return self._kinds[self.kind].mapper

    def by_counts(self, most: float) -> None:
        """Colour by counts from 1 to `most`, logarithmically."""
        held = self.held and self.kind == "counts"
        kind = self._use("counts")
        least = float(kind.mapper.high) if held else 10.0
        kind.mapper.update(low=1.0, high=float(max(least, most)))

    def by_means(self, low: float, high: float, title: str, scale: str = "linear") -> None:
        """Colour by means.

        Args:
            low: value of the first colour.
            high: value of the last one; if it is not larger, a range of 1 is used.
            title: of the bar.
            scale: `linear`, `log`, or `ratio` (the colours of anomalies, with 1 in the middle); a logarithmic
                one needs a range in which it has marks.
        """
        name = "means"
        if scale == "ratio" and low > 0:
            high = max(high, 1 / low, _LEAST_RATIO)
            low, name = 1 / high, "ratios"
        elif scale == "log" and high > _LEAST_RATIO**2 * low > 0:
            name = "logarithms"
        held = self.held and self.kind == name
        kind = self._use(name)
        if held:
            low, high = min(low, kind.mapper.low), max(high, kind.mapper.high)
        kind.mapper.update(low=float(low), high=float(high if high > low else low + 1))
        assert kind.bar is not None
        if kind.bar.title != plain(title):
            kind.bar.title = plain(title)

    @property
    def is_log(self) -> bool:
        """Whether the colours of means go by the logarithm."""
        return self.kind in ("logarithms", "ratios")

    def by_categories(self, colours: Sequence[str]) -> None:
        """Colour by the codes 0, 1, ... of categories."""
        kind = self._use("categories")
        kind.mapper.update(palette=list(colours), low=-0.5, high=len(colours) - 0.5)

    def show_cells(self, *, visible: bool) -> None:
        """Show or hide the cells, and the bar of counts, which belongs to cells only."""
        kind = self._kinds[self.kind]
        kind.cells.visible = visible
        if kind.bar is not None:
            kind.bar.visible = visible or self.kind != "counts"

    def _use(self, name: str) -> _Kind:
        if name not in self._kinds:
            self._kinds[name] = self._made(name)
        if name != self.kind:
            for other, kind in self._kinds.items():
                kind.set_visible(visible=other == name)
            self.kind = name
        return self._kinds[name]

    def _made(self, name: str) -> _Kind:
        theme, bar = self.theme, None
        mapper: ColorMapper
        if name == "counts":
            mapper = LogColorMapper(list(theme.counts), low=1, high=10, nan_color=_NOTHING)
            bar = bar_of(mapper, theme, "cutouts")
            bar.update(ticker=FixedTicker(ticks=_COUNTS), formatter=NumeralTickFormatter(format="0,0"))
        elif name in ("logarithms", "ratios"):
            palette = list(theme.counts) if name == "logarithms" else list(anomaly(-1, 1))
            mapper = LogColorMapper(palette, low=0.1, high=10, nan_color=_NOTHING)
            bar = bar_of(mapper, theme, "")
            bar.update(ticker=FixedTicker(ticks=_MARKS), formatter=PrintfTickFormatter(format="%.4g"))
        elif name == "means":
            mapper = LinearColorMapper(list(theme.counts), low=0, high=1, nan_color=_NOTHING)
            bar = bar_of(mapper, theme, "")
        else:
            mapper = LinearColorMapper([theme.rest], low=0, high=1, nan_color=_NOTHING)
        cells = add_glyph(self._plot, self._source, ImageGlyph(color_mapper=mapper), level="underlay")
        if bar is not None:
            self._plot.add_layout(bar, "right")
        return _Kind(mapper, cells, bar)
