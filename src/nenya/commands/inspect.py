"""`nenya inspect`: says what a file is, what it holds, and which problems to expect with it."""

import functools
import hashlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.commands.inspect_fields import FIELD_SUFFIXES, inspect_fields
from nenya.commands.inspect_latents import inspect_calibration, inspect_latents
from nenya.commands.report import FileReport
from nenya.data.cutouts import CutoutFile, inspect_cutouts, read_blocks
from nenya.data.hdf5 import Hdf5File
from nenya.data.hdf5_open import open_hdf5
from nenya.data.masks import masked_shares
from nenya.data.orientation import order_text, picture_text, read_row_order
from nenya.data.partition import Partition
from nenya.errors import InputFileError, NenyaError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table
from nenya.latents.calibration_file import FORMAT
from nenya.latents.files import PARTITIONS
from nenya.options.commands import InspectOptions
from nenya.prepare.sources import is_zarr
from nenya.storage.disk import check_output
from nenya.storage.paths import find_sources, is_latents_name, is_s3, local_path, temporary_copy
from nenya.storage.small_files import check_regular
from nenya.storage.texts import counted, say
from nenya.tables.key_columns import KEYS, OLDER, read_keys
from nenya.tables.keys import repeated_rows

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_FOLDER = "outputs/inspect"
_SHEET = 64  # cutouts on a contact sheet
_MEAN_LIMIT = 1e-2  # K, as in extraction
_MASKED = 0.5  # share of clear pixels of the cutouts that are kept, at least
_WASTE = 16  # bytes unpacked to read one cutout, as a multiple of its own
_RANGES = {"lat": (-90.0, 90.0), "lon": (-180.0, 360.0)}


@dataclass
class CutoutStatistics:
    """Statistics of a partition.

    Attributes:
        rows: cutouts that were read.
        low: smallest finite pixel.
        high: greatest finite pixel.
        clear: share of finite pixels of each cutout.
        means: mean of the finite pixels of each cutout, NaN where there is none.
        deviations: standard deviation likewise.
        hashes: uint64, of the cutouts with a clear pixel, equal for equal ones.
    """

    rows: int = 0
    low: float = math.inf
    high: float = -math.inf
    clear: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    means: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    deviations: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def repeated(self) -> int:
        """Number of cutouts that equal an earlier one."""
        return len(self.hashes) - len(np.unique(self.hashes))


def run(options: InspectOptions) -> int:
    """Report on the files of `options.data`.

    Args:
        options: of `scripts/inspect_file.py`.

    Returns:
        0 if all could be read, 1 if some of several failed.

    Raises:
        NenyaError: The only file cannot be read, or a contact sheet cannot be written.
    """
    places = _places(options.data)
    for place in places if options.sheet else ():
        check_output(_sheet_place(str(place), options), clobber=True)
    bad = 0
    for place in places:
        try:
            with temporary_copy(place, options.loader.cache_dir) as path:
                report = inspect_file(path, options)
        except NenyaError as error:
            if len(places) == 1:
                raise
            say(f"BAD  {place}: {str(error).removeprefix(f'{place}: ')}")
            bad += 1
            continue
        say(f"{place}: {report.kind}")
        for line in report.lines:
            say(f"  {line}")
        for line in report.warnings:
            say(f"  warning: {line}")
        if report.sheet is not None and options.sheet:
            frame = str(report.facts.get("frame", ""))
            say(f"  contact sheet: {_draw(report.sheet, str(place), frame, options)}")
    return 1 if bad else 0


def _places(data: Any) -> list[Path | str]:
    """Return the files and run folders of `data=`; other folders and globs give their HDF5 files."""
    entries = [data] if isinstance(data, str | Path) else list(data or [])
    if not entries:
        raise OptionError("expected data=, a file to inspect, such as data=/path/to/cutouts_preproc.h5")
    places: list[Path | str] = []
    for entry in map(str, entries):
        path = None if is_s3(entry) else local_path(entry)
        if path is not None and (path.is_file() or (path / "config.yaml").is_file() or is_zarr(path)):
            places.append(path)
        else:
            places += find_sources(entry)
    return places


def inspect_file(path: Path, options: InspectOptions | None = None) -> FileReport:
    """Inspect a file of any kind that nenya reads or writes.

    Args:
        path: a file of cutouts or latents, a table, a checkpoint, a run folder, or a file of fields.
        options: give the rows to read and the names of the partitions.

    Raises:
        InputFileError: It is missing, damaged or of unknown kind.
        CheckpointError: A checkpoint is damaged or would run code.
    """
    options = options or InspectOptions()
    if is_zarr(path):
        return inspect_fields(path, options)
    if path.is_dir():
        return _inspect_run(path)
    check_regular(path, "cutouts, latents, a table or weights")
    if not path.is_file():
        raise InputFileError(f"{path}: no such file; check the path")
    kinds: dict[tuple[str, ...], Callable[[Path], FileReport]] = {
        TABLE_SUFFIXES: _inspect_table,
        CHECKPOINT_SUFFIXES: _inspect_checkpoint,
        (".h5", ".hdf5"): lambda place: _inspect_hdf5(place, options),
        FIELD_SUFFIXES: lambda place: inspect_fields(place, options),
    }
    for suffixes, look in kinds.items():
        if path.suffix.lower() in suffixes:
            return look(path)
    known = ", ".join(suffix for suffixes in kinds for suffix in suffixes)
    raise InputFileError(f"{path}: unknown kind of file; expected one of {known}, or a run folder")


def _sheet_place(place: str, options: InspectOptions) -> Path:
    out = local_path(options.out or _FOLDER)
    return out if out.suffix == ".png" else out / f"{Path(place).stem}_contact.png"


def _draw(images: NDArray[np.float32], place: str, frame: str, options: InspectOptions) -> Path:
    from nenya.plotting import contact_sheet

    path = _sheet_place(place, options)
    title = f"{Path(place).name}, {len(images)} cutouts evenly spaced"
    contact_sheet(images, path, title=f"{title}\n{frame}" if frame else title)
    return path


# HDF5


def _inspect_hdf5(path: Path, options: InspectOptions) -> FileReport:
    external = options.loader.allow_external
    with open_hdf5(path, links="any" if external else "folder") as file:
        latents = is_latents_name(path.name) or "checkpoint_sha256" in file.attrs
        made_by = file.attrs.one("made_by")
        calibration = "format" in file.attrs and str(file.attrs["format"]) == FORMAT
    if latents or (not calibration and _is_flat(path, options)):
        return inspect_latents(path, allow_external=external)
    if calibration:
        return inspect_calibration(path)
    names = (options.loader.train_key, options.loader.valid_key)
    file = inspect_cutouts(path, names, allow_external=options.loader.allow_external)
    report = FileReport(f"cutouts, {file.size / 1e6:.1f} MB" + (f", {str(made_by)[:80]}" if made_by else ""))
    hashes = {}
    for name, info in file.partitions.items():
        found = measure_cutouts(file, name, options.rows)
        _describe_storage(report, name, info)
        _describe_cutouts(report, name, found, info)
        if info.has_mask:
            _describe_masks(report, name, masked_shares(file, name, options.rows))
        hashes[name] = found.hashes
    if len(hashes) == 2:
        shared = len(functools.reduce(np.intersect1d, hashes.values()))
        if shared:
            report.warnings.append(
                f"{counted(shared, 'cutout is', 'cutouts are')} in both partitions: the validation loss will be too low"
            )
    order = read_row_order(path)
    report.facts["frame"] = picture_text([order])
    report.lines.append(report.facts["frame"] or f"{order_text(order)}: north is up in pictures")
    first = next(iter(file.partitions))
    rows = file.partitions[first].rows
    with file.reader(first) as reader:
        report.sheet = reader.read_rows(np.unique(np.linspace(0, rows - 1, min(rows, _SHEET)).astype(np.int64)))
    return report


def _is_flat(path: Path, options: InspectOptions) -> bool:
    """Return whether a file holds 2-D arrays (N, D), as latents files of any name do."""
    with suppress(InputFileError), Hdf5File(path, allow_external=options.loader.allow_external) as file:
        return any(getattr(file.find(name), "ndim", 0) == 2 for name in PARTITIONS)
    return False  # reported by the inspection as cutouts


def measure_cutouts(file: CutoutFile, partition: str, most: int | None = None) -> CutoutStatistics:
    """Read a partition once, in blocks, for its statistics.

    Args:
        file: of `inspect_cutouts`.
        partition: its name.
        most: rows to read at most.
    """
    found = CutoutStatistics()
    clear, means, deviations, hashes = [], [], [], []
    for block in read_blocks(file, partition, most):
        flat = block.reshape(len(block), -1)
        good = np.isfinite(flat)
        count = good.sum(axis=1)
        if good.any():
            found.low = min(found.low, float(flat.min(where=good, initial=np.inf)))
            found.high = max(found.high, float(flat.max(where=good, initial=-np.inf)))
        values = np.where(good, flat, 0).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = values.sum(axis=1) / count
            square = (np.where(good, values - mean[:, None], 0) ** 2).sum(axis=1) / count
        clear.append(count / flat.shape[1])
        means.append(mean)
        deviations.append(np.sqrt(square))
        some = flat[count > 0]
        hashes += [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in some]
        found.rows += len(flat)
    found.clear, found.means = np.concatenate(clear), np.concatenate(means)
    found.deviations, found.hashes = np.concatenate(deviations), np.array(hashes, np.uint64)
    return found


def _describe_storage(report: FileReport, name: str, info: Partition) -> None:
    """Report the storage layout of a partition, and the cost of reading one cutout."""
    kind, itemsize = np.dtype(info.dtype), np.dtype(info.dtype).itemsize
    own = itemsize * info.height * info.width
    how = f", {info.compression}" if info.compression else ""
    line = f"{name}: {info.shape} {kind.name}{how}, "
    if not info.chunks:
        report.lines.append(line + "contiguous: one cutout is one read")
    else:
        pairs = zip(info.shape[1:], info.chunks[1:], strict=True)
        touched = math.prod(-(-size // chunk) for size, chunk in pairs)
        cost = touched * info.chunk_bytes
        report.lines.append(
            f"{line}chunks {info.chunks}: one cutout ({own / 1e3:.0f} kB) unpacks {counted(touched, 'chunk')}, "
            f"{cost / 1e6:.2f} MB"
        )
        if touched > _WASTE:
            report.warnings.append(
                f"{name}: automatic chunks that split cutouts: {cost / own:.0f} times its bytes are read for "
                "one cutout; nenya repack writes a file with chunks of complete cutouts"
            )
    if itemsize > 4:
        report.warnings.append(f"{name}: {kind.name} takes twice the space of float32, in which nenya computes")
    if kind.byteorder == ">":
        report.warnings.append(f"{name}: big-endian values cannot be memory-mapped and are swapped at each read")


def _describe_cutouts(report: FileReport, name: str, found: CutoutStatistics, info: Partition) -> None:
    """Report the statistics of the pixels."""
    part = "" if found.rows == info.rows else f"of the first {found.rows} rows: "
    if not np.isfinite(found.means).any():
        report.warnings.append(f"{name}: {part}no finite pixel")
        return
    spread = np.nanpercentile(found.deviations, (5, 50, 95))
    report.lines.append(
        f"{name}: {part}pixels {found.low:.4g} to {found.high:.4g}, deviation of a cutout {spread[1]:.3g} "
        f"(5-95 %: {spread[0]:.3g} to {spread[2]:.3g}), means up to {np.nanmax(np.abs(found.means)):.2g}, "
        f"clear {found.clear.mean():.2%} (least {found.clear.min():.2%})"
    )
    holes, flat = int((found.clear < 1).sum()), int((found.deviations == 0).sum())
    loose = int((np.abs(found.means) > _MEAN_LIMIT).sum())
    if holes:
        report.warnings.append(
            f"{name}: {counted(holes, 'cutout holds', 'cutouts hold')} NaN or infinity: training leaves out such "
            "cutouts, and their latents are NaN (preprocess.masked=fill fills NaN)"
        )
    if loose:
        report.warnings.append(
            f"{name}: {counted(loose, 'cutout has', 'cutouts have')} a nonzero mean, up to "
            f"{np.nanmax(np.abs(found.means)):.3g}: preprocess.file=demean removes it from the cutouts of a file"
        )
    if flat:
        report.warnings.append(f"{name}: {counted(flat, 'cutout is', 'cutouts are')} constant, without information")
    if found.repeated:
        report.warnings.append(
            f"{name}: {counted(found.repeated, 'cutout repeats', 'cutouts repeat')} an earlier one, bit for bit"
        )


def _describe_masks(report: FileReport, name: str, shares: NDArray[np.float64]) -> None:
    """Report the masked pixels of the data set `<name>_mask`."""
    some, whole = int((shares > 0).sum()), int((shares == 1).sum())
    report.lines.append(
        f"{name}_mask: masked {shares.mean():.2%} of the pixels (most {shares.max():.2%}), in {some} of {len(shares)} "
        "cutouts"
    )
    if whole:
        report.warnings.append(
            f"{name}: {counted(whole, 'cutout has', 'cutouts have')} no clear pixel, and so no latent"
        )


# Tables, checkpoints and runs


def _join_warnings(table: "pd.DataFrame") -> list[str]:
    """Return problems of the columns that join a table with its cutouts."""
    absent = [name for name in KEYS if name not in table and OLDER[name] not in table]
    if absent:
        return [f"no column {', '.join(absent)}: its rows cannot be joined to cutouts"]
    try:
        twice = repeated_rows(read_keys(table))
    except InputFileError as error:
        return [f"its rows cannot be joined to cutouts: {error}"]
    return (
        [f"{counted(twice, 'row shares', 'rows share')} pp_file, pp_type and pp_idx with another row"] if twice else []
    )


def _inspect_table(path: Path) -> FileReport:
    table = read_table(path)
    report = FileReport(f"table, {counted(len(table), 'row')}, {counted(len(table.columns), 'column')}")
    for name in table.columns:
        column = table[name]
        missing = int(column.isna().sum())
        words = f"{name}: {column.dtype}"
        if column.dtype.kind in "iufM" and missing < len(column):
            words += f", {_short(column.min())} to {_short(column.max())}"
        elif missing < len(column):
            words += f", such as {str(column.dropna().iloc[0])[:60]}"
        report.lines.append(words + (f", {missing} missing" if missing else ""))
    report.warnings += _join_warnings(table)
    if "UID" in table.columns and table["UID"].duplicated().any():
        repeated = int(table["UID"].duplicated().sum())
        report.warnings.append(f"{counted(repeated, 'row repeats', 'rows repeat')} the UID of an earlier row")
    for name, (low, high) in _RANGES.items():
        if name not in table.columns:
            report.warnings.append(f"no column {name}: its rows cannot be shown on a map")
        elif not table[name].between(low, high).all():
            outside = int((~table[name].between(low, high)).sum())
            report.warnings.append(
                f"{counted(outside, 'row has', 'rows have')} a {name} that is missing or outside "
                f"{low:g} to {high:g} degrees"
            )
    masked = "clear_fraction" in table.columns and bool(table["clear_fraction"].max() <= _MASKED)
    if masked:
        report.warnings.append(
            f"clear_fraction is at most {table['clear_fraction'].max():.3g}: the share of masked pixels, as in tables "
            "of the first nenya? clear= expects the share of clear pixels"
        )
    report.facts = {"columns": [str(name) for name in table.columns], "masked_share": masked}
    return report


def _short(value: Any) -> str:
    """Return a number as six digits, dates and integers as they are."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _inspect_checkpoint(path: Path) -> FileReport:
    import torch

    from nenya.models.checkpoint import load_checkpoint

    found = load_checkpoint(path)
    count = sum(tensor.numel() for tensor in found.state_dict.values())
    report = FileReport(f"checkpoint ({found.layout}), {path.stat().st_size / 1e6:.1f} MB")
    report.facts = {"layout": found.layout, **found.architecture}
    words = ", ".join(f"{key} {value}" for key, value in found.architecture.items())
    report.lines.append(f"{words}; {len(found.state_dict)} tensors, {count} values; sha256 {found.sha256}")
    shown = ("model_root", "temp", "learning_rate", "batch_size_train", "epochs", "random_jitter", "augment")
    told = [f"{key} {str(found.options[key])[:60]}" for key in shown if key in found.options]
    epoch = "epoch not recorded" if found.epoch is None else f"epoch {found.epoch}"
    report.lines.append(epoch + (f"; options: {', '.join(told)}" if told else "; no options recorded"))
    wrong = [
        name for name, t in found.state_dict.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if wrong:
        report.warnings.append(
            f"{len(wrong)} tensors hold NaN or infinity, such as {wrong[0]}: all latents will be NaN"
        )
    if found.architecture["nchannels"] == 3:
        report.lines.append("three input channels: the one channel of a cutout is repeated three times")
    return report


def _inspect_run(folder: Path) -> FileReport:
    from nenya.plotting import read_losses
    from nenya.train import read_run_config

    if not (folder / "config.yaml").is_file():
        raise InputFileError(f"{folder}: expected a run folder, got a folder without config.yaml")
    try:
        config = read_run_config(folder)
    except NenyaError as error:
        raise InputFileError(str(error)) from error
    sections = (config.get(name) for name in ("model", "optim", "trainer"))
    model, optim, trainer = (section if isinstance(section, dict) else {} for section in sections)
    report = FileReport(f"run folder of model {model.get('name', '?')}")
    report.lines.append(
        f"{model.get('ssl_model', '?')}, feat_dim {model.get('feat_dim', '?')}; data "
        f"{str(config.get('data'))[:300]}; seed {str(config.get('seed'))[:40]}; {trainer.get('max_epochs')} epochs; "
        f"learning rate {optim.get('learning_rate')}"
    )
    weights = sorted([*folder.glob("*.pth"), *folder.glob("checkpoints/*.ckpt")])
    report.lines += [f"{path.relative_to(folder)}: {path.stat().st_size / 1e6:.1f} MB" for path in weights]
    if not (folder / "last.pth").is_file():
        report.warnings.append(f"no last.pth: training is unfinished; nenya train resume={folder} resumes it")
    for curve in sorted((folder / "learning_curve").glob("*.csv")):
        losses = read_losses(curve)
        said = [f"{name} {column[-1]:.4g}" for name, column in losses.items() if len(column)]
        report.lines.append(f"{curve.relative_to(folder)}: at the end {', '.join(said)}")
        if "loss_train" in losses and not np.isfinite(losses["loss_train"]).all():
            report.warnings.append("the training loss is not finite in at least one epoch")
    return report
