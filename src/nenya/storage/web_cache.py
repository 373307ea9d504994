"""Files at https:// addresses that are kept by their SHA-256, and used without a network from then on.

    <folder>/<sha256>/<name>          a file, which appears when it is complete and its hash is that of the folder
    <folder>/addresses/<hash>.json    the hash that an address had last, with the tag that the server gave

The folder is `loader.cache_dir`/weights, or `nenya/weights` in the user's cache ($XDG_CACHE_HOME, ~/.cache).
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from nenya.errors import InputFileError, MissingFileError, NenyaError, OptionError, OutputError, StorageError
from nenya.storage.disk import atomic_path, move_synced, sha256_file, temporary_folder
from nenya.storage.names import is_plain, read_json
from nenya.storage.paths import local_path, own_place
from nenya.storage.texts import shown
from nenya.storage.web import describe, download_web, is_own_machine

log = logging.getLogger(__name__)

_MOST_NOTE = 2**14  # bytes


@dataclass(frozen=True)
class Kept:
    """A file in the cache.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        source: its address, without what may be a secret: the part after `?`.
    """

    path: Path
    sha256: str
    source: str


def plain_address(url: str) -> str:
    """Return an address without its query, in which signatures and tokens stand."""
    return urlunsplit((*urlsplit(url)[:3], "", ""))


def keep(url: str, sha256: str | None, cache_dir: str | None, *, suffixes: tuple[str, ...], most: int) -> Kept:
    """Return the local copy of a file of the web, downloaded if it is not kept.

    Args:
        url: https://, or http:// on this machine.
        sha256: expected; None takes what the server sends, and says its hash.
        cache_dir: `loader.cache_dir`.
        suffixes: endings; a part of the address with one of them names the file.
        most: largest size in bytes.

    Raises:
        OptionError: The address is not encrypted, holds a password, or names no such file.
        MissingFileError: There is no such file.
        InputFileError: The file has another hash.
        StorageError: The server does not answer, or breaks off, and no copy is kept.
        OutputError: The cache cannot be written.
    """
    name, folder = _name_of(url, suffixes), _folder(cache_dir)
    source = plain_address(url)
    try:
        return _kept(url, source, sha256, folder, name, most)
    except NenyaError as error:
        raise type(error)(str(error).replace(url, source)) from error


def _kept(url: str, source: str, sha256: str | None, folder: Path, name: str, most: int) -> Kept:
    """Return the copy in the cache, downloaded if need be."""
    noted = sha256 or _noted(url, folder)
    there = None if noted is None else own_place(folder, f"{noted}/{name}")
    if there is not None and there.is_file() and sha256_file(there) != noted:
        log.warning("%s is damaged: downloading it again", there)
        there.unlink(missing_ok=True)
    if noted is not None and there is not None and there.is_file():
        return Kept(there, noted, source)
    path, found = _download(url, sha256, folder, name, most)
    if sha256 is None:
        log.info("%s: downloaded to %s; sha256=%s pins it", source, path, found)
    return Kept(path, found, source)


def _name_of(url: str, suffixes: tuple[str, ...]) -> str:
    """Return the name of the file at an address."""
    said, place = plain_address(url), urlsplit(url)
    if "@" in place.netloc:
        raise OptionError(f"{place.scheme}://...@{shown(place.hostname)}: addresses with a password are not taken")
    if not place.hostname:
        raise OptionError(f"{shown(said)}: expected https://host/path")
    if place.scheme != "https" and not is_own_machine(url):
        raise OptionError(f"{shown(said)}: expected an https:// address; http:// is taken from this machine only")
    parts = [unquote(part) for part in place.path.split("/")]
    name = next((part for part in reversed(parts) if part.endswith(suffixes)), None)
    if name is None or not is_plain(name, one=True):
        raise OptionError(f"{shown(said)}: expected the address of a file ending in {', '.join(suffixes)}")
    return name


def _folder(cache_dir: str | None) -> Path:
    """Return the folder of the cache, created if missing."""
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = local_path(cache_dir) / "weights" if cache_dir else Path(usual) / "nenya" / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder ({error.strerror}); set loader.cache_dir") from error
    return folder


def _note_of(url: str, folder: Path) -> Path:
    return own_place(folder, f"addresses/{hashlib.sha256(url.encode()).hexdigest()[:32]}.json")


def _noted(url: str, folder: Path) -> str | None:
    """Return the hash that an address had, if its server says that the file is the same, or does not answer."""
    note = _note_of(url, folder)
    if not note.is_file():
        return None
    try:
        found = read_json(note, most=_MOST_NOTE)
        sha256, tag, size = found["sha256"].sha256(), found["tag"].text(), found["size"].count()
    except InputFileError:
        note.unlink(missing_ok=True)
        return None
    try:
        now = describe(url)
    except StorageError as error:
        log.warning("%s; using the copy in %s", str(error).replace(url, plain_address(url)), folder)
        return sha256
    if now is None:
        raise MissingFileError(f"{plain_address(url)}: no such file; check the address")
    return sha256 if tag and (now.tag, now.size) == (tag, size) else None


def _download(url: str, sha256: str | None, folder: Path, name: str, most: int) -> tuple[Path, str]:
    """Fetch a file under a temporary name, check it, and keep it; return its path and its hash."""
    said = describe(url) if sha256 is None else None
    with temporary_folder("fetch-", folder) as temporary:
        part = temporary / name
        download_web(url, part, most)
        found = sha256_file(part)
        if sha256 not in (None, found):
            raise InputFileError(
                f"{plain_address(url)}: expected sha256 {sha256}, got {found}: another file, or another sha256="
            )
        path = own_place(folder, f"{found}/{name}")
        try:
            path.parent.mkdir(exist_ok=True)
            size = part.stat().st_size
            move_synced(part, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if said is not None:
        with atomic_path(_note_of(url, folder)) as note:
            note.write_text(json.dumps({"url": plain_address(url), "sha256": found, "tag": said.tag, "size": size}))
    return path, found
