"""`nenya publish`: latents and their table as GeoParquet, STAC, Zarr or Lance, for other programs."""

import logging
from collections.abc import Sequence

from nenya.archive.folder import open_version
from nenya.errors import OptionError
from nenya.io import read_table
from nenya.latents.files import open_latents
from nenya.options.publish import PublishOptions
from nenya.publish.rows import Choice, Rows, select
from nenya.publish.write import check_out, publish
from nenya.storage.paths import is_s3, local_path
from nenya.storage.texts import say

log = logging.getLogger(__name__)

DEFAULT = "outputs/published"


def run(options: PublishOptions) -> int:
    """Write a folder of published latents.

    Args:
        options: of `scripts/publish.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or the folder cannot be written.
    """
    place = options.out or DEFAULT
    if is_s3(place):
        raise OptionError(f"out={place}: expected a local folder; publish there, then copy it, with any S3 client")
    out = local_path(place)
    formats = _formats(options.format)
    check_out(out, options.clobber)
    names = options.partition
    choice = Choice(
        where=options.where,
        geometry=options.geometry,
        partition=[names] if isinstance(names, str) else names,
        side=options.side,
        placed="geoparquet" in formats,
    )
    rows = _rows(options, choice)
    words = {"title": options.title or out.absolute().name, "license": options.license}
    about = publish(rows, out, formats, choice, dtype=options.dtype, seed=options.seed, words=words)
    size = sum(file["size"] for file in about["files"])
    say(f"{out}: {about['rows']} rows of {about['dim']} dimensions as {', '.join(formats)}, {size / 1e6:.1f} MB")
    stored = about["stored"]
    if options.dtype != "float32" and stored["neighbours_lost"] is not None:
        share = f"{100 * stored['neighbours_lost']:.2g} % of the {stored['k']} nearest neighbours"
        say(f"  {options.dtype} changes {share} ({stored['queries']} rows among {stored['among']})")
    return 0


def _formats(given: str | Sequence[str]) -> list[str]:
    """Return the formats to write; STAC describes files, so it brings GeoParquet where no other format is given."""
    formats = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    if formats == ["stac"]:
        log.info("stac describes files: geoparquet is written too")
        formats = ["geoparquet", "stac"]
    return formats


def _rows(options: PublishOptions, choice: Choice) -> Rows:
    """Return the rows of the archive, or of the latents files and their table."""
    latents = options.latents or options.data
    if options.latents and options.data:
        raise OptionError("latents= and data=: give the latents files once")
    if options.archive_dir:
        if latents or options.table:
            raise OptionError(
                f"archive={options.archive_dir} has its own latents and table: leave latents= and table= out"
            )
        opened = open_version(options.archive_dir, options.version, options.loader.cache_dir)
        return select(opened.latents(options.least_cosine), opened.table(), choice)
    if not latents:
        raise OptionError("expected archive=, an archive of nenya update, or latents= and table=")
    found = open_latents(
        latents,
        options.loader.cache_dir,
        allow_external=options.loader.allow_external,
        least_cosine=options.least_cosine,
    )
    return select(found, read_table(local_path(options.table)) if options.table else None, choice)
