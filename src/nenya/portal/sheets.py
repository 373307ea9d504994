"""Figures of sheets of cutouts, and of one large cutout."""

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, Range1d, Rect, TapTool, Text
from bokeh.models import Image as ImageGlyph
from bokeh.plotting import figure
from numpy.typing import NDArray

from nenya.portal.pictures import own_range
from nenya.portal.theme import Theme, add_glyph, anomaly, bar_of, image_source, name_glyph, paint, size_of

FloatArray = NDArray[np.float32]

_BAR = 58
"""Width of a colour bar, pixels: its labels may become longer after layout."""


NO_IMAGE = "no image in the files"


_MOST_TILES = 480
"""Largest number of cutouts at a time, as the size of the screen comes from an untrusted browser."""


def set_span(mapper: LinearColorMapper, low: float, high: float) -> None:
    """Set the temperatures of the first and the last colour, K."""
    colours = list(anomaly(low, high))
    changes = {"palette": colours} if colours != list(mapper.palette) else {}
    mapper.update(low=low, high=high, **changes)


class Sheet:
    """A grid of cutouts that fills its space; a tap selects one.

    Args:
        name: of the figure.
        theme: colours.
        tile: intended side of a cutout, in pixels of the screen.
    """

    def __init__(self, name: str, theme: Theme, tile: int = 84) -> None:
        self.tile, self.theme = tile, theme
        self.columns, self.rows = 6, 3
        self.plot = plot = figure(
            name=name,
            sizing_mode="stretch_both",
            x_range=Range1d(0, self.columns),
            y_range=Range1d(0, self.rows),
            tools=[],
            toolbar_location=None,
            x_axis_type=None,
            y_axis_type=None,
            min_width=100,
            min_height=80,
        )
        self.source = image_source()
        self.mapper = LinearColorMapper(list(anomaly(-1, 1)), low=-1, high=1, nan_color="rgba(0,0,0,0)")
        add_glyph(plot, self.source, ImageGlyph(color_mapper=self.mapper))
        self.facts = ColumnDataSource({"x": [], "y": [], "text": [], "row": []}, name=f"tiles {name}")
        self.notes = ColumnDataSource({"x": [], "y": [], "note": []})
        plain, hovered = (
            Rect(width=1, height=1, fill_alpha=0, line_alpha=alpha, line_color=theme.mark) for alpha in (0, 1)
        )
        boxes = add_glyph(plot, self.facts, plain, hover_glyph=hovered)
        note = Text(
            text="note", text_font_size="11px", text_color=theme.ink, text_align="center", text_baseline="bottom",
            background_fill_color=theme.paper, background_fill_alpha=0.92, padding=1,
        )  # fmt: skip
        add_glyph(plot, self.notes, note)
        plot.add_tools(TapTool(), HoverTool(renderers=[boxes], tooltips="@text"))
        self.frames = ColumnDataSource({"x": [], "y": [], "colour": []}, name=f"frames {name}")
        frame = Rect(width=0.95, height=0.95, fill_alpha=0, line_color="colour", line_width=3)
        add_glyph(plot, self.frames, frame)
        self.lit = ColumnDataSource({"x": [], "y": []})
        lit = Rect(width=1, height=1, fill_alpha=0, line_color=theme.ink, line_width=3)
        add_glyph(plot, self.lit, lit)
        self.bar = bar_of(self.mapper, theme, "K")
        plot.add_layout(self.bar, "right")
        paint(plot, theme)
        plot.outline_line_color = None
        plot.min_border_right = _BAR

    @property
    def most(self) -> int:
        """Number of cutouts that fit."""
        return self.columns * self.rows

    def light(self, index: int) -> None:
        """Mark the cutout of an index; none if it is negative."""
        x, y = (self.facts.data[axis] for axis in ("x", "y"))
        shown = 0 <= index < len(x)
        if shown or len(self.lit.data["x"]):
            self.lit.data = {"x": [x[index]], "y": [y[index]]} if shown else {"x": [], "y": []}

    def fit(self) -> bool:
        """Set columns and rows from the size on the screen, with square cutouts; return whether they changed."""
        wide, tall = size_of(self.plot)
        if wide < 20 or tall < 20:
            return False
        before = (self.columns, self.rows)
        first = min(max(1, round(wide / self.tile)), _MOST_TILES // 8)
        fits = [c for c in range(max(1, first - 1), first + 3) if tall * c >= wide] or [first]
        intended = wide / self.tile
        self.columns = min(fits, key=lambda c: 1 - tall * c // wide / (tall * c / wide) + 0.15 * abs(c - intended))
        side = wide / self.columns
        self.rows = min(max(1, int(tall / side)), max(1, _MOST_TILES // self.columns))
        self.plot.x_range.update(start=0, end=self.columns)
        self.plot.y_range.update(start=self.rows - tall / side, end=self.rows)
        return before != (self.columns, self.rows)

    def show(
        self,
        picture: FloatArray,
        span: tuple[float, float] | None,
        texts: Sequence[str],
        notes: Sequence[str],
        rows: Sequence[int],
    ) -> None:
        """Show a sheet.

        Args:
            picture: of `pictures.sheet`.
            span: colour range in K; None if each cutout has its own.
            texts: tooltip of each cutout.
            notes: caption at the foot of each; an empty one is left out.
            rows: of the table, of each.
        """
        set_span(self.mapper, *(span or own_range(picture)))
        self.bar.visible = span is not None
        self.source.data = {
            "image": [np.ascontiguousarray(picture[::-1])],
            "x": [0], "y": [0], "dw": [self.columns], "dh": [self.rows],
        }  # fmt: skip
        place = np.arange(len(texts))
        self.facts.data = {
            "x": place % self.columns + 0.5,
            "y": self.rows - place // self.columns - 0.5,
            "text": list(texts),
            "row": list(rows),
        }
        noted = np.array([k for k, note in enumerate(notes) if note], int)
        self.notes.data = {
            "x": noted % self.columns + 0.5,
            "y": self.rows - noted // self.columns - 0.97,
            "note": [note for note in notes if note],
        }

    def frame(self, colours: Sequence[str]) -> None:
        """Draw a frame around each of the first cutouts; none without colours."""
        if not colours and not len(self.frames.data["x"]):
            return
        place = np.arange(len(colours))
        x, y = place % self.columns + 0.5, self.rows - place // self.columns - 0.5
        self.frames.data = {"x": x, "y": y, "colour": list(colours)}

    def index_at(self, x: float, y: float) -> int | None:
        """Return the cutout at a position, or None."""
        column, row = int(np.floor(x)), int(np.floor(self.rows - y))
        if not (0 <= column < self.columns and 0 <= row < self.rows):
            return None
        return row * self.columns + column


class Picture:
    """One large cutout with its colour bar.

    Args:
        theme: colours.
    """

    def __init__(self, theme: Theme) -> None:
        self.plot = plot = figure(
            name="primary",
            sizing_mode="stretch_both",
            x_range=Range1d(0, 1),
            y_range=Range1d(0, 1),
            tools=[],
            toolbar_location=None,
            x_axis_type=None,
            y_axis_type=None,
            min_width=100,
            min_height=100,
        )
        self.source = image_source()
        self.mapper = LinearColorMapper(list(anomaly(-1, 1)), low=-1, high=1, nan_color=theme.rest)
        shown = add_glyph(plot, self.source, ImageGlyph(color_mapper=self.mapper))
        plot.add_tools(HoverTool(renderers=[shown], tooltips="@image{0.000} K"))
        self.note = ColumnDataSource({"x": [], "y": [], "name": []})
        add_glyph(plot, self.note, name_glyph(theme))
        plot.add_layout(bar_of(self.mapper, theme, "K"), "right")
        paint(plot, theme)
        plot.outline_line_color = None
        plot.min_border_right = _BAR

    def fit(self) -> None:
        """Keep the cutout square."""
        wide, tall = size_of(self.plot)
        if not wide or not tall:
            return
        across, up = max(1.0, wide / tall), max(1.0, tall / wide)
        self.plot.x_range.update(start=0.5 - across / 2, end=0.5 + across / 2)
        self.plot.y_range.update(start=0.5 - up / 2, end=0.5 + up / 2)

    def show(self, image: FloatArray | None, span: tuple[float, float]) -> None:
        """Show a cutout (H, W) in K, first line at the bottom; None says that there is none."""
        self.note.data = (
            {"x": [0.5], "y": [0.5], "name": [NO_IMAGE]} if image is None else {"x": [], "y": [], "name": []}
        )
        if image is None:
            self.source.data = {"image": [], "x": [], "y": [], "dw": [], "dh": []}
            return
        picture = np.ascontiguousarray(image, np.float32)
        self.colour_between(*span)
        self.source.data = {"image": [picture], "x": [0], "y": [0], "dw": [1], "dh": [1]}

    def colour_between(self, low: float, high: float) -> None:
        """Set the temperatures of the first and the last colour, K; 0 keeps the neutral colour."""
        set_span(self.mapper, low, high)
