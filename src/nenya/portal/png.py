"""Pictures of cutouts as PNG."""

import io
from typing import Any

import numpy as np

from nenya.portal.theme import anomaly


def coloured(picture: np.ndarray[Any, Any], span: tuple[float, float], zoom: int = 2) -> bytes:
    """Return a sheet (H, W), top line first, as a PNG in the colours of the page.

    Args:
        picture: values; NaN becomes transparent.
        span: colour range.
        zoom: pixels of the PNG per pixel of the sheet, in both directions.
    """
    from PIL import Image

    table = np.array(
        [[int(c[i : i + 2], 16) for i in (1, 3, 5)] + [255] for c in anomaly(*span)] + [[0, 0, 0, 0]], np.uint8
    )
    with np.errstate(invalid="ignore"):
        place = np.clip((picture - span[0]) / (span[1] - span[0]) * 255, 0, 255)
    index = np.where(np.isfinite(picture), place, 256).astype(np.int64)
    pixels = np.repeat(np.repeat(table[index], zoom, axis=0), zoom, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
