"""A partition of a cutout file: its description, taken from the file and checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from nenya.data.chunk_check import filter_names
from nenya.data.cutout_axes import check_cube, matlab_text
from nenya.data.hdf5 import Hdf5File, check_float
from nenya.data.hdf5_links import damage_named
from nenya.data.pixels import ChunkedPixels, FlatPixels, Pixels, VirtualPixels
from nenya.errors import InputFileError
from nenya.storage.texts import shown

_EXPECTED = "expected (N, 1, H, W) or (N, H, W) with H = W"
_NOT_COMPRESSING = {"shuffle", "fletcher32"}
_COMPANIONS = ("labels", "metadata")
_MAX_SIDE = 16384  # pixels
_MAX_CHUNK_CACHE = 512 * 2**20  # bytes; beyond it unaligned reads unpack some chunks twice


@dataclass(frozen=True)
class Partition:
    """One data set of cutouts, as stored in the file.

    Attributes:
        name: Name of the data set: `train`, `valid`.
        shape: As stored: (N, 1, H, W) or (N, H, W).
        dtype: NumPy name of the stored type with its byte order, such as `<f4`.
        chunks: Shape of a chunk, None for contiguous storage.
        filters: Names of HDF5's filters in the order of writing, such as ("shuffle", "gzip").
        offset: First byte of contiguous data in the file, None for any other storage.
        sources: Further files that contain the data, through links, virtual data sets and external storage.
        has_mask: Whether the file has a data set `<name>_mask`, 1 at masked pixels.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    filters: tuple[str, ...]
    offset: int | None
    sources: tuple[str, ...] = ()
    has_mask: bool = field(default=False, repr=False)  # fingerprints contain the repr

    @property
    def rows(self) -> int:
        """Number of cutouts, N."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Rows of pixels, H."""
        return self.shape[-2]

    @property
    def width(self) -> int:
        """Columns of pixels, W."""
        return self.shape[-1]

    @property
    def block_rows(self) -> int:
        """Number of cutouts that one chunk spans; 1 for contiguous storage."""
        return self.chunks[0] if self.chunks else 1

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one unpacked chunk as stored; of all data for contiguous storage."""
        return math.prod(self.chunks or self.shape) * np.dtype(self.dtype).itemsize

    @property
    def compression(self) -> str | None:
        """Name of the compressing filter, None if there is none."""
        return next((name for name in self.filters if name not in _NOT_COMPRESSING), None)

    @property
    def row_bytes(self) -> int:
        """Bytes of one cutout as float32."""
        return 4 * self.height * self.width

    @property
    def nbytes(self) -> int:
        """Bytes of the complete partition as float32."""
        return self.rows * self.row_bytes

    @property
    def mappable(self) -> bool:
        """Whether the data can be memory-mapped directly: contiguous little-endian float32."""
        return self.offset is not None and self.dtype == "<f4"


def describe_partition(file: Hdf5File, name: str, dataset: Any) -> tuple[Partition, Pixels]:
    """Check one data set, and return its description and its pixels."""
    where = f"{file.path}: '{shown(name)}'"
    if not isinstance(dataset, h5py.Dataset):
        raise InputFileError(f"{where} expected a data set of cutouts, got a {type(dataset).__name__.lower()}")
    with damage_named(where):
        _check_shape(where, dataset.shape)
        check_float(dataset, where)
        creation = dataset.id.get_create_plist()
        names = filter_names(creation, where) if creation.get_nfilters() else ()
        pixels = file.pixels(dataset, where)
        check_cube(pixels, dataset.shape, where)
        flat = isinstance(pixels, FlatPixels) and [path for path, *_ in pixels.segments] == [file.path]
        info = Partition(
            name=name,
            shape=tuple(map(int, dataset.shape)),
            dtype=dataset.dtype.str,
            chunks=dataset.chunks,
            filters=names,
            offset=pixels.segments[0][1] if isinstance(pixels, FlatPixels) and flat else None,
            sources=tuple(map(str, file.others())),
        )
        return info, pixels


def find_partitions(file: Hdf5File, partitions: Sequence[str]) -> dict[str, Partition]:
    """Describe the partitions of a file, and check their labels and metadata."""
    found = {}
    for name in partitions:
        dataset = file.find(name)
        if dataset is not None:
            found[name] = find_mask(file, describe_partition(file, name, dataset)[0])[0]
            for suffix in _COMPANIONS:
                check_companion(file, f"{name}_{suffix}")
    return found


def find_mask(file: Hdf5File, info: Partition) -> tuple[Partition, Pixels | None]:
    """Check the mask of a partition, the data set `<name>_mask`.

    Returns:
        The partition, described with its mask, and the mask's pixels; None if it has none.

    Raises:
        InputFileError: It has another shape than the cutouts or another type than uint8 or bool, or is damaged.
    """
    name = f"{info.name}_mask"
    where, dataset = f"{file.path}: '{shown(name)}'", file.find(name)
    if dataset is None:
        return info, None
    if not isinstance(dataset, h5py.Dataset):
        raise InputFileError(f"{where} expected a mask, got a {type(dataset).__name__.lower()}")
    flat, four = (info.rows, info.height, info.width), (info.rows, 1, info.height, info.width)
    if dataset.shape not in (flat, four):
        raise InputFileError(f"{where} expected a mask of shape {flat} or {four}, got {dataset.shape}")
    if dataset.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        raise InputFileError(f"{where} expected a mask of type uint8 or bool (1: masked), got {shown(dataset.dtype)}")
    with damage_named(where):
        pixels = file.pixels(dataset, where)
    _as_bytes(pixels)
    sources = {*info.sources, *map(str, file.others())}
    return replace(info, has_mask=True, sources=tuple(sorted(sources))), pixels


def _as_bytes(pixels: Pixels) -> None:
    """Let the pixels of a mask of either type be read as bytes, so that values other than 0 and 1 are seen."""
    if isinstance(pixels, FlatPixels | ChunkedPixels):
        pixels.kind = np.dtype(np.uint8)
    elif isinstance(pixels, VirtualPixels):
        for *_, source in pixels.parts:
            _as_bytes(source)


def check_companion(file: Hdf5File, name: str) -> Any:
    """Return the labels or metadata of a partition, None if there are none."""
    where, dataset = f"{file.path}: '{shown(name)}'", file.find(name)
    if dataset is None:
        return None
    if not isinstance(dataset, h5py.Dataset):
        raise InputFileError(f"{where} expected a data set, got a {type(dataset).__name__.lower()}")
    file.check_written(dataset, where)
    return dataset


def _check_shape(where: str, shape: tuple[int, ...] | None) -> None:
    """Check that a shape is that of N > 0 square one-channel cutouts."""
    if shape is None or len(shape) not in (3, 4):
        raise InputFileError(f"{where} has the shape {shape}; {_EXPECTED}: reshape the data")
    if cause := matlab_text(shape):
        raise InputFileError(f"{where} has the shape {cause}")
    if len(shape) == 4 and shape[1] != 1:
        if shape[3] in (1, 3):
            raise InputFileError(
                f"{where} has the shape {shape}, channels last; {_EXPECTED}: move the channel to second place"
            )
        raise InputFileError(f"{where} has the shape {shape}, {shape[1]} channels; {_EXPECTED}: keep one channel")
    if shape[-2] != shape[-1]:
        raise InputFileError(
            f"{where} has cutouts of {shape[-2]} x {shape[-1]} pixels; {_EXPECTED}: cut them to squares"
        )
    if 0 in shape:
        raise InputFileError(f"{where} has the shape {shape}: it has no cutouts; create the file again")
    if shape[-1] > _MAX_SIDE:
        raise InputFileError(
            f"{where} has cutouts with a side of {shape[-1]} pixels, expected at most {_MAX_SIDE}; cut them"
        )


def chunk_cache(info: Partition) -> tuple[int, int]:
    """Return size and slots of HDF5's chunk cache for two rows of chunks, so that each chunk is unpacked once."""
    if info.chunks is None:
        return 2**20, 521
    across = math.prod(-(-size // chunk) for size, chunk in zip(info.shape[1:], info.chunks[1:], strict=True))
    size = min(max(2**20, 2 * across * info.chunk_bytes), _MAX_CHUNK_CACHE)
    return size, max(521, 100 * (size // info.chunk_bytes) + 1)
