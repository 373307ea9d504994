"""`nenya statistics`: where, when and what chosen cutouts are."""

from nenya.options.commands import StatisticsOptions


def run(options: StatisticsOptions) -> int:
    """Do the work; see `nenya.tables.statistics.run`."""
    from nenya.tables.statistics import run

    return run(options)
