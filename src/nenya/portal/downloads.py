"""Downloads of a selection, written in pieces."""

import io
import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nenya.portal import pictures
from nenya.portal.session import Session
from nenya.portal.state import Filter
from nenya.portal.theme import anomaly
from nenya.portal.words import filter_text
from nenya.tables.quantities import label_of

_ROWS = 100_000  # per piece
_DPI = 100


Tick = Callable[[float], None]


def _slices(session: Session, tick: Tick) -> Iterator[Any]:
    """Yield the selected rows, in table order, as pieces of a `pyarrow.Table`; strings not as dictionaries."""
    import pyarrow as pa

    mask, columns = session.dataset.masks.all_of(session.selection.view.filters), session.dataset.columns
    for start in range(0, columns.rows, _ROWS):
        tick(start / columns.rows)
        part = columns.table.slice(start, _ROWS)
        if mask is not None:
            part = part.take(np.flatnonzero(mask[start : start + _ROWS]))
        if part.num_rows or start == 0:
            yield pa.table({name: _plain(part.column(name)) for name in part.column_names})


def _similar(session: Session, tick: Tick) -> Iterator[Any]:
    """Yield the similar cutouts' rows, closest first, with their cosines."""
    import pyarrow as pa

    tick(0.0)
    found, columns = session.found, session.dataset.columns
    rows = np.empty(0, np.int64) if found is None else found.rows
    cosine = np.empty(0) if found is None else found.cosine
    part = columns.take(rows)
    table = {name: _plain(part.column(name)) for name in part.column_names}
    yield pa.table({**table, "similar_cosine": pa.array(cosine), "similar_row": pa.array(rows)})


def rows_csv(session: Session, tick: Tick) -> Iterator[bytes]:
    """Yield the selected rows as CSV; lists and other nested values are JSON."""
    return _csv(session, _slices(session, tick))


def similar_csv(session: Session, tick: Tick) -> Iterator[bytes]:
    """Yield the similar cutouts' rows as CSV."""
    return _csv(session, _similar(session, tick))


def _csv(session: Session, parts: Iterator[Any]) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as csv

    table = session.dataset.columns.table
    dates = [name for name in table.column_names if _is_of_seconds(table.column(name))]
    for number, part in enumerate(parts):
        for name in dates:
            zone = "" if part.column(name).type.tz is None else "%z"
            seconds = part.column(name).cast(pa.timestamp("s", part.column(name).type.tz))
            part = part.set_column(
                part.column_names.index(name), name, pc.strftime(seconds, f"%Y-%m-%dT%H:%M:%S{zone}")
            )
        for name in part.column_names:
            if pa.types.is_nested(part.column(name).type):
                texts = [None if value is None else json.dumps(value, default=str) for value in part[name].to_pylist()]
                part = part.set_column(part.column_names.index(name), name, pa.array(texts, pa.string()))
        buffer = io.BytesIO()
        csv.write_csv(part, buffer, csv.WriteOptions(include_header=number == 0))
        yield buffer.getvalue()


def _is_of_seconds(column: Any) -> bool:
    """Return whether a column holds dates without fractions of a second."""
    import pyarrow as pa

    if not pa.types.is_timestamp(column.type):
        return False
    try:
        column.cast(pa.timestamp("s", column.type.tz))
    except pa.ArrowInvalid:  # a fraction would be lost
        return False
    return True


def _plain(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def rows_parquet(session: Session, tick: Tick) -> Iterator[bytes]:
    """Yield the selected rows as parquet."""
    return _parquet(_slices(session, tick))


def similar_parquet(session: Session, tick: Tick) -> Iterator[bytes]:
    """Yield the similar cutouts' rows as parquet."""
    return _parquet(_similar(session, tick))


def _parquet(parts: Iterator[Any]) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    sink, writer = _Sink(), None
    for part in parts:
        writer = writer or pq.ParquetWriter(sink, part.schema)
        writer.write_table(part)
        yield sink.taken()
    assert writer is not None
    writer.close()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A write-only file that returns the bytes written since the last call."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Number of bytes written."""
        return self._length

    def write(self, data: Any) -> int:
        """Append bytes."""
        piece = bytes(data)
        self._pieces.append(piece)
        self._length += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        """Return the bytes written since the last call."""
        found, self._pieces = b"".join(self._pieces), []
        return found


def gallery_png(session: Session, tick: Tick) -> Iterator[bytes]:
    """Yield the gallery as shown, with colour bar and caption."""
    tick(0.0)
    if session.gallery_picture is None:
        return
    mapper, view, rows = session.gallery.mapper, session.selection.view, session.dataset.columns.rows
    own = view.scale == "own"
    filters = _said(view.filters)
    order = f"{view.order}{', high first' if view.descending else ''}"
    caption = [f"{session.name}: {len(session.ordered):,} of {rows:,} cutouts ({filters})", f"order: {order}"]
    if session.pair is not None:
        a, b = _said(session.pair.a), _said(session.pair.b)
        caption[0] = f"{session.name}: cutouts of A ({a}), then of B ({b})"
    if own:
        caption.append("each cutout scaled from its 1st to its 99th percentile")
    span = None if own else (float(mapper.low), float(mapper.high))
    yield _with_legend(session.gallery_picture, span, caption)


def _said(filters: tuple[Filter, ...]) -> str:
    return "; ".join(filter_text(item) for item in filters) or "no filter"


def _with_legend(picture: np.ndarray[Any, Any], span: tuple[float, float] | None, caption: list[str]) -> bytes:
    """Return a sheet as a PNG, doubled in size, with a caption and, for a shared colour range, a colour bar."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    tall, wide = (2 * n for n in picture.shape)
    lines = [line for text in caption for line in textwrap.wrap(text, max(20, wide // 7))]
    bar, foot = (90 if span else 0), 10 + 16 * len(lines)
    figure = Figure(figsize=((wide + bar) / _DPI, (tall + foot) / _DPI), dpi=_DPI)
    low = foot / (tall + foot)
    axes = figure.add_axes((0, low, wide / (wide + bar), tall / (tall + foot)))
    limits = span or pictures.own_range(picture)
    shown = axes.imshow(
        picture,
        cmap=ListedColormap(anomaly(*limits)),
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_axis_off()
    if span:
        beside = figure.add_axes(((wide + 10) / (wide + bar), low + 0.02, 14 / (wide + bar), (1 - low) * 0.94))
        figure.colorbar(shown, cax=beside, label=label_of("SSTa"))
    text = figure.text(6 / (wide + bar), 6 / (tall + foot), "\n".join(lines), fontsize=8, va="bottom", linespacing=1.4)
    text.set_parse_math(False)  # a name may hold dollar signs
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


KINDS: dict[str, Callable[[Session, Tick], Iterator[bytes]]] = {
    "rows.csv": rows_csv,
    "rows.parquet": rows_parquet,
    "similar.csv": similar_csv,
    "similar.parquet": similar_parquet,
    "gallery.png": gallery_png,
}
"""The downloads, by name."""
