"""The fit of a layout by umap-learn, with its progress and an estimate of the time that is left."""

import io
import logging
import re
import threading
import time
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nenya.errors import OptionError
from nenya.latents.layout import FloatArray, Parameters, as_metric, scaled
from nenya.latents.lists import fit_lists
from nenya.latents.neighbours import Neighbours
from nenya.runtime.blas import on_all_cores, parts

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0
_FEW = 4096  # rows up to which umap-learn compares all pairs
_AT_ONCE = 16384


def new_umap(p: Parameters, **settings: Any) -> Any:
    """Return an unfitted `umap.UMAP` of these parameters."""
    import umap

    return umap.UMAP(
        n_neighbors=p.n_neighbors, min_dist=p.min_dist, spread=p.spread, metric=p.metric, random_state=p.seed,
        transform_seed=p.seed, learning_rate=p.learning_rate, negative_sample_rate=p.negative_sample_rate,
        repulsion_strength=p.repulsion_strength, n_jobs=1, **settings,
    )  # fmt: skip


def fit_layout(rows: FloatArray, parameters: Parameters, epochs: int | None) -> FloatArray:
    """Return the layout of rows, (N, 2), by umap-learn.

    The neighbours of many rows are found by `nenya.latents.lists`, with a higher recall than umap-learn's own search,
    and in a time that can be told.

    Args:
        rows: (N, D) float32, finite.
        parameters: of the layout.
        epochs: passes; None: chosen by umap-learn.

    Raises:
        OptionError: There are as many neighbours as rows.
    """
    if parameters.n_neighbors >= len(rows):
        raise OptionError(f"n_neighbors={parameters.n_neighbors}: expected fewer than the {len(rows)} training rows")
    with FitProgress(len(rows)) as progress, warnings.catch_warnings():
        kwds = {"disable": False, "file": progress, "bar_format": "{n} of {total}\n", "mininterval": 1.0}
        settings: dict[str, Any] = {"n_epochs": epochs, "tqdm_kwds": kwds}
        if len(rows) > _FEW:
            settings["precomputed_knn"] = *_neighbours(rows, parameters, progress), None
            warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]")  # serves umap-learn's transform alone
            progress.stage = "graph and first layout"
        fitted = new_umap(parameters, **settings).fit(rows)
    layout: FloatArray = np.asarray(fitted.embedding_, dtype=np.float32)
    return layout


def _neighbours(
    rows: FloatArray, parameters: Parameters, progress: "FitProgress"
) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the neighbours of each row, itself included, and their distances, (N, k)."""
    units = scaled(rows, parameters.metric)
    count = parameters.n_neighbors
    lists, _ = fit_lists(Neighbours(units), count, parameters.seed)
    near, distances = np.empty((len(rows), count), np.int64), np.empty((len(rows), count), np.float32)

    def search(some: slice) -> None:
        found, near[some] = lists.search(units[some], count)
        distances[some] = as_metric(found, parameters.metric)

    progress.begin("nearest neighbours, row", len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(rows))
        on_all_cores(search, [slice(start + some.start, min(start + some.stop, stop)) for some in parts(stop - start)])
        progress.count(stop)
    return near, distances


class FitProgress(io.TextIOBase):
    """Logs the progress of a fit; umap-learn's progress bar, which counts the layout's epochs, writes to it.

    Args:
        rows: number of training rows.

    Attributes:
        stage: what is being done.
    """

    def __init__(self, rows: int) -> None:
        self._start, self._end = time.monotonic(), threading.Event()
        self.stage = "compiling, then preparing the search of the nearest neighbours"
        self._since, self._done, self._total = self._start, 0, 0
        self._thread = threading.Thread(target=self._tell, name="fit progress", daemon=True)
        log.info("%d rows: %s", rows, self.stage)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._end.set()
        self._thread.join()
        if kind is None:
            log.info("fitted in %.0f s", self._seconds)

    def begin(self, stage: str, total: int) -> None:
        """Begin a stage whose steps are counted."""
        self.stage, self._since, self._done, self._total = stage, time.monotonic(), 0, total

    def count(self, done: int) -> None:
        """Tell how many steps of the stage are done."""
        self._done = done

    def write(self, text: str) -> int:
        """Receive a line of the progress bar."""
        if found := re.search(r"(\d+) of (\d+)", text):
            if not self.stage.startswith("layout"):
                log.info("neighbours and graph took %.0f s; layout in %s epochs", self._seconds, found[2])
                self.begin("layout, epoch", int(found[2]))
            self.count(int(found[1]))
        return len(text)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _tell(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_LINES):
            log.info("%s: %.0f s", self._line(), self._seconds)

    def _line(self) -> str:
        """Return the stage, and where its steps are counted how many are done and how long the rest will take."""
        if not self._total or self.stage.startswith("graph"):
            return self.stage
        line = f"{self.stage} {self._done} of {self._total}"
        if not self._done:
            return line
        left = (self._total - self._done) * (time.monotonic() - self._since) / self._done
        return f"{line}, about {left:.0f} s left in this stage"
