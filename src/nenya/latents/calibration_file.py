"""A calibration as a file: one HDF5 file of plain numbers, without code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.hdf5_links import COPY_IN
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.latents.calibration import SLOPES, Calibration, Line
from nenya.latents.files import Latents
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.storage.names import parse_json
from nenya.storage.paths import local_path

FORMAT, FORMAT_VERSION = "nenya calibration", 2
SUFFIX = "_calibration.h5"
"""End of the name of a calibration beside its weights: `last.pth` has `last_calibration.h5`."""

AGAIN = "make it again: nenya calibrate data=..._preproc.h5 ckpt=..."

_KNOTS_MOST = 64
_SHAPES = {"centre": 0, "scale": 0, "least": 1, "most": 1}  # numbers beyond one for each shape beside the share
_LINES = ("median", "high")


def save(made: Calibration, path: Path) -> None:
    """Write a calibration.

    Raises:
        OutputError: It cannot be written.
    """
    arrays, about = _arrays(made), json.dumps(dict(made.about))
    try:
        with atomic_path(path) as temporary, write_hdf5(temporary) as file:
            for name, array in arrays.items():
                file[name] = array
            file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, about=about)
            file.attrs["sha256"] = _digest(arrays, about)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def load(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        InputFileError: It is missing, damaged, altered, or another kind of file.
    """
    if not path.is_file():
        what = "expected a calibration, got a folder" if path.is_dir() else "no such calibration"
        raise InputFileError(f"{path}: {what}; {AGAIN}")
    try:
        with open_hdf5(path, advice=COPY_IN) as file:
            refused = _refused(file.attrs.one("format", ""), file.attrs.one("format_version", 0))
            if not refused:
                arrays = {name: np.asarray(file[name]) for name in _names()}
                about, digest = str(file.attrs.one("about")), file.attrs.one("sha256")
    except (InputFileError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        said = " ".join(str(error).removeprefix(f"{path}: ").split())[:100]
        raise InputFileError(f"{path}: expected a calibration ({said}); {AGAIN}") from error
    if refused:
        raise InputFileError(f"{path}: {refused}; {AGAIN}")
    if _digest(arrays, about) != digest:
        raise InputFileError(f"{path}: altered since it was written (sha256); copy it again, or {AGAIN}")
    if wrong := _wrong(arrays):
        raise InputFileError(f"{path}: damaged ({wrong}); {AGAIN}")
    lines = [Line(arrays[f"{name}_at_knots"], arrays[f"{name}_slopes"]) for name in _LINES]
    values = parse_json(about, f"{path}: about", AGAIN)
    values["checkpoint_sha256"].sha256()
    for key in ("masked", "preprocessing", "latent"):
        values[key].text()
    median, high = lines
    shapes = {name: arrays[name] for name in ("knots", *_SHAPES)}
    return Calibration(**shapes, median=median, high=high, directions=arrays["directions"], about=values.value)


def calibrated_directions(place: str | None, latents: Latents) -> NDArray[np.float32] | None:
    """Return the directions (M, D) of the calibration of latents, None without one.

    Raises:
        InputFileError: It cannot be read, or is that of other latents.
    """
    if place is None:
        return None
    made = load(local_path(place))
    weights = latents.provenance.get("checkpoint_sha256")
    if made.about["checkpoint_sha256"] != weights or made.directions.shape[1] != latents.shape[1]:
        raise InputFileError(f"calibration={place} is of other weights than the latents; give theirs, or {AGAIN}")
    return made.directions


def digest_of(made: Calibration) -> str:
    """Return the sha256 of a calibration's numbers, 64 hexadecimal digits; the same for every copy of its file."""
    return _digest(_arrays(made), json.dumps(dict(made.about)))


def _arrays(made: Calibration) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {name: getattr(made, name).astype("<f8") for name in ("knots", *_SHAPES)}
    for name in _LINES:
        line: Line = getattr(made, name)
        arrays |= {f"{name}_at_knots": line.at_knots.astype("<f8"), f"{name}_slopes": line.slopes.astype("<f8")}
    return {**arrays, "directions": made.directions.astype("<f4")}


def _names() -> list[str]:
    return ["knots", *_SHAPES, *(f"{name}_{part}" for name in _LINES for part in ("at_knots", "slopes")), "directions"]


def _refused(name: Any, version: Any) -> str:
    if name != FORMAT:
        return "expected a calibration, got another HDF5 file"
    newer = not isinstance(version, int | np.integer) or int(version) > FORMAT_VERSION
    return "written by a newer nenya; update nenya to read it" if newer else ""


def _digest(arrays: Mapping[str, NDArray[Any]], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + repr(arrays[name].shape).encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _wrong(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return what is wrong with the arrays of a calibration, "" if nothing is."""
    knots = arrays["knots"]
    if knots.ndim != 1 or not 2 <= len(knots) <= _KNOTS_MOST or knots.dtype != np.float64:
        return f"expected 2 to {_KNOTS_MOST} knots, got shape {knots.shape}"
    others = arrays["centre"].size if arrays["centre"].size in SLOPES else max(SLOPES)
    lengths = {name: others + more for name, more in _SHAPES.items()}
    lengths |= {f"{name}_at_knots": len(knots) for name in _LINES}
    lengths |= {f"{name}_slopes": SLOPES[others] for name in _LINES}
    for name, length in lengths.items():
        if arrays[name].shape != (length,) or arrays[name].dtype != np.float64:
            return f"'{name}': expected {length} numbers, got shape {arrays[name].shape}"
    if arrays["directions"].ndim != 2 or arrays["directions"].dtype != np.float32:
        return f"'directions': expected (M, D), got shape {arrays['directions'].shape}"
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        return f"'{bad[0]}' is not finite"
    falling = [name for name in ("knots", *(f"{n}_at_knots" for n in _LINES)) if (np.diff(arrays[name]) < 0).any()]
    if falling:
        return f"'{falling[0]}' does not rise"
    return "'scale' is not above 0" if (arrays["scale"] <= 0).any() else ""
