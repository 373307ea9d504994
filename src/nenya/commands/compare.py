"""`nenya compare`: two sets of latents of one network, or several trainings of one recipe."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.archive.folder import open_version
from nenya.commands.compare_results import Results, compare_results, seed_results
from nenya.errors import OptionError
from nenya.io import read_table, write_table
from nenya.latents.agreement import agreement, aligned_rows
from nenya.latents.comparison import Settings, TwoSets, compare, density_ratio, kept_answers, two_sets
from nenya.latents.files import Latents, open_latents
from nenya.latents.kept_answers import KeptAnswers, digest
from nenya.options.comparison import CompareOptions
from nenya.plotting.comparison_page import comparison_page
from nenya.runtime.process import RowProgress
from nenya.storage.disk import atomic_path, check_output, temporary_folder, together
from nenya.storage.paths import local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.conditions import rows_where
from nenya.tables.strata import check_strata
from nenya.tables.tags import place_of_tags, with_tags

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_FOLDER = "outputs/compare"
_PARTIAL = "compare.partial"  # in the folder of the results: what an interrupted run has found
_MAY_BE_WRITTEN = (
    *("strata.png", "globe.png", "umap.png", "gallery_a.png", "gallery_b.png"),
    *("compare.csv", "a_density_ratio.parquet", "b_density_ratio.parquet", "stability.parquet"),
)
_OF_TWO_SETS = "a b a_table b_table a_images b_images archive_dir version data by pair".split()  # not of seeds=


def _names(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list | tuple) else [value])]


def run(options: CompareOptions) -> int:
    """Compare two sets of latents, or several trainings.

    Args:
        options: of `scripts/compare.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    folder = local_path(options.out or _FOLDER)
    check_output(folder / "compare.json", options.clobber)
    if options.seeds is not None:
        return _run_seeds(options, folder)
    settings = Settings(
        options.block, tuple(_names(options.by)), options.pair, options.k, options.permutations, options.sample,
        options.side, options.seed,
    )  # fmt: skip
    latents, tables, names = sets_of(options)
    sets = two_sets(latents, tables, settings)
    check_strata(sets.table(), settings.by)
    images = _images(options, sets)
    kept = kept_answers(sets, settings, folder / _PARTIAL)
    whole, parts = compare(sets, settings, kept)
    ratios = density_ratio(sets, settings, kept)
    with temporary_folder("nenya-compare-") as scratch:
        results = compare_results(sets, settings, (whole, parts), ratios, names, (images, options.shown, scratch))
        _write(folder, results, made_by(options, names))
    kept.remove()
    return 0


def sets_of(
    options: CompareOptions,
) -> "tuple[tuple[Latents, Latents], tuple[pd.DataFrame, pd.DataFrame], tuple[str, str]]":
    """Return latents, tables and names of the two sets.

    Raises:
        OptionError: They are not given, given twice, or the two conditions have common rows or none.
        InputFileError: A file cannot be read.
    """
    if options.a is None or options.b is None:
        raise OptionError(
            "expected a= and b=: two sets of latents with a_table= and b_table=, or, with archive=, two conditions; or "
            "seeds=, several trainings"
        )
    loader = options.loader
    if not options.archive_dir and options.data is None:
        if options.table or options.version or options.tags:
            name = "table" if options.table else "version" if options.version else "tags"
            raise OptionError(
                f"{name}= is of archive= or data= with two conditions: leave it out where a= and b= are latents files "
                "(their tables are a_table= and b_table=)"
            )
        opened = [
            open_latents(one, loader.cache_dir, allow_external=loader.allow_external) for one in (options.a, options.b)
        ]
        tables = [
            read_table(local_path(place)) if place else latents.keys()
            for place, latents in zip((options.a_table, options.b_table), opened, strict=True)
        ]
        stems = [_short(latents.parts[0].stem) for latents in opened]
        names = (stems[0], stems[1]) if stems[0] != stems[1] else ("a", "b")
        return (opened[0], opened[1]), (tables[0], tables[1]), names
    if options.a_table or options.b_table:
        raise OptionError("a_table= and b_table= are of a= and b= as latents files: leave out archive= and data=")
    latents, table = _whole(options)
    chosen = [_rows_where(table, name, str(getattr(options, name))) for name in "ab"]
    for name, condition, rows in zip("ab", (options.a, options.b), chosen, strict=True):
        if not rows.any():
            raise OptionError(f'{name}="{condition}": no row of {len(table)} fulfils it: widen the condition')
    if (both := int((chosen[0] & chosen[1]).sum())) > 0:
        raise OptionError(f"{both} rows fulfil both a= and b=: expected two conditions without common rows")
    return (latents, latents), (table[chosen[0]], table[chosen[1]]), (_short(str(options.a)), _short(str(options.b)))


def _rows_where(table: "pd.DataFrame", name: str, condition: str) -> NDArray[np.bool_]:
    """Return the rows that fulfil the condition of an option; an error names that option."""
    try:
        return rows_where(table, condition)
    except OptionError as error:
        raise OptionError(str(error).replace("where=", f"{name}=")) from error


def _whole(options: CompareOptions) -> "tuple[Latents, pd.DataFrame]":
    loader = options.loader
    if options.archive_dir:
        if options.data is not None or options.table:
            raise OptionError("archive= and data= or table=: give one of them")
        opened = open_version(options.archive_dir, options.version, loader.cache_dir)
        return opened.latents(), with_tags(opened.table(), place_of_tags(options.tags, None, options.archive_dir))
    if options.version:
        raise OptionError("version= is of archive=: leave it out with data=")
    if not options.table:
        raise OptionError("data= with two conditions a= and b= needs table=, the table of the cutouts")
    latents = open_latents(options.data, loader.cache_dir, allow_external=loader.allow_external)
    return latents, with_tags(read_table(local_path(options.table)), place_of_tags(options.tags, options.table, None))


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def _images(options: CompareOptions, sets: TwoSets) -> list[Any]:
    """Return the cutouts of each set, None where no files are given."""
    from nenya.data.table_images import TableImages

    found = []
    for given, table in zip((options.a_images, options.b_images), sets.tables, strict=True):
        found.append(TableImages(given, table.reset_index(drop=True), options.loader) if given else None)
    return found


def _run_seeds(options: CompareOptions, folder: Path) -> int:
    """Compare several trainings."""
    given = [name for name in _OF_TWO_SETS if getattr(options, name)]
    if given:
        raise OptionError(f"seeds= and {given[0].removesuffix('_dir')}=: give one of them")
    places = _names(options.seeds)
    loader = options.loader
    runs = [open_latents(place, loader.cache_dir, allow_external=loader.allow_external) for place in places]
    rows = aligned_rows(runs)
    table = read_table(local_path(options.table)) if options.table else None
    number = runs[0].join(table).number if table is not None else np.arange(len(runs[0]))
    kept = KeptAnswers(folder / _PARTIAL, digest(runs, (options.sample, options.seed), rows))
    with RowProgress("compare", len(runs[0])) as progress:
        found = agreement(runs, rows, sample=options.sample, seed=options.seed, done=progress.advance, kept=kept)
    results = seed_results(found, places, table if table is not None else runs[0].keys(), number)
    _write(folder, results, made_by(options, places))
    kept.remove()
    return 0


def made_by(options: CompareOptions, names: Sequence[str]) -> dict[str, Any]:
    """Return how the results were made."""
    return {
        "nenya_version": nenya.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sets": list(names),
        "block": options.block,
        "k": options.k,
        "permutations": options.permutations,
        "sample": options.sample,
        "seed": options.seed,
    }


def _write(folder: Path, results: Results, made: Mapping[str, Any]) -> None:
    """Write all results, or none."""
    answer = {**results.answer, "words": results.words, "made_by": made}
    page = comparison_page(results.title, results.words, results.page_tables, results.figures, made, results.notes)
    with together():
        for name, table in results.tables.items():
            write_table(table, folder / name)
        for path in results.figures.values():
            with atomic_path(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
        texts = {"compare.html": page, "compare.json": json.dumps(answer, indent=1, allow_nan=False) + "\n"}
        for name, text in texts.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    written = {*results.tables, *(path.name for path in results.figures.values())}
    for name in _MAY_BE_WRITTEN:
        if name not in written:  # of an earlier comparison
            (folder / name).unlink(missing_ok=True)
    say(lines_of(results.words))
    log.info("%s", folder / "compare.html")
