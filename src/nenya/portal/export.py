"""Export of the portal to a folder that any browser shows without a server."""

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import NenyaError, OptionError, OutputError
from nenya.options.commands import PortalOptions
from nenya.portal import pages, static_near, thumbnails
from nenya.portal.dataset import Dataset
from nenya.portal.static_rows import MOST_COLUMNS, encoded, page_id, rows_of
from nenya.storage.disk import sweep, temporary_name
from nenya.storage.small_files import refuse_link
from nenya.storage.texts import shown

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

_INDEX = "index.html"
_FILES = re.compile(r"index\.html|thumbs_\d{4}\.png|(random|low_dt|high_dt)\.png")  # the last ones are of older pages
_SCRIPTS = ("static_data", "static_figures", "static_near", "static_tags", "static_lists", "static_page")
_TRIED = 200  # thumbnails that tell the size of all
_ALWAYS = 150_000  # bytes of scripts, coastlines and densities, about


def write_page(dataset: Dataset, folder: Path, name: str, options: PortalOptions) -> Path:
    """Write a folder with `index.html` and sheets of thumbnails; everything else is inlined.

    Args:
        dataset: the data to show.
        folder: created; it is either absent or complete.
        name: of the table.
        options: `sample`, `page_mb`, `seed` and `clobber` are used.

    Returns:
        The path of the page.

    Raises:
        OptionError: The page would be larger than `page_mb`.
        OutputError: The folder exists (without clobber), or cannot be written.
    """
    sweep(folder.parent)
    _check_place(folder, clobber=options.clobber)
    rows = _sample(dataset, options)
    span = thumbnails.range_of(dataset.cutouts, rows, options.seed) if dataset.cutouts is not None else (-1.0, 1.0)
    _say_size(dataset, rows, span, options)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        pictures = _write_thumbnails(dataset, rows, span, temporary)
        (temporary / _INDEX).write_text(_page(dataset, name, rows, pictures))
        old = temporary_name(folder)  # a kill leaves the old page or the new one, never a part
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / _INDEX


def _check_place(folder: Path, *, clobber: bool) -> None:
    """Check that a page can be written, and that overwriting removes nothing but a page."""
    refuse_link(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, expected the name of a folder: name another place")
    if not clobber:
        raise OutputError(f"{folder} exists (clobber=true overwrites it, export= names another path)")
    found = {path.name for path in folder.iterdir()}
    others = sorted(name for name in found if _INDEX not in found or not _FILES.fullmatch(name))
    if others:
        said = ", ".join(shown(name, 80) for name in others[:3])
        raise OutputError(f"{folder} holds files other than an exported page ({said}): name another place")


def _sample(dataset: Dataset, options: PortalOptions) -> IntArray:
    """Return the rows of the page, (n,), in the order in which their cutouts are read fastest."""
    rng, rows = np.random.default_rng(options.seed), dataset.first_rows()
    some = np.sort(rows[rng.choice(len(rows), min(options.sample, len(rows)), replace=False)]).astype(np.int64)
    return some if dataset.cutouts is None else np.asarray(dataset.cutouts.order(some), np.int64)


def _say_size(dataset: Dataset, rows: IntArray, span: tuple[float, float], options: PortalOptions) -> None:
    """Say how large the page will be.

    Raises:
        OptionError: It would be larger than allowed.
    """
    numbers = 4 * min(MOST_COLUMNS + 4, len(dataset.columns.metrics()) + 4)
    classes = 2 * len(dataset.columns.class_names()[:MOST_COLUMNS])
    plain = _ALWAYS + 4 / 3 * len(rows) * (numbers + classes + 29)  # 29: row, date, granule and keys
    near = 4 / 3 * static_near.bytes_of(dataset, len(rows))
    each = 0.0
    if dataset.cutouts is not None:
        tried = np.random.default_rng(options.seed).choice(rows, min(_TRIED, len(rows)), replace=False)
        picture, _ = next(thumbnails.sheets(dataset.cutouts, np.asarray(dataset.cutouts.order(tried), np.int64), span))
        each = len(picture) / len(tried)
    total = (plain + near + each * len(rows)) / 1e6
    searched = "latents to search" if len(rows) <= static_near.MOST_SEARCHED else "lists of similar cutouts"
    log.info(
        "a page of %s rows, about %.1f MB: %.1f MB of columns%s%s",
        f"{len(rows):,}", total, plain / 1e6,
        f", {near / 1e6:.1f} MB of {searched}" if near else "",
        f", {each * len(rows) / 1e6:.1f} MB of thumbnails, which are read when they are shown" if each else "",
    )  # fmt: skip
    if total > options.page_mb:
        fits = int(len(rows) * options.page_mb / total * 0.95) // 100 * 100
        raise OptionError(
            f"the page would have about {total:.0f} MB, more than page_mb={options.page_mb}: sample={max(100, fits)} "
            f"fits, or page_mb={int(total * 1.1) + 1} allows it"
        )


def _write_thumbnails(
    dataset: Dataset, rows: IntArray, span: tuple[float, float], folder: Path
) -> dict[str, Any] | None:
    """Write the sheets of thumbnails; return what the page needs of them, for JSON; None without cutouts."""
    if dataset.cutouts is None:
        return None
    files, there = [], []
    for number, (picture, known) in enumerate(thumbnails.sheets(dataset.cutouts, rows, span)):
        if number and number % 50 == 0:
            log.info("thumbnails of %s rows written", f"{number * thumbnails.ACROSS**2:,}")
        files.append(f"thumbs_{number:04d}.png")
        (folder / files[-1]).write_bytes(picture)
        there.append(known)
    return {
        "files": files,
        "side": thumbnails.SIDE,
        "across": thumbnails.ACROSS,
        "span": list(span),
        "there": encoded(np.concatenate(there).astype(np.uint8)),
    }


def _page(dataset: Dataset, name: str, rows: IntArray, pictures: dict[str, Any] | None) -> str:
    """Return the page, which runs only its own scripts, in its own style."""
    scripts = [pages.text_of(f"{script}.js") for script in _SCRIPTS]
    style = pages.text_of("static.css")
    data = rows_of(dataset, rows)
    settings = {
        **data,
        "name": name,
        "id": page_id(dataset, rows, name),
        "all": len(dataset.first_rows()),
        "near": static_near.near_of(dataset, rows),
        "pictures": pictures,
    }
    return pages.render(
        "static.html",
        policy=pages.file_policy(scripts, style),
        scripts=scripts,
        style=style,
        settings=settings,
        name=name,
        rows=settings["all"],
        sample=len(rows),
        planes=data["planes"],
        charts=bool(data["charts"]),
        pictures=pictures,
        near=settings["near"],
        listed=static_near.LISTED,
    )
