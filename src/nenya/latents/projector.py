"""Two-dimensional UMAPs of latents that survive upgrades, and place each row independently.

A projector is one HDF5 file without code: training latents, their layout, parameters, and probe rows with their
answers. It suffices to place new rows: equal latents get bitwise equal coordinates, whatever other rows are placed.
umap-learn is not needed for that.

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
from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
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

_BLOCK = 4096  # rows placed at a time
_SECONDS_BETWEEN_LINES = 15.0
_FEW_EPOCHS = 30
_MOST_PARAMETER = 2**40
_DATASETS = ("latents", "embedding", "centroids", "probes", "probe_answers")


@dataclass(frozen=True)
class Parameters:
    """Parameters of a layout, and of placing rows in it.

    Attributes:
        a: of the curve 1 / (1 + a d^2b) in the layout.
        b: of the same curve.
        n_neighbors: number of training rows by which a row is placed.
        min_dist: smallest distance of points in the layout.
        spread: scale of the layout.
        metric: `euclidean` or `cosine`.
        n_epochs: passes for placing a row, as in umap-learn for up to 10,000 rows at once; at most 30 for the
            approximate placement, as in umap-learn for more rows.
        learning_rate: of the fit; a row is placed with a quarter of it.
        negative_sample_rate: repulsions for each attraction.
        repulsion_strength: their weight.
        seed: of all random numbers.
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
            raise OptionError(f"metric={self.metric}: expected one of {', '.join(METRICS)}")
        if self.n_neighbors < 2 or self.n_epochs < 1 or self.negative_sample_rate < 0:
            raise OptionError(
                "expected n_neighbors of at least 2, n_epochs of at least 1 and negative_sample_rate of at least 0, "
                f"got {self.n_neighbors}, {self.n_epochs} and {self.negative_sample_rate}"
            )


class Projector:
    """A fitted UMAP.

    Args:
        latents: (N, D) float32, finite: the training rows.
        embedding: (N, 2) float32: their layout.
        parameters: of the layout.
        centroids: (L, D) float32 for the approximate search; computed if None.
        n_lists_searched: number of lists that the approximate search covers.

    Attributes:
        probes: (64, D) float32.
        probe_answers: (64, 2) float32: where this projector placed them when it was made.
        image_size: pixels a side of the cutouts of the latents, 0 if unknown; saved.
        probe_difference: largest difference from `probe_answers` when it was loaded.

    Raises:
        InputFileError: The shapes of the arrays do not match.
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
                f"expected latents of shape (N, D) and a layout of shape (N, 2) with N of at least 2, got "
                f"{self.latents.shape} and {self.embedding.shape}"
            )
        if not (np.isfinite(self.latents).all() and np.isfinite(self.embedding).all()):
            raise InputFileError("training latents and layout must be finite: leave out non-finite rows")
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
        """Coordinates of the probes in this projector: (64, 2) float32."""
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
        """Fit a UMAP with umap-learn, or adopt a given layout.

        Args:
            latents: (N, D); non-finite rows are left out.
            n_neighbors: number of neighbours: few show detail, many the large-scale structure.
            min_dist: smallest distance of points in the layout.
            metric: `euclidean` or `cosine`.
            seed: of all random numbers.
            embedding: (N, 2) layout of these rows, such as cuML's `UMAP.embedding_`, in place of a fit.
            spread: scale of the layout.
            fit_epochs: passes of the fit; default chosen by umap-learn.

        Raises:
            InputFileError: Too few finite rows, or a layout of the wrong shape.
            OptionError: A parameter is out of range.
        """
        rows = np.asarray(latents, dtype=np.float32)
        if rows.ndim != 2:
            raise InputFileError(f"expected latents of shape (N, D), got {rows.shape}")
        keep = np.isfinite(rows).all(axis=1)
        layout = None if embedding is None else np.asarray(embedding, dtype=np.float32)
        if layout is not None:
            if layout.shape != (len(rows), 2):
                raise InputFileError(f"expected a layout of shape ({len(rows)}, 2), got {layout.shape}")
            keep &= np.isfinite(layout).all(axis=1)
        if not keep.all():
            log.warning("leaving %d of %d non-finite rows out of the fit", int((~keep).sum()), len(rows))
        rows = rows[keep]
        if len(rows) < 4:
            raise InputFileError(f"expected at least 4 finite latents for a UMAP, got {len(rows)}")
        parameters = Parameters(*find_curve(min_dist, spread), n_neighbors, min_dist, spread, metric, seed=seed)
        layout = _fit_layout(rows, parameters, fit_epochs) if layout is None else layout[keep]
        lost = ~np.isfinite(layout).all(axis=1)  # UMAP assigns NaN to rows without neighbours
        return cls(rows[~lost], layout[~lost], parameters)

    def transform(self, latents: ArrayLike, *, approximate: bool = False) -> FloatArray:
        """Return the UMAP coordinates of rows, each placed independently.

        Args:
            latents: (n, D), or (D,) for one row.
            approximate: search only the nearest lists of training rows, in fewer passes: faster, not exact, but still
                independent of other rows.

        Returns:
            (n, 2) float32; NaN for non-finite rows.

        Raises:
            InputFileError: The rows have the wrong number of dimensions.
        """
        rows = np.atleast_2d(np.asarray(latents, dtype=np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.latents.shape[1]:
            raise InputFileError(
                f"expected latents of {self.latents.shape[1]} dimensions, as this projector was fitted on, got shape "
                f"{rows.shape}: use the projector of their model"
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
        """Write the projector file atomically.

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
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a projector file, and warn if it no longer places its probes where it did.

        Raises:
            InputFileError: It is missing, damaged or not a projector; pickles are never read.
        """
        arrays, values = _read(Path(path))
        searched = values.pop("n_lists_searched", 16)
        known = {field.name for field in fields(Parameters)}
        try:
            parameters = Parameters(**{key: value for key, value in values.items() if key in known})
        except (TypeError, OptionError) as error:
            raise InputFileError(f"{path}: its parameters are invalid ({error}); {REFIT}") from error
        projector = cls(arrays["latents"], arrays["embedding"], parameters, arrays["centroids"], searched)
        projector.image_size = int(values.get("image_size", 0))
        projector.probes = arrays["probes"]
        came = projector.transform(projector.probes)
        projector.probe_answers = arrays["probe_answers"]
        projector.probe_difference = float(np.abs(came - projector.probe_answers).max())
        if not projector.probe_difference == 0:
            log.warning(
                "%s: this machine places the probe rows up to %.2g layout units from their original positions: "
                "coordinates from this machine and from the one of the fit differ by as much",
                path, projector.probe_difference,
            )  # fmt: skip
        return projector

    def to_umap(self) -> Any:
        """Return a `umap.UMAP` with this layout, for functions of the library; its neighbour graph is recomputed."""
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
        raise OptionError(f"n_neighbors={parameters.n_neighbors}: expected fewer than the {len(rows)} training rows")
    with _FitProgress(len(rows)) as progress:
        kwds = {"disable": False, "file": progress, "bar_format": "{n} of {total}\n", "mininterval": 1.0}
        fitted = _umap(parameters, n_epochs=epochs, tqdm_kwds=kwds).fit(rows)
    layout: FloatArray = np.asarray(fitted.embedding_, dtype=np.float32)
    return layout


class _FitProgress(io.TextIOBase):
    """Logs the progress of a fit; umap-learn's progress bar, which counts the layout's epochs, writes to it.

    Args:
        rows: number of training rows.
    """

    def __init__(self, rows: int) -> None:
        self._start, self._done = time.monotonic(), threading.Event()
        self._stage = "compiling, then finding the nearest neighbours of each row"
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
        """Receive a line of the progress bar."""
        if found := re.search(r"(\d+) of (\d+)", text):
            first = not self._stage.startswith("layout")
            self._stage = f"layout, epoch {found[1]} of {found[2]}"
            if first:
                log.info("found neighbours after %.0f s; layout in %s epochs", self._seconds, found[2])
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
    """Return the parameters of a projector file after checking their types."""
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


def _refused(format_name: Any, version: Any) -> str:
    """Return why an HDF5 file is no projector that can be read, "" if it is one."""
    if format_name != FORMAT:
        return f"expected a projector, got another HDF5 file; {REFIT}"
    return "written by a newer nenya; update nenya to read it" if int(version) > FORMAT_VERSION else ""


def _read(path: Path) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Return the arrays and the parameters of a projector file."""
    if not path.is_file():
        what = "expected a projector file, got a folder" if path.is_dir() else "no such projector"
        raise InputFileError(f"{path}: {what}; {REFIT}")
    with path.open("rb") as raw:
        head = raw.read(8)
    if head != b"\x89HDF\r\n\x1a\n":
        pickled = head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle")
        what = "a pickle, which is not read because it can run code" if pickled else "another kind of file"
        raise InputFileError(f"{path}: expected a projector in HDF5, got {what}; {REFIT}")
    try:
        opened = open_hdf5(path, advice=COPY_IN)
    except InputFileError as error:
        raise InputFileError(f"{error}, or {REFIT}") from error
    try:
        with opened as file:
            if not (refused := _refused(file.attrs.one("format"), file.attrs.one("format_version", 0))):
                arrays = {name: np.asarray(file[name], dtype=np.float32) for name in _DATASETS}
                parameters, digest = str(file.attrs.one("parameters")), file.attrs.one("sha256")
                values = _checked(parse_json(parameters, "parameters"))
    except (InputFileError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        said = " ".join(str(error).removeprefix(f"{path}: ").split())[:100]
        raise InputFileError(f"{path}: damaged ({said}); {REFIT}") from error
    if refused:
        raise InputFileError(f"{path}: {refused}")
    if _digest(arrays, parameters) != digest:
        raise InputFileError(f"{path}: altered since it was written (sha256); copy it again, or {REFIT}")
    return arrays, values
