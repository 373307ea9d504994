"""Cutout files with dimensions in another order: those of MATLAB, for example, have the cutouts last.

Letters: n cutouts, h rows and w columns of pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nenya.data.hdf5 import Hdf5File, check_float
from nenya.data.hdf5_links import damage_named
from nenya.data.pixels import Pixels
from nenya.errors import InputFileError
from nenya.storage.disk import check_room, temporary_folder, write_hdf5
from nenya.storage.texts import shown

ORDERS = ("nhw", "nwh", "hwn", "whn", "hnw", "wnh")
"""Orders of the dimensions of a data set of cutouts."""

_LOOK = 16  # rows of a data set that are looked at
_ROUGHER = 1.5  # times the steps along a dimension from cutout to cutout are larger than those within
_BLOCK = 2**26  # bytes reordered at once


def matlab_text(shape: Sequence[int]) -> str:
    """Return the cause and the remedy if a shape looks like MATLAB's order of dimensions, else an empty text."""
    sides = [size for i, size in enumerate(shape) if not (size == 1 and i == len(shape) - 2 and len(shape) == 4)]
    if len(sides) != 3 or sides[0] != sides[1] or sides[2] == sides[0]:
        return ""
    return (
        f"{tuple(shape)}, which looks like {sides[2]} cutouts in MATLAB's order, the cutouts last: nenya repack "
        "axes=hwn (axes=whn if columns come first) writes them as (N, 1, H, W)"
    )


def check_cube(pixels: Pixels, shape: Sequence[int], where: str) -> None:
    """Check that the cutouts come first in a data set of three equal sides: its shape does not show it.

    Neighbouring pixels of a field are alike, neighbouring cutouts are not.

    Args:
        pixels: of the data set.
        shape: its shape.
        where: file and name, for errors.

    Raises:
        InputFileError: Its pixels look as if the cutouts were along another dimension.
    """
    if len(shape) != 3 or len(set(shape)) != 1 or shape[0] < 2:
        return
    block = np.empty((min(_LOOK, shape[0]), *shape[1:]), np.float32)
    try:
        pixels.read_into(block, 0)
    except (OSError, ValueError, RuntimeError, KeyError, MemoryError):
        return  # a damaged file is reported where it is read
    with np.errstate(all="ignore"):
        steps = [np.abs(np.diff(block.astype(np.float64), axis=axis)) for axis in range(3)]
        rough = [float(step[np.isfinite(step)].mean()) if np.isfinite(step).any() else 0.0 for step in steps]
    last = max(rough[1:])
    if last > _ROUGHER * rough[0]:
        order = "hwn" if rough[2] == last else "hnw"
        raise InputFileError(
            f"{where} has the ambiguous shape {tuple(shape)}; by its pixels the order is {order}, not (N, H, W): "
            f"nenya repack axes={order} (axes=nhw if they are right) writes them as (N, 1, H, W)"
        )


@contextmanager
def reordered(source: Path, folder: Path, axes: str, names: Sequence[str], *, external: bool) -> Iterator[Path]:
    """Yield a copy of a cutout file with its data sets as (N, 1, H, W), in a temporary folder.

    Args:
        source: the file.
        folder: where the temporary folder is made.
        axes: order of the dimensions, one of `ORDERS`; a fourth dimension of length 1 is ignored.
        names: of the data sets of cutouts; missing ones are skipped.
        external: whether links may lead out of the file's folder.

    Raises:
        InputFileError: The file cannot be read, or has no data set of three dimensions.
    """
    check_room(folder, source.stat().st_size, "the reordered file")
    with temporary_folder("reorder-", folder) as place, Hdf5File(source, allow_external=external) as file:
        path = place / source.name
        with write_hdf5(path) as target:
            done = [name for name in names if _reorder(file, target, name, axes)]
            if not done:
                raise InputFileError(f"{source}: expected a data set named {' or '.join(names)}, found none")
            with damage_named(str(source)):
                masks = [f"{name}_mask" for name in done if f"{name}_mask" in file.file]
                done += [name for name in masks if _reorder(file, target, name, axes)]
                target.attrs.update(file.file.attrs)
                for name in sorted(set(file.file) - set(done)):
                    item = file.find(name)
                    file.file.copy(item, target, name=name)
        yield path


def _reorder(file: Hdf5File, target: Any, name: str, axes: str) -> bool:
    """Write a data set as (N, 1, H, W); return whether there is one."""
    dataset, where = file.find(name), f"{file.path}: '{shown(name)}'"
    if dataset is None:
        return False
    kept = [i for i, size in enumerate(dataset.shape or ()) if size != 1 or len(dataset.shape) == 3]
    if len(kept) != 3:
        raise InputFileError(f"{where} has the shape {dataset.shape}; axes={axes} names three dimensions")
    if dataset.dtype.kind not in "ub":  # of a mask
        check_float(dataset, where)
    file.check_written(dataset, where)
    order = [kept[axes.index(letter)] for letter in "nhw"]
    count, height, width = (dataset.shape[i] for i in order)
    step = max(1, _BLOCK // (height * width * dataset.dtype.itemsize))
    made = target.create_dataset(name, (count, 1, height, width), dataset.dtype, chunks=(1, 1, height, width))
    with damage_named(where):
        made.attrs.update(dataset.attrs)
        for start in range(0, count, step):
            cut: list[Any] = [slice(None) if i in kept else 0 for i in range(dataset.ndim)]
            cut[order[0]] = slice(start, min(start + step, count))
            block = dataset[tuple(cut)]
            made[start : start + step, 0] = np.transpose(block, [axes.index(letter) for letter in "nhw"])
    return True
