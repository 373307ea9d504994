"""`nenya prepare`: cutouts and their table of ocean fields."""

import logging

from nenya.options.commands import PrepareOptions
from nenya.prepare.job import prepare

log = logging.getLogger(__name__)


def run(options: PrepareOptions) -> int:
    """Prepare as `scripts/prepare.py` does.

    Returns:
        0 if all granules could be read, 1 if some were skipped.

    Raises:
        NenyaError: As `prepare` does.
    """
    found = prepare(options)
    rows = ", ".join(f"{name} {count}" for name, count in found.rows.items())
    log.info(
        "%s: %s cutouts%s", found.images, rows, "" if found.made else "; it was there already, and is left as it is"
    )
    if len(found.rows) == 1 and found.made:
        (name,) = found.rows
        other = "train" if name == "valid" else "valid"
        log.warning("all cutouts are in '%s': nenya train takes them with loader.%s_key=%s", name, other, name)
    if found.failed:
        log.error("%d granule(s) skipped; clobber=true takes them up again", len(found.failed))
    return 1 if found.failed else 0
