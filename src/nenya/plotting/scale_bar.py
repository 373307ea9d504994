"""A scale bar in km beside or on cutouts."""

import math
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped, unused-ignore]  # no types

from nenya.errors import OptionError

_SHARE = 0.75  # of a cutout that the bar has at most
_STEPS = (1, 2, 5)
_BELOW = 2.2  # letters below the axes, under the numbers of their ticks


def round_length(most: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is not above `most`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(most) + 1e-9)
    return max(step * power for step in _STEPS if step * power <= most * (1 + 1e-9))


def scale_bar(axes: Any, side: int, pixel_km: float | None, pixel: float = 1.0, *, inside: bool = False) -> None:
    """Draw a bar of a round number of km, shorter than a cutout; nothing if the size of a pixel is not known.

    Args:
        axes: on which cutouts are drawn.
        side: pixels along a cutout.
        pixel_km: side of a pixel in km.
        pixel: side of a pixel in units of the axes.
        inside: on the cutout rather than below the axes.

    Raises:
        OptionError: `pixel_km` is not above 0.
    """
    if pixel_km is None:
        return
    if not 0 < pixel_km < math.inf:
        raise OptionError(f"pixel_km={pixel_km:g}: expected a number above 0")
    length = round_length(_SHARE * side * pixel_km)
    text = f"{length:,.0f} km" if length >= 1 else f"{length * 1000:,.0f} m"
    where: dict[str, Any] = {"loc": "lower left", "pad": 0.1}
    if not inside:
        where = {"loc": "upper right", "bbox_to_anchor": (1, 0), "bbox_transform": axes.transAxes, "pad": 0.1}
    bar = AnchoredSizeBar(
        axes.transData, length / pixel_km * pixel, text, frameon=False, sep=2, borderpad=0.2 if inside else _BELOW,
        fontproperties=FontProperties(size="x-small" if inside else "small"), **where,
    )  # fmt: skip
    for line in bar.size_bar.get_children():
        line.set(linewidth=1.5, capstyle="butt", edgecolor="k")
        if inside:
            line.set_path_effects([withStroke(linewidth=3, foreground="white")])
    if inside:
        bar.txt_label.get_children()[0].set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.add_artist(bar)
