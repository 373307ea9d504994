"""Figure of probes: what each model knows of each column."""

import math
import os
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nenya.plotting.paper import TRAIN_COLOUR, VALID_COLOUR, save_figure, tidy

_ACROSS, _MOST = 4, 24  # columns of the table beside each other, and at all
_COLOURS = {"linear": (TRAIN_COLOUR, "linear"), "knn": (VALID_COLOUR, "nearest rows")}


def draw_probes(found: Mapping[str, Mapping[str, Mapping[str, Any]]], path: str | os.PathLike[str]) -> None:
    """Draw the value of each probe with its 95 % interval, a panel for each column; of many the first 24.

    Args:
        found: column -> model -> probe (`linear`, `knn`) -> with value, low, high, chance, shuffled, metric.
        path: output file; its suffix sets the format (.png, .pdf, .svg).
    """
    columns = list(found)[:_MOST]
    models = list(found[columns[0]])
    across = min(_ACROSS, len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(figsize=(2.2 + 2.6 * across, down * (1.1 + 0.32 * len(models))), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    for column, axes in zip(columns, panels, strict=False):
        _draw_column(axes, column, found[column])
        axes.set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _draw_column(axes: Any, column: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the values of a column, one line for each model."""
    for number, probes in enumerate(models.values()):
        for probe, shift in (("linear", -0.14), ("knn", 0.14)):
            one, (colour, label) = probes[probe], _COLOURS[probe]
            reach = [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]]
            axes.errorbar(
                [one.value], [number + shift], xerr=reach, fmt="o", markersize=4, linewidth=1.2, color=colour,
                label=label if number == 0 else None,
            )  # fmt: skip
            shuffled = "shuffled" if (number, probe) == (0, "knn") else None
            axes.plot([one.shuffled], [number + shift], "|", color="0.5", label=shuffled)
    first = next(iter(models.values()))["linear"]
    axes.axvline(first.chance, color="0.5", linewidth=0.8, linestyle=":")
    axes.set(title=column, xlabel=first.metric)
    axes.set_xlim(left=max(axes.get_xlim()[0], first.chance - 0.5), right=1.02)
    tidy(axes)
