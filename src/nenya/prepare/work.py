"""One granule to its cutouts and their table rows; the work of a process on one file.

A granule is one time of one file. Its part, a `.npz` file, is complete or absent, so that an interrupted run resumes
with the next granule.
"""

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nenya.data.inpaint import inpaint_biharmonic, inpaint_field
from nenya.errors import InputFileError, StorageError
from nenya.options.commands import PrepareOptions
from nenya.prepare.account import Account, Tally
from nenya.prepare.cutouts import (
    Windows,
    centres,
    clear_share,
    constant,
    footprint_km,
    grid_windows,
    integral,
    windows_at,
)
from nenya.prepare.fields import Layout
from nenya.prepare.geometry import Field
from nenya.prepare.holes import central_dt_of_clear, finish_with_holes, impossible, statistics_of_clear
from nenya.prepare.places import FOUND, HOLES, MASKED, OUTSIDE, TOO_FAR, Fates, Places
from nenya.prepare.sources import open_fields
from nenya.prepare.steps import finish, output_size, statistics
from nenya.storage.disk import atomic_path
from nenya.storage.s3.access import s3_access
from nenya.tables.quantities import DT40_SIDE, central_dt

_BATCH_BYTES = 2**26
_MICROSECONDS_AN_HOUR = 3.6e9

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """The task of one process: some of the times of a file.

    Attributes:
        source: the file.
        name: of the file, as in the table.
        key: hash of the recipe and of the source's identity, the prefix of the names of the parts.
        folder: of the parts.
        share: (i, n): the task covers the times i, i + n, i + 2n ...
        options: of the run.
        places: requested places, None for a grid.
    """

    source: Path | str
    name: str
    key: str
    folder: Path
    share: tuple[int, int]
    options: PrepareOptions
    places: Places | None


@dataclass
class Outcome:
    """The outcome of a task.

    Attributes:
        parts: number of the time -> its part.
        failed: name of a granule -> the reason.
        clearest: largest clear share of all possible cutouts, 0 to 1.
        variable: name of the variable.
        shape: rows and columns of the largest field.
        smaller: number of fields with fewer rows or columns than a cutout.
        account: what the fields hold, and why pixels are masked.
        row_order: order of the rows of its fields.
        notes: sentences on what was left out.
    """

    parts: dict[int, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    clearest: float = 0.0
    variable: str = ""
    shape: tuple[int, int] = (0, 0)
    smaller: int = 0
    row_order: str = ""
    notes: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)


def prepare_file(
    task: Task, check: Callable[[], None] = lambda: None, report: Callable[[int, int], None] = lambda done, total: None
) -> Outcome:
    """Prepare the granules of a task and write their parts; existing parts are kept.

    Args:
        task: the file and its times.
        check: called after each granule; raises to stop.
        report: called with the number of granules done and their total.

    Returns:
        The parts and the failures: a bad file raises no error.
    """
    outcome = Outcome()
    try:
        options = task.options
        loader, storage = options.loader, options.storage
        with (
            s3_access(storage.anonymous, storage.requester_pays),
            open_fields(
                task.source,
                loader.cache_dir,
                options.coords,
                allow_external=loader.allow_external,
                references=storage.references,
            ) as dataset,
        ):
            layout = Layout(dataset, str(task.source), options)
            outcome.variable, outcome.row_order = layout.variable, layout.row_order
            outcome.notes += layout.notes
            outcome.account.describe(layout, options)
            steps = range(task.share[0], len(layout.times), task.share[1])
            report(0, len(steps))
            for done, step in enumerate(steps, 1):
                _prepare_step(task, layout, step, outcome)
                report(done, len(steps))
                check()
            outcome.account.notes += [*layout.masks.notes, *layout.range.notes]
    except (InputFileError, StorageError) as error:
        outcome.failed[task.name] = str(error)
    return outcome


def _prepare_step(task: Task, layout: Layout, step: int, outcome: Outcome) -> None:
    """Prepare one granule."""
    part = task.folder / f"{task.key}-{step}.npz"
    if not is_whole(part):
        try:
            columns = prepare_granule(layout, step, task.name, task.options, task.places)
        except InputFileError as error:
            outcome.failed[f"{task.name} {layout.times[step]}" if len(layout.times) > 1 else task.name] = str(error)
            return
        with atomic_path(part) as temporary, temporary.open("wb") as file:
            np.savez(file, **cast(dict[str, Any], columns))  # np.load takes no pickles
    outcome.parts[step] = part
    with np.load(part) as columns:
        outcome.clearest = max(outcome.clearest, float(columns["clearest"]))
        outcome.account.add(columns)
        height, width = (int(n) for n in columns["field_shape"]) if "field_shape" in columns.files else (0, 0)
    if height and task.options.fixed_km is None:
        outcome.shape = max(outcome.shape, (height, width), key=min)
        outcome.smaller += min(height, width) < task.options.field_size


def is_whole(part: Path) -> bool:
    """Return whether a part exists and is not damaged."""
    try:
        with zipfile.ZipFile(part) as file:
            return "clearest.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def prepare_granule(
    layout: Layout, step: int, name: str, options: PrepareOptions, places: Places | None = None
) -> Columns:
    """Make the cutouts of one time of a file.

    Args:
        layout: of the file.
        step: index of the time.
        name: of the file, for the table.
        options: the recipe.
        places: requested places; default the recipe's grid.

    Returns:
        `images` (n, side, side) float32, the columns of the table (n,), and `clearest`, the largest share of clear
        pixels of a possible cutout; with places also the arrays of `nenya.prepare.places.Fates`.

    Raises:
        InputFileError: The granule cannot be read.
    """
    found: list[Columns] = []
    tally = Tally()
    clearest = 0.0
    numbers = np.arange(0)
    if places is not None:
        hours = np.abs((places.times - layout.times[step]) / np.timedelta64(1, "us")) / _MICROSECONDS_AN_HOUR
        numbers = np.flatnonzero(hours <= options.max_hours)
    fates = Fates(numbers, TOO_FAR)
    shape = (0, 0)
    for face in layout.faces:
        if places is not None and not len(numbers):
            break
        fields = layout.read(step, face)
        tally.see(fields)
        shape = max(shape, fields.shape, key=min)
        if places is None:
            windows = grid_windows(fields, options)
        else:
            windows, near = windows_at(fields, places.lat_lon[numbers], numbers, options)
            fates.reach(near, OUTSIDE)
        columns, share = cut(fields, windows, name, options, tally)
        clearest = max(clearest, float(share.max(initial=0.0)))
        if places is not None:
            enough = (share > 0) & (share >= options.clear_threshold / 100)
            fates.reach(windows.request, np.where(enough, HOLES, MASKED))
            fates.reach(columns["at_index"], FOUND)
            fates.see(windows.request, share)
            gap = (layout.times[step] - places.times[columns["at_index"]]) / np.timedelta64(1, "us")
            columns["at_hours"] = gap / _MICROSECONDS_AN_HOUR
        found.append(columns)
    found = found or [_no_columns(options, places)]
    joined = {key: np.concatenate([columns[key] for columns in found]) for key in found[0]}
    about = {"clearest": np.array(clearest), "granule_time": np.array(layout.times[step]), **tally.arrays()}
    about["field_shape"] = np.array(shape)
    return {**joined, **about, **(fates.arrays() if places is not None else {})}


def _no_columns(options: PrepareOptions, places: Places | None) -> Columns:
    """Return empty columns."""
    empty = Field(np.zeros((0, 0), np.float32), np.zeros(0), np.zeros(0), np.datetime64(0, "us"))
    none = np.zeros(0, dtype=np.intp)
    columns = _table(empty, Windows(none, none, none, none, np.zeros(0), none, np.zeros(0)), "", options)
    side = output_size(options)
    columns["images"] = np.zeros((0, side, side), np.float32)
    for name in (*_of_pixels(side), *(("at_hours",) if places is not None else ())):
        columns[name] = np.zeros(0)
    return columns


def _of_pixels(side: int) -> tuple[str, ...]:
    """Return the names of the columns computed from the pixels of cutouts (side, side)."""
    return ("Tmin", "Tmax", "T10", "T90", "mean_temperature", *(("DT40",) if side >= DT40_SIDE else ()))


def cut(
    fields: Field, windows: Windows, name: str, options: PrepareOptions, tally: Tally | None = None
) -> tuple[Columns, NDArray[np.float64]]:
    """Cut the clear ones among possible cutouts out of a field, and apply the recipe's steps.

    Args:
        fields: the field.
        windows: possible cutouts.
        name: of the file.
        options: the recipe.
        tally: counts the cutouts that are left out because they are constant.

    Returns:
        `images` and columns as in `prepare_granule`; the share of clear pixels of each possible cutout.
    """
    width = fields.shape[1]
    beyond = max(0, int((windows.col + windows.width).max(initial=0)) - width)
    values = np.concatenate([fields.values, fields.values[:, :beyond]], axis=1) if beyond else fields.values
    share = clear_share(integral(np.isfinite(values)), windows)
    windows = Windows(**{**windows.__dict__, "clear": share})
    with np.errstate(invalid="ignore"):
        clear = share >= options.clear_threshold / 100
    chosen = windows.take(clear & (share > 0))
    if len(chosen):
        chosen = chosen.take(np.isfinite(centres(fields, chosen)[0]))
        flat = constant(values, chosen)
        chosen = chosen.take(~flat)
        if tally is not None:
            tally.constant += int(flat.sum())
    columns = _table(fields, chosen, name, options)
    if options.inpaint == "fast":
        values = inpaint_field(values, np.isnan(values) & covered(values.shape, chosen))
    images, kept, statistic = _images(values, chosen, columns["UID"], options, fields.possible)
    able = (statistic["Tmin"] >= fields.possible[0]) & (statistic["Tmax"] <= fields.possible[1])
    able &= np.isfinite(statistic["mean_temperature"])  # a pixel is left, and none is impossible
    if not able.all():  # filled pixels may overshoot where few are clear
        images, kept, statistic = images[able], kept[able], {key: column[able] for key, column in statistic.items()}
    if tally is not None:
        tally.overshot += int((~able).sum())
    columns = {key: column[kept] for key, column in columns.items()}
    if fields.seconds is not None and len(kept):
        columns["datetime"] = columns["datetime"] + _delays(fields, chosen.take(kept))
    return {**columns, **statistic, "images": images}, share


def covered(shape: tuple[int, ...], windows: Windows) -> NDArray[np.bool_]:
    """Return which pixels of a field (H, W) lie in a cutout."""
    edges = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int32)
    bottom, right = windows.row + windows.height, windows.col + windows.width
    for row, col, sign in ((windows.row, windows.col, 1), (bottom, right, 1), (windows.row, right, -1)):
        np.add.at(edges, (row, col), sign)
    np.add.at(edges, (bottom, windows.col), -1)
    return np.asarray(edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)


def _images(
    values: NDArray[np.float32],
    windows: Windows,
    uids: NDArray[np.int64],
    options: PrepareOptions,
    possible: tuple[float, float],
) -> tuple[NDArray[np.float32], NDArray[np.intp], Columns]:
    """Read cutouts and apply the steps, all cutouts of one size together.

    Returns:
        The images, the numbers of their windows (with `inpaint=none` all, else those without NaN), and Tmin, Tmax, T10,
        T90, the mean, and DT40 of cutouts that are large enough.
    """
    side = output_size(options)
    images: list[NDArray[np.float32]] = []
    numbers: list[NDArray[np.intp]] = []
    columns: list[Columns] = []
    sizes = np.stack([windows.height, windows.width], axis=1)
    for height, width in np.unique(sizes, axis=0):
        same = np.flatnonzero((sizes == (height, width)).all(axis=1))
        batch = max(1, int(_BATCH_BYTES // (4 * height * width)))
        view = np.lib.stride_tricks.sliding_window_view(values, (height, width))
        for start in range(0, len(same), batch):
            some = same[start : start + batch]
            stack = np.ascontiguousarray(view[windows.row[some], windows.col[some]])
            if options.inpaint == "biharmonic":
                stack = inpaint_biharmonic(stack)
            if options.inpaint != "none":
                whole = np.isfinite(stack).all(axis=(1, 2))
                stack, some = stack[whole], some[whole]
            if not len(some):
                continue
            seeds = [(options.seed, int(uid) & (2**63 - 1)) for uid in uids[some]]
            done, column = _finished(stack, seeds, options, possible)
            images.append(done)
            numbers.append(some)
            columns.append(column)
    if not images:
        none = {key: np.zeros(0) for key in _of_pixels(side)}
        return np.zeros((0, side, side), np.float32), np.zeros(0, dtype=np.intp), none
    order = np.argsort(np.concatenate(numbers), kind="stable")
    joined = {key: np.concatenate([column[key] for column in columns])[order] for key in columns[0]}
    return np.concatenate(images)[order], np.concatenate(numbers)[order], joined


def _finished(
    stack: NDArray[np.float32], seeds: list[tuple[int, int]], options: PrepareOptions, possible: tuple[float, float]
) -> tuple[NDArray[np.float32], Columns]:
    """Apply the steps to cutouts (n, h, w); return them, and the columns computed from their pixels.

    The mean of a cutout that cannot be kept is NaN.
    """
    masked = options.inpaint == "none"
    columns: Columns = {**(statistics_of_clear(stack) if masked else statistics(stack))}
    done, means = finish_with_holes(stack, options, seeds) if masked else finish(stack, options, seeds)
    if masked:
        means[impossible(stack, options, possible)] = np.nan
    columns["mean_temperature"] = means
    if output_size(options) >= DT40_SIDE:
        columns["DT40"] = central_dt_of_clear(done, DT40_SIDE) if masked else central_dt(done, DT40_SIDE)
    return done, columns


def _table(fields: Field, windows: Windows, name: str, options: PrepareOptions) -> Columns:
    """Return the columns that do not depend on the pixels of the cutouts."""
    n = len(windows)
    lat, lon = centres(fields, windows) if n else (np.zeros(0), np.zeros(0))
    tall, wide = footprint_km(fields, windows) if n else (np.zeros(0), np.zeros(0))
    columns: Columns = {
        "lat": lat,
        "lon": lon,
        "row": windows.row.astype(np.int64),
        "col": windows.col.astype(np.int64),
        "datetime": np.full(n, fields.time, dtype="datetime64[us]"),
        "filename": np.full(n, name, dtype=f"U{max(1, len(name))}"),
        "UID": np.array([make_uid(name, fields.time, fields.face, w) for w in _rows(windows)], dtype=np.int64),
        "clear_fraction": windows.clear,
        "field_size": np.full(n, options.field_size, dtype=np.int64),
        "face": np.full(n, fields.face, dtype=np.int64),
        "height_px": windows.height.astype(np.int64),
        "width_px": windows.width.astype(np.int64),
        "height_km": tall,
        "width_km": wide,
    }
    if options.at is not None:
        columns |= {"at_index": windows.request.astype(np.int64), "at_km": windows.km}
    return columns


def _rows(windows: Windows) -> list[tuple[int, ...]]:
    stacked = np.stack([windows.row, windows.col, windows.height, windows.width, windows.request], axis=1)
    return [tuple(row) for row in stacked.tolist()]


def make_uid(name: str, time: np.datetime64, face: int, window: tuple[int, ...]) -> int:
    """Return a UID of 63 bits of a cutout, from its file's name, its time, and its position in the field.

    So it is the same in every run, whatever the processing of the pixels and the other granules.
    """
    text = f"{name}|{np.datetime_as_string(time, 's')}|{face}|{'|'.join(map(str, window))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _delays(fields: Field, windows: Windows) -> NDArray[np.timedelta64]:
    """Return the delay of the central pixel of each cutout after the time of its field."""
    assert fields.seconds is not None
    middle = windows.row + windows.height // 2, (windows.col + windows.width // 2) % fields.shape[1]
    seconds = fields.seconds[middle] if fields.seconds.ndim == 2 else fields.seconds[middle[0]]
    return np.asarray(np.nan_to_num(np.rint(seconds.astype(np.float64)), nan=0).astype("timedelta64[s]"))


def fingerprint(options: Mapping[str, Any]) -> str:
    """Return a hash of option values."""
    import json

    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
