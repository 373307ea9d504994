"""Masked pixels: what the network sees of them.

A cutout file marks masked pixels by NaN, or by a data set `<partition>_mask` (1: masked), whatever their values; with
such a data set a NaN outside it is an error. `preprocess.masked` says what becomes of them:

    nan     the pixels stay as stored, and a cutout with a NaN has no latent
    fill    the smoothest surface through the clear pixels (`nenya.data.fill`)
    mean    the mean of the clear pixels
    mask    filled, with the mask as a second channel

A cutout without a clear pixel has no latent in any of them: it stays NaN. An infinite pixel is damage, not a mask: it
stays too.

Letters: n cutouts read at once, C channels (2 with `mask`, else 1), H rows and W columns of pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import CutoutFile, CutoutReader, nonfinite_rows, plan_blocks, read_blocks
from nenya.data.fill import fill_cutouts
from nenya.data.pixels import Spread
from nenya.errors import InputFileError
from nenya.storage.texts import shown

_ROWS = 1024  # read at once

Images = NDArray[np.float32]
Masks = NDArray[np.bool_]
Measure = Callable[[Images, Masks], Images]


class InputReader:
    """Reads cutouts of one partition as the network sees them; a row does not depend on the block that it is read in.

    Args:
        reader: of the partition.
        masked: `preprocess.masked`; or `holes`: NaN at masked pixels, whatever was stored there.
    """

    def __init__(self, reader: CutoutReader, masked: str = "nan") -> None:
        self.reader, self.masked = reader, masked

    def read(self, start: int, stop: int, spread: Spread = map) -> Images:
        """Read the cutouts start, ..., stop - 1.

        Returns:
            (n, C, H, W) float32.

        Raises:
            InputFileError: The file is damaged within these rows, or a NaN lies outside the mask.
        """
        return network_input(*self._stored(range(start, stop), None, spread), self.masked, spread)

    def read_rows(self, rows: NDArray[np.integer[Any]] | Sequence[int], spread: Spread = map) -> Images:
        """Read single cutouts (n, C, H, W) float32, of strictly increasing row numbers; see `read`."""
        return network_input(*self._stored(range(0), np.asarray(rows, dtype=np.int64), spread), self.masked, spread)

    def measured(
        self, rows: range, picked: NDArray[np.int64] | None, measure: Measure | None, spread: Spread = map
    ) -> tuple[Images, NDArray[np.float32] | None]:
        """Read a range of cutouts, or those picked, and what a function says of them before they are filled.

        Returns:
            (n, C, H, W) float32; and what `measure` returns for them (n, H, W) and their masks, None without one.
        """
        images, mask = self._stored(rows, picked, spread)
        columns = None if measure is None else measure(images[:, 0], mask_of(images, mask))
        return network_input(images, mask, self.masked, spread), columns

    def _stored(
        self, rows: range, picked: NDArray[np.int64] | None, spread: Spread
    ) -> tuple[Images, NDArray[np.bool_] | None]:
        """Return cutouts (n, 1, H, W) as stored, and their masks, None if the file has no such data set."""
        reader = self.reader
        if picked is None:
            images, mask = reader.read(rows.start, rows.stop, spread), reader.read_mask(rows.start, rows.stop, spread)
        else:
            images, mask = reader.read_rows(picked, spread), reader.read_mask_rows(picked, spread)
        if mask is not None:
            numbers = np.arange(rows.start, rows.stop) if picked is None else picked
            _check(self.reader, images[:, 0], mask, numbers)
        return images, mask


def checked_mask(reader: CutoutReader, images: Images, rows: range, spread: Spread = map) -> Masks:
    """Return the masks (n, H, W) of cutouts of a partition that has them.

    Args:
        reader: of the partition.
        images: (n, H, W), as read.
        rows: their row numbers.
        spread: how chunks are processed.

    Raises:
        InputFileError: A pixel outside the mask is not finite, or the mask is damaged.
    """
    mask = reader.read_mask(rows.start, rows.stop, spread)
    assert mask is not None
    _check(reader, images, mask, np.arange(rows.start, rows.stop))
    return mask


def read_clear(file: CutoutFile, partition: str, most: int | None = None) -> Iterator[Images]:
    """Yield the cutouts of a partition in order, (n, 1, H, W) at once, NaN at masked pixels, whatever is stored there.

    Args:
        file: of `nenya.data.cutouts.inspect_cutouts`.
        partition: its name.
        most: rows to stop after.

    Raises:
        InputFileError: The file is damaged, or a NaN lies outside the mask.
    """
    if not file.partitions[partition].has_mask:
        yield from read_blocks(file, partition, most)
        return
    row = 0
    with file.reader(partition) as reader:
        for images in read_blocks(file, partition, most):
            mask = checked_mask(reader, images[:, 0], range(row, row + len(images)))
            row += len(images)
            yield np.where(mask[:, None], np.float32(np.nan), images)


def check_holes(file: CutoutFile, partition: str, images: Images, rows: NDArray[np.int64]) -> None:
    """Check that the pixels of some cutouts that are not finite lie in the mask of their partition, if it has one.

    Args:
        file: of `nenya.data.cutouts.inspect_cutouts`.
        partition: its name.
        images: (N, H, W), all cutouts as stored.
        rows: (n,) row numbers, increasing.

    Raises:
        InputFileError: One does not.
    """
    if file.partitions[partition].has_mask and len(rows):
        with file.reader(partition) as reader:
            mask = reader.read_mask_rows(rows)
            assert mask is not None
            _check(reader, images[rows], mask, rows)


def wholly_masked(file: CutoutFile, partition: str) -> Masks:
    """Mark the cutouts (N,) of a partition with a mask over every pixel; none if it has no data set of masks.

    Args:
        file: of `nenya.data.cutouts.inspect_cutouts`.
        partition: its name.

    Raises:
        InputFileError: The mask is damaged.
    """
    info = file.partitions[partition]
    found = np.zeros(info.rows, bool)
    if info.has_mask:
        with file.reader(partition) as reader:
            for rows in plan_blocks(info.rows, info.block_rows, _ROWS):
                mask = reader.read_mask(rows.start, rows.stop)
                assert mask is not None
                found[rows.start : rows.stop] = mask.all(axis=(1, 2))
    return found


def _check(reader: CutoutReader, images: Images, mask: Masks, rows: NDArray[np.int64]) -> None:
    """Check that all pixels outside the mask are finite."""
    bad = ~np.isfinite(images) & ~mask
    if bad.any():
        first, name = int(bad.any(axis=(1, 2)).argmax()), shown(reader.partition)
        raise InputFileError(
            f"{reader.path}: row {rows[first]} of '{name}' has {int(bad[first].sum())} pixels that are not finite "
            f"outside '{name}_mask'; mask them, or remove the data set so that NaN is the mask"
        )


def masked_shares(file: CutoutFile, partition: str, most: int | None = None) -> NDArray[np.float64]:
    """Return the masked share (n,) of each cutout of a partition, read in blocks.

    Args:
        file: of `nenya.data.cutouts.inspect_cutouts`.
        partition: its name.
        most: rows to stop after.

    Raises:
        InputFileError: The file is damaged, or a NaN lies outside the mask.
    """
    info = file.partitions[partition]
    shares = []
    with file.reader(partition) as reader:
        for rows in plan_blocks(min(info.rows, most or info.rows), info.block_rows, _ROWS):
            images = InputReader(reader, "holes").read(rows.start, rows.stop)
            shares.append(np.isnan(images).mean(axis=(1, 2, 3)))
    return np.concatenate(shares)


def without_latent(images: Images, masked: str) -> Masks:
    """Mark the cutouts (n,) that have no latent: of images (n, H, W) with NaN at masked pixels.

    They hold any NaN with `nan`, or else no clear pixel; or an infinite pixel.
    """
    if masked == "nan":
        return nonfinite_rows(images)
    return np.asarray(np.isinf(images).any(axis=(1, 2)) | np.isnan(images).all(axis=(1, 2)))


def mask_of(images: Images, mask: Masks | None) -> Masks:
    """Return the masked pixels (n, H, W) of images (n, 1, H, W): those of the mask, or NaN without one."""
    return np.isnan(images[:, 0]) if mask is None else mask


def network_input(images: Images, mask: Masks | None, masked: str, spread: Spread = map) -> Images:
    """Return images as the network sees them.

    Args:
        images: (n, 1, H, W); may be changed.
        mask: (n, H, W), True where masked; None: NaN is the mask.
        masked: `preprocess.masked`, or `holes`.
        spread: how cutouts are filled: `map`, or that of `nenya.runtime.process.Threads`.

    Returns:
        (n, C, H, W). A cutout without a clear pixel is NaN in the first channel.
    """
    if masked == "nan":
        if mask is not None:
            images[mask.all(axis=(1, 2))] = np.nan
        return images
    holes = mask_of(images, mask)
    if masked == "holes":
        images[:, 0][holes] = np.nan
        return images
    fill_cutouts(images[:, 0], holes, spread, how="mean" if masked == "mean" else "fill")
    return images if masked != "mask" else np.concatenate([images, holes[:, None].astype(np.float32)], axis=1)
