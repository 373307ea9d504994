"""Files of ocean fields: finding them, and opening them lazily by xarray, with a one-line error if unreadable."""

import glob
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.data.hdf5_links import Links
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError
from nenya.prepare.remote import (
    find_remote,
    identity_of_remote,
    is_icechunk,
    is_remote,
    local_references,
    open_remote,
)
from nenya.prepare.zarr_check import MARKS
from nenya.storage.paths import entries_of, find_paths, local_path
from nenya.storage.small_files import is_regular

if TYPE_CHECKING:
    import xarray

log = logging.getLogger(__name__)

SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5", ".grib", ".grib2", ".grb", ".grb2", ".zarr")
_MADE_HERE = ("_preproc.h5", "_latents.h5", "_latents_debug.h5")
_MOST_GROUPS = 1000
_MOST_FILLED = 64  # values of a coordinate's dimension for each that is stored; the library adds those that are missing
_MOST_MISSING = 2**20  # values that may be missing in any case


def find_fields(data: Any) -> list[Path | str]:
    """Return the files of fields of `data=`, in order, each once.

    Args:
        data: a path, folder or glob, an s3:// address, prefix or glob, an https:// address, or a list of them. A Zarr
            store, which is a folder, counts as one file, whatever its name.

    Returns:
        Local files as paths, all else as addresses.

    Raises:
        OptionError: Nothing is given.
        InputFileError: An entry matches nothing.
        StorageError: An S3 service does not list its objects.
    """
    found: dict[Path | str, None] = {}
    for entry in entries_of(data, "a file of fields, such as data=/path/to/granule.nc, a glob or a list"):
        found.update(dict.fromkeys(find_remote(entry, SUFFIXES) if is_remote(entry) else _find_local(entry)))
    return list(found)


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr store or an Icechunk repository."""
    return path.is_dir() and (any((path / mark).is_file() for mark in MARKS) or is_icechunk(path))


def _find_local(entry: str) -> Sequence[Path]:
    path = local_path(entry)
    if is_zarr(path) or path.is_file():
        return [path]
    if path.is_dir():
        found = _below(path)
        if not found:
            raise InputFileError(f"{entry}: no file of fields ({', '.join(SUFFIXES)}) in this folder; check the path")
        return found
    matches = [Path(match) for match in find_paths(str(path))]
    found = [m for m in matches if (m.is_file() or is_zarr(m)) and not m.name.endswith(_MADE_HERE)]
    if not found:
        what = "no file matches" if glob.has_magic(str(path)) else "no such file"
        raise InputFileError(f"{entry}: {what}; check the path")
    return found


def _below(folder: Path) -> list[Path]:
    """Return files and Zarr stores below a folder, sorted, without looking into the stores."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += [path] if is_zarr(path) else [] if _leads_back(path) else _below(path)
        elif path.name.lower().endswith(SUFFIXES) and not path.name.endswith(_MADE_HERE) and is_regular(path):
            found.append(path)
    return found


def _leads_back(path: Path) -> bool:
    """Return whether a folder is a link to one that it lies in: to follow that never ends."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def identity_of(source: Path | str) -> str:
    """Return a text that changes with a source: its size and time, or the ETag of an object.

    Raises:
        InputFileError: There is no such file or object.
        StorageError: The service does not answer.
    """
    if isinstance(source, Path):
        try:
            marks = (
                [source / mark for mark in MARKS if (source / mark).is_file()] if is_zarr(source) else [source]
            ) or sorted(path for path in (source / "refs").rglob("*") if path.is_file())
            return " ".join(f"{m.stat().st_size} {m.stat().st_mtime_ns}" for m in marks)
        except NenyaError:
            raise
        except OSError as error:
            raise InputFileError(f"{source}: cannot be read ({error.strerror}); check the path") from error
    return identity_of_remote(source)


@contextmanager
def open_fields(
    source: Path | str,
    cache_dir: str | None = None,
    coords: str | None = None,
    *,
    allow_external: bool = False,
    references: Sequence[str] = (),
) -> Iterator["xarray.Dataset"]:
    """Open a file of fields; data are read on demand, except for objects on S3, which are copied first.

    A Zarr store on S3 is read chunk by chunk, without a copy.

    Args:
        source: of `find_fields`.
        cache_dir: folder of the copies; default outputs/cache.
        coords: another file; its variables are added.
        allow_external: whether links in an HDF5 file may lead out of its folder.
        references: addresses that a file of references (kerchunk) may read besides its own folder.

    Raises:
        InputFileError: The file is missing, damaged, of unknown type, or its engine is not installed.
        StorageError: An S3 service does not deliver it.
    """
    links: Links = "any" if allow_external else "folder"
    allowed = tuple(references)
    with _local(source, cache_dir, allowed) as place, warnings.catch_warnings(), ExitStack() as files:
        warnings.simplefilter("ignore")  # xarray warns of small breaches of the conventions
        dataset = _open(_checked(place, str(source), links, files, allowed), str(source))
        files.callback(dataset.close)
        if coords is not None:
            beside = coords if is_remote(coords) else local_path(coords)
            with _local(beside, cache_dir, allowed) as other, ExitStack() as more:
                opened = _open(_checked(other, coords, links, more, allowed), coords)
                with reading(coords):
                    dataset = _add(dataset, opened.load())
        elif not any(len(variable.dims) >= 2 for variable in dataset.data_vars.values()):
            with reading(str(source)):
                dataset = _with_groups(place, dataset, links, files)
        yield dataset


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn errors of a library that reads a file into one line; each engine raises its own types.

    Raises:
        InputFileError: Reading failed.
    """
    try:
        yield
    except (NenyaError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


@contextmanager
def _local(source: Path | str, cache_dir: str | None, references: Sequence[str]) -> Iterator[Any]:
    if isinstance(source, Path):
        yield source
        return
    with open_remote(source, cache_dir, references) as place:
        yield place


def _checked(place: Any, name: str, links: Links, files: ExitStack, references: Sequence[str]) -> Any:
    """Return the object that xarray opens: for HDF5 and Zarr a store that checks the data.

    Raises:
        InputFileError: There is no such file, its type is unknown, or it has forbidden links.
    """
    if not isinstance(place, Path):
        return place
    if not place.exists():
        raise InputFileError(f"{name}: no such file; check the path")
    if not place.is_dir() and not is_regular(place):
        raise InputFileError(f"{name}: this is a pipe or a device; expected an ordinary file of fields: check the path")
    if place.is_file() or is_zarr(place):
        found = local_references(place, name, references, allow_external=links == "any")
        if found is not None:
            return found
    engine = _engine(place, name)
    if engine == "zarr":
        from nenya.prepare.zarr_stores import IcechunkZarr, LocalZarr

        if is_icechunk(place):
            return IcechunkZarr(place)
        return LocalZarr(place, allow_external=links == "any")
    return _hdf5_group(_hdf5(place, links, files)) if engine == "h5netcdf" else place


def _hdf5(place: Path, links: Links, files: ExitStack) -> Any:
    """Open a NetCDF 4 file."""
    import h5netcdf

    opened = files.enter_context(open_hdf5(place, links=links))
    with reading(str(place)):
        return files.enter_context(h5netcdf.File(opened, "r", phony_dims="access", decode_vlen_strings=True))


def _hdf5_group(file: Any, group: str | None = None) -> Any:
    """Return a group of a NetCDF 4 file as a store of xarray.

    Raises:
        InputFileError: A coordinate, which is read at once, would be filled up to a much larger dimension.
    """
    from xarray.backends import H5NetCDFStore

    with reading(file.filename):
        for name, variable in (file if group in (None, "/") else file[group]).variables.items():
            stored, declared = variable._h5ds.shape, variable.shape
            if len(declared) == len(stored) == 1 and declared[0] > max(stored[0] * _MOST_FILLED, _MOST_MISSING):
                raise InputFileError(
                    f"{file.filename}: '{name}' has {stored[0]} values, and its dimension {declared[0]}: damaged; "
                    "fetch the file again"
                )
    return H5NetCDFStore(file, group=group)


def _open(place: Any, name: str) -> "xarray.Dataset":
    import xarray
    from xarray.backends.common import AbstractDataStore

    settings: dict[str, Any] = {"decode_timedelta": False, "chunks": None, "cache": False}
    if isinstance(place, Path):
        settings["engine"] = _engine(place, name)
        if settings["engine"] == "cfgrib":
            settings["backend_kwargs"] = {"indexpath": ""}
    elif not isinstance(place, AbstractDataStore):
        settings["engine"] = "zarr"
    try:
        return xarray.open_dataset(place, **settings)
    except NenyaError as error:  # xarray may have added lines to its message
        raise type(error)(str(error).splitlines()[0]) from error
    except (ValueError, OverflowError) as error:
        if "time" not in str(error):
            raise _unreadable(name, error) from error
    except Exception as error:
        raise _unreadable(name, error) from error
    with reading(name):  # an unreadable time may not be needed, such as HYCOM's "hours since analysis"
        undecoded = xarray.open_dataset(place, decode_times=False, **settings)  # shares its file with the second
        decode = {str(key): _is_time(variable) for key, variable in undecoded.variables.items()}
        return xarray.open_dataset(place, decode_times=decode, **settings)


def _is_time(variable: "xarray.Variable") -> bool:
    """Return whether xarray can decode a variable as times, or leaves it as it is."""
    import xarray

    if " since " not in str(variable.attrs.get("units", "")):
        return True
    try:
        some = variable if variable.ndim == 1 else variable[(slice(0, 1),) * variable.ndim]
        xarray.conventions.decode_cf_variable("", some, decode_timedelta=False).load()
    except Exception:  # of a date or calendar in any of the libraries' types
        return False
    return True


def _engine(path: Path, name: str) -> str:
    if path.is_dir():
        if is_zarr(path):
            return "zarr"
        raise InputFileError(f"{name}: expected a Zarr store, got a folder without {' or '.join(MARKS)}")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise InputFileError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "h5netcdf"
    if start[:4] in (b"CDF\x01", b"CDF\x02"):
        return "scipy"
    wanted = {"netCDF4": start.startswith(b"CDF\x05"), "cfgrib": b"GRIB" in start}
    for package, is_kind in wanted.items():
        if is_kind:
            if importlib.util.find_spec(package) is None:
                raise InputFileError(f"{name}: this type of file needs the package {package}: pip install {package}")
            return "netcdf4" if package == "netCDF4" else package
    what = "an empty file" if not start else "another type"
    raise InputFileError(f"{name}: expected a file of fields in NetCDF, Zarr or GRIB, got {what}; fetch it again")


def _with_groups(path: Any, root: "xarray.Dataset", links: Links, files: ExitStack) -> "xarray.Dataset":
    """Return the variables of all groups in one dataset, for OB.DAAC's files; the file's own attributes are kept."""
    import xarray

    if not isinstance(path, Path) or path.is_dir() or _engine(path, str(path)) != "h5netcdf":
        return root
    file, merged = _hdf5(path, links, files), root
    for name in _groups(file):
        group = xarray.open_dataset(_hdf5_group(file, name), decode_timedelta=False, decode_times=False)
        fresh = group.drop_vars([name for name in group.variables if name in merged.variables])
        sizes = dict(merged.sizes)
        if all(sizes.get(dim, size) == size for dim, size in fresh.sizes.items()):
            merged = merged.merge(fresh, compat="override")
    return merged.assign_attrs(root.attrs)


def _groups(file: Any) -> Iterator[str]:
    """Yield the names of all groups of a NetCDF 4 file, parents first; refuse cycles."""
    left, count = [("/", file)], 0
    while left:
        name, group = left.pop()
        yield name
        left += reversed([(f"{name.rstrip('/')}/{key}", item) for key, item in group.groups.items()])
        count += 1
        if count + len(left) > _MOST_GROUPS:
            raise InputFileError(f"{file.filename}: more than {_MOST_GROUPS} groups, or groups that contain themselves")


def _add(dataset: "xarray.Dataset", extra: "xarray.Dataset") -> "xarray.Dataset":
    """Add the variables missing from a file."""
    new = extra.drop_vars([name for name in extra.variables if name in dataset.variables])
    return dataset.assign({name: new[name] for name in new.data_vars}).assign_coords(
        {name: new[name] for name in new.coords}
    )


def _unreadable(name: str, error: BaseException) -> InputFileError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return InputFileError(f"{name}: cannot be read ({first}); it may be truncated or damaged: fetch it again")
