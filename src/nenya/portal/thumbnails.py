"""Thumbnails of cutouts, in sheets of one palette: what a static page shows of its rows."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.portal.dataset import Cutouts
from nenya.portal.pictures import colour_range
from nenya.portal.theme import anomaly

SIDE = 32
"""Side of a thumbnail in pixels."""
ACROSS = 20
"""Thumbnails in a line of a sheet, and lines of a sheet."""
_TRIED = 300  # cutouts that decide on the colours
_MISSING = 255  # the number of the palette for missing pixels

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def range_of(cutouts: Cutouts, rows: IntArray, seed: int) -> tuple[float, float]:
    """Return a shared colour range of some rows, K, from a sample of them."""
    rng = np.random.default_rng(seed)
    some = np.sort(rows[rng.choice(len(rows), min(_TRIED, len(rows)), replace=False)])
    return colour_range(cutouts.of(some))


def thumbnail(image: FloatArray, side: int = SIDE) -> FloatArray:
    """Return a cutout (H, W) in side x side pixels, its first line last: means of blocks, or the nearest pixels."""
    step = len(image) // side
    if step >= 1 and len(image) == image.shape[1] == step * side:
        small = image.reshape(side, step, side, step).mean(axis=(1, 3))
    else:
        down, across = (np.arange(side) * length // side for length in image.shape)
        small = image[np.ix_(down, across)]
    return np.asarray(small[::-1], np.float32)


def sheets(cutouts: Cutouts, rows: IntArray, span: tuple[float, float]) -> Iterator[tuple[bytes, NDArray[np.bool_]]]:
    """Yield sheets of thumbnails as PNG, and which of their rows have an image, (k,).

    Args:
        cutouts: of the table's rows.
        rows: (n,), of the table; a sheet takes ACROSS x ACROSS of them.
        span: colour range, K.

    Raises:
        InputFileError: A file is damaged.
    """
    for start in range(0, len(rows), ACROSS**2):
        images = cutouts.of(rows[start : start + ACROSS**2], at_once=ACROSS**2)
        picture = np.full((ACROSS * SIDE, ACROSS * SIDE), _MISSING, np.uint8)
        for number, image in enumerate(images):
            if image is None:
                continue
            small = thumbnail(image)
            with np.errstate(invalid="ignore"):
                shade = np.clip((small - span[0]) / (span[1] - span[0]) * (_MISSING - 1), 0, _MISSING - 1)
            top, left = number // ACROSS * SIDE, number % ACROSS * SIDE
            picture[top : top + SIDE, left : left + SIDE] = np.where(np.isfinite(small), shade, _MISSING)
        lines = -(-len(images) // ACROSS)
        yield _png(picture[: lines * SIDE], span), np.array([image is not None for image in images])


def _png(picture: NDArray[np.uint8], span: tuple[float, float]) -> bytes:
    from PIL import Image

    image: Any = Image.fromarray(picture, "L")
    image = image.copy()
    palette = [*anomaly(*span)[:_MISSING], "#808080"]
    image.putpalette([int(colour[i : i + 2], 16) for colour in palette for i in (1, 3, 5)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
