"""Exact nearest rows through torch, for a GPU: the same answer, bit for bit, as `nenya.latents.neighbours`.

The device computes scores in float32 and selects the best. The error of a score has a bound in any order of summation.
If the last selected row is farther from the k-th than this bound, the selection holds all rows that can be among the k
nearest. Otherwise the query is searched on the processor. Candidates are ranked there, in float64.

Letters in shapes: N rows that are searched, n query rows, D their length, k neighbours.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from nenya.latents.lists_kernel import rank
from nenya.latents.neighbours import Float64Array, FloatArray, IntArray, Neighbours

_MORE = 49  # candidates beyond k
_SCORES = 2**30  # bytes of scores at once
_PRECISION = threading.Lock()


def gpu() -> str | None:
    """Return the device of a GPU, None where there is none; torch is only loaded where the system has one."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


class DeviceNeighbours:
    """Rows that are all searched, on a device.

    Args:
        neighbours: the rows.
        device: of torch.
    """

    def __init__(self, neighbours: Neighbours, device: str) -> None:
        import torch

        self.neighbours, self.device = neighbours, device
        self._scaled = torch.from_numpy(neighbours.scaled).to(device)
        self._norms = torch.from_numpy(neighbours.norms).to(device)

    def search(self, x: FloatArray, k: int) -> tuple[Float64Array, IntArray]:
        """Return the k nearest rows of each query; see `Neighbours.search`."""
        squares, found = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
        unsure = np.zeros(len(x), bool)
        count = min(k + _MORE, len(self.neighbours.rows))
        tile = max(16, _SCORES // (4 * len(self.neighbours.rows)))
        for start in range(0, len(x), tile):
            part = slice(start, start + tile)
            centred, margins = self.neighbours.centred(x[part])
            scores, candidates = self._best(centred, count)
            if count < len(self.neighbours.rows):
                unsure[part] = ~(scores[:, -1] > scores[:, k - 1] + 2 * margins)
            rank(x[part], self.neighbours.rows, candidates, squares[part], found[part])
        distances = np.sqrt(squares)
        if unsure.any():
            distances[unsure], found[unsure] = self.neighbours.search(x[unsure], k)
        return distances, found

    def _best(self, centred: FloatArray, count: int) -> tuple[Float64Array, IntArray]:
        """Return the best scores of each query, (n, count), rising, and their rows."""
        import torch

        with _PRECISION:  # of the process
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = False
            try:
                scores = torch.from_numpy(centred).to(self.device) @ self._scaled.T
                scores += self._norms
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before
        best: Any = torch.topk(scores, count, dim=1, largest=False, sorted=True)
        return best.values.cpu().numpy().astype(np.float64), best.indices.cpu().numpy()
