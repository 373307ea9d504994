"""`nenya extract`: a latent vector for each cutout."""

from nenya.options.commands import ExtractOptions


def run(options: ExtractOptions) -> int:
    """Do the work; see `nenya.extraction.batch.run`."""
    from nenya.extraction.batch import run

    return run(options)
