"""Files of the Hugging Face Hub by name, `hf://owner/name[@revision][/file]`, in the cache that its own library keeps.

A revision is resolved to a commit once, and every file is taken from that commit. Nothing but the files asked for is
fetched, each up to a size, over https, and compared with the hash that the Hub gives. Without a network, or with
HF_HUB_OFFLINE=1, files in the cache are used.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nenya.errors import InputFileError, MissingFileError, NenyaError, OptionError, OutputError, StorageError
from nenya.storage.disk import sha256_file
from nenya.storage.names import why_not_plain
from nenya.storage.texts import first_words, shown
from nenya.storage.web import is_inner, is_own_machine

log = logging.getLogger(__name__)

SCHEME = "hf://"
USUAL_ENDPOINT = "https://huggingface.co"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@([^@/]+))?(?:/(.+))?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OTHERS = ("datasets", "spaces", "kernels", "buckets")
_WANTED = "expected hf://owner/name, hf://owner/name@revision or hf://owner/name@revision/file.safetensors"
_MOST_REQUESTS = 40  # of one file: a server that always breaks off would be asked for ever
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_SAID = 2**20  # bytes of a download that is worth a line
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class HubName:
    """A repository of models, and what of it.

    Attributes:
        repository: `owner/name`.
        revision: branch, tag or commit.
        file: its path in the repository, "" if none is named.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        """Return the address, with the revision if it is not the usual one."""
        revision = "" if self.revision == "main" and not self.file else "@" + self.revision.replace("/", "%2F")
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")


def parse_name(text: str) -> HubName:
    """Return what a `hf://` address names.

    Raises:
        OptionError: It is not the address of a repository of models, or leads out of it.
    """
    rest = text[len(SCHEME) :].removeprefix("models/").removesuffix("/")
    if rest.partition("/")[0] in _OTHERS:
        raise OptionError(f"{shown(text)}: expected a repository of models, got one of {rest.partition('/')[0]}")
    match = _NAME.fullmatch(rest)
    if match is None or any(bad in f"{match[1]}/{match[2]}" for bad in ("--", "..")):
        raise OptionError(f"{shown(text)}: {_WANTED}")
    revision, file = unquote(match[3] or "main"), match[4] or ""
    bad = any(part in ("", ".", "..") for part in revision.split("/"))
    if bad or not _REVISION.fullmatch(revision):
        raise OptionError(f"{shown(text)}: expected a branch, a tag or a commit after @, got {shown(revision)}")
    if file and (why := why_not_plain(file)):
        raise OptionError(f"{shown(text)}: expected the path of a file in the repository, got one {why}")
    return HubName(f"{match[1]}/{match[2]}", revision, file)


class Repository:
    """The files of one commit of a repository.

    Args:
        name: which; its revision is resolved when the first file is requested.

    Raises:
        OptionError: HF_ENDPOINT is not encrypted.
    """

    def __init__(self, name: HubName) -> None:
        self.name = name
        self.endpoint = (os.environ.get("HF_ENDPOINT") or USUAL_ENDPOINT).rstrip("/")
        self.commit = name.revision if _COMMIT.fullmatch(name.revision) else ""
        if not self.endpoint.startswith("https://") and not is_own_machine(self.endpoint):
            raise OptionError(f"HF_ENDPOINT={shown(self.endpoint)}: expected an https:// address")

    def get(self, file: str, most: int) -> Path:
        """Return a file in the cache, downloaded if it is absent.

        Args:
            file: its path in the repository.
            most: largest size in bytes.

        Raises:
            MissingFileError: The repository, the revision or the file does not exist.
            StorageError: The hub cannot be reached or refuses, and the file is not in the cache; or it breaks off.
            InputFileError: The file in the cache is damaged.
        """
        found = self._in_cache(file) if self.commit else None
        if found:
            path = Path(found)
        else:
            with self._said(file), guarded(str(self.name), self.endpoint):
                path = self._download(file, most)
        self.commit = self.commit or _commit_of(path, file)
        if path.stat().st_size > most:
            raise InputFileError(f"{self.name}: {file} has more than {most / 1e6:.0f} MB; check the address")
        _check_hash(path, f"{self.name}: {file}")
        return path

    def find(self, file: str, most: int) -> Path | None:
        """Return a file as `get` does, None if the commit has no such file; call `get` for another one first."""
        if self._in_cache(file) == "":
            return None
        try:
            return self.get(file, most)
        except MissingFileError:
            return None

    def _in_cache(self, file: str, commit: str = "") -> str | None:
        """Return the path of a file of a commit in the cache, "" if the commit has no such file, None if unknown."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name.repository, file, cache_dir=_cache(), revision=commit or self.commit)
        return found if found is None or isinstance(found, str) else ""

    def _download(self, file: str, most: int) -> Path:
        """Fetch a file of the commit; where the hub does not answer, take that of the cache."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        offline, size = (_offline(), None) if _offline() else self._ask(file, most)
        try:
            path = hf_hub_download(
                self.name.repository,
                file,
                revision=self.commit or self.name.revision,
                cache_dir=_cache(),
                endpoint=self.endpoint,
                local_files_only=bool(offline),
                tqdm_class=_counter(most if size is None else size, f"{self.name}: {file}"),
            )
        except LocalEntryNotFoundError as error:
            if not offline:
                raise
            raise StorageError(
                f"{self.name}: {offline}, and {file} of this revision is not in the cache, {_cache()}; try again later"
            ) from error
        if offline:
            log.warning("%s: %s; using the revision in the cache, %s", self.name, offline, _commit_of(Path(path), file))
        return Path(path)

    def _ask(self, file: str, most: int) -> tuple[str, int | None]:
        """Ask for the size of a file; return why the hub does not answer, "" if it does, and the size if it says it."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        url = hf_hub_url(self.name.repository, file, revision=self.commit or self.name.revision, endpoint=self.endpoint)
        try:
            found = get_hf_file_metadata(url, endpoint=self.endpoint)
        except EntryNotFoundError:
            return "", None  # said, and noted in the cache, by the download
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            return f"the hub answers {error.response.status_code}", None
        except Exception as error:
            if not _is_connection(error):
                raise
            return f"the hub cannot be reached ({first_words(error)})", None
        if not found.commit_hash or not found.etag:
            raise StorageError(f"{self.name}: {self.endpoint} does not answer as a hub; check HF_ENDPOINT")
        size = found.size or 0
        if size > most:
            raise InputFileError(f"{self.name}: {file} has {size / 1e6:.0f} MB; check the address")
        if size > _SAID and self._in_cache(file, found.commit_hash) is None:
            log.info("%s: downloading %s, %.1f MB", self.name, file, size / 1e6)
        return "", found.size

    @contextmanager
    def _said(self, file: str) -> Iterator[None]:
        """Say in one line of ours what the hub's library raises."""
        from huggingface_hub import errors

        name, page = self.name, f"{self.endpoint}/{self.name.repository}"
        try:
            yield
        except NenyaError:
            raise
        except errors.GatedRepoError as error:
            raise StorageError(
                f"{name}: its owner asks for consent: accept the terms at {page}, and log in with hf auth login"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise MissingFileError(f"{name}: no revision {name.revision}; check the branch, tag or commit") from error
        except errors.RepositoryNotFoundError as error:
            raise MissingFileError(
                f"{name}: no such repository, or it is private: check the name, or log in with hf auth login"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise StorageError(f"{name}: {file} is not in the cache, and {first_words(error)}") from error
        except errors.EntryNotFoundError as error:
            hint = "check the name" if name.file else f"name a file, {name}@{name.revision}/FILE"
            raise MissingFileError(f"{name}: the repository has no {file}; {hint}") from error
        except errors.HfHubHTTPError as error:
            code = error.response.status_code
            login = "; log in with hf auth login" if code in (401, 403) else "; try again later"
            raise StorageError(f"{name}: the hub answers {code}{login}") from error
        except errors.FileMetadataError as error:
            raise StorageError(
                f"{name}: {self.endpoint} does not answer as a hub ({first_words(error, 80)}); check HF_ENDPOINT"
            ) from error
        except Exception as error:  # of its network library, or of a file that is too short
            if getattr(error, "errno", None) in _NOT_WRITTEN:
                raise OutputError(
                    f"{name}: cannot write the hub's cache {_cache()} ({first_words(error, 80)}): set HF_HUB_CACHE to "
                    "another folder"
                ) from error
            why = "cannot be reached" if _is_connection(error) else "broke off"
            raise StorageError(f"{name}: the hub {why} ({first_words(error, 120)}); try again") from error


def _offline() -> str:
    """Return why the hub is not asked, "" if it may be."""
    named = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n, "").upper() in _YES), "")
    return f"{named} is set" if named else ""


def _cache() -> str:
    """Return the folder of the hub's cache; its library reads the environment only when it is imported."""
    from huggingface_hub import constants

    return os.path.expanduser(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)


def _is_connection(error: Exception) -> bool:
    """Return whether the hub's network library could not connect; its name changes with its versions."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ConnectError", "TimeoutException", "ProxyError", "OfflineModeIsEnabled", "ConnectionError"})


def _commit_of(path: Path, file: str) -> str:
    """Return the commit of a file in the cache, `.../snapshots/<commit>/<file>`."""
    return path.parts[-1 - len(file.split("/"))]


def _check_hash(path: Path, name: str) -> None:
    """Compare a file with its ETag, by which the cache names it: a SHA-256, or git's hash of a small file.

    One that differs is removed from the cache.

    Raises:
        InputFileError: It differs.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":  # a cache without links does not keep it
        return
    if len(blob.name) == 64:
        differs = sha256_file(blob) != blob.name
    elif _COMMIT.fullmatch(blob.name):
        content = blob.read_bytes()
        made = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        differs = made.hexdigest() != blob.name
    else:
        return
    if differs:
        for damaged in (path, blob):
            damaged.unlink(missing_ok=True)
        raise InputFileError(
            f"{name} differs from the hash that the hub gave, and was removed from the cache: run the command again"
        )


def _counter(most: int, name: str) -> Any:
    """Return the class of a silent progress bar that ends a download of more than `most` bytes."""
    import huggingface_hub.utils

    bar: Any = huggingface_hub.utils.tqdm  # type: ignore[attr-defined]

    class Counter(bar):  # type: ignore[misc]
        """Counts bytes."""

        seen = 0

        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            """Count."""
            self.seen += int(n or 0)
            if self.seen > most:
                raise InputFileError(f"{name} has more than the {most:,} announced bytes; try again later")

    return Counter


@contextmanager
def guarded(name: str, endpoint: str) -> Iterator[None]:
    """Keep the hub's library silent; refuse what is not encrypted, endless, or no name of a file in the cache."""
    import huggingface_hub.utils

    asked, home, own = 0, urlsplit(endpoint).netloc, is_own_machine(endpoint)

    def check(request: Any) -> None:
        nonlocal asked
        asked += 1
        url = str(request.url)
        if asked > _MOST_REQUESTS:
            raise StorageError(f"{name}: {urlsplit(url).netloc} breaks off again and again; try again later")
        place = urlsplit(url)
        if place.scheme != "https" and not (own and is_own_machine(url)):
            raise StorageError(f"{name}: redirected to {shown(place.netloc)}, which is not https: refused")
        if place.netloc != home and not own and is_inner(place.hostname):
            raise StorageError(f"{name}: redirected to an inner network, {shown(place.netloc)}: refused")

    def check_answer(response: Any) -> None:
        for key in ("ETag", "X-Linked-Etag", "X-Repo-Commit"):  # the cache takes them as names of files
            value = response.headers.get(key, "").removeprefix("W/").strip('"')
            if value and not _PLAIN.fullmatch(value):
                raise StorageError(f"{name}: {urlsplit(str(response.url)).netloc} sends {key} {shown(value)}: refused")

    client: Any = huggingface_hub.utils.get_session()  # type: ignore[attr-defined]
    logger = logging.getLogger("huggingface_hub")
    hooks, level = client.event_hooks, logger.level
    more: dict[str, Any] = {"request": [*hooks["request"], check], "response": [*hooks["response"], check_answer]}
    client.event_hooks = {**hooks, **more}
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        with contextlib.suppress(Exception):
            client.event_hooks = hooks
