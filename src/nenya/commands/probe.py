"""`nenya probe`: what latents know of columns of their table, of several models side by side."""

import json
import logging
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import nenya
from nenya.commands.probe_inputs import Rows, baselines, common_rows, open_models
from nenya.commands.probe_words import probe_page, table_lines
from nenya.errors import InputFileError, OptionError
from nenya.io import write_table
from nenya.latents.audit_columns import DERIVED, targets_of
from nenya.latents.column_probes import Probed, ProbeSettings, Targets, as_rows, check_targets, probe_columns
from nenya.latents.linear import Folds
from nenya.latents.probe_folds import folds_of
from nenya.latents.probes import Features
from nenya.options.declare import suggest
from nenya.options.probe import ProbeOptions
from nenya.plotting.probe import draw_probes
from nenya.storage.disk import atomic_path, check_output, temporary_folder, together
from nenya.storage.paths import local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.granules import GRANULE
from nenya.tables.key_columns import COLUMNS
from nenya.tables.place_and_time import usual_names

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Found = dict[str, dict[str, dict[str, Probed]]]

_FOLDER = "outputs/probe"
_ENDS = ("html", "json", "csv", "png")


def run(options: ProbeOptions) -> int:
    """Probe latents: print a table, and write it with JSON, a figure and a page.

    Args:
        options: of `scripts/probe.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    if isinstance(options.columns, str):
        options = replace(options, columns=[options.columns])
    folder = local_path(options.out or _FOLDER)
    if folder.suffix and not folder.is_dir():
        raise OptionError(f"out={folder}: expected a folder")
    places = {end: folder / f"probe.{end}" for end in _ENDS}
    for path in places.values():
        check_output(path, options.clobber)
    models, table = open_models(options)
    _check_columns(table, options.columns)
    rows = common_rows(models, table, options.sample, options.seed)
    folds, some = folds_of(rows.table, rows.kinds, options.by, options.folds, rows.marks)
    rows = rows.take(some)
    targets, left_out = _targets(rows, folds, options)
    features = {name: Features(own, own) for name, own in rows.latents.items()}
    if options.images:
        untrained = baselines(options, models, rows)
        if same := sorted(features.keys() & untrained.keys()):
            raise OptionError(f"{same[0]}: is what images= adds, give the model another name by names=[...]")
        features |= untrained
    features, targets, folds, rows = _known(features, targets, folds, rows)
    targets, more = check_targets(targets, folds, options.k)
    _refuse(targets, more, options.columns)
    settings = ProbeSettings(options.k, options.shuffles, options.seed)
    found = probe_columns(features, targets, folds, settings)
    left = left_out | more
    results = _results(found, left, features, folds, rows, options)
    _write_all(places, found, results, list(rows.latents))
    for line in table_lines(found):
        say(line)
    for column, why in left.items():
        log.info("%s is not probed: %s", column, why)
    log.info("%s", lines_of(places.values()))
    return 0


def _write_all(places: dict[str, Path], found: Found, results: dict[str, Any], trained: list[str]) -> None:
    """Write figure, page, JSON and table: all of them or none."""
    with temporary_folder("nenya-probe-") as scratch:
        figure = scratch / "probe.png"
        draw_probes(found, figure)
        name = places["html"].parent.name
        page = probe_page(name, found, trained, figure, results["made_by"], list(results["left_out"].items()))
        with together():
            for end, text in (("html", page), ("json", json.dumps(_plain(results), indent=1) + "\n")):
                _write(places[end], text)
            write_table(_frame(found), places["csv"])
            with atomic_path(places["png"]) as temporary:
                shutil.copyfile(figure, temporary)


def _check_columns(table: "pd.DataFrame", columns: list[str] | None) -> None:
    """Refuse columns that do not exist.

    Raises:
        OptionError: There is one.
    """
    names = list(map(str, table.columns))
    derived = DERIVED if "datetime" in usual_names(table.iloc[:1]) else ()
    for name in columns or []:
        if name not in [*names, *derived]:
            raise OptionError(
                f"columns={name}{suggest(name, names)}: expected columns of the table ({', '.join(names)})"
            )


def _targets(rows: Rows, folds: Folds, options: ProbeOptions) -> tuple[Targets, dict[str, str]]:
    """Return the columns as targets, and why others are none.

    Raises:
        InputFileError: A requested column is none, or no column is one.
    """
    keys = [name for name in (*COLUMNS, GRANULE) if name in rows.table and not options.columns]
    targets, left_out = targets_of(rows.table.drop(columns=keys), options.columns, ranks=False)
    good, more = check_targets(targets, folds, options.k)
    _refuse(good, left_out | more, options.columns)
    asked = {name: place for place, name in enumerate(options.columns or [])}
    return dict(sorted(targets.items(), key=lambda item: asked.get(item[0], len(asked)))), left_out


def _refuse(targets: Targets, left_out: dict[str, str], columns: list[str] | None) -> None:
    """Refuse a requested column that cannot be probed, or if none can be."""
    if left_out and columns:
        name, why = next(iter(left_out.items()))
        raise InputFileError(f"columns={name}: cannot be probed: {why}; leave it out, or give other rows or by=")
    if not targets:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputFileError(f"expected a table with columns to probe, got none ({why or 'it has keys only'})")


def _known(
    features: dict[str, Features], targets: Targets, folds: Folds, rows: Rows
) -> tuple[dict[str, Features], Targets, Folds, Rows]:
    """Leave out rows with a feature that is not finite: cutouts with masked pixels."""
    good = np.flatnonzero(np.all([np.isfinite(own.linear).all(axis=1) for own in features.values()], axis=0))
    if len(good) == len(rows.table):
        return features, targets, folds, rows
    log.warning("%d of %d rows are left out: cutouts with masked pixels", len(rows.table) - len(good), len(rows.table))
    kept = {}
    for name, (target, known) in targets.items():
        inside = np.isin(np.flatnonzero(known), good)
        kept[name] = type(target)(target.values[inside], target.classes), known[good]
    return {name: own.take(good) for name, own in features.items()}, kept, folds.take(good), rows.take(good)


def _results(
    found: Found,
    left_out: dict[str, str],
    features: dict[str, Features],
    folds: Folds,
    rows: Rows,
    options: ProbeOptions,
) -> dict[str, Any]:
    """Return the results as JSON values."""
    columns = {
        column: {model: {probe: asdict(one) for probe, one in probes.items()} for model, probes in models.items()}
        for column, models in found.items()
    }
    return {
        "columns": columns,
        "left_out": left_out,
        "models": {
            name: {"features": own.linear.shape[1], "trained": name in rows.latents} for name, own in features.items()
        },
        "made_by": {
            "nenya_version": nenya.__version__,
            "by": folds.by,
            "folds": options.folds,
            "blocks": len(np.unique(folds.blocks)),
            "rows": len(rows.table),
            "rows of all models": rows.total,
            "sample": options.sample,
            "k": options.k,
            "shuffles": options.shuffles,
            "seed": options.seed,
        },
    }


def _frame(found: Found) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(as_rows(found))


def _plain(value: Any) -> Any:
    """Return results as JSON takes them: NaN is None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
