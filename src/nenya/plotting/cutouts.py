"""Figures of cutouts: side by side, at their positions in a plane, with similar ones, as principal components."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nenya.errors import InputFileError, OptionError
from nenya.plotting.colours import ANOMALIES, colours_of, ends_of
from nenya.plotting.paper import FloatArray, IntArray, Limits, Places, central_limits, reach_of, save_figure, wrapped
from nenya.plotting.scale_bar import scale_bar
from nenya.plotting.style import Style, styled
from nenya.tables.quantities import label_of

GAP = 2  # pixels of background between two cutouts


def nearest_to_centres(coordinates: FloatArray, cells: int, limits: Limits) -> IntArray:
    """Return for each cell of the plane the point in it that is nearest to its centre.

    Distances are measured in cells, so that both coordinates have equal weight; of equal ones the first row is used.

    Args:
        coordinates: (N, 2); rows that are not finite or lie outside the limits are ignored.
        cells: cells along each coordinate.
        limits: ((x0, x1), (y0, y1)), the plane that is divided.

    Returns:
        (cells, cells) int64: row number of the point, or -1 in an empty cell; the first index goes with y.
    """
    low, high = np.array(limits, dtype=np.float64).T
    place = (np.asarray(coordinates, dtype=np.float64) - low) / (high - low) * cells
    inside = np.flatnonzero((np.isfinite(place) & (place >= 0) & (place <= cells)).all(axis=1))
    cell = np.minimum(place[inside].astype(np.int64), cells - 1)
    distance = ((place[inside] - cell - 0.5) ** 2).sum(axis=1)
    flat = cell[:, 1] * cells + cell[:, 0]
    order = np.lexsort((inside, distance, flat))
    occupied, first = np.unique(flat[order], return_index=True)
    picks: IntArray = np.full(cells * cells, -1, dtype=np.int64)
    picks[occupied] = inside[order[first]]
    return picks.reshape(cells, cells)


def mosaic(images: FloatArray, picks: IntArray, *, own_scale: bool = False) -> FloatArray:
    """Return one image with the picked images at the positions of their cells.

    Args:
        images: (N, H, W) or (N, 1, H, W).
        picks: (R, C) row numbers, -1 for an empty cell.
        own_scale: divide each image by its own largest magnitude.

    Returns:
        (R * (H + GAP), C * (W + GAP)) float32, NaN if there is no image; first row of cells first.
    """
    height, width = images.shape[-2:]
    rows, columns = picks.shape
    board = np.full((rows, height + GAP, columns, width + GAP), np.nan, np.float32)
    half = GAP // 2
    for row, column in np.argwhere(picks >= 0):
        image = np.asarray(images[picks[row, column]], dtype=np.float32).reshape(height, width)
        if own_scale:
            image = image / (np.nanmax(np.abs(image), initial=0.0) or 1.0)
        board[row, half : half + height, column, half : half + width] = image
    return board.reshape(rows * (height + GAP), columns * (width + GAP))


@styled
def gallery(  # noqa: PLR0913  # each is a choice of its own
    images: FloatArray,
    coordinates: FloatArray,
    path: Places,
    *,
    cells: int = 12,
    title: str = "",
    labels: tuple[str, str] = ("latent PC 1", "latent PC 2"),
    scale: Literal["shared", "own"] = "shared",
    limits: Limits | None = None,
    pixel_km: float | None = None,
    style: Style | None = None,
) -> None:
    """Draw cutouts at their positions in the plane of two coordinates.

    The plane is divided into cells; each cell that is not empty shows the cutout nearest to its centre, the
    first row of its pixels at the bottom: north is up if rows run from south to north.

    Args:
        images: (N, H, W) or (N, 1, H, W), SSTa in K.
        coordinates: (N, 2), for example the first two principal components of the latents.
        path: output file, or several; the suffix sets the format (.png, .pdf, .svg).
        cells: cells along each coordinate.
        title: title of the figure.
        labels: names of the two coordinates, such as "latent PC 1 (34 % of variance)".
        scale: "shared": one symmetric range for all cutouts, in K; "own": each cutout divided by its largest
            magnitude.
        limits: ((x0, x1), (y0, y1)) to be drawn; by default the central 99 % of each coordinate.
        pixel_km: side of a pixel in km, for a scale bar.
        style: size, fonts, colours; its `limits` are those of the colours.

    Raises:
        InputFileError: images and coordinates of inconsistent shapes.
        OptionError: `cells` < 1.
    """
    if images.ndim not in (3, 4) or len(images) != len(coordinates):
        raise InputFileError(
            f"expected images (N, H, W) and coordinates (N, 2), got {images.shape} and {coordinates.shape}"
        )
    if cells < 1:
        raise OptionError(f"cells={cells}: expected at least 1")
    style = style or Style()
    limits = limits or central_limits(coordinates)
    board = mosaic(images, nearest_to_centres(coordinates, cells, limits), own_scale=scale == "own")
    figure = Figure(figsize=style.figsize(8.6, 7.6), layout="compressed")
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1], title=wrapped(title, figure))
    label = label_of("SSTa") if scale == "shared" else "SSTa / largest magnitude of the cutout"
    drawn = _draw_board(axes, board, limits, style, 1.0 if scale == "own" else None)
    figure.colorbar(drawn, ax=axes, label=label, extend=ends_of(board, drawn.norm), shrink=0.85)
    width = (limits[0][1] - limits[0][0]) / cells
    scale_bar(axes, images.shape[-1], pixel_km, width / (images.shape[-1] + GAP))
    save_figure(figure, path, style=style)


def _draw_board(axes: Any, board: FloatArray, limits: Limits, style: Style, reach: float | None = None) -> Any:
    """Draw a mosaic within its limits, in the colours of anomalies, and return matplotlib's image."""
    axes.set_facecolor("0.94")
    axes.set_box_aspect(1)
    cmap, norm = _anomalies(board, style, reach)
    return axes.imshow(
        board,
        cmap=cmap,
        norm=norm,
        extent=(*limits[0], *limits[1]),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )


def _anomalies(values: FloatArray, style: Style, reach: float | None = None) -> tuple[Any, Any]:
    """Return colours of anomalies: from -reach to reach, by default the 99th percentile of the magnitudes."""
    reach = reach_of(values) if reach is None else reach
    return colours_of(values, cmap=style.cmap or ANOMALIES, limits=style.limits or (-reach, reach))


@styled
def contact_sheet(
    images: FloatArray,
    path: Places,
    *,
    columns: int = 8,
    title: str = "",
    unit: str = "K",
    pixel_km: float | None = None,
    style: Style | None = None,
) -> None:
    """Draw cutouts side by side, row by row, on one colour scale, the first row of pixels at the bottom; NaN is grey.

    Args:
        images: (N, H, W) or (N, 1, H, W).
        path: output file, or several; the suffix sets the format (.png, .pdf, .svg).
        columns: cutouts in a row.
        title: title of the figure.
        unit: of the pixels.
        pixel_km: side of a pixel in km, for a scale bar.
        style: size, fonts, colours.

    Raises:
        InputFileError: another shape, or no cutout.
        OptionError: `columns` < 1.
    """
    if images.ndim not in (3, 4) or not len(images):
        raise InputFileError(f"expected at least one image, (N, H, W), got {images.shape}")
    if columns < 1:
        raise OptionError(f"columns={columns}: expected at least 1")
    across = min(columns, len(images))
    rows = -(-len(images) // across)
    picks = np.full(rows * across, -1, np.int64)
    picks[: len(images)] = np.arange(len(images))
    board = mosaic(images, picks.reshape(rows, across)[::-1])
    style = style or Style()
    cmap, norm = colours_of(board, cmap=style.cmap, limits=style.limits, usual=ANOMALIES)
    figure = Figure(figsize=style.figsize(1.05 * across + 1.6, 1.05 * rows + 0.8), layout="constrained")
    axes = figure.add_subplot(title=wrapped(title, figure), xticks=[], yticks=[])
    axes.set_facecolor("0.8")
    drawn = axes.imshow(board, cmap=cmap, norm=norm, origin="lower", interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label=unit, extend=ends_of(board, norm), shrink=0.85)
    scale_bar(axes, images.shape[-1], pixel_km)
    save_figure(figure, path, style=style)


@styled
def closest_strip(  # noqa: PLR0913  # each is a choice of its own
    query: FloatArray,
    images: FloatArray,
    closeness: FloatArray,
    path: Places | None = None,
    *,
    labels: Sequence[str] = (),
    title: str = "",
    columns: int = 8,
    query_label: str = "query",
    query_labels: Sequence[str] = (),
    pixel_km: float | None = None,
    style: Style | None = None,
) -> Figure:
    """Draw one or several cutouts and those closest to them, on one symmetric colour scale in K.

    Args:
        query: (H, W), or (Q, H, W) of several, SSTa in K.
        images: (n, H, W) or (n, 1, H, W), SSTa in K, the closest first.
        closeness: (n,) distance or cosine similarity of the latents, written above each; the title names it.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        labels: text below each image, such as its position and date; () for none.
        title: title of the figure.
        columns: cutouts in a row, the query included.
        query_label: text above each query.
        query_labels: text below each query; () for none.
        pixel_km: side of a pixel in km, for a scale bar.
        style: size, fonts, colours.

    Raises:
        InputFileError: Images, values and labels of inconsistent lengths.
        OptionError: `columns` < 1, or a suffix that cannot be drawn.
    """
    if images.ndim not in (3, 4) or len(images) != len(closeness) or (labels and len(labels) != len(images)):
        raise InputFileError(
            f"expected images (n, H, W), n values and n or 0 labels, got {images.shape}, {len(closeness)} and "
            f"{len(labels)}"
        )
    words = [f"{value:.3f}" for value in np.asarray(closeness, np.float64)]
    queries = list(np.asarray(query, np.float32).reshape(-1, *np.shape(query)[-2:]))
    fields = [*queries, *(np.squeeze(np.asarray(image, np.float32)) for image in images)]
    below = [*(query_labels or [""] * len(queries)), *(labels or [""] * len(words))]
    if len(below) != len(fields):
        raise InputFileError(f"expected {len(queries)} labels of queries or none, got {len(query_labels)}")
    style = style or Style()
    figure, drawn = _panels(fields, [query_label] * len(queries) + words, columns, title, style, below)
    scale_bar(figure.axes[0], fields[0].shape[-1], pixel_km, inside=True)
    for axes in figure.axes[: len(queries)]:
        axes.title.set_fontweight("bold")
    _bar_of_panels(figure, drawn, fields, label_of("SSTa"))
    if path is not None:
        save_figure(figure, path, style=style)
    return figure


@styled
def eigen_images(
    images: FloatArray,
    ratios: FloatArray,
    path: Places | None = None,
    *,
    title: str = "",
    columns: int = 8,
    style: Style | None = None,
) -> Figure:
    """Draw principal components of cutouts as images, each with its fraction of the variance.

    Args:
        images: (M, H, W), or (M, H * W) of square ones, unit vectors; their sign is arbitrary.
        ratios: (M,) fractions of the total variance, from 0 to 1.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        title: title of the figure.
        columns: images in a row.
        style: size, fonts, colours.

    Raises:
        InputFileError: Images and fractions of inconsistent lengths.
        OptionError: `columns` < 1, or a suffix that cannot be drawn.
    """
    if images.ndim == 2 and round(images.shape[1] ** 0.5) ** 2 == images.shape[1]:
        images = images.reshape(len(images), round(images.shape[1] ** 0.5), -1)
    if images.ndim != 3 or not len(images) or len(images) != len(ratios):
        raise InputFileError(
            f"expected eigen-images (M, H, W) and M fractions, M at least 1, got {images.shape} and {len(ratios)}"
        )
    names = [f"{i + 1}: {100 * ratio:.2g} %" for i, ratio in enumerate(ratios)]
    style = style or Style()
    fields = list(np.asarray(images, np.float32))
    figure, drawn = _panels(fields, names, columns, title, style)
    _bar_of_panels(figure, drawn, fields, "weight of a pixel (unit vectors)")
    if path is not None:
        save_figure(figure, path, style=style)
    return figure


def _panels(
    fields: Sequence[FloatArray],
    names: Sequence[str],
    columns: int,
    title: str,
    style: Style,
    below: Sequence[str] = (),
) -> tuple[Figure, Any]:
    """Draw images (H, W) with text above and below on one symmetric scale; return the figure and the last image."""
    if columns < 1:
        raise OptionError(f"columns={columns}: expected at least 1")
    across = min(columns, len(fields))
    rows = -(-len(fields) // across)
    tall = 1.55 + 0.13 * max((len(words.splitlines()) for words in below), default=0)
    figure = Figure(figsize=style.figsize(1.25 * across + 1.4, tall * rows + 0.5), layout="constrained")
    figure.suptitle(wrapped(title, figure))
    cmap, norm = _anomalies(np.concatenate([field.ravel() for field in fields]), style)
    drawn = None
    for i, (field, name) in enumerate(zip(fields, names, strict=True)):
        axes = figure.add_subplot(rows, across, i + 1, xticks=[], yticks=[], facecolor="0.8")
        axes.set_title(name, fontsize="small")
        axes.set_xlabel(below[i] if below else "", fontsize="x-small")
        drawn = axes.imshow(field, cmap=cmap, norm=norm, origin="lower", interpolation="nearest", aspect="auto")
        axes.set_box_aspect(1)
    return figure, drawn


def _bar_of_panels(figure: Figure, drawn: Any, fields: Sequence[FloatArray], label: str) -> None:
    values = np.concatenate([np.ravel(field) for field in fields])
    figure.colorbar(drawn, ax=figure.axes, label=label, extend=ends_of(values, drawn.norm), shrink=0.85)


@styled
def eigen_sheet(
    images: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    path: Places | None = None,
    *,
    apart: int = 0,
    style: Style | None = None,
) -> Figure:
    """Draw a table of cutouts, each row on its own symmetric colour scale; the first row of pixels is at the bottom.

    Args:
        images: (R, C, H, W) in K; NaN if there is none.
        rows: R names.
        columns: C names.
        path: output file, if any, or several; the suffix sets the format (.png, .pdf, .svg).
        apart: number of columns at the end with images that are no cutouts. They do not set the colours of their row:
            each is multiplied by the factor written below it to fill the colours.
        style: size, fonts, colours.
    """
    style = style or Style()
    down, across = images.shape[:2]
    figure = Figure(figsize=style.figsize(1.15 * across + 2.6, 1.2 * down + 0.5), layout="constrained")
    for row, axes in enumerate(np.ravel(figure.subplots(down, 1, squeeze=False))):
        fields, factors = _fitted(images[row], apart)
        reach = reach_of(fields[: across - apart]) if apart < across else reach_of(fields)
        drawn = _draw_board(axes, mosaic(fields, np.arange(across)[None]), ((0.0, across), (0.0, 1.0)), style, reach)
        axes.set_box_aspect(1 / across)
        axes.set_yticks([0.5], [rows[row]], fontsize="small")
        axes.set_xticks(np.arange(across) + 0.5, columns if row == 0 else [""] * across, fontsize="small")
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        for column, factor in factors.items():
            place = (column + 0.5, 0)
            axes.annotate(
                f"\N{MULTIPLICATION SIGN} {factor:.2g}", place, (0, -2), textcoords="offset points", ha="center",
                va="top", fontsize="x-small", annotation_clip=False,
            )  # fmt: skip
        extend = ends_of(fields, drawn.norm)
        bar = figure.colorbar(drawn, ax=axes, label=label_of("SSTa"), extend=extend, ticks=MaxNLocator(4), aspect=9)
        bar.ax.tick_params(labelsize="x-small")
        bar.ax.yaxis.label.set_fontsize("small")
    if path is not None:
        save_figure(figure, path, style=style)
    return figure


def _fitted(images: FloatArray, apart: int) -> tuple[FloatArray, dict[int, float]]:
    """Return images (C, H, W), the last ones scaled to the colours of the others, and the factors."""
    factors: dict[int, float] = {}
    fields = np.array(images, np.float32)
    known = len(fields) - apart
    if not 0 < apart < len(fields) or not np.isfinite(fields[:known]).any():
        return fields, factors
    for column in range(known, len(fields)):
        if np.isfinite(fields[column]).any():
            factors[column] = reach_of(fields[:known]) / reach_of(fields[column])
            fields[column] *= factors[column]
    return fields, factors
