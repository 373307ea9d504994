"""Two-dimensional maps of latents (UMAP) that survive upgrades, and place each row by itself.

A projector is one HDF5 file without code: training latents, their layout, parameters, and probe rows with their
answers. New rows get their place from it alone: equal latents get bitwise equal coordinates, whatever comes with them.
Nothing of umap-learn is needed for that.

Letters in shapes: N training rows, n rows that are placed, D the length of a latent, k neighbours.
"""

import hashlib
import io
import json
import logging
import math
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nenya.data.hdf5_links import COPY_IN
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, OptionError, OutputError
from nenya.latents.layout import FloatArray, find_curve, place_all, to_unit
from nenya.latents.neighbours import COMPILED, Lists, Neighbours, find_centroids
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.storage.names import Json, parse_json

log = logging.getLogger(__name__)


METRICS = ("euclidean", "cosine")
FORMAT, FORMAT_VERSION = "nenya projector", 1
N_PROBES = 64
REFIT = (
    "fit it again: nenya embed data=..._latents.h5 table=... out=..., or nenya.latents.projector.Projector.fit(latents)"
)

_BLOCK = 4096  # rows placed at once
_SECONDS_BETWEEN_LINES = 15.0
_FEW_EPOCHS = 30
_MOST_PARAMETER = 2**40
_DATASETS = ("latents", "embedding", "centroids", "probes", "probe_answers")


@dataclass(frozen=True)
class Parameters:
    """What a layout was made with, and rows are placed with.

    Attributes:
        a: of the curve 1 / (1 + a d^2b) in the layout.
        b: of the same curve.
        n_neighbors: how many training rows a row is placed by.
        min_dist: how close points of the layout may lie.
        spread: scale of the layout.
        metric: `euclidean` or `cosine`.
        n_epochs: passes in which a row is placed, as many as umap-learn takes for up to 10,000 rows at once; the
            approximate way takes at most 30, as umap-learn does for more.
        learning_rate: of the fit; a row is placed with a quarter of it.
        negative_sample_rate: repulsions for each attraction.
        repulsion_strength: their weight.
        seed: of everything random.
    """

    a: float
    b: float
    n_neighbors: int = 15
    min_dist: float = 0.1
    spread: float = 1.0
    metric: str = "euclidean"
    n_epochs: int = 100
    learning_rate: float = 1.0
    negative_sample_rate: int = 5
    repulsion_strength: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise OptionError(f"metric={self.metric}: wanted is one of {', '.join(METRICS)}")
        if self.n_neighbors < 2 or self.n_epochs < 1 or self.negative_sample_rate < 0:
            raise OptionError("n_neighbors of at least 2, n_epochs of at least 1 and no negative rate are wanted")


class Projector:
    """A fitted map.

    Args:
        latents: (N, D) float32, finite: the training rows.
        embedding: (N, 2) float32: their layout.
        parameters: what it was made with.
        centroids: (L, D) float32 for the approximate search; found if None.
        n_lists_searched: how many lists the approximate search looks through.

    Attributes:
        probes: (64, D) float32.
        probe_answers: (64, 2) float32: where this projector placed them when it was made.
        image_size: pixels a side of the cutouts that the latents are of, 0 where that is not known; saved.
        probe_difference: largest difference from them when it was loaded, 0 if none.

    Raises:
        InputFileError: The arrays do not fit each other.
    """

    def __init__(
        self,
        latents: FloatArray,
        embedding: FloatArray,
        parameters: Parameters,
        centroids: FloatArray | None = None,
        n_lists_searched: int = 16,
    ) -> None:
        self.latents = np.ascontiguousarray(latents, dtype=np.float32)
        self.embedding = np.ascontiguousarray(embedding, dtype=np.float32)
        if self.latents.ndim != 2 or len(self.latents) < 2 or self.embedding.shape != (len(self.latents), 2):
            raise InputFileError(
                f"latents of shape {self.latents.shape} and a layout of shape {self.embedding.shape} came; wanted are "
                "(N, D) and (N, 2) with N of at least 2"
            )
        if not (np.isfinite(self.latents).all() and np.isfinite(self.embedding).all()):
            raise InputFileError("training latents and layout must be finite: leave out the rows that are not")
        self.parameters, self.n_lists_searched = parameters, n_lists_searched
        self._neighbours = Neighbours(self._scaled(self.latents))
        self._centroids = centroids
        self.probe_difference = 0.0
        self.image_size = 0
        rng = np.random.default_rng(parameters.seed)
        pairs = rng.integers(len(self.latents), size=(N_PROBES, 2))
        pairs[: N_PROBES // 2, 1] = pairs[: N_PROBES // 2, 0]
        self.probes: FloatArray = (self.latents[pairs[:, 0]] + self.latents[pairs[:, 1]]) / np.float32(2)

    @cached_property
    def probe_answers(self) -> FloatArray:
        """Where this projector places its probes: (64, 2) float32."""
        return self.transform(self.probes)

    @classmethod
    def fit(
        cls,
        latents: ArrayLike,
        n_neighbors: int = 15,
        min_dist: float = 0.1,
        metric: str = "euclidean",
        seed: int = 1234,
        *,
        embedding: ArrayLike | None = None,
        spread: float = 1.0,
        fit_epochs: int | None = None,
    ) -> Self:
        """Fit a map with umap-learn, or take a layout that was made elsewhere.

        Args:
            latents: (N, D); rows that are not finite are left out.
            n_neighbors: how many neighbours say what is near: few for detail, many for the large pattern.
            min_dist: how close points of the layout may lie.
            metric: `euclidean` or `cosine`.
            seed: of everything random.
            embedding: (N, 2) layout of these rows, such as cuML's `UMAP.embedding_`; nothing is fitted then.
            spread: scale of the layout.
            fit_epochs: passes of the fit; default as umap-learn chooses.

        Raises:
            InputFileError: Too few finite rows, or a layout of another shape.
            OptionError: A parameter is not possible.
        """
        rows = np.asarray(latents, dtype=np.float32)
        if rows.ndim != 2:
            raise InputFileError(f"latents of shape {rows.shape} came; wanted is (N, D)")
        keep = np.isfinite(rows).all(axis=1)
        layout = None if embedding is None else np.asarray(embedding, dtype=np.float32)
        if layout is not None:
            if layout.shape != (len(rows), 2):
                raise InputFileError(f"a layout of shape {layout.shape} came; wanted is ({len(rows)}, 2)")
            keep &= np.isfinite(layout).all(axis=1)
        if not keep.all():
            log.warning("%d of %d rows are not finite and are left out of the fit", int((~keep).sum()), len(rows))
        rows = rows[keep]
        if len(rows) < 4:
            raise InputFileError(f"{len(rows)} finite latents came: a map needs at least 4")
        parameters = Parameters(*find_curve(min_dist, spread), n_neighbors, min_dist, spread, metric, seed=seed)
        layout = _fit_layout(rows, parameters, fit_epochs) if layout is None else layout[keep]
        lost = ~np.isfinite(layout).all(axis=1)  # UMAP gives NaN to rows without neighbours
        return cls(rows[~lost], layout[~lost], parameters)

    def transform(self, latents: ArrayLike, *, approximate: bool = False) -> FloatArray:
        """Place rows on the map, each by itself.

        Args:
            latents: (n, D), or (D,) for one row.
            approximate: search only the nearest lists of training rows, in fewer passes, which is faster and not
                exact; it is the same for a row alone or among others all the same.

        Returns:
            (n, 2) float32; NaN for rows that are not finite.

        Raises:
            InputFileError: Rows of another length.
        """
        rows = np.atleast_2d(np.asarray(latents, dtype=np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.latents.shape[1]:
            raise InputFileError(
                f"latents of shape {rows.shape} came; this projector was fitted on latents of {self.latents.shape[1]} "
                "numbers: take the projector of their model"
            )
        out = np.full((len(rows), 2), np.nan, np.float32)
        index = self._lists if approximate else self._neighbours
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            finite = np.isfinite(block).all(axis=1)
            if finite.any():
                out[start : start + _BLOCK][finite] = self._placed(index, self._scaled(block[finite]))
        return out

    def _placed(self, index: Neighbours | Lists, rows: FloatArray) -> FloatArray:
        p = self.parameters
        distances, near = index.search(rows, min(p.n_neighbors, len(self.latents)))
        if p.metric == "cosine":
            distances = distances**2 / 2
        out = np.empty((len(rows), 2), np.float32)
        epochs = p.n_epochs if isinstance(index, Neighbours) else min(p.n_epochs, _FEW_EPOCHS)
        with COMPILED:
            place_all(
                distances, near, self.embedding, (p.a, p.b), p.n_neighbors, epochs, p.learning_rate / 4,
                p.negative_sample_rate, p.repulsion_strength, p.seed, out,
            )  # fmt: skip
        return out

    def _scaled(self, rows: FloatArray) -> FloatArray:
        rows = np.ascontiguousarray(rows)
        if self.parameters.metric == "cosine":
            rows = rows.copy()
            to_unit(rows)
        return rows

    @cached_property
    def _lists(self) -> Lists:
        if self._centroids is None:
            count = max(1, int(math.sqrt(len(self.latents))))
            rng = np.random.default_rng(self.parameters.seed)
            self._centroids = find_centroids(self._neighbours, count, rng)
        return Lists(self._neighbours, self._centroids, self.n_lists_searched)

    def save(self, path: str | Path) -> None:
        """Write the projector file: absent or whole.

        Raises:
            OutputError: It cannot be written.
        """
        arrays = {
            "latents": self.latents,
            "embedding": self.embedding,
            "centroids": self._lists.centroids.rows,
            "probes": self.probes,
            "probe_answers": self.probe_answers,
        }
        size = {"image_size": self.image_size} if self.image_size else {}
        parameters = json.dumps({**asdict(self.parameters), "n_lists_searched": self.n_lists_searched, **size})
        try:
            with atomic_path(Path(path)) as temporary, write_hdf5(temporary) as file:
                for name, array in arrays.items():
                    file[name] = array.astype("<f4")
                file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, parameters=parameters)
                file.attrs["sha256"] = _digest(arrays, parameters)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a projector file, and check that it still answers its probes as it did; a warning says where not.

        Raises:
            InputFileError: It is missing, damaged or something else; pickles are never read.
        """
        arrays, values = _read(Path(path))
        searched = values.pop("n_lists_searched", 16)
        known = {field.name for field in fields(Parameters)}
        try:
            parameters = Parameters(**{key: value for key, value in values.items() if key in known})
        except (TypeError, OptionError) as error:
            raise InputFileError(f"{path}: its parameters cannot be used ({error}); {REFIT}") from error
        projector = cls(arrays["latents"], arrays["embedding"], parameters, arrays["centroids"], searched)
        projector.image_size = int(values.get("image_size", 0))
        projector.probes = arrays["probes"]
        came = projector.transform(projector.probes)
        projector.probe_answers = arrays["probe_answers"]
        projector.probe_difference = float(np.abs(came - projector.probe_answers).max())
        if not projector.probe_difference == 0:
            log.warning(
                "%s: this machine places its probe rows up to %.2g layout units from where they were placed when it "
                "was made: coordinates of this and of that machine differ so much",
                path, projector.probe_difference,
            )  # fmt: skip
        return projector

    def to_umap(self) -> Any:
        """Return a `umap.UMAP` with this layout, for what only the library does; its neighbour graph is made anew."""
        p = self.parameters
        start = self.embedding.astype(np.float64)
        mapper = _umap(p, n_epochs=0, init=start).fit(self.latents)
        mapper.embedding_, mapper._a, mapper._b = self.embedding.copy(), p.a, p.b
        mapper.n_epochs, mapper.init = None, "spectral"
        return mapper


def _umap(p: Parameters, **settings: Any) -> Any:
    import umap

    return umap.UMAP(
        n_neighbors=p.n_neighbors, min_dist=p.min_dist, spread=p.spread, metric=p.metric, random_state=p.seed,
        transform_seed=p.seed, learning_rate=p.learning_rate, negative_sample_rate=p.negative_sample_rate,
        repulsion_strength=p.repulsion_strength, n_jobs=1, **settings,
    )  # fmt: skip


def _fit_layout(rows: FloatArray, parameters: Parameters, epochs: int | None) -> FloatArray:
    if parameters.n_neighbors >= len(rows):
        raise OptionError(f"n_neighbors={parameters.n_neighbors}: wanted is less than the {len(rows)} training rows")
    with _FitProgress(len(rows)) as progress:
        kwds = {"disable": False, "file": progress, "bar_format": "{n} of {total}\n", "mininterval": 1.0}
        fitted = _umap(parameters, n_epochs=epochs, tqdm_kwds=kwds).fit(rows)
    layout: FloatArray = np.asarray(fitted.embedding_, dtype=np.float32)
    return layout


class _FitProgress(io.TextIOBase):
    """Says now and then how far a fit is; umap-learn's progress bar, which counts the layout's epochs, writes to it.

    Args:
        rows: number of training rows.
    """

    def __init__(self, rows: int) -> None:
        self._start, self._done = time.monotonic(), threading.Event()
        self._stage = "compile, then find the nearest neighbours of each row"
        self._thread = threading.Thread(target=self._tell, name="fit progress", daemon=True)
        log.info("%d rows: %s", rows, self._stage)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._done.set()
        self._thread.join()
        if kind is None:
            log.info("fitted in %.0f s", self._seconds)

    def write(self, text: str) -> int:
        """Take a line of the progress bar."""
        if found := re.search(r"(\d+) of (\d+)", text):
            first = not self._stage.startswith("layout")
            self._stage = f"layout, epoch {found[1]} of {found[2]}"
            if first:
                log.info("neighbours found after %.0f s; layout in %s epochs", self._seconds, found[2])
        return len(text)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _tell(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_LINES):
            log.info("%s: %.0f s", self._stage, self._seconds)


def _digest(arrays: Mapping[str, NDArray[Any]], parameters: str) -> str:
    digest = hashlib.sha256(parameters.encode())
    for name in _DATASETS:
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name], dtype="<f4").data)
    return digest.hexdigest()


def _checked(found: Json) -> dict[str, Any]:
    """Return the parameters of a projector file, each of its kind."""
    kinds = {f.name: f.type for f in fields(Parameters)} | {"n_lists_searched": int, "image_size": int}
    for key, value in found.object().items():
        if kinds.get(key) is int:
            value.count(_MOST_PARAMETER)
        elif kinds.get(key) is float:
            value.number()
        elif kinds.get(key) is str:
            value.text()
    whole: dict[str, Any] = found.value
    return whole


def _read(path: Path) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Return the arrays and the parameters of a projector file."""
    if not path.is_file():
        what = "a folder, no projector" if path.is_dir() else "no such projector"
        raise InputFileError(f"{path}: {what}; {REFIT}")
    with path.open("rb") as raw:
        head = raw.read(8)
    if head != b"\x89HDF\r\n\x1a\n":
        pickled = head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle")
        what = "a pickle, which is not read (pickles run code)" if pickled else "no projector, but another kind of file"
        raise InputFileError(f"{path} is {what}; {REFIT}")
    try:
        opened = open_hdf5(path, advice=COPY_IN)
    except InputFileError as error:
        raise InputFileError(f"{error}, or {REFIT}") from error
    try:
        with opened as file:
            if file.attrs.get("format") != FORMAT:
                raise InputFileError(f"{path}: an HDF5 file, but no projector; {REFIT}")
            if int(file.attrs["format_version"]) > FORMAT_VERSION:
                raise InputFileError(f"{path}: written by a newer nenya; update nenya to read it")
            arrays = {name: np.asarray(file[name], dtype=np.float32) for name in _DATASETS}
            parameters, digest = str(file.attrs["parameters"]), file.attrs["sha256"]
        values = _checked(parse_json(parameters, "parameters"))
    except (InputFileError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise InputFileError(f"{path}: damaged ({' '.join(str(error).split())[:100]}); {REFIT}") from error
    if _digest(arrays, parameters) != digest:
        raise InputFileError(f"{path}: altered since it was written (sha256); take a copy of it, or {REFIT}")
    return arrays, values
