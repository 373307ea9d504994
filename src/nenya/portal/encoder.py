"""The network for new images in the portal, with the weights that made the latents of the data set."""

import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.options.commands import ExtractOptions
from nenya.options.sections import Options
from nenya.portal.dataset import Dataset
from nenya.portal.upload import Given, Upload

FloatArray = NDArray[np.float32]

_TRIED = 3  # cutouts of the data set to compare
_LEAST_COSINE = (
    0.9  # smallest cosine of recorded and recomputed latents, mean removed; rounding differences are smaller
)


class Encoder:
    """Encodes uploaded images, with the weights that made the latents of the data set.

    Args:
        ckpt: the weights.
        options: of the model.
    """

    def __init__(self, ckpt: str, options: Options) -> None:
        shared = {field.name: getattr(options, field.name) for field in fields(Options)}
        self._ckpt, self._options = ckpt, ExtractOptions(**shared, ckpt=ckpt)
        self._lock = threading.Lock()
        self.masked = options.preprocess.masked != "nan"
        """Whether an image with masked pixels has a latent."""

    def check(self, dataset: Dataset) -> str:
        """Check that the weights made the latents of the data set, by their provenance and by encoding cutouts again.

        Returns:
            A sentence on what could not be checked; empty if everything was.

        Raises:
            OptionError: The weights or the model differ.
            CheckpointError: The weights cannot be used.
        """
        latents = dataset.latents
        if latents is None:
            raise OptionError("ckpt= needs latents=, in which new images are searched")
        known = self._check_weights(dataset)
        rows = np.flatnonzero(dataset.latent_of >= 0)
        rows = rows[:: max(1, len(rows) // 200)][:200]
        found = latents.take(dataset.latent_of[rows])
        finite = np.isfinite(found).all(axis=1)
        mean = found[finite].mean(axis=0)  # else all latents of a collapsed network agree
        rows, found = rows[finite][:_TRIED], found[finite][:_TRIED]
        images = [] if dataset.cutouts is None else dataset.cutouts.of(rows)
        if dataset.cutouts is not None and self.masked:
            holes = dataset.cutouts.masks(rows)
            pairs = zip(images, holes, strict=True)
            images = [i if i is None or m is None else np.where(m, np.float32(np.nan), i) for i, m in pairs]
        tried = [(image, latent) for image, latent in zip(images, found, strict=False) if image is not None]
        for image, latent in tried:
            made = self._latent_of(image)
            cosine = _cosine(made - mean, latent - mean) if made.shape == latent.shape else float("nan")
            if not cosine >= _LEAST_COSINE:
                raise OptionError(
                    f"the weights {self._ckpt} do not reproduce the latents of the archive's cutouts "
                    f"(cosine {cosine:.3f}): give the ckpt= and model= that made them (preprocess.image=none "
                    "if the cutouts were encoded with their mean)"
                )
        if not known and not tried:
            return "the latents files do not record their weights: ckpt= could not be checked against them"
        return ""

    def encode(self, name: str, given: Given, dataset: Dataset, tick: Callable[[float], None]) -> Upload:
        """Return an image with its latent and position; an image of a multiple of the cutouts' size is averaged.

        Args:
            name: of its file.
            given: the image in it.
            dataset: to search.
            tick: is called with the share that is done; what it raises ends the work.

        Raises:
            InputFileError: Its size differs from that of the cutouts, or it has no latent.
            OptionError: The weights were replaced.
            CheckpointError: The weights cannot be used.
        """
        from nenya.analyze_image import resized

        side = dataset.cutouts.side if dataset.cutouts is not None else self._options.model.image_size or 0
        image = np.asarray(resized(given.image, side), np.float32)
        tick(0.1)
        self._check_weights(dataset)
        latent = self._latent_of(image)
        if not np.isfinite(latent).all():
            raise InputFileError(
                "the network gives no finite latent for this image (NaN): its values are not temperatures"
            )
        tick(0.9)
        place = dataset.place_of(latent)
        return Upload(Path(name).name[:120], image, latent, place, len(given.image), given.source)

    def _check_weights(self, dataset: Dataset) -> bool:
        """Compare the weights with those recorded in the latents files; return whether any are recorded."""
        from nenya.models.contrastive import load_model

        assert dataset.latents is not None
        wanted = dataset.latents.provenance.get("checkpoint_sha256", "")
        with self._lock:
            checkpoint, _ = load_model(self._options, self._ckpt)
        if wanted and checkpoint.sha256 != wanted:
            raise OptionError(
                f"the portal's ckpt= has weights of sha256 {checkpoint.sha256[:12]}, expected those of the latents "
                f"({wanted[:12]}), as latents of two networks cannot be compared: restart it with those"
            )
        return bool(wanted)

    def _latent_of(self, image: FloatArray) -> FloatArray:
        from nenya.analyze_image import get_latents

        with self._lock:
            latents, _ = get_latents(image, self._ckpt, self._options, side=0)
        return np.asarray(latents[0], np.float32)


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the cosine of two vectors."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
