"""`nenya prepare`: cutouts and their table of ocean fields."""

import logging

from nenya.options.commands import PrepareOptions
from nenya.options.extras import need
from nenya.prepare.job import prepare
from nenya.prepare.recipes import recipe_lines
from nenya.storage.texts import counted

log = logging.getLogger(__name__)


def recipe_list() -> str:
    """Return the recipes of `nenya prepare --list`, a line each."""
    lines = recipe_lines()
    width = max(map(len, lines))
    return "\n".join(
        [
            "recipes (nenya prepare sensor=NAME data=FILES out=NAME_preproc.h5):",
            *(f"  {name:{width}s}  {about}" for name, about in lines.items()),
            "a recipe of your own is one YAML file of options: sensor=/path/to/mine.yaml",
            "nenya inspect FILE.nc names the recipe that fits a file, and what the recipe reads from it",
        ]
    )


def run(options: PrepareOptions) -> int:
    """Prepare cutouts and their table from ocean fields.

    Args:
        options: of `scripts/prepare.py`.

    Returns:
        0 if all granules could be read, 1 if some were skipped.

    Raises:
        NenyaError: See `nenya.prepare.job.prepare`.
    """
    if options.dask is not None:
        need("dask", f"dask={options.dask}")
    found = prepare(options)
    rows = ", ".join(f"{name} {count}" for name, count in found.rows.items())
    log.info(
        "%s: %s cutouts%s",
        found.images,
        rows,
        "" if found.made else "; output exists and is complete (clobber=true overwrites it)",
    )
    if len(found.rows) == 1 and found.made and options.at is None:
        (name,) = found.rows
        log.warning(
            "all cutouts are in '%s': a granule is never divided into training and validation, and there are too few "
            "granules for valid_fraction=%g. This only concerns training: give more granules; or divide the cutouts "
            "by place (nenya split %s by=place out=split.parquet) and train with rows=split.parquet; or train without "
            "a validation (nenya train %s)",
            name, options.valid_fraction, found.table, found.images,
        )  # fmt: skip
    if found.failed:
        log.error("skipped %s; clobber=true tries again", counted(len(found.failed), "granule"))
    return 1 if found.failed else 0
