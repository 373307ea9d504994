"""What `nenya prepare` would take from a file of fields: recipe, variable, units, time, place, quality, range."""

from pathlib import Path

import numpy as np

from nenya.commands.report import FileReport
from nenya.errors import InputFileError
from nenya.options.commands import InspectOptions, PrepareOptions
from nenya.options.files import read_group, read_recipe
from nenya.options.sections import build_options
from nenya.prepare.account import Tally, descriptions
from nenya.prepare.fields import Layout
from nenya.prepare.recipes import fitting, recipe_lines
from nenya.prepare.sources import open_fields

FIELD_SUFFIXES = (".nc", ".nc4", ".cdf", ".he5", ".zarr", ".grib", ".grib2", ".grb", ".grb2")
_FIRST = 3  # fields that are read for the range


def inspect_fields(path: Path, options: InspectOptions) -> FileReport:
    """Report what a recipe takes from a file of fields.

    Args:
        path: a file of fields.
        options: `recipe=` names another recipe than the one that fits.

    Raises:
        InputFileError: It is missing, damaged or of unknown kind.
        OptionError: There is no such recipe.
    """
    with open_fields(path, options.loader.cache_dir, allow_external=options.loader.allow_external) as dataset:
        name = options.recipe or fitting(dataset)
        report = FileReport(f"fields, {_size(path) / 1e6:.1f} MB")
        about = recipe_lines().get(name, "your own")
        report.lines.append(f"recipe: sensor={name} {'as given' if options.recipe else 'fits'} ({about})")
        report.facts = {"recipe": name}
        try:
            _describe(report, Layout(dataset, str(path), _recipe(name)))
        except InputFileError as error:
            report.warnings.append(str(error).removeprefix(f"{path}: "))
            shown = [f"{key} ({', '.join(f'{d} {n}' for d, n in v.sizes.items())})" for key, v in dataset.items()]
            report.lines.append(f"variables: {', '.join(shown[:20]) or 'none'}")
    return report


def _recipe(name: str) -> PrepareOptions:
    """Return the options of a recipe: one of nenya's, or a file of the user's."""
    own = name.endswith((".yaml", ".yml"))
    values = {"recipe": Path(name).stem, **read_recipe(name)} if own else read_group("sensor", name)
    return build_options(PrepareOptions, values)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _describe(report: FileReport, layout: Layout) -> None:
    """Add what a layout takes from a file, and the range of its first fields."""
    report.lines += [f"{key}: {words}" for key, words in descriptions(layout).items()]
    steps = range(min(_FIRST, len(layout.times)))
    tally = Tally()
    first = None
    for step in steps:
        for face in layout.faces:
            field = layout.read(step, face)
            first = first or field
            tally.see(field)
    assert first is not None
    lat, lon = (np.asarray(values)[np.isfinite(values)] for values in (first.lat, first.lon))
    report.lines.append(
        f"place: {first.shape[0]} x {first.shape[1]} pixels, latitude {lat.min():.2f} to {lat.max():.2f}, longitude "
        f"{lon.min():.2f} to {lon.max():.2f}" + (f", {len(layout.faces)} tiles" if len(layout.faces) > 1 else "")
    )
    some = "" if len(steps) == len(layout.times) else f" of the first {len(steps)} times"
    report.lines.append(f"range{some}: {tally.text(layout.range.unit)}")
    report.warnings += [*layout.masks.notes, *layout.range.notes]
    report.facts["variable"] = layout.variable
