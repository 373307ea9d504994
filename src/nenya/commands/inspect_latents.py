"""What `nenya inspect` says of latents files, and of calibrations."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from nenya.commands.report import FileReport
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError
from nenya.latents.calibration_file import load
from nenya.latents.clear import columns_in, read_column
from nenya.storage.texts import counted

_MADE_OF = (
    *("model_version", "checkpoint", "checkpoint_source", "checkpoint_revision", "checkpoint_sha256"),
    *("source", "latent", "nenya_version", "date"),
)
_CALIBRATED = (
    *("model_version", "checkpoint_sha256", "masked", "preprocessing", "latent", "image_size", "cutouts", "masks_of"),
    *("nenya_version", "date"),
)


def inspect_latents(path: Path, *, allow_external: bool) -> FileReport:
    """Inspect a latents file.

    Raises:
        InputFileError: It cannot be read.
    """
    from nenya.commands.verify import verify_file

    found = verify_file(path, provenance=False, allow_external=allow_external)
    if not found.rows and found.problems:
        raise InputFileError(f"{path}: a latents file that {found.problems[0].removeprefix('it ')}")
    report = FileReport(f"latents, {path.stat().st_size / 1e6:.1f} MB")
    rows = ", ".join(f"{name} {count}" for name, count in found.rows.items())
    report.lines.append(
        f"rows: {rows}; {found.dim} dimensions; {counted(found.nonfinite, 'row is', 'rows are')} not finite"
    )
    made = [f"{key} {str(found.provenance[key])[:60]}" for key in _MADE_OF if key in found.provenance]
    if made:
        report.lines.append("made of " + ", ".join(made))
    else:
        report.warnings.append("no provenance (a file of the first nenya?)")
    if found.nonfinite:
        report.warnings.append(f"{counted(found.nonfinite, 'row is', 'rows are')} not finite, of cutouts with NaN")
    report.warnings += found.problems
    with open_hdf5(path, links="any" if allow_external else "folder") as file:
        for name, count in found.rows.items():
            _describe_latents(report, name, file[name])
            with suppress(InputFileError):  # `found.problems` says it
                _describe_columns(report, name, count, file)
        masked = {name: file.attrs.one(name, "") for name in ("masked", "calibration_sha256", "calibration")}
    _describe_masked(report, masked)
    return report


def _describe_latents(report: FileReport, name: str, dataset: Any) -> None:
    """Report the spread of the latents, from their first rows."""
    block = np.asarray(dataset[:16384], dtype=np.float64)
    block = block[np.isfinite(block).all(axis=1)]
    if len(block) < 2:
        return
    variance = block.var(axis=0)
    effective = variance.sum() ** 2 / (np.linalg.norm(np.cov(block.T)) ** 2 or 1.0)
    report.lines.append(
        f"{name}: {dataset.dtype}, values {block.min():.3g} to {block.max():.3g}, total variance {variance.sum():.3g}, "
        f"participation ratio {effective:.1f} of {block.shape[1]} (first {len(block)} rows)"
    )
    if variance.sum() < 1e-6:
        report.warnings.append(f"{name}: all latents are the same: the network has collapsed")


def _describe_columns(report: FileReport, name: str, rows: int, file: Any) -> None:
    """Report how many cutouts are masked, and how far their latents may be from those of the clear ones."""
    found = {column: read_column(file, name, column, rows) for column in columns_in(file, name)}
    if "clear" not in found:
        return
    masked = found["clear"] < 1
    line = f"{name}: {int(masked.sum())} of {rows} cutouts are masked in part"
    if masked.any():
        line += f", {1 - float(np.median(found['clear'][masked])):.1%} of their pixels (median)"
    if {"cosine", "cosine_low"} <= found.keys() and masked.any():
        low, cosine = found["cosine_low"][masked], found["cosine"][masked]
        known = np.isfinite(low)
        if known.any():
            line += (
                f"; cosine with the clear latent {np.median(cosine[known]):.4f} (median), cosine_low "
                f"{np.median(low[known]):.4f} (median), {low[known].min():.4f} (least)"
            )
        if lacking := int((~known).sum()):
            line += f"; unknown for {lacking}"
    report.lines.append(line)


def _describe_masked(report: FileReport, made: Mapping[str, Any]) -> None:
    """Report what the network saw of masked pixels, and the calibration."""
    if not made["masked"]:
        return
    line = f"masked pixels: preprocess.masked={str(made['masked'])[:20]}"
    digest = str(made["calibration_sha256"])[:12]
    words = _words(str(made["calibration"]))
    report.lines.append(f"{line}, calibration {digest}{words}" if digest else f"{line}, no calibration")


def _words(calibration: str) -> str:
    with suppress(ValueError, TypeError, KeyError):
        about = json.loads(calibration)
        return f" of {int(about['cutouts'])} cutouts under masks {str(about['masks_of'])[:80]}"
    return ""


def inspect_calibration(path: Path) -> FileReport:
    """Inspect a calibration.

    Raises:
        InputFileError: It cannot be read.
    """
    made = load(path)
    report = FileReport(f"calibration of masked cutouts, {path.stat().st_size / 1e6:.2f} MB")
    report.lines.append(
        "made of " + ", ".join(f"{k} {str(made.about[k])[:60]}" for k in _CALIBRATED if k in made.about)
    )
    try:
        report.lines += made.lines()
    except (KeyError, ValueError, TypeError, AttributeError):
        report.warnings.append("its table of results is damaged")
    return report
