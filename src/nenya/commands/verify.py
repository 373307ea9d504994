"""`nenya verify`: reads latents files back and checks completeness, values, source and provenance."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.cutouts import inspect_cutouts
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, NenyaError, OutputError
from nenya.extraction.existing import NoProvenance, read_provenance
from nenya.latents.clear import is_column, wrong_columns
from nenya.latents.files import PARTITIONS
from nenya.options.commands import VerifyOptions
from nenya.storage.disk import sha256_file, temporary_folder
from nenya.storage.names import parse_json
from nenya.storage.paths import find_latents, find_sources, is_s3, scratch_folder
from nenya.storage.s3.service import store
from nenya.storage.texts import counted, say
from nenya.tables.names import cutout_names, cutouts_of

_BLOCK = 65536  # rows read at once
_LATENTS_NDIM = 2
_NORM_TOLERANCE = 1e-3  # of float32, and of bfloat16 with norms computed in float32


@dataclass
class Report:
    """Report on a latents file.

    Attributes:
        rows: partition -> number of rows N.
        dim: dimensions D of a latent, 0 if there is none.
        nonfinite: number of rows with a non-finite value.
        provenance: attributes on its provenance.
        problems: found in the file; empty for a good file.
    """

    rows: dict[str, int] = field(default_factory=dict)
    dim: int = 0
    nonfinite: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The report in one line."""
        if self.problems:
            return "; ".join(self.problems)
        rows = ", ".join(f"{name} {count}" for name, count in self.rows.items())
        share = 1 - self.nonfinite / max(1, sum(self.rows.values()))
        made = self.provenance
        how = (
            f"model {made.get('model_version', '?')}, weights {str(made['checkpoint_sha256'])[:12]}, "
            f"nenya {made.get('nenya_version', '?')}, {made.get('date', 'no date')}"
            if made
            else "no provenance"
        )
        return f"{rows} rows of {self.dim} dimensions, {share:.2%} finite; {how}"


def run(options: VerifyOptions) -> int:
    """Verify the latents files of `options.data`.

    Args:
        options: of `scripts/verify.py`.

    Returns:
        0 if all are good, 1 if some of several are not.

    Raises:
        NenyaError: No file is found, or the only file is not good.
    """
    places = find_latents(options.data)
    sources = find_sources(options.source) if options.source else None
    if missing := [source for source in sources or () if isinstance(source, Path) and not source.exists()]:
        raise InputFileError(f"source={missing[0]}: no such file; check the path")
    bad = 0
    for place in places:
        report = _verify_place(place, options, sources)
        bad += bool(report.problems)
        if report.problems and len(places) == 1:
            raise OutputError(f"{place}: {report.line}")
        say(f"{'BAD' if report.problems else 'ok '}  {place}: {report.line}")
    if len(places) > 1:
        say(f"{len(places)} files: {len(places) - bad} good, {bad} bad")
    return 1 if bad else 0


def _verify_place(place: Path | str, options: VerifyOptions, sources: Sequence[Path | str] | None) -> Report:
    """Verify one file, on S3 through a temporary copy; a failure of the service is a problem of that file."""
    try:
        source = cutouts_of(str(place), sources) if sources is not None else None
        with temporary_folder("verify-", _scratch(options, place, source)) as folder:
            local = _fetch(place, folder / "latents.h5")
            report = verify_file(local, provenance=options.provenance, allow_external=options.loader.allow_external)
            if sources is not None and not report.problems:
                if source is None:
                    report.problems.append(f"source= has no {cutout_names(str(place))[0]}.h5")
                else:
                    _compare_with_source(report, _fetch(source, folder / "source.h5"), str(source))
    except NenyaError as error:
        report = Report(problems=[str(error).removeprefix(f"{place}: ")])
    return report


def _scratch(options: VerifyOptions, *places: Path | str | None) -> Path | None:
    return scratch_folder(options.loader.cache_dir) if any(is_s3(place) for place in places) else None


def _fetch(place: Path | str, copy: Path) -> Path:
    if isinstance(place, Path):
        return place
    store().download(place, copy)
    return copy


def verify_file(path: Path, *, provenance: bool = True, allow_external: bool = False) -> Report:
    """Read a latents file back.

    Args:
        path: the file.
        provenance: whether it must record its provenance; files of the first nenya do not.
        allow_external: whether its links may lead out of its folder.

    Returns:
        The report; no exception is raised for a bad file.
    """
    report = Report()
    if not os.path.lexists(path):
        return Report(problems=["no such file; check the path"])
    if other := _is_other(path, allow_external):
        report.problems.append(other)
        return report
    try:
        report.provenance = read_provenance(path, allow_external=allow_external)
    except OutputError as error:
        if provenance or not isinstance(error, NoProvenance):
            report.problems.append(str(error).removeprefix(f"{path} exists but "))
            report.problems[-1] = report.problems[-1].partition(": clobber=true")[0]
            return report
    try:
        with open_hdf5(path, links="any" if allow_external else "folder") as file:
            names = (
                list(parse_json(str(report.provenance["rows"]), "rows").counts()) if report.provenance else list(file)
            )
            if not names:
                report.problems.append("no data set in the file")
            names = [name for name in names if not is_column(name, names)]
            for name in names:
                _verify_partition(report, name, file[name], _unit_norm(report))
                report.problems += wrong_columns(file, name, report.rows.get(name, 0))
            said = parse_json(str(file.attrs.one("nonfinite_rows", "{}")), "nonfinite_rows").counts()
            checksums = parse_json(str(file.attrs.one("latents_sha256", "{}")), "latents_sha256").texts()
            report.problems += [
                f"'{name}': altered since it was written (sha256)"
                for name, expected in checksums.items()
                if not report.problems and _sha256(file[name]) != expected
            ]
            if said and sum(said.values()) != report.nonfinite:
                report.problems.append(
                    f"{counted(report.nonfinite, 'row is', 'rows are')} not finite, expected "
                    f"{sum(said.values())} as when it was written"
                )
    except (InputFileError, OSError, KeyError, ValueError) as error:
        report.problems.append(f"cannot be read ({error})")
    return report


def _is_other(path: Path, allow_external: bool) -> str:
    """Return what a file is if it cannot be a latents file, "" if it may be a good or a damaged one."""
    try:
        with open_hdf5(path, links="any" if allow_external else "folder") as file:
            if "checkpoint_sha256" in file.attrs:
                return ""
            sizes = [len(getattr(file[name], "shape", ())) for name in PARTITIONS if name in file]
    except InputFileError as error:
        said = str(error).removeprefix(f"{path}: ")
        return "" if "truncated" in said else said
    except (OSError, KeyError, ValueError):
        return ""
    if sizes and min(sizes) > _LATENTS_NDIM:
        return "expected a latents file, got a cutout file: give the latents file, and this one as source="
    return ""


def _unit_norm(report: Report) -> bool:
    return str(report.provenance.get("latent", "projection")) == "projection"


def _verify_partition(report: Report, name: str, dataset: Any, unit_norm: bool) -> None:
    """Check shape, type and norms of one data set."""
    if getattr(dataset, "ndim", 0) != 2 or dataset.dtype.kind != "f":
        report.problems.append(f"'{name}': expected a floating-point data set of shape (N, D)")
        return
    rows, dim = dataset.shape
    report.rows[name] = rows
    if report.dim not in (0, dim):
        report.problems.append(
            f"'{name}': expected latents of {report.dim} dimensions, as in another partition, got {dim}"
        )
    report.dim = dim
    wrong = 0
    for start in range(0, rows, _BLOCK):
        block = np.asarray(dataset[start : start + _BLOCK], dtype=np.float64)
        finite = np.isfinite(block).all(axis=1)
        report.nonfinite += int((~finite).sum())
        wrong += _count_wrong(block[finite], unit_norm)
    if wrong:
        wanted = "of length 1" if unit_norm else "nonzero"
        rows_are = counted(wrong, f"row of '{name}' is", f"rows of '{name}' are")
        report.problems.append(f"{rows_are} not {wanted}")


def _count_wrong(rows: NDArray[np.float64], unit_norm: bool) -> int:
    norms = np.linalg.norm(rows, axis=1)
    wrong = np.abs(norms - 1) > _NORM_TOLERANCE if unit_norm else norms == 0
    return int(wrong.sum())


def _sha256(dataset: Any) -> str:
    digest = hashlib.sha256()
    for start in range(0, dataset.shape[0], _BLOCK):
        digest.update(np.ascontiguousarray(dataset[start : start + _BLOCK], dtype="<f4").tobytes())
    return digest.hexdigest()


def _compare_with_source(report: Report, path: Path, place: str) -> None:
    """Check that each partition has one row per cutout of the source."""
    found = inspect_cutouts(path, tuple(report.rows)).partitions
    for name, rows in report.rows.items():
        if name not in found:
            report.problems.append(f"'{name}' is not in {place}")
        elif found[name].rows != rows:
            report.problems.append(
                f"'{name}' has {counted(rows, 'row')}, {place} has {counted(found[name].rows, 'cutout')}"
            )
    size = report.provenance.get("source_size")
    if size is not None and path.stat().st_size != size:
        report.problems.append(f"expected a source of {size} bytes, got {path.stat().st_size} in {place}")
    elif "source_sha256" in report.provenance and sha256_file(path) != report.provenance["source_sha256"]:
        report.problems.append(f"the content of {place} differs from the source of the latents (sha256)")
