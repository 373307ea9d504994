"""`nenya spectra`: power spectra of cutouts and their slopes, as figure, CSV and columns of a table."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nenya.commands.pictures import SUFFIXES, formats_of, style_of
from nenya.data.cutouts import CutoutFile, inspect_cutouts
from nenya.data.spectra import MeanSpectrum, Recipe, density_factor, file_spectrum
from nenya.errors import InputFileError, OptionError
from nenya.options.figures import SpectraOptions
from nenya.storage.disk import check_output, together
from nenya.storage.paths import fetch, find_sources, local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.key_columns import read_keys
from nenya.tables.keys import Joined, cutout_parts, join, part_types

log = logging.getLogger(__name__)


_FOLDER = "outputs/spectra"


_ENDS = ("spectrum.csv", "alpha.parquet")


def _ends(options: SpectraOptions) -> list[str]:
    """Return the ends of the names of all outputs of a file."""
    return [*(f"spectrum{suffix}" for suffix in formats_of(options) or SUFFIXES[:1]), *_ENDS]


def run(options: SpectraOptions) -> int:
    """Compute the spectra of the cutout files of `options.data`.

    Args:
        options: of `scripts/spectra.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be read, an option is not possible, or a result cannot be written.
    """
    import pandas as pd

    low, high = options.band
    recipe = Recipe(options.detrend, options.window, options.average, (float(low), float(high)))
    folder = local_path(options.out or _FOLDER)
    names = (options.loader.train_key, options.loader.valid_key)
    paths = fetch(find_sources(options.data), options.loader.cache_dir)
    files = [inspect_cutouts(path, names, allow_external=options.loader.allow_external) for path in paths]
    twice = {path.stem for path in paths if sum(other.stem == path.stem for other in paths) > 1}
    if twice:
        raise OptionError(f"two files are named {min(twice)}: give them one at a time, each with its own out=")
    for place in [folder / f"{path.stem}_{end}" for path in paths for end in _ends(options)]:
        check_output(place, options.clobber)
    style_of(options)  # refused before the long work
    table = _open_table(options, files)
    with together():
        slopes = [_of_file(file, recipe, folder, options) for file in files]
        if table is not None:
            _write_table(*table, pd.concat(slopes, ignore_index=True), local_path(options.table or ""), folder)
    return 0


def _of_file(file: CutoutFile, recipe: Recipe, folder: Path, options: SpectraOptions) -> "pd.DataFrame":
    """Write figure, spectrum and slopes of a file; return the slopes of its cutouts."""
    import pandas as pd

    found = {name: file_spectrum(file, name, recipe) for name in file.partitions}
    _write(folder, file.path, {name: mean for name, (mean, _, _) in found.items()}, options)
    slopes = []
    for name, (_, alpha, error) in found.items():
        kind = max(part_types(name, options.loader.train_key, options.loader.valid_key))
        columns = {"pp_file": file.path.name, "pp_type": kind, "pp_idx": np.arange(len(alpha))}
        slopes.append(pd.DataFrame({**columns, "alpha": alpha, "alpha_err": error}))
    whole = pd.concat(slopes, ignore_index=True)
    _save_table(whole, folder / f"{file.path.stem}_alpha.parquet")
    log.info("%s", lines_of(folder / f"{file.path.stem}_{end}" for end in _ends(options)))
    return whole


def _open_table(options: SpectraOptions, files: Sequence[CutoutFile]) -> "tuple[pd.DataFrame, Joined] | None":
    """Read the table of the options and join it to the cutouts, before the long work."""
    from nenya.io import read_table

    if not options.table:
        return None
    names = (options.loader.train_key, options.loader.valid_key)
    parts = cutout_parts([(str(f.path), {n: p.rows for n, p in f.partitions.items()}) for f in files], *names)
    table = read_table(local_path(options.table))
    try:
        return table, join(read_keys(table), parts, "cutout")
    except InputFileError as error:
        raise InputFileError(f"{options.table}: {error}") from error


def _write(folder: Path, path: Path, spectra: dict[str, MeanSpectrum], options: SpectraOptions) -> None:
    """Log the slopes, draw the figure and write the spectrum."""
    import pandas as pd

    from nenya.plotting import power_spectra

    low, high = options.band
    for name, mean in spectra.items():
        slope = mean.slope
        left = f", {mean.left_out} with NaN left out" if mean.left_out else ""
        over = f"over {low:g}-{high:g} px ({slope.bins} bins), {mean.rows} cutouts{left}"
        say(f"{path.name} {name}: beta {slope.beta:.3f} +- {slope.error:.3f} {over}")
    factors = {name: density_factor(mean.size, mean.recipe) for name, mean in spectra.items()}
    slopes = {name: (mean.slope.beta, mean.slope.error) for name, mean in spectra.items()}
    ends = [] if options.spread in (None, "none") else [float(share) for share in options.spread]
    spread: Any = {
        name: tuple(mean.quantile(share) * factors[name] for share in ends) for name, mean in spectra.items() if ends
    }
    power_spectra(
        {name: (mean.wavelength, mean.power * factors[name], *slopes[name]) for name, mean in spectra.items()},
        [folder / f"{path.stem}_{end}" for end in _ends(options)[: -len(_ENDS)]],
        band=(low, high),
        pixel_km=options.pixel_km,
        title=path.name,
        unit=options.unit,
        spread=spread,
        reference_slopes=[float(slope) for slope in options.reference_slopes],
        style=style_of(options),
    )
    columns = {name: mean.power for name, mean in spectra.items()}
    first = next(iter(spectra.values()))
    _save_table(pd.DataFrame({"wavelength_px": first.wavelength, **columns}), folder / f"{path.stem}_spectrum.csv")


def _save_table(table: Any, path: Path) -> None:
    from nenya.io import write_table

    write_table(table, path)


def _write_table(table: "pd.DataFrame", joined: Joined, slopes: "pd.DataFrame", place: Path, folder: Path) -> None:
    """Write a copy of a table with the slopes of its rows."""
    known = joined.number >= 0
    columns = {}
    for name in ("alpha", "alpha_err"):
        columns[name] = np.full(len(table), np.nan)
        columns[name][known] = slopes[name].to_numpy()[joined.number[known]]
    out = folder / f"{place.stem}_alpha{place.suffix}"
    if out.name in {f"{Path(name).stem}_alpha.parquet" for name in slopes["pp_file"].unique()}:
        out = folder / f"{place.stem}_with_alpha{place.suffix}"
    _save_table(table.assign(**columns), out)
    if joined.note:
        log.warning("%s: %s", place, joined.note)
    log.info("%s: alpha of %d of %d rows", out, int(np.isfinite(columns["alpha"]).sum()), len(table))
