"""Filling of masked pixels.

Both ways look for the smoothest surface through the clear pixels, in the sense of the biharmonic equation. The fast
one solves it once for all masked pixels of a field that lie in cutouts: it minimises the sum of squares of the
five-point Laplacian over all pixels next to one that is filled, with the clear pixels fixed.
"""

import numpy as np
from numpy.typing import NDArray


def inpaint_field(values: NDArray[np.float32], wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill masked pixels of a field by one sparse system.

    Pixels that are masked and not wanted take no part: at them, as at the field's edge, the Laplacian is that of the
    neighbours that are left.

    Args:
        values: (H, W), NaN where masked.
        wanted: (H, W) masked pixels to fill.

    Returns:
        (H, W) float32; a wanted pixel that no clear one is connected with stays NaN.
    """
    from scipy import sparse
    from scipy.ndimage import label
    from scipy.sparse.linalg import splu

    clear = np.pad(np.isfinite(values), 1)
    unknown = np.pad(wanted, 1) & ~clear
    if not unknown.any():
        return values
    if not _all_reach(clear, unknown):
        labels, count = label(clear | unknown)
        reached = np.zeros(count + 1, dtype=bool)
        reached[np.unique(labels[clear])] = True
        unknown &= reached[labels]
    width = clear.shape[1]
    steps = (1, -1, width, -width)
    domain = (clear | unknown).ravel()
    cells = np.flatnonzero(unknown)
    if not len(cells):
        return values
    number = np.full(clear.size, -1, dtype=np.int64)
    number[cells] = np.arange(len(cells))
    rows = np.unique(np.concatenate([cells, *(cells + step for step in steps)]))
    rows = rows[domain[rows]]
    known = np.where(clear, np.pad(values, 1).astype(np.float64), 0.0).ravel()
    degree = np.zeros(len(rows))
    right = np.zeros(len(rows))
    entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for step in steps:
        there = domain[rows + step]
        degree += there
        column = number[rows + step]
        inside = np.flatnonzero(column >= 0)
        entries.append((inside, column[inside], np.full(len(inside), -1.0)))
        right += known[rows + step]
    inside = np.flatnonzero(number[rows] >= 0)
    entries.append((inside, number[rows][inside], degree[inside]))
    right -= degree * known[rows]
    row, column, entry = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    laplacian = sparse.csc_matrix((entry, (row, column)), shape=(len(rows), len(cells)))
    system = (laplacian.T @ laplacian).tocsc()
    solver = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution = solver.solve(np.asarray(laplacian.T @ right))
    filled = np.pad(values, 1)
    filled.ravel()[cells] = solution
    return np.ascontiguousarray(filled[1:-1, 1:-1])


def _all_reach(clear: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> bool:
    """Return whether most simply no masked pixel can be cut off: there is none whose neighbours are all masked."""
    near = clear.copy()
    near[1:] |= clear[:-1]
    near[:-1] |= clear[1:]
    near[:, 1:] |= clear[:, :-1]
    near[:, :-1] |= clear[:, 1:]
    return not bool((unknown & ~near).any())


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
