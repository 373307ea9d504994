"""`nenya prepare`: cutouts and their table of ocean fields."""

from nenya.options.commands import PrepareOptions


def run(options: PrepareOptions) -> int:
    """Do the work; see `nenya.prepare.job.run`."""
    from nenya.prepare.job import run

    return run(options)
