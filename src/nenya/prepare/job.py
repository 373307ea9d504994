"""Ocean fields to cutouts and their table.

`prepare` is the Python call of `nenya prepare`; `open_fields`, `Layout` and `prepare_granule`, in other modules of this
package, are its parts.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nenya
from nenya.data.hdf5_open import open_hdf5
from nenya.data.orientation import ROW_ORDER, MixedOrders, check_orders
from nenya.errors import InputFileError, OptionError, OutputError
from nenya.io import write_table
from nenya.options.commands import PrepareOptions
from nenya.options.files import read_group
from nenya.options.sections import build_options
from nenya.prepare.account import say_account
from nenya.prepare.counts import FieldCount
from nenya.prepare.places import Fates, Places, log_missing, missing_table, read_fates
from nenya.prepare.pool import outcomes_of
from nenya.prepare.reasons import why_empty, why_none
from nenya.prepare.remote import check_allowed, is_remote
from nenya.prepare.sources import find_fields, identity_of
from nenya.prepare.steps import output_size
from nenya.prepare.summary import account_of, say_rest
from nenya.prepare.work import Outcome, Task, fingerprint
from nenya.prepare.writer import read_table, recipe_values, write_outputs
from nenya.runtime.process import RowProgress
from nenya.runtime.signals import interrupted_between
from nenya.storage.disk import remove_half, sha256_file
from nenya.storage.lock import OutputLock
from nenya.storage.names import parse_json
from nenya.storage.paths import is_s3, local_path, own_place, scratch_folder, temporary_copy
from nenya.storage.s3.access import s3_access
from nenya.storage.s3.service import store
from nenya.storage.small_files import refuse_links
from nenya.storage.table_files import check_numbers, check_table

log = logging.getLogger(__name__)


class NoCutouts(InputFileError):
    """All granules can be read, but none has a cutout: all cloud, or land."""


@dataclass
class Prepared:
    """The outputs of a preparation.

    Attributes:
        images: the cutout file, a path or an s3:// address.
        table: the table.
        rows: partition -> number of cutouts.
        failed: granule -> why it was skipped.
        made: False if the output existed already, made with the same options from the same files.
    """

    images: Path | str
    table: Path | str
    rows: dict[str, int]
    failed: dict[str, str] = field(default_factory=dict)
    made: bool = True


def prepare(options: PrepareOptions | Mapping[str, Any]) -> Prepared:
    """Make the cutouts and the table of ocean fields.

    If the work ends early, finished granules are kept in `<out>.partial/`, and the same call resumes there. Outputs
    appear when they are complete.

    Args:
        options: of `nenya prepare`, or a mapping of their names and values, in which `sensor` names a recipe; `data`
            and `out` are required.

    Returns:
        The outputs.

    Raises:
        OptionError: An option is missing or invalid.
        InputFileError: No granule can be read, or none has a cutout.
        OutputError: The output exists, made with other options or files, or cannot be written.
        Interrupted: A signal was received (SIGINT, SIGTERM).
    """
    if not isinstance(options, PrepareOptions):
        given = dict(options)
        recipe_of = read_group("sensor", str(given.pop("sensor", "grid")))
        options = build_options(PrepareOptions, {**recipe_of, **given})
    if not options.data:
        raise OptionError(
            "data= is required: the files of fields, such as data=/path/to/granule.nc, a folder, a glob or a list"
        )
    out = _output(options)
    output_size(options)
    check_allowed(options.storage.references)
    with s3_access(options.storage.anonymous, options.storage.requester_pays):
        return _prepare(options, out)


def _prepare(options: PrepareOptions, out: Path | str) -> Prepared:
    """Prepare cutouts; see `prepare`."""
    sources = find_fields(options.data)
    places, at_hash = read_places(options)
    recipe = {**recipe_values(options), "at": at_hash, "coords": _hash_of(options.coords, options)}
    identities = _identities(sources)
    if len(sources) == 1 and isinstance(next(iter(identities.values())), InputFileError):
        raise next(error for error in identities.values() if isinstance(error, InputFileError))
    made_of = fingerprint({str(_name_of(source)): str(identities[source]) for source in sources})
    made_by = fingerprint({**recipe, "version": nenya.__version__})
    there = None if options.clobber else _existing(out, options, made_of, made_by)
    folder = refuse_links(_partial(out, options))
    if there is not None:
        _remove_leftover(folder, str(out))
        return there
    resumes = f"interrupted; finished granules are kept in {folder}, and the same command resumes there"
    with OutputLock(folder / "lock", str(out)) as lock, interrupted_between(resumes) as check:
        tasks = _tasks(sources, identities, made_by, folder, options, places)
        try:
            parts, failed, outcomes = _work(tasks, options, check)
        except MixedOrders:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        failed |= {_name_of(s): str(e) for s, e in identities.items() if isinstance(e, InputFileError)}
        local = folder / out.rpartition("/")[2] if isinstance(out, str) else out
        table = read_table(parts, options, out if isinstance(out, str) else out.name) if parts else None
        fates = read_fates([part for _, part in parts], places) if places is not None else None
        if table is None or not len(table):
            shutil.rmtree(folder, ignore_errors=True)
            kind = InputFileError if failed or not parts else NoCutouts
            raise kind(why_none(options, outcomes, failed, len(parts), fates))
        say_rest(tasks, outcomes)
        for line in failed.values():
            log.error("skipped: %s", line)
        if places is None and (empty := len(parts) - table["part"].nunique()):
            log.warning("%d of %d fields have no cutout: %s", empty, len(parts), why_empty(outcomes, options))
        about = {
            "variable": ", ".join(sorted({o.variable for o in outcomes if o.variable})),
            ROW_ORDER: next((outcome.row_order for outcome in outcomes if outcome.parts), ""),
            "sources": json.dumps([_name_of(source) for source in sources]),
            "sources_sha256": made_of,
            "recipe_sha256": made_by,
            "granules": len(parts),
            "failed": json.dumps(failed),
        }
        if places is not None and fates is not None:
            _write_missing(fates, places, options, out, folder)
        lock.check()
        write_outputs(local, table, [part for _, part in parts], options, about)
        if isinstance(out, str):
            for path in (local.with_suffix(".parquet"), local):
                kept = {"recipe_sha256": made_by, "sources_sha256": made_of}
                store().upload(path, f"{out.rpartition('/')[0]}/{path.name}", metadata=kept)
        shutil.rmtree(folder, ignore_errors=True)
    rows = {name: int((table["pp_type"] == kind).sum()) for kind, name in ((1, "train"), (0, "valid"))}
    return Prepared(out, _table_of(out), {name: count for name, count in rows.items() if count}, failed)


def _remove_leftover(folder: Path, out: str) -> None:
    """Remove unfinished work that a killed run left beside a complete output."""
    if folder.is_dir():
        with contextlib.suppress(OutputError), OutputLock(folder / "lock", out):
            shutil.rmtree(folder, ignore_errors=True)


def read_places(options: PrepareOptions) -> tuple[Places | None, str]:
    """Return the places of `at=` and a hash of its bytes.

    Raises:
        InputFileError: It cannot be read, or lacks columns lat, lon and datetime of numbers and dates.
    """
    if options.at is None:
        return None, ""
    import pandas as pd

    place = options.at if is_s3(options.at) else local_path(options.at)
    with temporary_copy(place, options.loader.cache_dir) as path:
        try:
            check_table(path)
            table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        except InputFileError:
            raise
        except Exception as error:  # each engine has errors of its own
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputFileError(
                f"{options.at}: cannot be read as a table ({first}); expected .parquet or .csv"
            ) from error
        sha256 = sha256_file(path)
    missing = [name for name in ("lat", "lon", "datetime") if name not in table]
    if missing:
        have = ", ".join(map(str, table.columns[:12]))
        raise InputFileError(
            f"{options.at}: expected columns lat, lon and datetime, got no {missing[0]} (columns: {have})"
        )
    table = check_numbers(table, options.at)
    try:
        lat_lon = table[["lat", "lon"]].to_numpy(dtype=np.float64)
        times = pd.to_datetime(table["datetime"], utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise InputFileError(
            f"{options.at}: expected lat and lon in degrees, and datetime as dates ({first})"
        ) from error
    if not len(table) or not (np.abs(lat_lon[:, 0]) <= 90).all() or not (np.abs(lat_lon[:, 1]) <= 540).all():
        raise InputFileError(f"{options.at}: expected rows with lat from -90 to 90 and lon from -180 to 360 degrees")
    return Places(lat_lon, times), sha256


def _write_missing(fates: Fates, places: Places, options: PrepareOptions, out: Path | str, folder: Path) -> None:
    """Write the places without a cutout beside the output, as `<name>_missing.csv`, and log them."""
    missing = missing_table(fates, places, options)
    name = f"{Path(str(out)).stem}_missing.csv"
    place = f"{out.rpartition('/')[0]}/{name}" if isinstance(out, str) else out.with_name(name)
    log_missing(missing, fates, options, place)
    local = folder / name if isinstance(place, str) else place
    if len(missing):
        write_table(missing, local)
        if isinstance(place, str):
            store().upload(local, place)
    elif options.clobber:
        local.unlink(missing_ok=True)  # from the run that is overwritten


def _output(options: PrepareOptions) -> Path | str:
    """Return the place of the cutout file."""
    if options.out is None:
        raise OptionError(
            "out= is required: the cutout file, such as out=modis_2010_preproc.h5; the table is written beside it"
        )
    if not options.out.endswith((".h5", ".hdf5")):
        raise OptionError(
            f"out={options.out}: expected the name of an HDF5 file, such as out={_better_name(options.out)}"
        )
    return options.out if is_s3(options.out) else local_path(options.out).absolute()


def _better_name(out: str) -> str:
    """Return the name of a cutout file instead of a folder, or of a file of another kind."""
    if out.endswith("/") or (not is_s3(out) and local_path(out).is_dir()):
        return f"{out.rstrip('/')}/modis_2010_preproc.h5"
    head, slash, name = out.rpartition("/")
    return f"{head}{slash}{name.rpartition('.')[0] or name}_preproc.h5"


def _table_of(out: Path | str) -> Path | str:
    return out.with_suffix(".parquet") if isinstance(out, Path) else out.rpartition(".")[0] + ".parquet"


def _partial(out: Path | str, options: PrepareOptions) -> Path:
    """Return the folder of unfinished work."""
    if isinstance(out, Path):
        return out.with_name(out.name + ".partial")
    key = hashlib.sha256(out.encode()).hexdigest()[:16]
    return own_place(scratch_folder(options.loader.cache_dir), f"prepare-{key}")


def _existing(out: Path | str, options: PrepareOptions, made_of: str, made_by: str) -> Prepared | None:
    """Return an existing output, None if there is none.

    Raises:
        OutputError: It was made with other options or from other files, or is incomplete.
    """
    advice = "clobber=true overwrites it, out= writes the new one elsewhere"
    if isinstance(out, str):
        found = store().head(out)
        if found is None:
            return None
        if (found.metadata.get("recipe_sha256"), found.metadata.get("sources_sha256")) != (made_by, made_of):
            raise OutputError(f"{out} exists, made from other files or with other options: {advice}")
        return Prepared(out, _table_of(out), {}, {}, made=False)
    table = out.with_suffix(".parquet")
    remove_half(out, table)
    if not out.exists():
        if table.exists():
            raise OutputError(f"{table} exists without {out.name}: {advice}")
        return None
    try:
        with open_hdf5(out) as file:
            said = {name: str(value) for name, value in file.attrs.items()}
            rows = {name: int(file[name].shape[0]) for name in ("train", "valid") if name in file}
    except (InputFileError, OSError) as error:
        raise OutputError(f"{out} exists but is not an HDF5 file: {advice}") from error
    if (said.get("recipe_sha256"), said.get("sources_sha256")) != (made_by, made_of) or not table.exists():
        raise OutputError(f"{out} exists, made from other files or with other options: {advice}")
    try:
        failed = parse_json(said.get("failed", "{}"), f"{out}: attribute failed").texts()
    except InputFileError as error:
        raise OutputError(f"{error}: {advice}") from error
    return Prepared(out, table, rows, failed, made=False)


def _hash_of(place: str | None, options: PrepareOptions) -> str:
    if place is None:
        return ""
    return identity_of(place if is_remote(place) else local_path(place))


def _identities(sources: Sequence[Path | str]) -> dict[Path | str, str | InputFileError]:
    """Return the identity of each source, or the error on reading it."""

    def identify(source: Path | str) -> str | InputFileError:
        try:
            return identity_of(source)
        except InputFileError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(sources, pool.map(identify, sources), strict=True))


def _name_of(source: Path | str) -> str:
    return source.name if isinstance(source, Path) else source.rpartition("/")[2]


def _tasks(
    sources: Sequence[Path | str],
    identities: Mapping[Path | str, str | InputFileError],
    made_by: str,
    folder: Path,
    options: PrepareOptions,
    places: Places | None,
) -> list[Task]:
    """Return the tasks: one per file, or several if there are more processes than files."""
    good = [source for source in sources if isinstance(identities[source], str)]
    shares = -(-(options.workers or 1) // len(good)) if good else 1
    return [
        Task(
            source,
            _name_of(source),
            hashlib.sha256(f"{source}|{identities[source]}|{made_by}".encode()).hexdigest()[:24],
            folder.absolute(),
            (share, shares),
            options,
            places,
        )
        for source in good
        for share in range(shares)
    ]


def _work(
    tasks: list[Task], options: PrepareOptions, check: Callable[[], None]
) -> tuple[list[tuple[str, Path]], dict[str, str], list[Outcome]]:
    """Do all tasks; the parts are in the order of files and times, whichever process made them."""
    outcomes: dict[int, Outcome] = {}
    with RowProgress("fields", len(tasks), visible=os.isatty(2)) as progress:
        count = FieldCount(len(tasks), progress)
        for number, outcome in outcomes_of(tasks, options, check, count.report):
            outcomes[number] = outcome
            check_orders({outcome.row_order for outcome in outcomes.values() if outcome.parts})
            count.end(number)
            if account := account_of(number, tasks, outcomes):
                say_account(tasks[number].name, account)
    parts: dict[tuple[str, str], dict[int, Path]] = {}
    failed: dict[str, str] = {}
    for number, task in enumerate(tasks):
        parts.setdefault((task.name, task.key), {}).update(outcomes[number].parts)
        failed |= outcomes[number].failed
    ordered = [(name, steps[step]) for (name, _), steps in parts.items() for step in sorted(steps)]
    return ordered, failed, [outcomes[number] for number in range(len(tasks))]
