"""Checks that a network can learn from the cutouts of files, before a training begins."""

import logging
from collections.abc import Sequence

import numpy as np

from nenya.data.cutouts import CutoutFile, nonfinite_rows
from nenya.errors import InputFileError, OptionError
from nenya.options.sections import LoaderOptions, Options

log = logging.getLogger(__name__)

MEAN_ROWS = 256
MEAN_LIMIT = 1e-2  # K: far above rounding, far below a visible change of a latent
_LEAST_BATCH = 2
_SAME = 1e-6  # difference of equal cutouts, relative to the largest value


def largest_mean(file: CutoutFile, partition: str) -> float:
    """Return the largest absolute mean of the first cutouts of a partition."""
    info = file.partitions[partition]
    with file.reader(partition) as reader:
        first = reader.read(0, min(MEAN_ROWS, info.rows))
    return float(np.abs(first[~nonfinite_rows(first)].mean(axis=(1, 2, 3))).max(initial=0.0))


def choose_partition(options: Options, files: Sequence[CutoutFile]) -> None:
    """Train on the validation partition where the files have no other; changes the options.

    Raises:
        OptionError: No file has a partition that was named.
    """
    loader = options.loader
    for key, name in (("train_key", loader.train_key), ("valid_key", loader.valid_key)):
        if name != getattr(LoaderOptions, key) and not any(name in file.partitions for file in files):
            have = ", ".join(sorted({partition for file in files for partition in file.partitions}))
            raise OptionError(f"loader.{key}={name}: no such data set in {files[0].path}, which has {have}")
    if not any(loader.train_key in file.partitions for file in files):
        log.warning(
            "%s has no '%s': training on '%s', without a validation", files[0].path, loader.train_key, loader.valid_key
        )
        loader.train_key, loader.valid_key = loader.valid_key, loader.train_key
    elif loader.train_key == loader.valid_key:
        log.warning("'%s' is both trained and validated on: the validation tells nothing", loader.train_key)


def check_learnable(options: Options, files: Sequence[CutoutFile]) -> None:
    """Check that the loss of a training can fall: batches of several cutouts, which differ.

    Raises:
        OptionError: A batch holds one cutout, or more than there are.
        InputFileError: There is one cutout, or all are equal.
    """
    key, batch = options.loader.train_key, options.loader.batch_size_train
    rows = sum(file.partitions[key].rows for file in files if key in file.partitions)
    place = f"{files[0].path}" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
    if rows < _LEAST_BATCH:
        raise InputFileError(
            f"{place}: expected at least {_LEAST_BATCH} cutouts in '{key}', got {rows}: each is compared with others"
        )
    if batch < _LEAST_BATCH:
        raise OptionError(
            f"loader.batch_size_train={batch}: expected at least {_LEAST_BATCH}, such as {min(64, rows)}: a cutout is "
            "compared with the others of its batch, and alone its loss is always 0"
        )
    if batch > rows and not options.debug:
        raise OptionError(
            f"loader.batch_size_train={batch}: expected at most {rows}, the number of cutouts in '{key}' of {place}"
        )
    usable, equal = _usable(files, key)
    if usable < _LEAST_BATCH:
        raise InputFileError(
            f"{place}: expected at least {_LEAST_BATCH} cutouts without missing pixels in '{key}', got {usable} of "
            f"{rows}: fill them first, such as by nenya prepare"
        )
    if equal:
        raise InputFileError(
            f"{place}: all cutouts in '{key}' are equal up to their mean, so there is nothing to learn: check how the "
            "file was made"
        )
    if (largest := max(largest_mean(file, key) for file in files)) > MEAN_LIMIT:
        log.warning(
            "%s: cutouts of '%s' have means up to %.3g, so a rotation fills the corners of a view with values far from "
            "the others, and latents of files differ from those of single images: subtract the mean of each cutout, or "
            "set augment.padding=reflection and preprocess.file=demean",
            place, key, largest,
        )  # fmt: skip


def _usable(files: Sequence[CutoutFile], key: str) -> tuple[int, bool]:
    """Return how many cutouts without non-finite pixels were seen, and whether they are equal apart from their mean."""
    reference, count = None, 0
    for file in files:
        if key not in file.partitions:
            continue
        with file.reader(key) as reader:
            for start in range(0, len(reader), MEAN_ROWS):
                rows = reader.read(start, min(len(reader), start + MEAN_ROWS))
                rows = rows[~nonfinite_rows(rows)].astype(np.float64)
                if not len(rows):
                    continue
                count += len(rows)
                size = float(np.abs(rows).max())
                rows -= rows.mean(axis=(1, 2, 3), keepdims=True)
                reference = rows[0] if reference is None else reference
                if float(np.abs(rows - reference).max()) > _SAME * size:
                    return max(count, _LEAST_BATCH), False
    return count, True
