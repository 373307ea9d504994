"""Two-dimensional UMAPs of latents that survive upgrades, and place each row independently.

A projector is one HDF5 file without code: training latents, their layout, parameters, and probe rows with their
answers. It suffices to place new rows: equal latents get bitwise equal coordinates, whatever other rows are placed.
umap-learn is not needed for that.

Letters in shapes: N training rows, n rows that are placed, D the length of a latent, k neighbours.
"""

import logging
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from nenya.errors import InputFileError, OptionError
from nenya.latents.layout import FloatArray, Parameters, as_metric, find_curve, place_rows, scaled
from nenya.latents.lists import Lists, fit_lists
from nenya.latents.neighbours import Neighbours
from nenya.latents.neighbours_torch import DeviceNeighbours, gpu
from nenya.latents.projector_file import COMPONENTS, REFIT, read_projector, write_projector
from nenya.latents.umap_fit import fit_layout as _fit_layout
from nenya.latents.umap_fit import new_umap
from nenya.runtime.blas import on_all_cores, parts

log = logging.getLogger(__name__)


N_PROBES = 64

_BLOCK = 4096  # rows placed at a time
_FOR_GPU = 4096


class Projector:
    """A fitted UMAP.

    Args:
        latents: (N, D) float32, finite: the training rows.
        embedding: (N, 2) float32: their layout.
        parameters: of the layout.
        centroids: (L, D) float32 for the approximate search; computed if None, with the next two.
        components: (D, P) float32, along which it compares rows; None: along all dimensions.
        n_lists_searched: number of lists that it covers.

    Attributes:
        probes: (64, D) float32.
        probe_answers: (64, 2) float32: where this projector placed them when it was made.
        recall: share of the neighbours that the approximate search found, for a sample of the training rows, when it
            was fitted; None if unknown.
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
        components: FloatArray | None = None,
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
        self.parameters = parameters
        self._neighbours = Neighbours(self._scaled(self.latents))
        self._centroids, self._components, self._n_lists_searched = centroids, components, n_lists_searched
        self._device: DeviceNeighbours | None = None
        self.recall: float | None = None
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

    def transform(self, latents: ArrayLike, *, approximate: bool = False, device: str | None = None) -> FloatArray:
        """Return the UMAP coordinates of rows, each placed independently.

        On a GPU the exact search is the faster one, and serves both ways.

        Args:
            latents: (n, D), or (D,) for one row.
            approximate: search only the nearest lists of training rows: much faster, and the same coordinates, bit for
                bit, wherever the neighbours are found; still independent of other rows.
            device: of torch, for the search of many rows; None: a GPU if there is one. The coordinates are the same.

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
        device = gpu() if device is None and len(rows) >= _FOR_GPU else device
        if approximate and device is None:
            lists = self._lists
            on_all_cores(lambda part: self._place(lists, rows[part], out[part]), parts(len(rows)))
            return out
        whole = self._neighbours if device is None else self._on(device)
        for start in range(0, len(rows), _BLOCK):
            self._place(whole, rows[start : start + _BLOCK], out[start : start + _BLOCK])
        return out

    def _place(self, index: Neighbours | DeviceNeighbours | Lists, rows: FloatArray, out: FloatArray) -> None:
        """Place rows, (n, D), into `out`, (n, 2); those that are not finite stay as they are."""
        finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
        if not len(finite):
            return
        p = self.parameters
        distances, near = index.search(self._scaled(rows[finite]), min(p.n_neighbors, len(self.latents)))
        distances = as_metric(distances, p.metric)
        found = np.empty((len(finite), 2), np.float32)

        def place(part: slice) -> None:
            place_rows(
                distances[part], near[part], self.embedding, (p.a, p.b), p.n_neighbors, p.n_epochs,
                p.learning_rate / 4, p.negative_sample_rate, p.repulsion_strength, p.seed, found[part],
            )  # fmt: skip

        if isinstance(index, Lists):  # on a thread of its own
            place(slice(None))
        else:
            on_all_cores(place, parts(len(finite)))
        out[finite] = found

    def _on(self, device: str) -> DeviceNeighbours:
        if self._device is None or self._device.device != device:
            self._device = DeviceNeighbours(self._neighbours, device)
        return self._device

    def _scaled(self, rows: FloatArray) -> FloatArray:
        return scaled(rows, self.parameters.metric)

    @cached_property
    def _lists(self) -> Lists:
        if self._centroids is None:
            lists, self.recall = fit_lists(self._neighbours, self.parameters.n_neighbors, self.parameters.seed)
            return lists
        return Lists(self._neighbours, self._centroids, self._n_lists_searched, self._components)

    def save(self, path: str | Path) -> None:
        """Write the projector file atomically.

        Raises:
            OutputError: It cannot be written.
        """
        lists = self._lists
        arrays = {
            "latents": self.latents,
            "embedding": self.embedding,
            "centroids": lists.centroids,
            "probes": self.probes,
            "probe_answers": self.probe_answers,
            **({} if lists.components is None else {COMPONENTS: lists.components}),
        }
        values = {**asdict(self.parameters), "n_lists_searched": lists.probes}
        if self.image_size:
            values["image_size"] = self.image_size
        if self.recall is not None:
            values["recall"] = self.recall
        write_projector(Path(path), arrays, values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a projector file, and warn if it no longer places its probes where it did.

        Raises:
            InputFileError: It is missing, damaged or not a projector; pickles are never read.
        """
        known = {field.name: field.type for field in fields(Parameters)}
        kinds = {**known, "n_lists_searched": int, "image_size": int, "recall": float}
        arrays, values = read_projector(Path(path), kinds)
        try:
            parameters = Parameters(**{key: value for key, value in values.items() if key in known})
        except (TypeError, OptionError) as error:
            raise InputFileError(f"{path}: its parameters are invalid ({error}); {REFIT}") from error
        lists = arrays["centroids"], arrays.get(COMPONENTS), int(values.get("n_lists_searched", 16))
        projector = cls(arrays["latents"], arrays["embedding"], parameters, *lists)
        projector.image_size = int(values.get("image_size", 0))
        projector.recall = values.get("recall")
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
        mapper = new_umap(p, n_epochs=0, init=start).fit(self.latents)
        mapper.embedding_, mapper._a, mapper._b = self.embedding.copy(), p.a, p.b
        mapper.n_epochs, mapper.init = None, "spectral"
        return mapper
