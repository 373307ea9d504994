"""Existing latents: whether they are complete, and whether a run would make the same ones."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nenya.data.hdf5 import Hdf5File
from nenya.errors import InputFileError, OutputError
from nenya.storage.disk import sha256_file
from nenya.storage.names import parse_json
from nenya.storage.s3.service import S3Object

METADATA_KEY = "nenya"
"""Key of the S3 user metadata with an object's provenance as JSON."""

_KEPT = (
    *("source", "source_size", "source_sha256", "source_etag", "checkpoint_sha256"),
    *(
        "preprocessing",
        "latent",
        "masked",
        "precision",
        "calibration_sha256",
        "partitions",
        "rows",
        "nenya_version",
        "model_version",
        "date",
    ),
)


class NoProvenance(OutputError):
    """A latents file that does not say how it was made, as those of the first nenya."""


def read_provenance(path: Path, place: str = "", *, allow_external: bool = False) -> dict[str, Any]:
    """Return the provenance of a complete latents file.

    Args:
        path: the file.
        place: the name of the file in errors; default `path`.
        allow_external: whether its links may lead out of its folder.

    Raises:
        NoProvenance: It has none.
        OutputError: The file is not HDF5, its provenance is damaged, or its rows differ from it.
    """
    place = place or str(path)
    advice = "clobber=true overwrites it, out= writes the latents elsewhere"
    try:
        with Hdf5File(path, allow_external=allow_external) as file:
            attributes = file.file.attrs
            found = {name: attributes.one(name) for name in _KEPT if name in attributes}
            rows = parse_json(_text(found.get("rows", "{}")), f"{place}: attribute rows", advice).counts()
            shapes = {name: getattr(file.find(name), "shape", (None,)) for name in rows}
    except InputFileError as error:
        raise OutputError(f"{place} exists but is incomplete ({str(error).partition(': ')[2]}): {advice}") from error
    if not {"rows", "source_sha256", "checkpoint_sha256"} <= set(found):
        raise NoProvenance(f"{place} exists but has no provenance, so nothing shows whether it is complete: {advice}")
    wrong = [name for name, count in rows.items() if shapes[name][:1] != (count,)]
    if wrong:
        raise OutputError(f"{place} exists but is incomplete: expected {rows[wrong[0]]} rows in '{wrong[0]}': {advice}")
    return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}


def _text(value: Any) -> str | bytes:
    """Return a text attribute; empty if the attribute is of another type."""
    return value if isinstance(value, str | bytes) else ""


def object_metadata(path: Path) -> dict[str, str]:
    """Return the S3 user metadata under which a latents file is uploaded."""
    provenance = {**read_provenance(path), "size": path.stat().st_size}
    return {METADATA_KEY: json.dumps(provenance)}


def object_provenance(found: S3Object) -> dict[str, Any] | None:
    """Return the provenance in an object's metadata; None without one, or if the object's size differs from it."""
    try:
        values = parse_json(found.metadata.get(METADATA_KEY, ""), found.url).value
    except InputFileError:
        return None
    whole = isinstance(values, dict) and values.get("size") == found.size
    return values if whole else None


def check_same(place: str, provenance: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Check that existing latents were made with the present weights and options.

    Raises:
        OutputError: They were made with other weights or options.
    """
    usual = {"masked": "nan"}  # written only where it differs
    for key, value in {**usual, **wanted}.items():
        if provenance.get(key, usual.get(key)) != value:
            was, now = str(provenance.get(key, usual.get(key))), value
            if key == "checkpoint_sha256":
                was, now = f"{was[:12]}...", f"{now[:12]}..."
            raise OutputError(
                f"{place} exists, made with {key} {was} instead of {now}: clobber=true overwrites it, "
                "out= writes the latents elsewhere"
            )


def check_source(place: str, provenance: Mapping[str, Any], size: int, sha256: str) -> None:
    """Check that the source has not changed since the latents were made.

    Raises:
        OutputError: It has changed.
    """
    if provenance.get("source_size") != size or provenance.get("source_sha256") != sha256:
        raise OutputError(f"{place} exists, made from a source that has changed since: clobber=true overwrites it")


def check_local_source(place: str, provenance: Mapping[str, Any], source: Path) -> None:
    """Check that a local source has not changed: by its hash, unless the file is older than the latents.

    Raises:
        OutputError: It has changed.
    """
    status = source.stat()
    try:
        made = datetime.datetime.fromisoformat(str(provenance.get("date"))).timestamp()
    except (ValueError, OverflowError):  # without a date the bytes are compared
        made = 0.0
    if max(status.st_mtime, status.st_ctime) < made and status.st_size == provenance.get("source_size"):
        return
    check_source(place, provenance, status.st_size, sha256_file(source))
