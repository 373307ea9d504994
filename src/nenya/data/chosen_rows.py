"""The cutouts of a training: those of a row list, those with tags (as classes), or the partitions."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nenya.data.cutouts import CutoutFile
from nenya.data.learnable import choose_partition
from nenya.data.row_list import IntArray, RowList, read_row_list
from nenya.errors import InputFileError, OptionError
from nenya.options.commands import TrainOptions
from nenya.options.sections import LoaderOptions
from nenya.storage.disk import sha256_file
from nenya.storage.paths import local_path
from nenya.tables.keys import cutout_parts, join
from nenya.tables.tags import combined, given_tags, place_of_tags

log = logging.getLogger(__name__)


def chosen_rows(options: TrainOptions, files: Sequence[CutoutFile]) -> tuple[RowList | None, str]:
    """Return the rows to train and validate on, None for the partitions, and what to say of these.

    Args:
        options: of a training; the sha256 of its list and tags are noted in it.
        files: the cutout files.

    Raises:
        OptionError: Tags are given to a method that takes no classes, or beside other labels.
        InputFileError: A file cannot be read or has changed, or no tagged cutout can be trained on.
    """
    loader = options.loader
    chosen, note, both = None, "", (loader.train_key, loader.valid_key)
    if options.rows:
        chosen = read_row_list(local_path(options.rows), files, both, options.rows_sha256)
        options.rows_sha256 = chosen.sha256
    else:
        note = choose_partition(options, files)
    return (_tagged(options, files, chosen), "") if options.tags else (chosen, note)


def _tagged(options: TrainOptions, files: Sequence[CutoutFile], chosen: RowList | None) -> RowList:
    """Return the tagged ones among the chosen rows, or those of the partitions, with their classes."""
    loader = options.loader
    if options.loss.ssl_method != "SupCon":
        raise OptionError(
            f"tags={options.tags}: {options.loss.ssl_method} learns without classes; use loss.ssl_method=SupCon, or "
            "leave tags out"
        )
    if loader.labels != LoaderOptions().labels:
        raise OptionError(f"tags={options.tags} and loader.labels={loader.labels}: give one of them")
    if options.tags is True:
        raise OptionError("tags=true: training has no table beside which tags are kept; give their file")
    path = place_of_tags(options.tags, None, None)
    assert path is not None
    tags = given_tags(path)
    if not len(tags):
        raise InputFileError(f"tags={path}: expected tagged cutouts, got none")
    found = sha256_file(path)
    if options.tags_sha256 and found != options.tags_sha256:
        raise InputFileError(
            f"{path}: the tags have changed: expected the sha256 {options.tags_sha256[:12]}..., got {found[:12]}...: "
            "give the file with which the run began, or start a new run"
        )
    options.tags_sha256 = found
    if chosen is None:
        chosen = _of_partitions(files, loader)
    parts = cutout_parts(
        [(str(file.path), {name: file.partitions[name].rows}) for file, name in chosen.parts],
        loader.train_key, loader.valid_key,
    )  # fmt: skip
    number = join(tags.keys, parts, "cutout").number
    classes, code, rows = combined(tags, number)
    if lost := int((number < 0).sum()):
        log.warning("tags=%s: %d of %d tags are of cutouts that are not in the data", path, lost, len(number))
    labels = np.full(sum(part.rows for part in parts), -1, np.int64)
    labels[rows] = code
    train, valid = (some[labels[some] >= 0] for some in (chosen.train, chosen.valid))
    _check_train(train, valid, path)
    _say(classes, labels, train, valid, path)
    return replace(chosen, train=train, valid=valid, labels=labels)


def _of_partitions(files: Sequence[CutoutFile], loader: LoaderOptions) -> RowList:
    """Return all rows of the partitions that are trained and validated on."""
    keys = dict.fromkeys((loader.train_key, loader.valid_key))
    parts = [(file, key) for file in files for key in keys if key in file.partitions]
    ends = np.cumsum([0, *(file.partitions[key].rows for file, key in parts)])

    def of(wanted: str) -> IntArray:
        some = [np.arange(ends[n], ends[n + 1]) for n, (_, key) in enumerate(parts) if key == wanted]
        return np.concatenate(some or [np.empty(0, np.int64)]).astype(np.int64)

    return RowList(tuple(parts), of(loader.train_key), of(loader.valid_key), "")


def _check_train(train: IntArray, valid: IntArray, path: object) -> None:
    """Refuse tags if no training cutout has one."""
    if not len(train):
        others = f", but {len(valid)} to validate on" if len(valid) else ""
        raise InputFileError(
            f"tags={path}: no tagged cutout is among those to train on{others}: tag some of the partition that is "
            "trained on, or exchange the two by loader.train_key and loader.valid_key"
        )


def _say(classes: Sequence[str], labels: IntArray, train: IntArray, valid: IntArray, path: object) -> None:
    """Log the classes and their cutouts; a single class teaches nothing."""
    counts = np.bincount(labels[train], minlength=len(classes))
    said = "; ".join(f"{name}: {count}" for name, count in zip(classes, counts.tolist(), strict=True) if count)
    log.info("tags=%s: training on %d tagged cutouts (%s), validating on %d", path, len(train), said, len(valid))
    if (counts > 0).sum() < 2:
        log.warning("tags=%s: all cutouts to train on have the same tag, so there is nothing to learn", path)
    if not len(valid):
        log.warning("tags=%s: no tagged cutout to validate on: training without a validation", path)
