"""`nenya search`: finds the cutouts most similar to examples, under conditions, without near-copies."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import open_version
from nenya.commands.pictures import in_formats, style_of
from nenya.data.cutouts import inspect_cutouts
from nenya.data.masks import InputReader
from nenya.data.table_images import TableImages, check_images
from nenya.defs import EARTH_KM
from nenya.errors import InputFileError, OptionError
from nenya.io import TABLE_SUFFIXES, read_table, write_table
from nenya.latents.examples import described, place_and_date
from nenya.latents.files import Latents, open_latents
from nenya.latents.index import Answer, FilesSearcher, IndexSearcher, Searcher
from nenya.latents.index_s3 import fetch_index
from nenya.latents.index_tags import index_tags, with_rows_of_tags, with_tag_column
from nenya.latents.order import LEAST, LOW, MOST, SURE, order_line, with_order
from nenya.latents.similarity import Float64Array, IntArray, direction
from nenya.options.commands import ExtractOptions, SearchOptions
from nenya.options.declare import to_dict
from nenya.options.extras import need
from nenya.options.sections import Options, build_options
from nenya.storage.arrays import read_arrays
from nenya.storage.disk import check_output, together
from nenya.storage.paths import base_name, expand, fetch, find_sources, is_address, is_s3, local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.conditions import Conditions
from nenya.tables.granules import granules
from nenya.tables.place_and_time import dates_of
from nenya.tables.tags import place_of_tags, with_tags

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_FIGURE = "outputs/search/closest.png"
_MORE = 4  # factor of more neighbours when too many are near-copies
_MOST = 100_000
_SHOWN = ("lat", "lon", "datetime", "DT", "UID", "tag")


def run(options: SearchOptions) -> int:
    """Find the cutouts closest to the examples; print them and, on request, write and draw them.

    Args:
        options: of `scripts/search.py`.

    Returns:
        0.

    Raises:
        NenyaError: There is nothing to search, an example does not exist, or a condition is invalid.
    """
    if options.out and Path(options.out).suffix not in TABLE_SUFFIXES:
        raise OptionError(f"out={options.out}: expected one of {', '.join(TABLE_SUFFIXES)}")
    for place in _outputs(options):
        check_output(place, options.clobber or place.suffix not in TABLE_SUFFIXES)
    if options.images:
        style_of(options)
        check_images(options.images, options.loader)
    archive = open_archive(options)
    like, unlike = (_rows(archive, given) for given in (options.like, options.unlike))
    pictures = image_examples(options, cutout_side(options, archive))
    if not len(like) and not len(pictures):
        raise OptionError("expected like= or image=, the examples to search for")
    examples = archive.take(like) if len(like) else np.empty((0, archive.dim), np.float32)
    if len(pictures):
        examples = np.concatenate([examples, _image_latents(options, pictures, archive)])
    query = direction(examples, archive.take(unlike) if len(unlike) else None)
    asked = conditions(options)
    sql = least_too(archive, options, None if asked == Conditions() else asked.sql(archive.columns))
    known = np.concatenate([like, unlike])
    tags = index_tags(archive, options.tags, options.archive_dir)
    answer = find(archive, query, options, with_rows_of_tags(sql, tags), known)
    found = with_order(with_tag_column(table_of(archive, answer), tags), query_low(archive, known))
    lines = [
        line
        for label, rows in (("example", like), ("unlike", unlike))
        if len(rows)
        for line in described(archive.describe(rows), label)
    ]
    say(lines_of([*lines, *(f"example: {place}" for place in _list(options.image))]))
    _show(found, answer, options, sql)
    if not len(found) or not (options.out or options.images):
        return 0
    with together():
        if options.out:
            write_table(found, local_path(options.out))
            log.info("%s", options.out)
        if options.images:
            _draw(archive, found, answer, (like, pictures), options)
    return 0


def _outputs(options: SearchOptions) -> list[Path]:
    """Return the files that a search writes: table and picture."""
    table = [local_path(options.out)] if options.out else []
    return [*table, *_figure_places(options)] if options.images else table


def _figure_places(options: SearchOptions) -> list[Path]:
    place = options.figure or (str(Path(options.out).with_suffix(".png")) if options.out else _FIGURE)
    return in_formats(local_path(place), options)


def open_archive(options: SearchOptions) -> Searcher:
    """Open the searcher of `index`, `archive`, or `data` with `table`.

    Raises:
        OptionError: None or several of them are given, or an index needs LanceDB, which is not installed.
        InputFileError: It does not exist.
    """
    given = {"index": options.index, "data": options.data, "archive": options.archive_dir}
    given = {name: value for name, value in given.items() if value}
    if len(given) > 1:
        raise OptionError(f"{' and '.join(f'{name}={value}' for name, value in given.items())}: give one of them")
    if not given:
        raise OptionError(
            "expected index=, data= or archive=: an index of nenya index, latents files, or an archive of nenya update"
        )
    if options.archive_dir:
        return open_version(options.archive_dir, options.version, options.loader.cache_dir).index()
    if not options.index:
        external, least = options.loader.allow_external, options.least_cosine
        latents = open_latents(options.data, options.loader.cache_dir, allow_external=external, least_cosine=least)
        return FilesSearcher(latents, _table(options, latents))
    need("search", f"index={options.index}")
    if not is_s3(options.index):
        return IndexSearcher(local_path(options.index))
    folder = fetch_index(options.index, options.loader.cache_dir)
    if folder is None:
        raise InputFileError(
            f"{options.index}: no index of nenya; nenya index data=... out={options.index} creates one"
        )
    return IndexSearcher(folder)


def _table(options: SearchOptions, latents: Latents) -> "pd.DataFrame | None":
    """Return the table of the latents, with their tags if these are requested; None without either."""
    place = place_of_tags(options.tags, options.table, None)
    if not options.table:
        return None if place is None else with_tags(latents.keys(), place)
    return with_tags(read_table(local_path(options.table)), place)


def conditions(options: SearchOptions) -> Conditions:
    """Return the conditions of the options."""
    own = options.DT if isinstance(options.DT, str | None) else list(options.DT)
    return Conditions(
        region=tuple(_list(options.region)),
        lon=options.lon,
        lat=options.lat,
        dates=options.dates,
        season=tuple(_list(options.season)),
        DT=own,
        clear=options.clear,
        sensor=tuple(_list(options.of_sensor)),
        where=options.where,
    )


def least_too(archive: Searcher, options: SearchOptions, sql: str | None) -> str | None:
    """Return a condition with that of `least_cosine=`, which files have applied already; log what it leaves out.

    Raises:
        OptionError: The index does not know the cosine of its rows.
    """
    if options.least_cosine is None or isinstance(archive, FilesSearcher):
        return sql
    place = options.index or options.archive_dir
    if LOW not in archive.columns:
        raise OptionError(
            f"least_cosine={options.least_cosine:g}: {place} has no column {LOW}, which nenya extract writes with a "
            "calibration; leave least_cosine out"
        )
    least = f"`{LOW}` >= {options.least_cosine!r} AND `{LOW}` <= 1"  # NaN is neither
    left = len(archive) - archive.count(least)
    log.info("least_cosine=%g: left out %d of %d rows", options.least_cosine, left, len(archive))
    return f"({sql}) AND {least}" if sql else least


def query_low(archive: Searcher, examples: IntArray) -> float:
    """Return the smallest `cosine_low` of the examples: 1 for clear ones, NaN if one is unknown."""
    if not len(examples) or LOW not in archive.columns:
        return 1.0
    return float(archive.describe(examples)[LOW].to_numpy(np.float64).min())


def find(archive: Searcher, query: Float64Array, options: SearchOptions, sql: str | None, known: IntArray) -> Answer:
    """Return the closest rows that are neither examples nor, on request, near-copies.

    Args:
        archive: the searcher.
        query: (D,).
        options: k, exact, device, distinct, apart_km and apart_hours are used.
        sql: a condition.
        known: rows of the examples.
    """
    careful = options.distinct or options.apart_km is not None or options.apart_hours is not None
    count = options.k + len(known)
    while True:
        answer = archive.search(query, count, sql, exact=options.exact, device=options.device)
        good = ~np.isin(answer.rows, known)
        rows, cosine = answer.rows[good], answer.cosine[good]
        if careful:
            near = archive.describe(every := np.concatenate([known, rows]))
            if options.distinct and isinstance(archive, FilesSearcher) and archive.granules is not None:
                near = near.assign(granule=archive.granules[every])
            kept = far_apart(
                near, len(known), options.k,
                distinct=options.distinct, km=options.apart_km, hours=options.apart_hours,
            )  # fmt: skip
            rows, cosine = rows[kept], cosine[kept]
        if len(rows) >= options.k or len(answer.rows) < count or count >= _MOST:
            return Answer(rows[: options.k], cosine[: options.k], answer.exact, answer.recall)
        count = min(_MORE * count, _MOST)


def far_apart(
    table: "pd.DataFrame",
    examples: int,
    k: int,
    *,
    distinct: bool = False,
    km: float | None = None,
    hours: float | None = None,
) -> IntArray:
    """Return the rows that are not near-copies of an example or of a kept row before them.

    Args:
        table: the examples, then the rows, closest first; with columns granule or filename, lat, lon, datetime as
            needed.
        examples: number of leading rows that are examples.
        k: number of rows to return at most.
        distinct: whether rows of one granule, a time of a file, are near-copies; see `nenya.tables.granules`.
        km: rows within this distance (and within `hours`, if given) are near-copies.
        hours: rows within this time (and within `km`, if given) are near-copies.

    Returns:
        (m,) row indices without the examples, m at most k.

    Raises:
        OptionError: The table lacks a column.
    """
    named = {"filename", "granule"} & set(table)
    wanted = {
        "filename": distinct and not named,
        "lat": km is not None,
        "lon": km is not None,
        "datetime": hours is not None,
    }
    missing = [name for name, needed in wanted.items() if needed and name not in table]
    if missing:
        raise OptionError(f"distinct= and apart_...= need the columns {', '.join(missing)}, which are not in the table")
    near = _nearness(table, km, hours)
    codes = granules(table) if distinct else None
    kept, found = list(range(examples)), []
    for row in range(examples, len(table)):
        before = np.array(kept, np.int64)
        copy = codes is not None and codes[row] >= 0 and bool((codes[before] == codes[row]).any())
        if not copy and near is not None:
            copy = bool(near(row, before).any())
        if not copy:
            kept.append(row)
            found.append(row - examples)
            if len(found) == k:
                break
    return np.array(found, np.int64)


def _nearness(
    table: "pd.DataFrame", km: float | None, hours: float | None
) -> Callable[[int, IntArray], NDArray[np.bool_]] | None:
    """Return a function that says which rows are near another in space and time; unknown ones are near none."""
    if km is None and hours is None:
        return None
    if km is not None:
        lat, lon = np.radians(table["lat"].to_numpy(np.float64)), np.radians(table["lon"].to_numpy(np.float64))
    if hours is not None:
        moments = dates_of(table["datetime"]).to_numpy("datetime64[us]")

    def near(row: int, others: IntArray) -> NDArray[np.bool_]:
        close = np.ones(len(others), bool)
        if km is not None:  # haversine, accurate at short distances
            half = np.sin((lat[others] - lat[row]) / 2) ** 2
            half += np.cos(lat[others]) * np.cos(lat[row]) * np.sin((lon[others] - lon[row]) / 2) ** 2
            close &= 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(half, 1))) <= km
        if hours is not None:
            close &= np.abs((moments[others] - moments[row]) / np.timedelta64(1, "h")) <= hours
        return close

    return near


def table_of(archive: Searcher, answer: Answer) -> "pd.DataFrame":
    """Return the table of an answer: rank, cosine, answer (exact or approximate), recall, and the columns searched."""
    found = archive.describe(answer.rows)
    found.insert(0, "rank", np.arange(1, len(found) + 1))
    found.insert(1, "cosine", answer.cosine)
    found.insert(2, "answer", "exact" if answer.exact else "approximate")
    found.insert(3, "recall", math.nan if answer.recall is None else answer.recall)
    return found


def cutout_side(options: SearchOptions, archive: Searcher) -> int:
    """Return the side in pixels of the searched cutouts, 0 if unknown.

    Sources are `images`, the latents, the cutout file beside them, and the model, in this order.
    """
    if options.image is None:
        return 0
    if not options.images and (said := archive.provenance.get("image_size")):
        return int(said)
    place: Path | None = None
    if options.images:
        place = fetch(find_sources(options.images)[:1], options.loader.cache_dir)[0]
    elif isinstance(archive, FilesSearcher):
        part = archive.latents.parts[0]
        beside = [part.path.parent / base_name(name) for name in part.names]
        place = next((path for path in beside if path.is_file()), None)
    if place is not None and place.is_file():
        return next(iter(inspect_cutouts(place).partitions.values())).height
    return options.model.image_size or 0


def image_examples(options: SearchOptions, side: int = 0) -> list[NDArray[np.floating]]:
    """Return the images of `image=` in the size of the searched cutouts.

    Args:
        options: only `image` is used.
        side: side in pixels of the searched cutouts, to which images of a multiple are averaged; 0 if unknown.

    Raises:
        InputFileError: A file does not exist, or holds no image, one with missing pixels, or one of another size.
        OptionError: The file is of another kind.
    """
    if not (places := _list(options.image)):
        return []
    from nenya.analyze_image import resized  # with torch

    found: list[NDArray[np.floating]] = []
    for place in places:
        for image in read_image(place, "nan" if options.preprocess.masked == "nan" else "holes"):
            missing = int((~np.isfinite(image)).sum())
            if missing and (options.preprocess.masked == "nan" or not np.isfinite(image).any()):
                raise InputFileError(f"{place}: {missing} pixels are missing (NaN), so it has no latent; fill them")
            try:
                found.append(resized(image, side))
            except InputFileError as error:
                raise InputFileError(f"{place}: {error}") from error
            if found[-1] is not image:
                log.info(
                    "%s: averaged from %d to %d pixels per side, the size of the searched cutouts",
                    place,
                    len(image),
                    side,
                )
    if found and not side:
        log.warning(
            "the size of the searched cutouts is unknown: images are used as given; images= (cutout files) sets it"
        )
    return found


def read_image(place: str, masked: str = "nan") -> list[NDArray[np.floating]]:
    """Return the images in a .npy or .npz file, or one row of a cutout file (`file.h5:partition:row`).

    Args:
        place: of the file.
        masked: `nan`, or `holes`: NaN at the pixels of the mask of a cutout file.
    """
    path, _, rest = place.partition(".h5:")
    if rest:
        partition, _, row = rest.partition(":")
        if not row.isdecimal():
            raise OptionError(f"image={place}: expected <cutout file>.h5:<partition>:<row>")
        return [_read_cutout(local_path(f"{path}.h5"), partition, int(row), masked)]
    if not place.endswith((".npy", ".npz")):
        raise OptionError(f"image={place}: expected .npy, .npz or <cutout file>.h5:<partition>:<row>")
    images: list[NDArray[np.floating]] = []
    for array in read_arrays(local_path(place)).values():
        if (
            array.ndim not in (2, 3, 4)
            or array.dtype.kind not in "fiu"
            or (array.ndim == 4 and array.shape[1] != 1)
            or not array.size
        ):
            raise InputFileError(
                f"{place}: expected an array of shape (H, W), (N, H, W) or (N, 1, H, W), got {array.shape}"
            )
        images += list(array.reshape(-1, *array.shape[-2:]))
    return images


def _read_cutout(path: Path, partition: str, row: int, masked: str) -> NDArray[np.float32]:
    found = inspect_cutouts(path, (partition,))
    with found.reader(partition) as reader:
        if row >= len(reader):
            raise InputFileError(f"{path}: expected a row below {len(reader)}, the number in {partition}, got {row}")
        image = InputReader(reader, masked).read(row, row + 1)[0]
    return np.asarray(image.reshape(image.shape[-2:]))


def _image_latents(options: SearchOptions, images: Sequence[NDArray[np.floating]], archive: Searcher) -> Any:
    """Return the latents of images, (n, D), by the model of the options."""
    from nenya.analyze_image import get_latents
    from nenya.models.contrastive import load_model

    values = to_dict(options)
    weights = options.ckpt or options.model.weights
    if options.archive_dir:
        opened = open_version(options.archive_dir, options.version, options.loader.cache_dir)
        weights = str(opened.weights())
        values = opened.with_settings(values)
    if not weights:
        raise OptionError("image= needs the weights that made the latents: give ckpt=, or model=v5")
    weights = weights if is_address(weights) else expand(weights)
    opt = build_options(ExtractOptions, {f.name: values[f.name] for f in fields(Options)})
    made, used = archive.provenance.get("checkpoint_sha256"), load_model(opt, weights)[0].sha256
    if made and used != made:
        raise OptionError(
            f"{weights}: expected the weights that made the latents (sha256 {made[:12]}), got others ({used[:12]}), "
            "and latents of two networks cannot be compared: give ckpt= with those"
        )
    latents = np.concatenate([get_latents(image, weights, opt, side=0)[0] for image in images])
    if latents.shape[1] != archive.dim:
        raise OptionError(
            f"expected a model with latents of {archive.dim} dimensions, as those searched, got {latents.shape[1]}"
        )
    return latents


def _rows(archive: Searcher, given: Any) -> IntArray:
    return np.array([archive.find(example) for example in _list(given)], np.int64)


def _list(given: Any) -> list[str]:
    if given is None:
        return []
    return [str(value) for value in given] if isinstance(given, list | tuple) else [str(given)]


def _show(found: "pd.DataFrame", answer: Answer, options: SearchOptions, sql: str | None) -> None:
    columns = ["rank", "cosine", "pp_file", "pp_type", "pp_idx", *(name for name in _SHOWN if name in found)]
    if not len(found):
        kept = f"; {options.out} is not written" if options.out else ""
        say(f"nothing found: no other row with a latent{f' fulfils {sql}' if sql else ''}{kept}")
        return
    say(f"{answer.label}{f' where {sql}' if sql else ''}")
    columns[2:2] = [name for name in (LEAST, MOST, SURE) if name in found]
    say(lines_of(found[columns].to_string(index=False, float_format=lambda value: f"{value:.4f}").splitlines()))
    if line := order_line(found):
        say(line)
    if len(found) < options.k:
        say(f"found {len(found)} of k={options.k}: there are no more")


def _draw(
    archive: Searcher,
    found: "pd.DataFrame",
    answer: Answer,
    examples: tuple[IntArray, Sequence[NDArray[np.floating]]],
    options: SearchOptions,
) -> None:
    """Draw the examples and the closest cutouts."""
    import pandas as pd

    from nenya.plotting import closest_strip

    table = pd.concat([archive.describe(examples[0]), found], ignore_index=True)
    images = TableImages(options.images, table, options.loader)
    cutouts = images.read(np.arange(len(table)))
    own = len(examples[0])
    paths = _figure_places(options)
    closest_strip(
        np.stack([*cutouts[:own], *(image - np.mean(image) for image in examples[1])]),
        cutouts[own:],
        found["cosine"].to_numpy(),
        paths,
        labels=[place_and_date(row) for row in found.to_dict("records")],
        query_label="example",
        query_labels=[place_and_date(row) for row in table[:own].to_dict("records")] + [""] * len(examples[1]),
        title=images.titled(f"closest by cosine: {answer.label}"),
        pixel_km=options.pixel_km,
        style=style_of(options),
    )
    log.info("%s", lines_of(paths))
