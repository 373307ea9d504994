"""What latents files say of each row's mask: data sets `<partition>_clear`, `_cosine` and `_cosine_low`, (N,) float32.

They are written where masked cutouts have latents. `clear` is the clear share of the pixels, `cosine` the median of the
cosine with the latent of the clear cutout and `cosine_low` its 5 % quantile, both of a calibration; NaN where they are
unknown.
"""

import logging
from collections.abc import Collection
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

CLEAR_COLUMNS = ("clear", "cosine", "cosine_low")


def column_name(partition: str, name: str) -> str:
    """Return the name of the data set of a column."""
    return f"{partition}_{name}"


def is_column(name: str, names: Collection[str]) -> bool:
    """Return whether a data set holds a column of another one of these names, and no latents."""
    return any(name == column_name(other, column) for other in names for column in CLEAR_COLUMNS)


def columns_in(file: Any, partition: str) -> list[str]:
    """Return the columns that a latents file has of a partition."""
    return [name for name in CLEAR_COLUMNS if isinstance(file.get(column_name(partition, name)), h5py.Dataset)]


def read_column(file: Any, partition: str, name: str, rows: int) -> FloatArray:
    """Read a column of an open latents file, (N,).

    Raises:
        InputFileError: The file does not have it, or it is not one number for each row.
    """
    key = column_name(partition, name)
    dataset = file.get(key)
    where = f"{file.filename}: '{key}'"
    if not isinstance(dataset, h5py.Dataset):
        raise InputFileError(
            f"{where}: no such data set, which nenya extract writes with a calibration; extract again with "
            "calibration= and preprocess.masked=fill, mean or mask, or leave least_cosine out"
        )
    if dataset.shape != (rows,) or dataset.dtype.kind != "f":
        raise InputFileError(f"{where}: expected {rows} floating-point numbers, got shape {dataset.shape}")
    return np.asarray(dataset[:], dtype=np.float32)


def wrong_columns(file: Any, partition: str, rows: int) -> list[str]:
    """Return what is wrong with the columns of a partition of an open latents file; empty if nothing is."""
    found: dict[str, FloatArray] = {}
    for name in columns_in(file, partition):
        try:
            found[name] = read_column(file, partition, name, rows)
        except InputFileError as error:
            return [str(error).removeprefix(f"{file.filename}: ")]
        values, least = found[name], 0.0 if name == "clear" else -1.0
        if (out := (values < least) | (values > 1)).any():
            return [f"{int(out.sum())} rows of '{column_name(partition, name)}' are not from {least:g} to 1"]
    if "clear" in found and np.isnan(found["clear"]).any():
        return [f"'{column_name(partition, 'clear')}' has rows that are NaN"]
    if {"cosine", "cosine_low"} <= found.keys() and (bad := found["cosine_low"] > found["cosine"]).any():
        return [f"{int(bad.sum())} rows of '{column_name(partition, 'cosine_low')}' are above the cosine"]
    return []


def left_out(low: FloatArray, least: float) -> NDArray[np.bool_]:
    """Mark the rows below a least cosine, or of an unknown one, (N,); log how many they are."""
    below = ~(low >= least)
    unknown = int(np.isnan(low).sum())
    log.info(
        "least_cosine=%g: left out %d of %d rows%s",
        *(least, int(below.sum()), len(low)),
        f" ({unknown} of them with an unknown cosine)" if unknown else "",
    )
    return below
