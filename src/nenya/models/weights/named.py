"""What `ckpt=` and `model.weights` name: a file, a folder of `nenya export`, an object of S3, a repository, an address.

    /path/to/weights.pth                       a local file
    /path/to/folder/                           model.safetensors, config.json and preprocessor.json
    s3://bucket/key                            read where it is needed
    hf://owner/name[@revision][/file]          such a folder, or one file, of the Hugging Face Hub
    https://host/path/weights.safetensors      kept by its sha256
    nenya://ocean                              comes with nenya

What is fetched is data: tensors, and JSON that is checked. Nothing in it is executed or imported.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nenya.errors import CheckpointError, OptionError
from nenya.models.weights.folder import CONFIG, PREPROCESSOR, WEIGHTS, Said, read_said
from nenya.storage.disk import sha256_file
from nenya.storage.hub import SCHEME, USUAL_ENDPOINT, Repository, parse_name
from nenya.storage.paths import expand, is_address, is_s3
from nenya.storage.shipped import shipped_path
from nenya.storage.texts import shown
from nenya.storage.web_cache import keep

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**30
"""Largest file of weights that is downloaded."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
_MOST_JSON = 2**20


@dataclass(frozen=True)
class Named:
    """Weights that were found.

    Attributes:
        text: their name, without what may be a secret.
        place: a local path, which may be missing, or an s3:// address.
        sha256: -> who says it: hashes that the file must have.
        said: what is stated of them beside the file, as flat options.
        origin: attributes for the provenance of latents, none for local files and S3.
    """

    text: str
    place: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def check(self, sha256: str) -> None:
        """Check the hash of the file.

        Raises:
            CheckpointError: It is not the one expected.
        """
        for wanted, said_by in self.sha256.items():
            if sha256 != wanted:
                raise CheckpointError(
                    f"checkpoint {self.text}: expected sha256 {wanted}, as {said_by} says, got {sha256}: the file is "
                    "another one, or was changed"
                )


def find_weights(text: str, sha256: str | None = None, cache_dir: str | None = None) -> Named:
    """Return the weights of a name; those of the Hub and the web are fetched, once in a process.

    Args:
        text: see above.
        sha256: expected of the file; checked now, for S3 by `Named.check` when it is read.
        cache_dir: `loader.cache_dir`, for https://.

    Raises:
        OptionError: It is no such name, or names an environment variable that is not set.
        CheckpointError: The file has another sha256.
        InputFileError: A file beside the weights is damaged or says what cannot be.
        StorageError: A hub or a server does not deliver it.
    """
    pinned = {sha256: "sha256="} if sha256 else {}
    if is_s3(text):
        return Named(text, text, pinned)
    if is_address(text):
        scheme = text.partition(":")[0].lower()
        if scheme not in _FETCHED:
            raise OptionError(
                f"{shown(text)}: expected weights at a path, or at an address with hf://, https://, s3:// or nenya://"
            )
        return _FETCHED[scheme](scheme + text[len(scheme) :], sha256, cache_dir)
    path = Path(expand(text))
    if not path.is_dir():
        if sha256 and path.is_file():
            Named(text, str(path), pinned).check(_hash(path, _stamp(path)))
        return Named(text, str(path), pinned)
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(
            f"checkpoint {text} is a folder without {WEIGHTS}: give a folder of nenya export, or the path of a .pth, "
            ".ckpt or .safetensors file"
        )
    return _of_folder(text, path / WEIGHTS, path / CONFIG, path / PREPROCESSOR, pinned)


def _of_folder(
    text: str, weights: Path, config: Path, preprocessor: Path, pinned: Mapping[str, str], **origin: str
) -> Named:
    """Return weights with what the files beside them say."""
    said: Said = read_said(config, preprocessor)
    named = Named(text, str(weights), {**pinned, said.sha256: config.name}, said.options, origin)
    if pinned:
        named.check(_hash(weights, _stamp(weights)))
    return named


@cache
def _of_hub(text: str, sha256: str | None, cache_dir: str | None) -> Named:
    """Fetch weights of the Hugging Face Hub, and what is stated beside them."""
    name = parse_name(text)
    if name.file and not name.file.endswith(_SUFFIXES):
        raise OptionError(f"{name}: expected a file ending in {', '.join(_SUFFIXES)}, got {shown(name.file)}")
    repository = Repository(name)
    weights = repository.get(name.file or WEIGHTS, MOST_BYTES)
    origin = {"checkpoint_source": str(name), "checkpoint_revision": repository.commit}
    if repository.endpoint != USUAL_ENDPOINT:
        origin["checkpoint_hub"] = repository.endpoint
    log.info("%s: revision %s", name, repository.commit)
    pinned = {sha256: "sha256="} if sha256 else {}
    beside = [None if name.file else repository.find(file, _MOST_JSON) for file in (CONFIG, PREPROCESSOR)]
    if beside[0] is not None and beside[1] is not None:
        return _of_folder(str(name), weights, beside[0], beside[1], pinned, **origin)
    named = Named(str(name), str(weights), pinned, {}, origin)
    if sha256:
        named.check(_hash(weights, _stamp(weights)))
    return named


@cache
def _of_web(text: str, sha256: str | None, cache_dir: str | None) -> Named:
    """Fetch weights of the web."""
    kept = keep(text, sha256, cache_dir, suffixes=_SUFFIXES, most=MOST_BYTES)
    return Named(kept.source, str(kept.path), {kept.sha256: "sha256="}, {}, {"checkpoint_source": kept.source})


def _of_nenya(text: str, sha256: str | None, cache_dir: str | None) -> Named:
    """Return weights that come with nenya."""
    path = shipped_path(text)
    named = Named(text, str(path), {sha256: "sha256="} if sha256 else {})
    if sha256:
        named.check(_hash(path, _stamp(path)))
    return named


_FETCHED: Mapping[str, Callable[[str, str | None, str | None], Named]] = {
    "nenya": _of_nenya,
    SCHEME.partition(":")[0]: _of_hub,
    "https": _of_web,
    "http": _of_web,
}


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@cache
def _hash(path: Path, stamp: tuple[int, ...]) -> str:
    """Return the SHA-256 of a file; `stamp` tells a replaced one."""
    return sha256_file(path)
