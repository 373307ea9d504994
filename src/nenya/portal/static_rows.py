"""Rows of a table as the arrays of a static page: positions, columns, classes, keys, dates and the density of all rows.

Letters: n rows of the page, N of the table.
"""

import base64
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import REGIONS
from nenya.plotting.categories import class_colours
from nenya.portal import pictures
from nenya.portal.columns import BINS, Columns
from nenya.portal.dataset import Dataset
from nenya.portal.state import PLANES
from nenya.portal.theme import Theme
from nenya.tables.categories import LABELS
from nenya.tables.grids import coastlines
from nenya.tables.key_columns import COLUMNS, read_keys
from nenya.tables.quantities import heading_of, title_of

IntArray = NDArray[np.int64]

MOST_COLUMNS = 24
"""Columns of numbers in a page, at most."""
_CELLS = {"umap": (160, 120), "map": (180, 90)}
_HOME = (-180.0, 180.0, -80.0, 80.0)  # of the map
_LAND = 100.0  # steps of a coastline per degree


def encoded(array: NDArray[Any]) -> str:
    """Return the bytes of an array, little-endian, as base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def rows_of(dataset: Dataset, rows: IntArray) -> dict[str, Any]:
    """Return what a page holds of rows, for JSON.

    Args:
        dataset: the data.
        rows: (n,), of the table, increasing.
    """
    columns = dataset.columns
    numbers = columns.metrics()[:MOST_COLUMNS]
    numbers += [name for axes in PLANES.values() for name in axes if name in columns and name not in numbers]
    texts = [name for name in columns.class_names()[:MOST_COLUMNS] if not columns.names.count(name) > 1]
    theme, dark = Theme(), Theme(dark=True)
    return {
        "rows": encoded(rows.astype(np.int32)),
        "planes": {name: _plane(columns, name) for name, axes in PLANES.items() if all(a in columns for a in axes)},
        "numbers": [_number(columns, name, rows) for name in numbers],
        "classes": [found for name in texts if (found := _classes(columns, name, rows)) is not None],
        "charts": [name for name in numbers if name not in ("lon", "US0", "US1")],
        "colours": {"light": list(theme.counts[::4]), "dark": list(dark.counts[::3])},
        "regions": _regions() if "lat" in columns and "lon" in columns else [],
        "land": _land() if "lat" in columns and "lon" in columns else None,
        **_dates(columns, rows),
        **_keys(columns, rows),
    }


def page_id(dataset: Dataset, rows: IntArray, name: str) -> str:
    """Return a short text that tells the tags of one table from those of another in the storage of a browser."""
    columns = dataset.columns
    made = hashlib.sha256(f"{name} {columns.rows} {','.join(columns.names)}".encode())
    made.update(rows.astype("<i8").tobytes())
    return made.hexdigest()[:16]


def _plane(columns: Columns, name: str) -> dict[str, Any]:
    """Return axes, extent and the density of all rows, the logarithm of the count as uint8, lowest line first."""
    axes = PLANES[name]
    x, y = (columns.values(axis) for axis in axes)
    home = _HOME if name == "map" else pictures.extent_of(x, y)
    counts = pictures.raster(x, y, home, _CELLS[name], around=360.0 if name == "map" else None)
    most = float(np.nanmax(counts)) if np.isfinite(counts).any() else 1.0
    shade = np.where(np.isfinite(counts), 1 + 254 * np.log1p(np.nan_to_num(counts)) / np.log1p(most), 0)
    return {
        "axes": list(axes),
        "titles": [title_of(axis) for axis in axes],
        "home": list(home),
        "cells": list(_CELLS[name]),
        "density": encoded(shade.astype(np.uint8)),
    }


def _number(columns: Columns, name: str, rows: IntArray) -> dict[str, Any]:
    """Return a column: (n,) float32, and the histogram of all rows."""
    binned = columns.binned(name)
    last = int(np.flatnonzero(binned.counts)[-1]) + 1 if binned.counts.any() else BINS
    used = last if binned.whole else BINS
    return {
        "name": name,
        "title": title_of(name),
        "short": heading_of(name),
        "label": name in LABELS,
        "whole": binned.whole,
        "ends": [float(binned.edges[0]), float(binned.edges[used])],
        "bins": used,
        "counts": [int(count) for count in binned.counts[:used]],
        "values": encoded(columns.values(name)[rows].astype(np.float32)),
    }


def _classes(columns: Columns, name: str, rows: IntArray) -> dict[str, Any] | None:
    """Return a column of classes: (n,) int16 codes, with labels and colours."""
    found = columns.classes(name)
    if found is None:
        return None
    return {
        "name": name,
        "title": title_of(name),
        "short": heading_of(name),
        "labels": list(found.labels),
        "colours": class_colours(found),
        "codes": encoded(found.codes[rows].astype(np.int16)),
    }


def _dates(columns: Columns, rows: IntArray) -> dict[str, Any]:
    """Return dates, (n,) float64 seconds since 1970, NaN where unknown."""
    if "datetime" not in columns.names or "year" not in columns:
        return {}
    moments = columns.moments()[rows].astype("datetime64[s]")
    seconds = np.where(np.isnat(moments), np.nan, moments.astype(np.int64).astype(np.float64))
    return {"seconds": encoded(seconds)}


def _keys(columns: Columns, rows: IntArray) -> dict[str, Any]:
    """Return the columns that join a row with its cutout, for files of rows and of tags; and granules."""
    found: dict[str, Any] = {}
    if columns.granules is not None:
        found["granules"] = encoded(columns.granules[rows].astype(np.int32))
    named = [name for name in COLUMNS if name in columns.names]
    if not any(name.endswith("pp_idx") for name in named):
        return found
    keys = read_keys(columns.table.select(named).to_pandas())
    used, codes = np.unique(keys.file[rows], return_inverse=True)
    return found | {
        "keys": {
            "names": [keys.names[k] if keys.names and k >= 0 else "" for k in used.tolist()],
            "file": encoded(codes.astype(np.int32)),
            "type": encoded(keys.kind[rows].astype(np.int8)),
            "idx": encoded(keys.row[rows].astype(np.float64)),
        }
    }


def _regions() -> list[list[Any]]:
    """Return the named regions with limits, their longitudes and latitudes."""
    return [[name, *box.lon, *box.lat] for name, box in REGIONS.items() if abs(box.lat[1]) <= 90]


def _land() -> dict[str, Any]:
    """Return the rings of land in hundredths of a degree, and where each begins."""
    rings = coastlines()
    points = np.concatenate(rings)
    starts = np.cumsum([0, *(len(ring) for ring in rings)])
    return {"points": encoded(np.round(points * _LAND).astype(np.int16)), "starts": starts.tolist()}
