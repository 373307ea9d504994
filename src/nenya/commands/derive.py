"""`nenya derive`: cutouts as another sensor would see them, from cutouts; and quantities of cutouts for a table."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.data.cutouts import CutoutFile, fingerprint, inspect_cutouts, partition_names
from nenya.data.hdf5_open import open_hdf5
from nenya.data.masks import checked_mask, read_clear
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.options.derive import DeriveOptions
from nenya.options.files import config_dir, read_group
from nenya.prepare.derive import Columns, Derivation, add_columns, is_centred, measure, new_table
from nenya.prepare.writer import CHUNK_BYTES, both_or_none
from nenya.runtime.process import RowProgress, git_commit
from nenya.runtime.signals import Termination
from nenya.storage.disk import atomic_path, check_output, check_room, remove_half, sha256_file, write_hdf5
from nenya.storage.paths import HDF5_SUFFIXES, find_sources, is_s3, local_path, temporary_copy
from nenya.tables.key_columns import COLUMNS, KEYS, read_keys
from nenya.tables.keys import Joined, cutout_parts, join, part_types

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_COMPANIONS = ("labels", "metadata")
_LEAST_SHARE = 1e-6  # of a masked pixel in a new one
_OWN = ("recipe_sha256", "sources_sha256", "sources", "granules", "failed", "rows", "date", "git_commit")


def run(options: DeriveOptions) -> int:
    """Derive a cutout file and its table from another, or add columns to a table.

    Args:
        options: of `scripts/derive.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be read or written, an option is not possible, or the output exists, made otherwise.
    """
    out, steps = _output(options), _steps(options)
    if out.suffix in TABLE_SUFFIXES:
        if steps or options.demean:
            raise OptionError(f"out={out}: a table holds no cutouts; give a .h5 file for new cutouts")
        if not options.add:
            raise OptionError("add= is required for a table: add=[DT40,slopes]")
    elif not steps and not options.demean:
        raise OptionError("nothing to derive: give crop=, coarsen=, noise=, median=, resize= or demean=true")
    sources = find_sources(options.data)
    if len(sources) > 1:
        raise OptionError(f"data= names {len(sources)} files: give one, as its cutouts keep their rows")
    with temporary_copy(sources[0], options.loader.cache_dir) as path, Termination():
        source = _Source.open(path, sources[0], options)
        source.check(steps, options)
        if out.suffix in TABLE_SUFFIXES:
            check_output(out, options.clobber)
            _write_columns(source, out, options)
        else:
            _derive(source, out, steps, options)
    return 0


def _output(options: DeriveOptions) -> Path:
    """Return the output, a cutout file or a table."""
    wanted = "expected a cutout file (.h5), or a table (.parquet, .csv, .feather) for columns alone"
    if not options.out:
        raise OptionError(f"out= is required: {wanted}")
    if is_s3(options.out):
        raise OptionError(f"out={options.out}: expected a local file, as derive writes no S3 objects: copy it later")
    out = local_path(options.out)
    if out.suffix not in (*HDF5_SUFFIXES, *TABLE_SUFFIXES) or out.is_dir():
        raise OptionError(f"out={options.out}: {wanted}")
    return out


def _steps(options: DeriveOptions) -> Derivation:
    noise = options.noise
    if isinstance(noise, str):
        recipes = sorted(path.stem for path in (config_dir() / "sensor").glob("*.yaml"))
        noises = {name: read_group("sensor", name).get("noise") for name in recipes}
        if not noises.get(noise):
            able = ", ".join(f"{name} ({value:g})" for name, value in noises.items() if value)
            raise OptionError(f"noise={noise}: expected a number, or a recipe with noise: {able}")
        noise = noises[noise]
    median = None if options.median is None else (options.median[0], options.median[1])
    return Derivation(options.crop, options.coarsen, float(noise), median, options.resize, options.seed)


@dataclass
class _Source:
    """A cutout file and its table.

    Attributes:
        file: the file.
        name: what the user calls it.
        place: of the table, None if there is none.
        table: its rows.
        joined: their cutouts.
        side: of the cutouts, pixels.
        keys: number of each cutout for its noise: the UID, else its position.
    """

    file: CutoutFile
    name: Path | str
    place: Path | None
    table: "pd.DataFrame"
    joined: Joined
    side: int
    keys: NDArray[np.int64]

    @staticmethod
    def open(path: Path, name: Path | str, options: DeriveOptions) -> "_Source":
        """Read and join the table.

        Raises:
            InputFileError: The file or the table cannot be read, or they do not belong together.
        """
        import pandas as pd

        train, valid = options.loader.train_key, options.loader.valid_key
        file = inspect_cutouts(path, partition_names(options), allow_external=options.loader.allow_external)
        sides = {info.height for info in file.partitions.values()}
        if len(sides) > 1:
            raise InputFileError(
                f"{name}: its partitions have cutouts of {' and '.join(map(str, sorted(sides)))} pixels"
            )
        rows = {part: info.rows for part, info in file.partitions.items()}
        parts = cutout_parts([(str(name), rows)], train, valid)
        beside = path.with_suffix(".parquet")
        place = local_path(options.table) if options.table else beside if beside.is_file() else None
        if place is None:
            kinds = [max(part_types(part, train, valid)) for part in rows]
            index = np.concatenate([np.arange(count) for count in rows.values()])
            keys = {"pp_type": np.repeat(kinds, list(rows.values())), "pp_idx": index}
            table = pd.DataFrame({"pp_file": Path(str(name)).name, **keys})
            log.info("%s: no table given or found beside it: the new one has only keys and quantities", name)
        else:
            table = read_table(place)
        try:
            joined = join(read_keys(table), parts, "cutout")
        except InputFileError as error:
            raise InputFileError(f"{place or name}: {error}") from error
        return _Source(file, name, place, table, joined, sides.pop(), _noise_keys(table, joined, sum(rows.values())))

    def check(self, steps: Derivation, options: DeriveOptions) -> None:
        """Try the steps and quantities on one cutout, before the long work."""
        side = steps.side(self.side)
        measure(np.ones((1, side, side), np.float32), tuple(options.add), (options.band[0], options.band[1]))
        if self.joined.note:
            log.warning("%s: %s", self.place, self.joined.note)

    def blocks(self) -> Iterator[tuple[str, slice, NDArray[np.float32]]]:
        """Yield partition, place among all cutouts, and cutouts (n, h, w)."""
        start = 0
        for name in self.file.partitions:
            for block in read_clear(self.file, name):
                yield name, slice(start, start + len(block)), block[:, 0]
                start += len(block)

    @property
    def rows(self) -> int:
        """Number of cutouts."""
        return sum(info.rows for info in self.file.partitions.values())


def _noise_keys(table: "pd.DataFrame", joined: Joined, total: int) -> NDArray[np.int64]:
    """Return a number for each cutout: its UID where the table has one, else its position in the file."""
    keys = np.arange(total, dtype=np.int64)
    if "UID" in table and table["UID"].dtype.kind in "iu":
        known = joined.number >= 0
        uids = table["UID"].to_numpy()[known].astype(np.uint64) & np.uint64(2**63 - 1)
        keys[joined.number[known]] = uids.astype(np.int64)
    return keys


def _write_columns(source: _Source, out: Path, options: DeriveOptions) -> None:
    """Write the table with further columns of the unchanged cutouts."""
    found: list[Columns] = []
    with RowProgress(f"measure {Path(str(source.name)).name}", source.rows) as progress:
        for _, place, images in source.blocks():
            found.append(measure(images, tuple(options.add), (options.band[0], options.band[1])))
            progress.advance(place.stop - place.start)
    columns = {name: np.concatenate([some[name] for some in found]) for name in found[0]}
    table = add_columns(source.table, source.joined.number, columns, tuple(options.add))
    write_table(table, out)
    log.info("%s: %d rows with %s", out, len(table), " and ".join(options.add))


def _derive(source: _Source, out: Path, steps: Derivation, options: DeriveOptions) -> None:
    """Write the new cutout file and its table; both appear when both are complete."""
    import pandas as pd

    beside = out.with_suffix(".parquet")
    used = [source.file.path.resolve(), *([source.place.resolve()] if source.place else [])]
    if out.resolve() in used or beside.resolve() in used:
        raise OptionError(f"out={out}: this would overwrite its own source; choose another name")
    remove_half(out, beside)
    about = _about(source, steps, options, prints := _prints(source))
    if not options.clobber and out.exists() and beside.exists() and _made_by(out) == about["recipe_sha256"]:
        log.info("%s: output exists and is complete (clobber=true overwrites it)", out)
        return
    for place in (out, beside):
        check_output(place, options.clobber)
    side = steps.side(source.side)
    check_room(out.parent, source.rows * 4 * side * side, "the derived file")
    with both_or_none(out, beside), atomic_path(out) as images, atomic_path(beside) as rows:
        columns, centred = _write_cutouts(source, images, steps, options, about)
        known = source.joined.number >= 0
        if _prints(source) != prints:
            raise InputFileError(f"{source.name}: changed while it was read; run the command again")
        table, number = source.table[known].reset_index(drop=True), source.joined.number[known]
        made, stale = new_table(table, number, columns, centred=centred, scale=steps.scale(source.side))
        made = _with_keys(made, number, source, out.name, options)
        _write_parquet(pd.DataFrame(made), rows, about)
    if missing := int(np.isnan(columns["Tmin"]).sum()):
        log.warning("%s: %d of %d cutouts have missing pixels (NaN), as in the source", out, missing, source.rows)
    if stale:
        log.info("left out, as they hold for the old cutouts only: %s", ", ".join(stale))
    log.info("%s: %d cutouts of %d x %d pixels\n%s: %d rows", out, source.rows, side, side, beside, len(made))


def _prints(source: _Source) -> dict[str, str]:
    path, file = source.file.path, source.file
    return {name: fingerprint(path, name, allow_external=file.allow_external) for name in file.partitions}


def _about(source: _Source, steps: Derivation, options: DeriveOptions, prints: dict[str, str]) -> dict[str, Any]:
    """Return the provenance of the new file."""
    older = _attributes(source.file.path)
    table = sha256_file(source.place) if source.place is not None else ""
    recipe = {**steps.__dict__, "demean": options.demean, "add": list(options.add), "band": list(options.band)}
    recipe["noise_of"] = options.noise if isinstance(options.noise, str) else None
    given = json.dumps([recipe, prints, table, nenya.__version__], sort_keys=True)
    rows = {name: info.rows for name, info in source.file.partitions.items()}
    generation = older.get("derivations", 0)
    return {
        **older,
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "derived_from": Path(str(source.name)).name,
        "derived_from_table": "" if source.place is None else source.place.name,
        "derivation": json.dumps(recipe),
        "derivations": 1 + (int(generation) if np.ndim(generation) == 0 and str(generation).isdecimal() else 0),
        "rows": json.dumps(rows),
        "recipe_sha256": hashlib.sha256(given.encode()).hexdigest(),
    }


def _attributes(path: Path) -> dict[str, Any]:
    """Return the plain attributes of a file: texts and numbers that hold for the new file too."""
    found: dict[str, Any] = {}
    with open_hdf5(path) as file:
        for name in file.attrs:
            with contextlib.suppress(OSError, TypeError, ValueError, RuntimeError, KeyError):  # a damaged one
                value = file.attrs[name]
                if name not in _OWN and isinstance(value, str | int | float | np.number | np.bool_):
                    found[name] = value
    return found


def _made_by(out: Path) -> str:
    try:
        with open_hdf5(out) as file:
            return str(file.attrs.get("recipe_sha256", ""))
    except (InputFileError, OSError):
        return ""


def _write_cutouts(
    source: _Source, path: Path, steps: Derivation, options: DeriveOptions, about: dict[str, Any]
) -> tuple[Columns, bool]:
    """Write the new cutouts; return their quantities, and whether the mean of the old ones was removed."""
    side, found, centred = steps.side(source.side), [], None
    with write_hdf5(path) as target, RowProgress(f"derive {Path(str(source.name)).name}", source.rows) as progress:
        target.attrs.update(about)
        starts: dict[str, int] = {}
        for name, place, images in source.blocks():
            if centred is None:
                centred = is_centred(images)
            new = steps.apply(images, steps.seeds(source.keys[place], about["derivations"]))
            found.append(measure(new, tuple(options.add), (options.band[0], options.band[1])))
            if options.demean or (options.demean is None and centred):
                new -= _means(new, found[-1]["mean_temperature"])[:, None, None].astype(np.float32)
            has_mask = source.file.partitions[name].has_mask
            if name not in target:
                count = source.file.partitions[name].rows
                chunk = min(count, max(1, CHUNK_BYTES // (4 * side * side)))
                target.create_dataset(name, (count, 1, side, side), "<f4", chunks=(chunk, 1, side, side))
                if has_mask:
                    how: dict[str, Any] = {"chunks": (chunk, 1, side, side), "compression": "gzip"}
                    target.create_dataset(f"{name}_mask", (count, 1, side, side), "u1", **how)
                _copy_companions(source, name, target)
            start = starts.get(name, 0)
            target[name][start : start + len(new), 0] = new
            if has_mask:
                target[f"{name}_mask"][start : start + len(new), 0] = _masks(source, name, start, images, new, steps)
            starts[name] = start + len(new)
            progress.advance(len(new))
    return {name: np.concatenate([some[name] for some in found]) for name in found[0]}, bool(centred)


def _means(images: NDArray[np.float32], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means (n,) of cutouts (n, h, w); those of cutouts with NaN are of their other pixels."""
    found = means.copy()
    for i in np.flatnonzero(~np.isfinite(means)):
        clear = images[i][np.isfinite(images[i])]
        found[i] = clear.mean(dtype=np.float64) if len(clear) else np.nan
    return found


def _masks(
    source: _Source, name: str, start: int, images: NDArray[np.float32], new: NDArray[np.float32], steps: Derivation
) -> NDArray[np.bool_]:
    """Return the masks (n, side, side) of new cutouts: pixels to which a masked one contributes, or which are NaN."""
    with source.file.reader(name) as reader:
        old = checked_mask(reader, images, range(start, start + len(images)))
    moved = replace(steps, noise=0.0, median=None).apply(old.astype(np.float32), [])
    return np.asarray((moved > _LEAST_SHARE) | ~np.isfinite(new))


def _copy_companions(source: _Source, name: str, target: Any) -> None:
    """Copy labels and metadata of a partition."""
    import h5py

    with source.file.reader(name) as reader:
        for suffix in _COMPANIONS:
            values = reader.companion(suffix)
            if values is not None:
                texts = values.dtype.kind in "OU"
                kind = h5py.string_dtype() if texts else values.dtype
                target.create_dataset(f"{name}_{suffix}", data=values.astype(object) if texts else values, dtype=kind)


def _with_keys(
    table: "pd.DataFrame", number: NDArray[np.int64], source: _Source, pp_file: str, options: DeriveOptions
) -> "pd.DataFrame":
    """Return a table with the new file in its keys; row numbers stay those of the old file."""
    made = table.drop(columns=[name for name in COLUMNS if name not in KEYS and name in table])
    starts = np.cumsum([0, *(info.rows for info in source.file.partitions.values())])
    part = np.searchsorted(starts, number, side="right") - 1
    train, valid = options.loader.train_key, options.loader.valid_key
    kinds = np.array([max(part_types(name, train, valid)) for name in source.file.partitions], np.int64)
    return made.assign(pp_file=pp_file, pp_type=kinds[part], pp_idx=number - starts[part])


def _write_parquet(table: "pd.DataFrame", path: Path, about: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    said = json.dumps({name: value for name, value in about.items() if isinstance(value, str | int | float)})
    pq.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"nenya": said.encode()}), path)
