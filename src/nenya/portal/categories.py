"""Colours by classes, such as clusters, regions and months: choices, legend with counts, names on the UMAP."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nenya.plotting.categories import class_colours
from nenya.portal.dataset import Dataset
from nenya.portal.jobs import Ticket
from nenya.portal.pages import part
from nenya.portal.pictures import Extent
from nenya.portal.state import PLANES, Filter, make_category, make_range
from nenya.portal.views import mean_of
from nenya.portal.work import picked
from nenya.tables.categories import LABELS
from nenya.tables.classes import Classes, apart, centres
from nenya.tables.quantities import title_of

_MOST_NAMES = 40
_LONGEST = 24  # characters of a name on the UMAP


@dataclass(frozen=True)
class Legend:
    """The classes of the selected rows.

    Attributes:
        classes: of all rows.
        selected: (K,), selected rows of each.
        x: (K,), their median positions in the UMAP; empty without one.
        y: (K,).
    """

    classes: Classes
    selected: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def colour_choices(dataset: Dataset) -> dict[str, str]:
    """Return the names of what can be shown by colours, and their values in a view; classes are not averaged."""
    columns = dataset.columns
    classes = columns.class_names()
    means = {
        mean_of(title_of(name), columns.scale(name)): name
        for name in columns.metrics()
        if name not in classes and name not in LABELS
    }
    return {"number of cutouts": "count", **{title_of(name): name for name in classes}, **means}


def make_legend(dataset: Dataset, filters: tuple[Filter, ...], name: str, ticket: Ticket) -> Legend | None:
    """Count the classes of the selected rows, and find their positions in the UMAP; None for other columns."""
    columns = dataset.columns
    classes = columns.classes(name) if name != "count" else None
    if classes is None:
        return None
    known = classes

    def make() -> Legend:
        rows = picked(dataset, filters, ticket)
        some = known if rows is None else replace(known, codes=known.codes[rows])
        x = y = np.empty(0)
        if all(axis in columns for axis in PLANES["umap"]):
            across, up = PLANES["umap"]
            places = (columns.values(across), columns.values(up))
            x, y = centres(*(places if rows is None else (places[0][rows], places[1][rows])), some)
        return Legend(known, some.counts(), x, y)

    return dataset.shared.get(("legend", filters, name), make)


def colours(classes: Classes) -> list[str]:
    """Return the colours of classes."""
    return class_colours(classes)


def legend_text(legend: Legend | None) -> str:
    """Return the legend of a figure; a click on a class selects its rows."""
    if legend is None:
        return ""
    shown, labels, noise = colours(legend.classes), legend.classes.labels, legend.classes.noise
    codes = sorted(range(len(labels)), key=lambda code: (code == noise, code))  # what belongs to none comes last
    lines = [(code, shown[code], labels[code], f"{legend.selected[code]:,}") for code in codes]
    return part("legend", title=title_of(legend.classes.name), lines=lines)


def names_on(legend: Legend | None, extent: Extent) -> tuple[list[float], list[float], list[str]]:
    """Return positions and names of the classes that have room in the UMAP."""
    if legend is None or not len(legend.x) or legend.classes.kind != "names":
        return [], [], []
    codes = [code for code in apart(legend.x, legend.y, legend.selected, extent) if code != legend.classes.noise]
    codes = codes[:_MOST_NAMES]
    labels = [legend.classes.labels[code][:_LONGEST] for code in codes]
    return legend.x[codes].tolist(), legend.y[codes].tolist(), labels


def filter_of(classes: Classes, code: int) -> Filter:
    """Return the filter of one class.

    Raises:
        IndexError: There is no such class.
    """
    if not 0 <= code < len(classes.values):
        raise IndexError(code)
    value = classes.values[code]
    return make_category(classes.name, [value]) if isinstance(value, str) else make_range(classes.name, value, value)
