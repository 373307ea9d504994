"""The file of a projector: arrays and parameters in HDF5, without code, checked when they are read.

Letters in shapes: N training rows, D the length of a latent, L lists, P components.
"""

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
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.storage.names import Json, parse_json

FloatArray = NDArray[np.float32]

FORMAT, FORMAT_VERSION = "nenya projector", 1
REFIT = (
    "fit it again: nenya embed data=..._latents.h5 table=... out=..., or nenya.latents.projector.Projector.fit(latents)"
)
COMPONENTS = "components"
"""Array of the approximate search, which older versions do not know and do not need."""

_DIGEST = "components_sha256"
_DATASETS = ("latents", "embedding", "centroids", "probes", "probe_answers")
_ROUNDING = 1e-3
_MOST_PARAMETER = 2**40


def write_projector(path: Path, arrays: Mapping[str, FloatArray], values: Mapping[str, Any]) -> None:
    """Write a projector file atomically.

    Args:
        path: the file.
        arrays: those of `read_projector`.
        values: the parameters.

    Raises:
        OutputError: It cannot be written.
    """
    known = {name: arrays[name] for name in _DATASETS}
    extra = {name: array for name, array in arrays.items() if name == COMPONENTS}
    parameters = json.dumps({**values, **({_DIGEST: _digest(extra, "")} if extra else {})})
    try:
        with atomic_path(path) as temporary, write_hdf5(temporary) as file:
            for name, array in {**known, **extra}.items():
                file[name] = array.astype("<f4")
            file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, parameters=parameters)
            file.attrs["sha256"] = _digest(known, parameters)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _digest(arrays: Mapping[str, NDArray[Any]], parameters: str) -> str:
    digest = hashlib.sha256(parameters.encode())
    for name in arrays:
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name], dtype="<f4").data)
    return digest.hexdigest()


def _checked(found: Json, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a projector file after checking their types."""
    for key, value in found.object().items():
        kind = str if key == _DIGEST else kinds.get(key)
        if kind is int:
            value.count(_MOST_PARAMETER)
        elif kind is float:
            value.number()
        elif kind is str:
            value.text()
    whole: dict[str, Any] = found.value
    return whole


def _refused(format_name: Any, version: Any) -> str:
    """Return why an HDF5 file is no projector that can be read, "" if it is one."""
    if format_name != FORMAT:
        return f"expected a projector, got another HDF5 file; {REFIT}"
    return "written by a newer nenya; update nenya to read it" if int(version) > FORMAT_VERSION else ""


def read_projector(path: Path, kinds: Mapping[str, Any]) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Return the arrays and the parameters of a projector file.

    Args:
        path: the file.
        kinds: types of the parameters: int, float or str.

    Returns:
        `latents`, `embedding`, `centroids`, `probes`, `probe_answers` and, where the file has them, `components`, as
        float32; the parameters by name.

    Raises:
        InputFileError: It is missing, damaged or not a projector; pickles are never read.
    """
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
                components = np.asarray(file[COMPONENTS], dtype=np.float32) if COMPONENTS in file else None
                parameters, digest = str(file.attrs.one("parameters")), file.attrs.one("sha256")
                values = _checked(parse_json(parameters, "parameters"), kinds)
    except (InputFileError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        said = " ".join(str(error).removeprefix(f"{path}: ").split())[:100]
        raise InputFileError(f"{path}: damaged ({said}); {REFIT}") from error
    if refused:
        raise InputFileError(f"{path}: {refused}")
    extra = {} if components is None else {COMPONENTS: components}
    if _digest(arrays, parameters) != digest or (_digest(extra, "") if extra else None) != values.get(_DIGEST):
        raise InputFileError(f"{path}: altered since it was written (sha256); copy it again, or {REFIT}")
    _check_lists(path, arrays["latents"].shape[-1], arrays["centroids"], components)
    return arrays | extra, values


def _check_lists(path: Path, dim: int, centroids: FloatArray, components: FloatArray | None) -> None:
    """Raise InputFileError unless centroids are (L, D) and components (D, P) with columns of length 1."""
    good = centroids.ndim == 2 and centroids.shape[1] == dim and len(centroids) > 0 and np.isfinite(centroids).all()
    if good and components is not None:
        good = components.ndim == 2 and len(components) == dim and 0 < components.shape[1] <= dim
        good = good and bool((np.abs(np.square(components, dtype=np.float64).sum(axis=0) - 1) < _ROUNDING).all())
    if not good:
        raise InputFileError(f"{path}: its lists for the approximate search are invalid; {REFIT}")
