"""`nenya outliers`: how rare each latent is; writes columns of rarity, a summary and a gallery of the rarest."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.data.texture import TextureError, read_textures, texture_likelihood
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.latents.cutouts_beside import cutouts_beside
from nenya.latents.files import Latents, open_latents
from nenya.latents.kept_answers import SHARDS, KeptAnswers, digest
from nenya.latents.nearest import Identity, identity_of
from nenya.latents.rarity import (
    EXACT_ROWS,
    PROBES,
    Density,
    Rarity,
    RowsOf,
    Search,
    check_shards,
    fit_density,
    groups_of,
    joined_rows,
    percentiles,
    rarity_of,
    rarity_share,
)  # fmt: skip
from nenya.options.calibration import AnalysisOptions
from nenya.options.declare import at_least, option
from nenya.options.shards import ShardOptions
from nenya.runtime.shards import MERGE, Share, over_dask, parse_share
from nenya.storage.disk import atomic_path, check_output, together
from nenya.storage.paths import local_path
from nenya.storage.texts import say
from nenya.tables.granules import GRANULE, SOURCES, granules
from nenya.tables.key_columns import COLUMNS as KEY_COLUMNS
from nenya.tables.place_and_time import OTHER_NAMES, other_names, usual_names
from nenya.tables.streamed import names_in_parts, read_rows, read_some, write_with

if TYPE_CHECKING:
    import pandas as pd

    from nenya.data.table_images import TableImages

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

COLUMNS = ("rarity", "rarity_percentile", "latent_LL")
"""Columns that the command writes."""

TEXTURE_COLUMNS = ("texture_LL", "texture_percentile")
"""Columns from the pixels, with images=: log-likelihood of the texture, percentage of rows as likely or likelier."""

ERROR_COLUMNS = ("rarity_low", "rarity_high")
"""The 95 % interval of a rarity that is not exact."""

_FOLDER = "outputs/outliers"
_APART_KM, _APART_DAYS = 100.0, 3.0
_TEXTURE_SHARE = 0.75  # of the list of the rarest
_CORRELATED_ROWS = 1_000_000  # for rank correlations
_SHOWN = 32  # cutouts of a group in its figure
_FIRST_LL = "LL"  # the log-likelihood of the first nenya's tables


@dataclass
class OutliersOptions(AnalysisOptions, ShardOptions):
    """Options of the rarity of latents."""

    uses: ClassVar[tuple[str, ...]] = ("loader", "data", "out", "seed", "clobber")

    k: int = option(10, "number of nearest neighbours; the mean distance to them is the rarity", at_least(1))
    apart_km: float | None = option(
        None,
        f"rows within this distance in km (and apart_days) are not neighbours; default {_APART_KM:g} where the table "
        "has lat, lon and datetime; 0: distances are ignored",
        at_least(0),
    )
    apart_days: float | None = option(
        None, f"as apart_km, in days; default {_APART_DAYS:g}; each may be used alone", at_least(0)
    )
    same_granule: bool = option(False, "also use neighbours of the same granule")
    exact: bool | None = option(
        None,
        f"compare all latents with all; default: up to {EXACT_ROWS} of them, above with those of the nearest cells of "
        "k-means, with the error stated",
    )
    probes: int = option(PROBES, "number of searched cells of k-means, of mean size", at_least(1))
    components: int | None = option(
        None, "principal components of the density model; default: 95 % of the variance, at most 24", at_least(1)
    )
    sample: int = option(10_000, "latents on which the density model is fitted", at_least(10))
    rarest: int = option(200, "rarest cutouts in the gallery", at_least(1))
    groups: int = option(8, "clusters of the rarest in the gallery", at_least(1))
    images: Any = option(  # noqa: RUF009  # declared as in nenya.options
        None,
        "cutout files, for textures and the gallery; default: those beside the latents or the table that have not "
        f"changed since, up to {EXACT_ROWS} latents; none: without",
    )


def run(options: OutliersOptions) -> int:
    """Write the rarity of each row of a table, and a gallery of the rarest.

    Args:
        options: of `scripts/outliers.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    share = parse_share(options.shard)
    if options.dask:
        return over_dask(run, options)
    latents = open_latents(options.data, options.loader.cache_dir, allow_external=options.loader.allow_external)
    name = local_path(options.table).stem if options.table else latents.parts[0].stem
    out = local_path(options.out or _FOLDER)
    if out.suffix not in TABLE_SUFFIXES:
        if out.suffix and not out.is_dir():
            raise OptionError(f"out={out}: expected a folder or a table ({', '.join(TABLE_SUFFIXES)})")
        out = out / f"{name}_outliers.parquet"
    summary, list_of_rarest = out.with_name(f"{out.stem}.json"), out.with_name(f"{out.stem}_rarest.csv")
    for path in (out, summary, list_of_rarest):
        check_output(path, options.clobber)
    source = local_path(options.table) if options.table else None
    few = columns_needed(source, out, latents, options)
    table = table_of(source, few, latents)
    rows = latents.positions(table) if options.table else np.arange(len(latents))
    identity = identity_for(table, options)
    first, place = joined_rows(rows)
    whole = RowsOf(latents, rows[first])
    identity = replace(identity.take(first), number=np.arange(len(first)))
    if few:
        table = table[[name for name in table if name == _FIRST_LL]]
    kept = kept_answers(latents, rows[first], identity, options, out, share)
    how = Search(options.k, options.exact, options.probes, options.seed, options.loader.cache_dir)
    if share is not None and not share.merges:
        with kept.working(str(out)):
            rarity_share(whole, identity, how, kept)
        log.info("%s: shard %s is complete; when all are, shard=%s writes the table", out, share, MERGE)
        return 0
    if share is not None:
        check_shards(whole, how, kept)
    images = images_for(latents, table, options)
    density = fit_density(
        whole, identity.granule, components=options.components, sample=options.sample, seed=options.seed
    )
    with kept.unless_refused():
        found = rarity_of(
            whole,
            identity,
            how.k,
            exact=how.exact,
            probes=how.probes,
            seed=how.seed,
            cache_dir=how.cache_dir,
            kept=kept,
        )
    del identity  # of many latents a gigabyte
    made = with_columns(table, found, density.log_likelihood(whole), place)
    if images is not None:
        made = with_textures(made, images)
    rarest = rarest_of(made, whole, place, options, source if few else None)
    results = results_of(made, found, density, options)
    with together():
        write_made(made, out, source if few else None)
        write_table(rarest, list_of_rarest)
        with atomic_path(summary) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    kept.remove()
    _say(results)
    if images is None:
        log.info("images= would also find artefacts (stripes, cloud edges, noise) by their pixels")
    if (rows < 0).any():
        log.warning("%d of %d rows of the table have no latent: their rarity is missing", (rows < 0).sum(), len(rows))
    if images is not None:
        _draw(rarest, images, out.with_name(f"{out.stem}_groups"))
    log.info("%s\n%s\n%s", out, summary, list_of_rarest)
    return 0


def columns_needed(source: Path | None, out: Path, latents: Latents, options: OutliersOptions) -> list[str]:
    """Return the columns of a large table that are read into memory; the others are only copied from file to file.

    Returns:
        Empty if all columns are read: the table is small or no .parquet file, cutouts are looked up in it, or it has
        columns that an exact answer removes.
    """
    names = names_in_parts(source) if source and out.suffix == ".parquet" else []
    if len(latents) <= EXACT_ROWS or not (options.images is None or _declined(options.images)):
        return []
    if {*ERROR_COLUMNS, *TEXTURE_COLUMNS} & set(names):
        return []
    wanted = {*KEY_COLUMNS, GRANULE, *SOURCES, *OTHER_NAMES, *other_names(names).values(), _FIRST_LL}
    return [name for name in names if name in wanted]


def table_of(source: Path | None, few: list[str], latents: Latents) -> "pd.DataFrame":
    """Return a table, or `few` of its columns; without one, the keys of the latents."""
    if source is None:
        return latents.keys()
    return read_some(source, few) if few else read_table(source)


def write_made(made: "pd.DataFrame", out: Path, source: Path | None) -> None:
    """Write the table with its rarity; with a source, its columns are copied and those of `made` added."""
    if source is None:
        write_table(made, out)
    else:
        write_with(source, out, {str(name): made[name].to_numpy() for name in made if name != _FIRST_LL})


def kept_answers(
    latents: Latents, rows: IntArray, identity: Identity, options: OutliersOptions, out: Path, share: Share | None
) -> KeptAnswers:
    """Return the answers that an interrupted run with the same rows and options, or its shards, left beside `out`."""
    arrays = [rows, *(own for own in (identity.granule, identity.place, identity.time) if own is not None)]
    near = [limit for own, limit in ((identity.place, identity.km), (identity.time, identity.days)) if own is not None]
    what = options.k, options.exact, options.probes, options.seed, near
    folder = out.with_name(f"{out.stem}.partial") if share is None else out.with_name(out.name + SHARDS)
    return KeptAnswers(folder, digest([latents], what, arrays), share)


def images_for(latents: Latents, table: "pd.DataFrame", options: OutliersOptions) -> "TableImages | None":
    """Return the cutouts of the rows of a table: those of `images=`, or those beside the latents; None without any."""
    from nenya.data.table_images import TableImages

    if options.images is not None:
        return None if _declined(options.images) else TableImages(options.images, table, options.loader)
    if len(latents) > EXACT_ROWS:
        return None
    found = cutouts_beside(latents, [local_path(options.table).parent] if options.table else [])
    if not found:
        return None
    try:
        images = TableImages(found, table, options.loader)
    except InputFileError:  # a table that names no cutout
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    log.info("textures of the cutouts in %s%s, which the latents were made of (images=none: without)", found[0], more)
    return images


def _declined(images: Any) -> bool:
    return images is False or str(images).lower() in ("none", "false")


def identity_for(table: "pd.DataFrame", options: OutliersOptions) -> Identity:
    """Return what tells which rows of a table are too close to be neighbours, by the options; log what is left out."""
    km, days = options.apart_km, options.apart_days
    if km is None and days is None and {"lat", "lon", "datetime"} <= set(usual_names(table)):
        km, days = _APART_KM, _APART_DAYS
    km, days = km or None, days or None
    known = granules(table) is not None and not options.same_granule
    words = ["of the same granule"] if known else []
    if km or days:
        words.append(
            "within " + " and ".join(f"{value:g} {unit}" for value, unit in ((km, "km"), (days, "days")) if value)
        )
    if words:
        log.info("rows %s are not neighbours", " or ".join(words))
    else:
        log.warning(
            "no granules: neighbours may be of the same field; table= with granule, filename or datetime separates them"
        )
    found = identity_of(table, km, days, same_granule=options.same_granule)
    for name, values in (("place", found.place), ("time", found.time)):
        if values is not None and not np.isfinite(values).any():
            log.warning("no row has a %s: distances are ignored", name)
    return found


def with_columns(
    table: "pd.DataFrame", found: Rarity, likelihood: NDArray[np.float64], place: IntArray
) -> "pd.DataFrame":
    """Return a table with the columns of rarity.

    Args:
        table: of the cutouts.
        found: rarity of N latents.
        likelihood: (N,) their log-likelihood.
        place: (len(table),) number of the latent of each row, -1 for none.
    """

    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(place >= 0, values[place], np.nan)

    columns = dict(zip(COLUMNS, (found.rarity, found.percentile, likelihood), strict=True))
    if not found.exact:
        columns |= dict(zip(ERROR_COLUMNS, (found.low, found.high), strict=True))
    old = [name for name in (*ERROR_COLUMNS, *TEXTURE_COLUMNS) if name in table and name not in columns]
    made = table.drop(columns=old)
    for name, values in columns.items():  # one after the other, as each is copied
        made[name] = spread(values)
    return made


def with_textures(made: "pd.DataFrame", images: "TableImages") -> "pd.DataFrame":
    """Return a table with the columns of texture; without them, and a warning, where the cutouts do not tell.

    Args:
        made: the table with its rarity; rows without one have no texture either.
        images: the cutouts of its rows.
    """
    rows = np.flatnonzero(images.known & np.isfinite(made["latent_LL"].to_numpy(np.float64)))
    try:
        likelihood = texture_likelihood(read_textures(images.read, rows, len(made)))
    except TextureError as error:
        log.warning("no textures: %s", error)
        return made
    if len(rows) < len(made):
        log.warning(
            "%d of %d rows have no latent or no cutout in images=: no texture", len(made) - len(rows), len(made)
        )
    return made.assign(**dict(zip(TEXTURE_COLUMNS, (likelihood, percentiles(-likelihood)), strict=True)))


def rarest_of(
    made: "pd.DataFrame", latents: RowsOf, place: IntArray, options: OutliersOptions, source: Path | None = None
) -> "pd.DataFrame":
    """Return the rarest rows of a table, rarest first: rank, rare_group, rare_by, table_row, and the table's columns.

    With textures, three in four are of the rarest textures and one in four of the rarest latents: `rare_by` says which.

    Args:
        made: the table with its rarity, and textures if there are any.
        latents: of the N latents.
        place: (len(made),) number of the latent of each row, -1 for none.
        options: `rarest`, `groups` and `seed` are used.
        source: the table, if `made` lacks most of its columns.
    """
    rarity = made["rarity"].to_numpy()
    latent, texture = tails_of(made)
    rows = first_rows(np.where(np.isfinite(rarity), np.fmin(latent, texture), np.inf), rarity, place, options.rarest)
    first = {
        "rank": np.arange(1, len(rows) + 1),
        "rare_group": groups_of(latents[place[rows]], options.groups, options.seed),
        "rare_by": np.where(texture[rows] < latent[rows], "texture", "latent"),
        "table_row": rows,
    }
    found: pd.DataFrame = made.iloc[rows].reset_index(drop=True)
    if source:
        found = read_rows(source, rows).assign(**{str(name): found[name] for name in found})
    found = found.assign(**first)
    return found[[*first, *(name for name in found if name not in first)]]


def first_rows(tail: NDArray[np.float64], rarity: NDArray[np.float64], place: IntArray, count: int) -> IntArray:
    """Return the rows with the smallest tails, of equal ones the rarest first; of rows that share a latent only one.

    Args:
        tail: (R,), infinite for rows that are left out.
        rarity: (R,) of each row.
        place: (R,) number of its latent.
        count: number of rows.
    """
    looked_at = 2 * count
    while True:  # rows that share a latent may need more than twice as many
        few = looked_at < len(tail)
        limit = np.partition(tail, looked_at)[looked_at] if few else np.inf
        rows = np.flatnonzero((tail <= limit) & (tail < np.inf))
        rows = rows[np.lexsort((place[rows], -rarity[rows], tail[rows]))]
        _, once = np.unique(place[rows], return_index=True)
        if len(once) >= count or not few:
            found: IntArray = rows[np.sort(once)][:count]
            return found
        looked_at *= 4


def tails_of(made: "pd.DataFrame") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far from the rarest latent, and from the rarest texture, each row is: percent over the share of each.

    A trained network may tell no artefact, so most of a list is left to the textures.

    Returns:
        (N,) and (N,), the smaller the rarer, NaN where unknown.
    """
    latent = (100 - made["rarity_percentile"].to_numpy()) / (1 - _TEXTURE_SHARE)
    if TEXTURE_COLUMNS[1] not in made:
        return latent, np.full(len(made), np.nan)
    return latent, (100 - made[TEXTURE_COLUMNS[1]].to_numpy()) / _TEXTURE_SHARE


def results_of(made: "pd.DataFrame", found: Rarity, density: Density, options: OutliersOptions) -> dict[str, Any]:
    """Return the summary as JSON values."""
    known = found.rarity[np.isfinite(found.rarity)]
    results: dict[str, Any] = {
        "latents": len(found.rarity),
        "without_latent": found.left_out,
        "without_rarity": int(np.isnan(found.rarity).sum()) - found.left_out,
        "k": options.k,
        "answer": "exact" if found.exact else "approximate",
        "error": found.error,
        "spearman_with_exact": found.spearman,
        "checked": found.checked,
        "rarity": {f"{q:g} %": float(np.quantile(known, q / 100)) for q in (5, 50, 95, 99)},
        "density": {"chosen": density.name, "components": len(density.pca.components), "held_out": density.tried},
        "rank_correlation": {"rarity and latent_LL": _correlation(made["rarity"], made["latent_LL"], options.seed)},
        "made_by": {"nenya_version": nenya.__version__, "seed": options.seed},
    }
    if "texture_LL" in made:
        pair = _correlation(made["rarity"], made["texture_LL"], options.seed)
        results["rank_correlation"]["rarity and texture_LL"] = pair
    if _FIRST_LL in made:
        old = _numbers(made[_FIRST_LL])
        for name in (name for name in ("rarity", "latent_LL", "texture_LL") if name in made):
            results["rank_correlation"][f"LL and {name}"] = _correlation(old, made[name], options.seed)
    return results


def _numbers(column: "pd.Series") -> "pd.Series":
    """Return a column as numbers; what is none is missing."""
    import pandas as pd

    found: pd.Series = pd.to_numeric(column, errors="coerce")
    return found


def _correlation(one: "pd.Series", other: "pd.Series", seed: int) -> dict[str, float | int | None]:
    """Return the rank correlation of two columns, and its 95 % interval by Fisher's transformation.

    Of many rows, `_CORRELATED_ROWS` random ones are taken: the interval is then 0.004 wide at most.
    """
    from scipy.stats import spearmanr

    known = np.isfinite(one.to_numpy(np.float64, na_value=np.nan))
    known &= np.isfinite(other.to_numpy(np.float64, na_value=np.nan))
    chosen = np.flatnonzero(known)
    if len(chosen) > _CORRELATED_ROWS:
        chosen = np.random.default_rng(seed).choice(chosen, _CORRELATED_ROWS, replace=False)
    one, other, rows = one.iloc[chosen], other.iloc[chosen], len(chosen)
    if rows < 4 or one.nunique() < 2 or other.nunique() < 2:
        return {"value": None, "low": None, "high": None, "rows": rows}
    value = float(spearmanr(one, other).statistic)
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    half = 1.96 * np.sqrt((1 + value**2 / 2) / (rows - 3))  # Bonett and Wright (2000), Psychometrika 65, 23
    return {"value": value, "low": float(np.tanh(middle - half)), "high": float(np.tanh(middle + half)), "rows": rows}


def _say(results: dict[str, Any]) -> None:
    exact = results["answer"] == "exact"
    how = "" if exact else (
        f", approximate: one rarity is within {196 * results['error']:.2g} % (95 %); rank correlation with the exact "
        f"ones {results['spearman_with_exact']:.4f} over {results['checked']} rows"
    )  # fmt: skip
    say(f"rarity of {results['latents']} latents, k={results['k']}{how}")
    say("  " + ", ".join(f"{name} below {value:.4g}" for name, value in results["rarity"].items()))
    density = results["density"]
    best = density["held_out"][density["chosen"]]
    say(f"latent_LL: {density['chosen']} in {density['components']} components, {best:.2f} nats a row held out")
    for name, of in results["rank_correlation"].items():
        if of["value"] is not None:
            say(f"  rank correlation of {name}: {of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})")
    for name, why in (("without_latent", "no latent (NaN)"), ("without_rarity", "fewer than k neighbours elsewhere")):
        if results[name]:
            log.warning("%d of %d latents have no rarity: %s", results[name], results["latents"], why)


def _draw(rarest: "pd.DataFrame", images: Any, folder: Path) -> None:
    """Draw the rarest cutouts of each group side by side, rarest first."""
    from nenya.plotting import contact_sheet

    groups = rarest["rare_group"].to_numpy()
    width = len(str(groups.max(initial=0)))
    for group in np.unique(groups):
        members = rarest["table_row"].to_numpy()[groups == group]
        rows = members[images.known[members]]
        if not len(rows):
            log.warning("group %d of the rarest: its cutouts are not in images=", group)
            continue
        shown = rows[:_SHOWN]
        contact_sheet(
            images.read(shown),
            folder / f"group_{group:0{width}d}.png",
            title=images.titled(f"group {group} of the rarest: {len(shown)} of {len(members)} cutouts, rarest first"),
        )
    log.info("%s", folder)
