"""What a published folder says of itself, in `published.json` and in the metadata of each of its formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import nenya
from nenya.archive.manifest import MASKED, SECTIONS
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError
from nenya.latents.files import Latents
from nenya.options.publish import FORMATS
from nenya.publish.encoding import DTYPES
from nenya.publish.geoparquet import bounds_of, ends_of
from nenya.publish.rows import Rows
from nenya.storage.names import MOST_BYTES, Entry, Json, entry_of, parse_json, read_json
from nenya.storage.paths import base_name
from nenya.tables.quantities import quantity_of

ABOUT = "published.json"
KIND = "nenya published latents"
FORMAT = 1

_ATTRIBUTES = (
    *("model_version", "checkpoint", "checkpoint_sha256", "calibration_sha256", "latent", "image_size"),
    *("preprocessing", "precision", "nenya_version", "git_commit", "torch_version", "date"),
)
_MOST_TEXT = 4096  # characters of an attribute
_MOST_ROWS = 2**40
_MOST_DIM = 2**16
_HINT = "publish it again, or take an undamaged copy of it"


def model_of(latents: Latents) -> dict[str, Any]:
    """Return what the first latents file says of the network and of what was done to the cutouts.

    Of all options, those of the network and of preprocessing; no paths.
    """
    part = latents.parts[0]
    with open_hdf5(part.path, links=latents.links) as file:
        texts = {name: str(file.attrs.one(name)) for name in _ATTRIBUTES if name in file.attrs}
        options = str(file.attrs.one("options")) if "options" in file.attrs else "{}"
    found: dict[str, Any] = {name: text for name, text in texts.items() if len(text) <= _MOST_TEXT}
    if "checkpoint" in found:
        found["checkpoint"] = base_name(found["checkpoint"])
    given = parse_json(options, f"{part.path}: attribute options").object()
    for section in ("model", "preprocess"):
        own = given[section].object() if section in given else {}
        names = (*(name for name in SECTIONS[section] if name != "file"), MASKED[section][0])
        found[section] = {name: own[name].value for name in names if name in own}
    return found


def describe(rows: Rows, choice: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Return what all formats say of the published rows, as JSON values.

    Args:
        rows: to be published.
        choice: `where`, `geometry` and `partition` as given.
        stored: `dtype`, and what `nenya.publish.encoding.measure` found.
    """
    first, last = ends_of(rows.times)
    return {
        "kind": KIND,
        "format": FORMAT,
        "nenya_version": nenya.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": len(rows),
        "dim": rows.dim,
        "stored": stored,
        "model": model_of(rows.latents),
        "sources": [part.pp_file for part in rows.latents.parts if part.start in _firsts(rows.latents)],
        "left_out": rows.left_out,
        "without_place": rows.without_place,
        "without_time": rows.without_time,
        "bbox": None if rows.shapes is None else bounds_of(rows.shapes),
        "times": None if first is None or last is None else [moment(first), moment(last)],
        **choice,
        "columns": {field.name: _column(field) for field in rows.table.schema},
    }


def _firsts(latents: Latents) -> set[int]:
    """Return the first row of each file."""
    firsts: dict[Path, int] = {}
    for part in latents.parts:
        firsts.setdefault(part.path, part.start)
    return set(firsts.values())


def _column(field: Any) -> dict[str, str]:
    quantity = quantity_of(field.name)
    return {"type": str(field.type), "title": quantity.title, **({"unit": quantity.unit} if quantity.unit else {})}


def moment(time: np.datetime64) -> str:
    """Return a time as RFC 3339 wants it, such as 2012-03-01T12:00:00Z."""
    return f"{np.datetime_as_string(time.astype('datetime64[s]'))}Z"


@dataclass(frozen=True)
class Published:
    """A published folder, as its `published.json` says.

    Attributes:
        folder: the folder.
        formats: those that it has.
        rows: number of rows.
        dim: length of a latent.
        dtype: type of the stored latents.
        partition: what the GeoParquet files are divided by.
        parts: name and number of rows of each GeoParquet file, in order.
        columns: name and Arrow type of each column.
        files: all files in it but this one.
        model: texts on the model.
    """

    folder: Path
    formats: tuple[str, ...]
    rows: int
    dim: int
    dtype: str
    partition: tuple[str, ...]
    parts: Sequence[tuple[str, int]]
    columns: dict[str, str]
    files: Sequence[Entry]
    model: dict[str, str]


def is_published(folder: Path) -> bool:
    """Return whether a folder is one that `nenya publish` wrote, complete or damaged."""
    try:
        return bool(read_json(folder / ABOUT, most=MOST_BYTES)["kind"].value == KIND)
    except (OSError, NenyaError):
        return False


def read_published(folder: Path) -> Published:
    """Read what a published folder says of itself.

    Raises:
        InputFileError: It is none, is damaged, or was written by a newer nenya.
    """
    try:
        found = read_json(folder / ABOUT, _HINT)
    except NenyaError:
        raise
    except OSError as error:
        raise InputFileError(
            f"{folder}: no published latents ({ABOUT}); nenya publish out={folder} writes them"
        ) from error
    if found["kind"].value != KIND:
        found["kind"].refuse(f"'{KIND}'")
    if (number := found["format"].count()) != FORMAT:
        raise InputFileError(f"{folder}: expected published latents of format {FORMAT}, got {number}: update nenya")
    return _checked(folder, found)


def _checked(folder: Path, found: Json) -> Published:
    dtype = found["stored"]["dtype"]
    if dtype.text() not in DTYPES:
        dtype.refuse(f"one of {', '.join(DTYPES)}")
    formats = tuple(item.text() for item in found["formats"].items())
    if unknown := [name for name in formats if name not in FORMATS]:
        found["formats"].refuse(f"formats out of {', '.join(FORMATS)}, not {unknown[0]}")
    return Published(
        folder,
        formats,
        found["rows"].count(_MOST_ROWS),
        found["dim"].count(_MOST_DIM),
        dtype.text(),
        tuple(item.text() for item in found["partition"].items()),
        [(part["name"].name(), part["rows"].count(_MOST_ROWS)) for part in found["parts"].items()],
        {name: column["type"].text() for name, column in found["columns"].object().items()},
        [entry_of(item) for item in found["files"].items()],
        {name: item.text() for name, item in found["model"].object().items() if isinstance(item.value, str)},
    )
