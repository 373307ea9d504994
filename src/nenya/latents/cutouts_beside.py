"""The cutout files of latents, where they lie beside them unchanged."""

from collections.abc import Iterable
from pathlib import Path

from nenya.data.cutouts import inspect_cutouts
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import NenyaError
from nenya.latents.files import Latents, Part
from nenya.storage.disk import sha256_file
from nenya.storage.paths import base_name


def cutouts_beside(latents: Latents, others: Iterable[Path] = ()) -> list[Path]:
    """Return the cutout files that latents were made of, in the order of the latents.

    A file counts if it lies in the folder of its latents, or in one of the others, under the name that the latents
    state, and has the rows, the size and the SHA-256 that they state, and all cutouts are of one size.

    Args:
        latents: of local files.
        others: further folders to look in.

    Returns:
        One file for each latents file; none if one of them is missing, has changed, or is not stated with a SHA-256.
    """
    parts: dict[Path, list[Part]] = {}
    for part in latents.parts:
        parts.setdefault(part.path, []).append(part)
    found: list[Path] = []
    sizes: set[tuple[int, int]] = set()
    for path, own in parts.items():
        try:
            file = _source_of(path, own, latents, [path.parent, *others])
        except (NenyaError, OSError):
            return []
        if file is None:
            return []
        found.append(file[0])
        sizes |= file[1]
    return found if len(sizes) == 1 else []


def _source_of(
    path: Path, parts: list[Part], latents: Latents, folders: Iterable[Path]
) -> tuple[Path, set[tuple[int, int]]] | None:
    """Return the cutout file of a latents file, and the sizes of its cutouts; None if there is none."""
    with open_hdf5(path, links=latents.links) as file:
        size, sha256 = (file.attrs.get(f"source_{name}") for name in ("size", "sha256"))
    if size is None or not isinstance(sha256, str):
        return None
    for folder in folders:
        source = folder / base_name(parts[0].pp_file)
        if not source.is_file() or source.stat().st_size != size:
            continue
        names = [part.partition for part in parts]
        known = inspect_cutouts(source, names, allow_external=latents.links == "any").partitions
        rows = {name: one.rows for name, one in known.items()}
        if rows == {part.partition: part.rows for part in parts} and sha256_file(source) == sha256:
            return source, {(one.height, one.width) for one in known.values()}
    return None
