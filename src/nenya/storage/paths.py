"""Paths: from the `data` option to files, and the names of cutout and latents files."""

import functools
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError, StorageError
from nenya.storage.disk import temporary_folder, temporary_name
from nenya.storage.names import Entry, inside, local_name
from nenya.storage.s3.service import store
from nenya.storage.texts import remember_name

log = logging.getLogger(__name__)

HDF5_SUFFIXES = (".h5", ".hdf5")
DEFAULT_CACHE = "outputs/cache"
COPY_PREFIX = "copy-"
_DERIVED = ("_umap", "_pca")  # ends of the names of files that are computed from latents

Folder = tuple[str, ...]
"""The folders of a path, outermost first."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.I)


def is_s3(text: object) -> bool:
    """Return whether a string or path is an s3:// address."""
    return str(text).startswith("s3://")


def is_address(text: object) -> bool:
    """Return whether a string is an address with a scheme, such as s3://, https:// or hf://."""
    return _ADDRESS.match(str(text)) is not None


@dataclass(frozen=True)
class Source:
    """A file that the user named: on this machine, or an object of S3.

    Attributes:
        text: its path or s3:// address, as in messages.
        path: the local file; None for an object of S3.
    """

    text: str
    path: Path | None = None

    @classmethod
    def of(cls, place: Path | str) -> "Source":
        """Return the source at a local path (`Path`) or an s3:// address (`str`), as `find_sources` returns them."""
        return cls(str(place), place if isinstance(place, Path) else None)


def expand(text: str) -> str:
    """Return a local path with `~` and `$NAMES` of the environment expanded; messages still show the names.

    Raises:
        OptionError: It names an environment variable that is not set, or one with a name that suggests a secret.
    """
    for name in re.findall(r"\$\{?(\w+)", text):
        if _SECRET.search(name):
            raise OptionError(f"{text}: ${name} looks like a secret and is not expanded; give the path")
        value = os.environ.get(name)
        if value:
            remember_name(name, value)
        else:
            raise OptionError(f"{text}: the environment variable {name} is not set; set it to the folder of your data")
    return os.path.expandvars(os.path.expanduser(text))


def local_path(text: str) -> Path:
    """Return the local path that a text names, with `~` and `$NAMES` of the environment expanded.

    Raises:
        OptionError: It is an s3:// address, or names an environment variable that is not set.
    """
    if is_s3(text):
        raise OptionError(f"{text}: expected a local path, got an s3:// address")
    return Path(expand(text))


def entries_of(data: Any, wanted: str) -> list[str]:
    """Return the entries of a `data` option, which is one or a list of them.

    Args:
        data: the option.
        wanted: what is expected, for the message.

    Raises:
        OptionError: No entry is given.
    """
    entries = [data] if isinstance(data, str | Path) else list(data or [])
    if not entries:
        raise OptionError(f"data= is needed: give {wanted}")
    return [str(entry) for entry in entries]


def find_sources(data: Any) -> list[Path | str]:
    """Return the cutout files that `data=` stands for, in order, each once.

    Args:
        data: a path, folder or glob, an s3:// address, prefix or glob, or a list of them. Globs, folders and
            prefixes skip latents files; folders and prefixes include all files below them that end in .h5 or .hdf5.

    Returns:
        Local files as paths, objects as s3:// addresses.

    Raises:
        OptionError: No entry is given.
        InputFileError: A glob or prefix matches nothing.
        StorageError: An S3 service does not list its objects.
    """
    found: dict[Path | str, None] = {}
    for entry in entries_of(data, "a cutout file, such as data=/path/to/cutouts_preproc.h5, a glob or a list"):
        matches = _find_objects(entry) if is_s3(entry) else _find_local(entry)
        found.update(dict.fromkeys(matches))
    return list(found)


def find_latents(data: Any) -> list[Path | str]:
    """Return the latents files that `data=` stands for; like `find_sources`, for latents files.

    Raises:
        OptionError: No entry is given.
        InputFileError: A glob, folder or prefix contains none.
        StorageError: An S3 service does not list its objects.
    """
    found: dict[Path | str, None] = {}
    for entry in entries_of(data, "a latents file, such as data=/path/to/cutouts_preproc_latents.h5"):
        several = glob.has_magic(entry) or entry.endswith("/") or (not is_s3(entry) and local_path(entry).is_dir())
        everything: Sequence[Path | str]
        if not several:
            everything = [entry if is_s3(entry) else local_path(entry)]
        elif is_s3(entry):
            everything = [o.url for o in store().find(entry) if is_latents_name(o.url)]
        else:
            path = local_path(entry)
            places = path.rglob("*") if path.is_dir() else map(Path, find_paths(str(path)))
            everything = sorted(p for p in places if is_latents_name(p.name))
        if not everything:
            raise InputFileError(
                f"{entry}: no latents file found (*_latents.h5, or the original's *_latents_*.h5); check the path"
            )
        found.update(dict.fromkeys(everything))
    return list(found)


def is_several(data: Any) -> bool:
    """Return whether `data=` may stand for several files: a glob, folder, prefix or list."""
    entries = [str(entry) for entry in ([data] if isinstance(data, str | Path) else data or [])]
    return len(entries) > 1 or any(
        glob.has_magic(e) or (not e.endswith(HDF5_SUFFIXES) if is_s3(e) else local_path(e).is_dir()) for e in entries
    )


def find_paths(pattern: str) -> list[str]:
    """Return the paths that match a pattern, sorted; `**` stands for any folders; each is entered once.

    Links to folders are followed, unless they lead to one that was entered before.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    at = parts.index("**")
    found: set[str] = set()
    for start in glob.glob(str(Path(*parts[:at]))):
        for folder in _folders_below(start):
            below = Path(glob.escape(folder), *parts[at + 1 :])
            found.update(find_paths(str(below / "*" if at + 1 == len(parts) else below)))
    return sorted(found)


def _folders_below(start: str) -> Iterator[str]:
    """Yield a folder and all folders below it, each once, without hidden ones."""
    left, seen = [start], set()
    while left:
        folder = left.pop()
        real = os.path.realpath(folder)
        if real in seen or not os.path.isdir(folder):
            continue
        seen.add(real)
        yield folder
        with suppress(OSError), os.scandir(folder) as entries:
            left += [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _find_local(entry: str) -> Sequence[Path]:
    path = local_path(entry)
    if path.is_dir():
        below = sorted(p for p in path.rglob("*") if p.name.endswith(HDF5_SUFFIXES) and p.is_file())
        below = [p for p in below if not is_latents_name(p.name)]
        if not below:
            raise InputFileError(
                f"{entry}: expected a folder with HDF5 files (.h5), found none: name a cutout file, or another folder"
            )
        return below
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    matches = [p for p in find_paths(str(path)) if not is_latents_name(p)]
    if not matches:
        raise InputFileError(f"{entry}: no file matches; check the folder and the pattern")
    return [Path(match) for match in matches]


def _find_objects(url: str) -> Sequence[str]:
    if url.endswith(HDF5_SUFFIXES) and not glob.has_magic(url):
        return [url]  # whether it exists is checked when it is read
    matches = [found.url for found in store().find(url) if not is_latents_name(found.url)]
    if not glob.has_magic(url):
        matches = [match for match in matches if match == url or match.endswith(HDF5_SUFFIXES)]
    if not matches:
        what = "object matches the pattern" if glob.has_magic(url) else "HDF5 file (.h5) is below this prefix"
        raise InputFileError(f"{url}: no {what}; check bucket and prefix")
    return matches


def fetch(sources: Sequence[Path | str], cache_dir: str | None) -> list[Path]:
    """Return local files: paths as they are, S3 objects as copies in the scratch folder, kept for later runs.

    Raises:
        InputFileError: The object does not exist.
        StorageError: An S3 service does not return it.
        OutputError: The scratch folder cannot be written, or is full.
    """
    return [_copy(source, cache_dir) if isinstance(source, str) else source for source in sources]


def _copy(url: str, cache_dir: str | None) -> Path:
    found = store().head(url)
    if found is None:
        raise InputFileError(f"{url}: the object does not exist; check bucket and key")
    version = hashlib.sha256(f"{url} {found.etag} {found.size}".encode()).hexdigest()[:16]
    path = own_place(scratch_folder(cache_dir), f"s3/{version}/{local_name(found.name)}")
    if not path.is_file() or path.stat().st_size != found.size:
        log.info("%s: downloading %.1f MB to %s", url, found.size / 1e6, path)
        store().download(found, path)
    return path


@contextmanager
def temporary_copy(source: Path | str, cache_dir: str | None) -> Iterator[Path]:
    """Yield the local file of a source: itself, or a copy of an S3 object that is removed at the end.

    Errors raised in the block name the source, not the copy.

    Raises:
        InputFileError: The object does not exist.
        StorageError: An S3 service does not return it.
        OutputError: The scratch folder cannot be written, or is full.
    """
    if isinstance(source, Path):
        yield source
        return
    with temporary_folder(COPY_PREFIX, scratch_folder(cache_dir)) as folder:
        found = store().head(source)
        if found is None:
            raise InputFileError(f"{source}: the object does not exist; check bucket and key")
        path = folder / local_name(found.name)
        store().download(found, path)
        try:
            yield path
        except NenyaError as error:
            raise type(error)(str(error).replace(str(path), source)) from error


def fetch_checked(url: str, entry: Entry, path: Path, said_by: str) -> None:
    """Download an object that a manifest names, and check it against the manifest.

    It is downloaded under a temporary name, and renamed when size and hash are correct.

    Args:
        url: s3:// address of the folder that contains it.
        entry: the file.
        path: local path, from `inside`.
        said_by: the manifest, for messages.

    Raises:
        StorageError: The service does not return it, or it differs from the manifest.
        OutputError: It cannot be written.
    """
    part = temporary_name(path.with_name(entry.sha256[:32]))
    try:
        if store().download(f"{url}/{entry.name}", part, size=entry.size) != entry.sha256:
            raise StorageError(
                f"{url}/{entry.name}: its sha256 differs from that in {said_by}; download an undamaged copy"
            )
        os.replace(part, path)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def own_place(folder: Path, name: str) -> Path:
    """Return a path of nenya's own in a scratch folder, after checking that no link leads out of it.

    Raises:
        OutputError: A part of the path is a link.
    """
    try:
        return inside(folder, name)
    except InputFileError as error:
        raise OutputError(str(error)) from error


def scratch_folder(cache_dir: str | None) -> Path:
    """Return the folder of temporary copies, `loader.cache_dir` or `outputs/cache`; created if missing.

    Raises:
        OutputError: It cannot be created.
    """
    folder = local_path(cache_dir or DEFAULT_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); set loader.cache_dir") from error
    return folder


def is_latents_name(name: str) -> bool:
    """Return whether a file is a latents file by its name: `X_latents.h5`, or the original's `X_latents_std.h5`."""
    if not name.lower().endswith(HDF5_SUFFIXES):
        return False
    key = key_of(name)
    return bool(re.search(r"_latents(?![A-Za-z0-9])", key)) and not key.lower().endswith(_DERIVED)


@functools.lru_cache(2**16)
def split_name(text: str) -> tuple[Folder, str]:
    r"""Return the folders and the key of a file name: its last part without .h5 or .hdf5.

    Args:
        text: a name, path or address, with `/` or `\`.
    """
    parts = [part for part in re.split(r"[\\/]+", text.strip()) if part not in ("", ".")]
    name = parts.pop() if parts else ""
    suffix = next((suffix for suffix in HDF5_SUFFIXES if name.lower().endswith(suffix)), "")
    return tuple(parts), name[: len(name) - len(suffix)]


def key_of(text: str) -> str:
    """Return the name by which a file is joined: without folder and without .h5 or .hdf5."""
    return split_name(text)[1]


def base_name(text: str) -> str:
    r"""Return the name of a file without its folder, whether that is written with `/` or `\`."""
    return re.split(r"[\\/]+", text.strip().rstrip("\\/"))[-1]
