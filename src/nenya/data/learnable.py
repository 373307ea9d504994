"""Checks that a network can learn from the cutouts of files, before a training begins."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import CutoutFile, nonfinite_rows
from nenya.data.masks import InputReader
from nenya.data.row_list import RowList
from nenya.errors import InputFileError, OptionError
from nenya.options.sections import LoaderOptions, Options

log = logging.getLogger(__name__)

MEAN_ROWS = 256
MEAN_LIMIT = 1e-2  # K: far above rounding, far below a visible change of a latent
_LEAST_BATCH = 2
_SAME = 1e-6  # difference of equal cutouts, relative to the largest value


def largest_mean(file: CutoutFile, partition: str, rows: NDArray[np.int64] | None = None, masked: str = "nan") -> float:
    """Return the largest absolute mean of the first cutouts of a partition.

    Args:
        file: the cutout file.
        partition: its name.
        rows: the rows that count, rising; None for all.
        masked: what the network sees of masked pixels, `preprocess.masked`.
    """
    first = next(_blocks(file, partition, rows, masked))
    return float(np.abs(first[~nonfinite_rows(first)].mean(axis=(1, 2, 3))).max(initial=0.0))


def _blocks(
    file: CutoutFile, partition: str, rows: NDArray[np.int64] | None, masked: str
) -> Iterator[NDArray[np.float32]]:
    """Yield the cutouts (n, 1, H, W) of a partition, or of some rows of it, few at once, as the network sees them."""
    with file.reader(partition) as cutouts:
        reader = InputReader(cutouts, masked)
        for start in range(0, len(cutouts) if rows is None else len(rows), MEAN_ROWS):
            stop = min(len(cutouts), start + MEAN_ROWS)
            found = reader.read(start, stop) if rows is None else reader.read_rows(rows[start : start + MEAN_ROWS])
            yield found[:, :1]


def choose_partition(options: Options, files: Sequence[CutoutFile]) -> str:
    """Train on the validation partition where the files have no other; changes the options.

    Returns:
        What to say of the partitions once the training begins; an empty string if there is nothing.

    Raises:
        OptionError: No file has a partition that was named.
    """
    loader = options.loader
    for key, name in (("train_key", loader.train_key), ("valid_key", loader.valid_key)):
        named = name not in (LoaderOptions.train_key, LoaderOptions.valid_key)
        if named and not any(name in file.partitions for file in files):
            have = ", ".join(sorted({partition for file in files for partition in file.partitions}))
            raise OptionError(f"loader.{key}={name}: no such data set in {files[0].path}, which has {have}")
    if not any(loader.train_key in file.partitions for file in files):
        loader.train_key, loader.valid_key = loader.valid_key, loader.train_key
        return f"{files[0].path} has no '{loader.valid_key}': training on '{loader.train_key}', without a validation"
    if loader.train_key == loader.valid_key:
        return f"'{loader.train_key}' is used for training and for validation: the validation has no meaning"
    if not any(loader.valid_key in file.partitions for file in files):
        return (
            f"{files[0].path} has no '{loader.valid_key}': training without a validation (nenya split divides cutouts "
            "by granule, time or place, for rows= of nenya train)"
        )
    return ""


def check_learnable(options: Options, files: Sequence[CutoutFile], chosen: RowList | None = None) -> None:
    """Check that the loss of a training can fall: batches of several cutouts, which differ.

    Args:
        options: of the training.
        files: the cutout files.
        chosen: the rows to train on; None: the training partition.

    Raises:
        OptionError: A batch holds one cutout, or more than there are.
        InputFileError: There is one cutout, or all are equal.
    """
    key, batch = options.loader.train_key, options.loader.batch_size_train
    parts: list[tuple[CutoutFile, str, NDArray[np.int64] | None]]
    if chosen is None:
        parts = [(file, key, None) for file in files if key in file.partitions]
        rows, what = sum(file.partitions[key].rows for file, _, _ in parts), f"in '{key}'"
    else:
        parts = list(chosen.in_parts("train"))
        rows, what = len(chosen.train), "to train on (split = train)"
    place = f"{files[0].path}" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
    if rows < _LEAST_BATCH:
        raise InputFileError(
            f"{place}: expected at least {_LEAST_BATCH} cutouts {what}, got {rows}: each is compared with others"
        )
    if batch < _LEAST_BATCH:
        raise OptionError(
            f"loader.batch_size_train={batch}: expected at least {_LEAST_BATCH}, such as {min(64, rows)}: a cutout is "
            "compared with the others of its batch, and alone its loss is always 0"
        )
    if batch > rows and not options.debug:
        raise OptionError(
            f"loader.batch_size_train={batch}: expected at most {rows}, the number of cutouts {what} of {place}"
        )
    masked = options.preprocess.masked
    usable, equal = _usable(parts, masked)
    if usable < _LEAST_BATCH:
        raise InputFileError(
            f"{place}: expected at least {_LEAST_BATCH} cutouts without missing pixels {what}, got {usable} of "
            f"{rows}: fill them first, such as by nenya prepare, or set preprocess.masked=fill"
        )
    if equal:
        raise InputFileError(
            f"{place}: all cutouts {what} are equal up to their mean, so there is nothing to learn: check how the "
            "file was made"
        )
    if (largest := max(largest_mean(*part, masked) for part in parts)) > MEAN_LIMIT:
        log.warning(
            "%s: cutouts of '%s' have means up to %.3g, so a rotation fills the corners of a view with values far from "
            "the others, and latents of files differ from those of single images: subtract the mean of each cutout, or "
            "set augment.padding=reflection and preprocess.file=demean",
            place, key, largest,
        )  # fmt: skip


def _usable(parts: Sequence[tuple[CutoutFile, str, NDArray[np.int64] | None]], masked: str) -> tuple[int, bool]:
    """Return how many cutouts without non-finite pixels were seen, and whether they are equal apart from their mean."""
    reference, count = None, 0
    for part in parts:
        for block in _blocks(*part, masked):
            rows = block[~nonfinite_rows(block)].astype(np.float64)
            if not len(rows):
                continue
            count += len(rows)
            size = float(np.abs(rows).max())
            rows -= rows.mean(axis=(1, 2, 3), keepdims=True)
            reference = rows[0] if reference is None else reference
            if float(np.abs(rows - reference).max()) > _SAME * size:
                return max(count, _LEAST_BATCH), False
    return count, True
