"""Size, fonts, colours and projection of figures, as a journal asks for them."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.font_manager import get_font_names

from nenya.errors import OptionError
from nenya.options.declare import suggest
from nenya.plotting.colours import check_colour_map

P = ParamSpec("P")
R = TypeVar("R")

WIDTHS = {"single": 3.3, "double": 6.9}
"""Widths in inches of one and of two columns of a page, as journals of the field have them."""

PROJECTIONS = ("plain", "equal_earth", "mollweide", "hammer", "robinson", "north", "south")
"""Maps of the globe: longitude and latitude as they are; of equal area (not robinson); around a pole, of equal area."""

_DPI = 200
_INCHES = (0.5, 40.0)
_BODY = 8.0  # points, of text in the columns of a page
_LOCK = threading.RLock()  # matplotlib's settings belong to the complete process


@dataclass(frozen=True)
class Style:
    """How figures look; the defaults suit a screen.

    Attributes:
        size: "single" or "double" (columns of a page: 3.3 and 6.9 inches), or width and height in inches; by default
            the figure's own size.
        font: name of an installed font family; by default DejaVu Sans, which comes along.
        font_size: of labels, in points; by default 8 in the columns of a page, else 10.
        dpi: dots per inch of .png, and of what is not lines or text in .pdf and .svg.
        cmap: name of a colour map of cmocean or matplotlib; by default one that suits the values.
        limits: values at the ends of the colours.
        log: whether colours go by the logarithm; by default for counts only.
        projection: of maps, one of `PROJECTIONS`.
        central_longitude: in the middle of maps, degrees east; below the pole in polar ones.

    Raises:
        OptionError: A value is not possible.
    """

    size: str | tuple[float, float] | None = None
    font: str | None = None
    font_size: float | None = None
    dpi: float = _DPI
    cmap: str | None = None
    limits: tuple[float, float] | None = None
    log: bool | None = None
    projection: str = "plain"
    central_longitude: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        self._check_size()
        if self.font is not None and self.font not in get_font_names():
            known = sorted(get_font_names())
            shown = ", ".join(known[:6]) + (f" and {len(known) - 6} more" if len(known) > 6 else "")
            raise OptionError(
                f"font={self.font}: no font of this name is installed{suggest(self.font, known)}; there are {shown}"
            )
        _within("font_size", self.font_size, 3, 40)
        _within("dpi", self.dpi, 20, 2400)
        _within("central_longitude", self.central_longitude, -360, 360)
        if self.cmap is not None:
            check_colour_map(self.cmap)
        if self.limits is not None:
            check_limits(self.limits)
        if self.log and self.limits is not None and self.limits[0] <= 0:
            raise OptionError(f"log=true: expected limits above 0, got {self.limits[0]:g} and {self.limits[1]:g}")
        if self.projection not in PROJECTIONS:
            raise OptionError(
                f"projection={self.projection}{suggest(self.projection, list(PROJECTIONS))}: expected one of "
                f"{', '.join(PROJECTIONS)}"
            )

    def _check_size(self) -> None:
        if self.size is None or (isinstance(self.size, str) and self.size in WIDTHS):
            return
        good = not isinstance(self.size, str) and len(self.size) == 2
        if not good or not all(_INCHES[0] <= float(side) <= _INCHES[1] for side in self.size):
            raise OptionError(
                f"size={self.size}: expected single (3.3 inches wide), double (6.9), or [width,height] in inches, each "
                f"from {_INCHES[0]:g} to {_INCHES[1]:g}"
            )

    def figsize(self, width: float, height: float) -> tuple[float, float]:
        """Return width and height in inches of a figure that has a size of its own."""
        if self.size is None:
            return width, height
        if isinstance(self.size, str):
            return WIDTHS[self.size], WIDTHS[self.size] * height / width
        return float(self.size[0]), float(self.size[1])

    def is_narrow(self, width: float) -> bool:
        """Return whether a figure that has a width of its own, in inches, is to have less than 5."""
        return self.figsize(width, width)[0] < 5  # inches

    def settings(self) -> Any:
        """Return matplotlib's settings, a dict."""
        page = isinstance(self.size, str) or (self.size is not None and self.size[0] <= WIDTHS["double"])
        text = self.font_size or (_BODY if page else 10.0)
        found: Any = {
            "font.size": text,
            "axes.titlesize": "medium" if page else "large",
            "axes.labelsize": "medium",
            "xtick.labelsize": "small" if page else "medium",
            "ytick.labelsize": "small" if page else "medium",
            "legend.fontsize": "small",
            "figure.titlesize": "medium" if page else "large",
            "pdf.fonttype": 42,  # TrueType, which journals take
            "ps.fonttype": 42,
            "svg.hashsalt": "nenya",  # the same figure, the same file
            "axes.unicode_minus": True,
        }
        if self.font is not None:
            found["font.family"] = self.font
        if page:
            thin = ("axes.linewidth", "xtick.major.width", "ytick.major.width")
            found |= dict.fromkeys(thin, 0.6) | {"xtick.major.size": 2.5, "ytick.major.size": 2.5}
            found |= {"xtick.minor.size": 1.5, "ytick.minor.size": 1.5}
            found |= {"xtick.minor.width": 0.4, "ytick.minor.width": 0.4}
        return found

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Draw in this style within the block; matplotlib's own settings are back after it."""
        with _LOCK, matplotlib.rc_context(self.settings()):
            yield


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise OptionError(f"{name}={value:g}: expected a number from {low:g} to {high:g}")


def check_limits(limits: tuple[float, float], name: str = "limits") -> None:
    """Refuse limits that are not two finite numbers, the smaller one first.

    Raises:
        OptionError: They are not.
    """
    low, high = limits
    if not abs(low) + abs(high) < float("inf") or not low < high:
        hint = "; swap them" if low > high else ""
        raise OptionError(f"{name}=[{low:g},{high:g}]: expected two numbers, the smaller one first{hint}")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function that draws do so in the style of its keyword `style`, a `Style` or None."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        style = kwargs.get("style") or Style()
        assert isinstance(style, Style)  # for mypy
        with style.applied():
            return draw(*args, **kwargs)

    return inner
