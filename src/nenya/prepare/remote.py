"""Fields on S3 and on the web: what is at an address, by its content, and opening it.

A Zarr store is known by its metadata, whatever its name; a file of references (kerchunk) and an OPeNDAP data set by how
they begin.
"""

import functools
import glob
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import InputFileError, NenyaError, OptionError, StorageError
from nenya.prepare.zarr_check import MARKS
from nenya.storage.disk import temporary_folder
from nenya.storage.paths import COPY_PREFIX, is_s3, own_place, scratch_folder, temporary_copy
from nenya.storage.s3.service import join_url, store
from nenya.storage.small_files import read_small
from nenya.storage.web import describe, download_web, is_web, read_web

if TYPE_CHECKING:
    from nenya.prepare.references import ReferenceZarr

FILES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5", ".grib", ".grib2", ".grb", ".grb2")
_MADE_HERE = ("_preproc.h5", "_latents.h5", "_latents_debug.h5")
_DAP = ("/dodsC/", "/opendap/", "/dap/", "/dap2/", "/griddap/")  # parts of the addresses of OPeNDAP servers
_REFERENCES = 2**28  # bytes
_MOST_DDS = 2**24


def is_remote(source: object) -> bool:
    """Return whether a source is an address on S3 or on the web."""
    return is_s3(source) or is_web(source)


@functools.lru_cache(4096)
def kind_of(url: str) -> str:
    """Return what is at an address: `zarr`, `references`, `dap` or `file`.

    Raises:
        StorageError: The service or server does not answer.
    """
    plain = url.rstrip("/")
    if is_web(url) and "?" in url:
        return "file"
    if is_web(url) and any(part in url for part in _DAP) and _is_dap(plain):
        return "dap"
    if url.lower().endswith(FILES):
        return "file"
    if url.lower().endswith(".json"):
        return "references"
    if _mark_of(plain) is not None:
        return "zarr"
    return "dap" if is_web(url) and _is_dap(plain) else "file"


def _mark_of(url: str) -> str | None:
    """Return size and tag of the first metadata file of a Zarr store, None if there is no store.

    A service that does not list its files may deny access to missing ones.

    Raises:
        StorageError: Access to all of them is denied, or the service does not answer.
    """
    denied = None
    for mark in MARKS:
        try:
            if (found := _describe_mark(url, mark)) is not None:
                return found
        except StorageError as error:
            denied = error
    if denied is not None:
        raise denied
    return None


def _describe_mark(url: str, mark: str) -> str | None:
    if is_s3(url):
        there = store().head(join_url(url, mark))
        return None if there is None else f"{there.size} {there.etag}"
    content = read_web(f"{url}/{mark}")
    if content is None or not content.lstrip().startswith(b"{"):
        return None
    found = describe(f"{url}/{mark}")
    return f"{len(content)} {found.tag if found else ''}"


def _is_dap(url: str) -> bool:
    try:
        content = read_web(f"{url}.dds", _MOST_DDS)
    except StorageError:
        return False
    return content is not None and content.lstrip().startswith(b"Dataset")


def is_icechunk(path: Path) -> bool:
    """Return whether a folder is an Icechunk repository."""
    return path.is_dir() and (path / "snapshots").is_dir() and ((path / "refs").is_dir() or (path / "repo").is_file())


def find_remote(url: str, suffixes: Sequence[str]) -> list[str]:
    """Return the sources at an address, below a prefix or of a glob (S3 only), each once.

    Raises:
        InputFileError: There is none.
        StorageError: The service or server does not answer.
    """
    if is_web(url):
        return [url]
    magic = glob.has_magic(url)
    if not magic and (url.lower().endswith(FILES) or kind_of(url) != "file"):
        return [url.rstrip("/")]
    items = [item.url for item in store().find(url)]
    if magic:
        items += [item.url for mark in MARKS for item in store().find(f"{url.rstrip('/')}/{mark}")]
    roots = {item.rpartition("/")[0] for item in items if item.rpartition("/")[2] in MARKS}
    roots = {root for root in roots if not any(parent in roots for parent in _parents(root))}
    files = [i for i in items if not any(parent in roots for parent in _parents(i))]
    wanted = (*suffixes, *((".json",) if magic else ()))
    found = sorted({*roots, *(i for i in files if i.lower().endswith(wanted) and not i.endswith(_MADE_HERE))})
    if not found:
        raise InputFileError(f"{url}: no file of fields ({', '.join(suffixes)}) or Zarr store; check bucket and prefix")
    return found


def _parents(url: str) -> Iterator[str]:
    """Yield the folders above an address, down to its bucket."""
    while (url := url.rpartition("/")[0]).count("/") > 2:
        yield url


def identity_of_remote(url: str) -> str:
    """Return a text that changes with a source: its size, and its ETag or date.

    Raises:
        InputFileError: There is no such source.
        StorageError: The service or server does not answer.
    """
    kind = kind_of(url)
    if kind == "zarr":
        return _mark_of(url.rstrip("/")) or ""
    if is_s3(url):
        there = store().head(url)
        if there is None:
            raise InputFileError(f"{url}: no such object; check bucket and key")
        return f"{there.size} {there.etag}"
    found = describe(f"{url}.dds" if kind == "dap" else url)
    if found is None:
        raise InputFileError(f"{url}: no such file; check the address")
    return f"{found.size or 0} {found.tag}"


@contextmanager
def open_remote(url: str, cache_dir: str | None, references: Sequence[str]) -> Iterator[Any]:
    """Yield what is opened of an address: a Zarr store, an OPeNDAP store, or a local copy, removed at the end.

    Args:
        url: of `find_remote`.
        cache_dir: folder of copies.
        references: addresses that a file of references may read besides its own folder.

    Raises:
        InputFileError: There is no such source, or the package for its kind is missing.
        StorageError: The service or server does not deliver it.
    """
    kind = kind_of(url)
    if kind == "zarr":
        from nenya.prepare.zarr_stores import S3Zarr, WebZarr

        yield S3Zarr(url.rstrip("/")) if is_s3(url) else WebZarr(url.rstrip("/"))
    elif kind == "references":
        from nenya.prepare.references import ReferenceZarr, are_references

        content = store().read_bytes(url, _REFERENCES) if is_s3(url) else read_web(url, _REFERENCES)
        if content is None:
            raise InputFileError(f"{url}: no such file; check the address")
        if not are_references(content[:4096]):
            raise InputFileError(f"{url}: expected references (kerchunk) in JSON, got other content")
        yield ReferenceZarr(url, content, allowed=references)
    elif kind == "dap":
        yield _open_dap(url)
    elif is_s3(url):
        with temporary_copy(url, cache_dir) as path:
            yield path
    else:
        with temporary_folder(COPY_PREFIX, scratch_folder(cache_dir)) as folder:
            path = own_place(folder, url.rpartition("/")[2].partition("?")[0] or "file")
            download_web(url, path)
            try:
                yield path
            except NenyaError as error:  # that names the copy
                raise type(error)(str(error).replace(str(path), url)) from error


def _open_dap(url: str) -> Any:
    """Return xarray's store of an OPeNDAP data set."""
    if importlib.util.find_spec("pydap") is not None:
        from xarray.backends import PydapDataStore

        opener: Any = PydapDataStore
    elif importlib.util.find_spec("netCDF4") is not None:
        from xarray.backends import NetCDF4DataStore

        opener = NetCDF4DataStore
    else:
        raise InputFileError(f"{url}: an OPeNDAP address needs the package pydap or netCDF4: pip install pydap")
    return opener.open(url)


def local_references(path: Path, name: str, allowed: Sequence[str], *, allow_external: bool) -> "ReferenceZarr | None":
    """Return the store of a local file of references, or of a folder of them; None for something else."""
    if path.is_dir():
        return _parquet_references(path, allowed, allow_external=allow_external)
    with path.open("rb") as file:
        start = file.read(4096)
        if not start.lstrip().startswith(b"{"):
            return None
        from nenya.prepare.references import ReferenceZarr, are_references

        if not are_references(start):
            return None
        file.seek(0)
        content = file.read(_REFERENCES + 1)
    place = name if is_remote(name) else str(path)
    return ReferenceZarr(place, content, allowed=allowed, allow_external=allow_external)


def _parquet_references(folder: Path, allowed: Sequence[str], *, allow_external: bool) -> "ReferenceZarr | None":
    """Return the store of a folder of references in Parquet, None for another folder."""
    try:
        values = json.loads(read_small(folder / ".zmetadata", _MOST_DDS))
    except (OSError, ValueError, RecursionError):  # also none, or one that the store itself refuses
        return None
    if not isinstance(values, dict) or type(values.get("record_size")) is not int or values["record_size"] < 1:
        return None
    from nenya.prepare.references import ParquetReferences

    return ParquetReferences(folder, allowed=allowed, allow_external=allow_external)


def check_allowed(places: Sequence[str]) -> None:
    """Refuse addresses of `storage.references` that name no host or bucket.

    Raises:
        OptionError: One of them does.
    """
    for place in places:
        if not place.partition("://")[2].strip("/"):
            raise OptionError(f"storage.references={place}: expected the address of a bucket, host or folder")
