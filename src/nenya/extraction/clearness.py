"""What is written beside each latent where masked cutouts have latents: the clear share, and the known error.

Letters in shapes: n cutouts, C channels, H x W pixels.
"""

import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.mask_shapes import mask_shapes
from nenya.errors import InputFileError, OptionError
from nenya.latents.calibration import Calibration
from nenya.latents.calibration_file import SUFFIX, digest_of, load
from nenya.latents.clear import CLEAR_COLUMNS
from nenya.models.checkpoint import Checkpoint
from nenya.models.contrastive import weights_source
from nenya.options.commands import ExtractOptions
from nenya.options.sections import Options
from nenya.storage.paths import fetch, is_s3, local_path
from nenya.storage.shipped import FOLDER

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Clearness:
    """The columns of masked cutouts.

    Attributes:
        calibration: None: only the clear share is known.
        sha256: of the calibration, "" without one.
    """

    calibration: Calibration | None = None
    sha256: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return CLEAR_COLUMNS if self.calibration is not None else CLEAR_COLUMNS[:1]

    def check_side(self, path: Path, side: int) -> None:
        """Check that the calibration is of cutouts of the size of a file's, as errors depend on it.

        Args:
            path: the file.
            side: of its cutouts in pixels.

        Raises:
            InputFileError: It is of another size.
        """
        made = None if self.calibration is None else self.calibration.about.get("image_size")
        if made not in (None, side):
            raise InputFileError(
                f"{path}: expected cutouts of {made} pixels a side, those of the calibration, got {side}: make another "
                "with nenya calibrate out= and give it with calibration="
            )

    def measure(self, images: NDArray[np.floating], holes: NDArray[np.bool_]) -> FloatArray:
        """Return the columns of cutouts, (n, 1) or (n, 3): of a clear one 1; of one without a latent NaN.

        Args:
            images: (n, H, W); values of masked pixels are ignored.
            holes: (n, H, W), True where masked.
        """
        out = np.full((len(images), len(self.columns)), 1, np.float32)
        out[:, 0] = 1 - holes.mean(axis=(1, 2))
        if self.calibration is None:
            return out
        masked = holes.any(axis=(1, 2))
        lost = holes.all(axis=(1, 2)) | ~(np.isfinite(images) | holes).all(axis=(1, 2))
        out[lost, 1:] = np.nan
        some = np.flatnonzero(masked & ~lost)
        if len(some):
            shapes = mask_shapes(holes[some], images[some])
            out[some, 1:] = np.stack(self.calibration.cosines(shapes), axis=1)
        return out


def clearness_of(options: Options, checkpoint: Checkpoint) -> Clearness | None:
    """Return what is written beside each latent; None where masked cutouts have no latents.

    The calibration is that of `calibration=`, or the one beside the weights.

    Raises:
        OptionError: The calibration given is of other weights or options, or has no effect.
        InputFileError: It cannot be read.
    """
    given = options.calibration if isinstance(options, ExtractOptions) else None
    if options.preprocess.masked == "nan":
        if given:
            raise OptionError(
                f"calibration={given} has no effect with preprocess.masked=nan: set it to fill, mean or mask"
            )
        return None
    if given:
        path = fetch([given], options.loader.cache_dir)[0] if is_s3(given) else local_path(given)
        made = _read(path, _stamp(path))
        if why := differs(made.calibration, options, checkpoint):
            raise OptionError(f"calibration={given} is of {why}: calibrate these weights with the same options")
        return made
    beside = default_place(options, _weights(options))
    if beside is None or not beside.is_file():
        _say_once(
            "no calibration of these weights: latents of masked cutouts, if any, have no estimate of their error "
            "(nenya calibrate makes a calibration)"
        )
        return Clearness()
    made = _read(beside, _stamp(beside))
    if why := differs(made.calibration, options, checkpoint):
        _say_once(f"{beside} is of {why}: latents of masked cutouts, if any, have no estimate of their error")
        return Clearness()
    return made


def columns_of(clearness: Clearness | None) -> tuple[str, ...]:
    """Return the names of the columns that are written, none where masked cutouts have no latents."""
    return () if clearness is None else clearness.columns


def masked_identity(options: Options, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the attributes on masked pixels that determine latents and columns; none where they have no latents."""
    found = clearness_of(options, checkpoint)
    if found is None:
        return {}
    return {"masked": options.preprocess.masked, **({"calibration_sha256": found.sha256} if found.sha256 else {})}


def calibration_words(clearness: Clearness | None) -> dict[str, str]:
    """Return the attribute that says how the calibration was made, as JSON; none without one."""
    made = None if clearness is None else clearness.calibration
    return {} if made is None else {"calibration": json.dumps(dict(made.about))}


def differs(made: Calibration | None, options: Options, checkpoint: Checkpoint) -> str:
    """Return what a calibration was made with, if other than these weights and options; "" if the same."""
    wanted = {"checkpoint_sha256": checkpoint.sha256, **calibrated_options(options)}
    about: Any = {} if made is None else made.about
    for key, value in wanted.items():
        if about.get(key) != value:
            was = about.get(key)
            return "other weights" if key == "checkpoint_sha256" else f"{key} {was} instead of {value}"
    return ""


def calibrated_options(options: Options) -> dict[str, str]:
    """Return the options that a calibration depends on."""
    return {
        "masked": options.preprocess.masked,
        "preprocessing": options.preprocess.file,
        "latent": options.model.latent,
    }


def default_place(options: Options, weights: str) -> Path | None:
    """Return the place of a calibration: beside its weights, or here if they come with nenya; None for those on S3."""
    if is_s3(weights):
        return None
    path = Path(weights)
    name = f"{path.stem}_{options.preprocess.masked}{SUFFIX}"
    return Path(name) if path.parent == FOLDER else path.with_name(name)


def _weights(options: Options) -> str:
    return weights_source(options, getattr(options, "ckpt", None))


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat() if path.is_file() else None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status else ()


@cache
def _read(path: Path, stamp: tuple[int, ...]) -> Clearness:
    """Read a calibration; `stamp` distinguishes a replaced file."""
    made = load(path)
    return Clearness(made, digest_of(made))
