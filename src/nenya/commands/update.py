"""`nenya update`: new granules or cutout files into an archive."""

from nenya.options.commands import UpdateOptions


def run(options: UpdateOptions) -> int:
    """Do the work; see `nenya.archive.update.run`."""
    from nenya.archive.update import run

    return run(options)
