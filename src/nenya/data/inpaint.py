"""Filling of masked pixels.

Both methods find the smoothest surface through the clear pixels, in the sense of the biharmonic equation. The fast
one solves once for all masked pixels of a field that lie in cutouts, however many cutouts share them: it minimises the
sum of squares of the five-point Laplacian over all pixels next to a filled one, with the clear pixels fixed. This takes
one sparse factorisation, unless so many pixels are masked that it would take minutes. Then it starts from the solution
on a grid of half as many rows and columns, found in the same way, and takes a fixed number of conjugate-gradient steps.

Letters: H rows and W columns of a field, m masked pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIRECT = 200_000  # pixels solved for at once
_STEPS = 48


def inpaint_field(values: NDArray[np.float32], wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill masked pixels of a field.

    Masked pixels outside `wanted` are ignored: next to them, as at the field's edge, the Laplacian uses the remaining
    neighbours.

    Args:
        values: (H, W), NaN where masked.
        wanted: (H, W) masked pixels to fill.

    Returns:
        (H, W) float32; a wanted pixel not connected with a clear one stays NaN.
    """
    clear = np.isfinite(values)
    unknown = wanted & ~clear
    unknown &= _reached(clear, unknown)
    if not unknown.any():
        return values
    filled = np.pad(values, 1, constant_values=np.nan)
    wide = np.pad(unknown, 1)
    system, right, cells = _equations(np.pad(clear, 1), wide, filled)
    if len(cells) <= _DIRECT:
        solution = _solve(system, right)
    else:
        start = _from_coarse(values, clear, unknown)
        solution = _conjugate_gradients(system, right, start, _STEPS)
    filled.ravel()[cells] = solution
    return np.ascontiguousarray(filled[1:-1, 1:-1])


def _reached(clear: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which pixels (H, W) are connected with a clear one over clear or unknown ones."""
    near = clear.copy()
    near[1:] |= clear[:-1]
    near[:-1] |= clear[1:]
    near[:, 1:] |= clear[:, :-1]
    near[:, :-1] |= clear[:, 1:]
    if not (unknown & ~near).any():
        return near
    from scipy.ndimage import label

    labels, count = label(clear | unknown)
    good = np.zeros(count + 1, dtype=bool)
    good[labels[clear]] = True
    good[0] = False
    return np.asarray(good[labels])


def _equations(
    clear: NDArray[np.bool_], unknown: NDArray[np.bool_], values: NDArray[np.float32]
) -> tuple[Any, NDArray[np.float64], NDArray[np.intp]]:
    """Return the normal equations of the smallest Laplacian: a sparse matrix (m, m), its right side, and the pixels.

    Args:
        clear: (H, W) pixels whose value is fixed; none at the edge.
        unknown: (H, W) pixels to be found; none at the edge.
        values: (H, W).
    """
    from scipy import sparse

    width = clear.shape[1]
    steps = (1, -1, width, -width)
    domain, cells = (clear | unknown).ravel(), np.flatnonzero(unknown)
    number = np.full(clear.size, -1, dtype=np.int32)
    number[cells] = np.arange(len(cells), dtype=np.int32)
    near = unknown.ravel().copy()
    for step in steps:
        near[cells + step] = True
    rows = np.flatnonzero(near & domain)
    fixed, flat = clear.ravel(), values.ravel()
    degree, right = np.zeros(len(rows)), np.zeros(len(rows))
    entries = []
    for step in (*steps, 0):
        there = rows + step
        if step:
            degree += domain[there]
        weight = np.full(len(rows), -1.0) if step else degree
        known = np.flatnonzero(fixed[there])
        right[known] -= weight[known] * flat[there[known]]
        column = number[there]
        inside = np.flatnonzero(column >= 0)
        entries.append((inside.astype(np.int32), column[inside], weight[inside]))
    row, column, entry = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    laplacian = sparse.csr_matrix((entry, (row, column)), shape=(len(rows), len(cells)))
    turned = laplacian.T.tocsr()
    return turned @ laplacian, np.asarray(turned @ right), cells


def _solve(system: Any, right: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.sparse.linalg import splu

    symmetric = {"SymmetricMode": True}
    factors = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=symmetric)
    return np.asarray(factors.solve(right))


def _conjugate_gradients(
    system: Any, right: NDArray[np.float64], start: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Return an approximate solution (m,), from a start (m,), preconditioned by the diagonal."""
    solution = start.copy()
    scale = 1 / system.diagonal()
    rest = right - system @ solution
    scaled = scale * rest
    along, size = scaled.copy(), float(rest @ scaled)
    for _ in range(steps):
        if size == 0:
            break
        image = system @ along
        far = size / float(along @ image)
        solution += far * along
        rest -= far * image
        scaled = scale * rest
        size, before = float(rest @ scaled), size
        along = scaled + (size / before) * along
    return solution


def _from_coarse(
    values: NDArray[np.float32], clear: NDArray[np.bool_], unknown: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return a first guess (m,) of the unknown pixels, from the field with half as many rows and columns."""
    height, width = values.shape
    even = [(0, height % 2), (0, width % 2)]
    shape = ((height + 1) // 2, 2, (width + 1) // 2, 2)
    count = np.pad(clear, even).reshape(shape).sum(axis=(1, 3), dtype=np.float32)
    total = np.pad(np.where(clear, values, 0), even).reshape(shape).sum(axis=(1, 3), dtype=np.float32)
    wanted = np.pad(unknown, even).reshape(shape).any(axis=(1, 3)) & (count == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        coarse = inpaint_field(total / count, wanted)
    row, col = np.nonzero(unknown)
    return _between(coarse, row, col)


def _between(coarse: NDArray[np.float32], row: NDArray[np.intp], col: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return values (m,) at fine pixels between coarse ones: linear, over those that have a value."""
    height, width = coarse.shape
    total, weight = np.zeros(len(row)), np.full(len(row), 1e-12)
    for down in (0, 1):
        r = np.clip(row // 2 + down * np.where(row % 2, 1, -1), 0, height - 1)
        for right in (0, 1):
            c = np.clip(col // 2 + right * np.where(col % 2, 1, -1), 0, width - 1)
            value = coarse[r, c].astype(np.float64)
            share = np.where(np.isfinite(value), (0.25 if down else 0.75) * (0.25 if right else 0.75), 0.0)
            total += share * np.nan_to_num(value)
            weight += share
    return np.asarray(total / weight)


def inpaint_biharmonic(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill the masked pixels of cutouts with scikit-image's `inpaint_biharmonic`, one cutout at a time.

    Args:
        images: (n, h, w), NaN where masked.

    Returns:
        (n, h, w) float32; a cutout without a clear pixel stays NaN.
    """
    from skimage.restoration import inpaint_biharmonic as fill

    filled = images.copy()
    for image in filled:
        masked = ~np.isfinite(image)
        if masked.any() and not masked.all():
            image[:] = fill(np.where(masked, 0.0, image.astype(np.float64)), masked)
    return filled
