"""`nenya spectra`: power spectra of cutouts and their slopes."""

from nenya.options.commands import SpectraOptions


def run(options: SpectraOptions) -> int:
    """Do the work; see `nenya.data.spectra.run`."""
    from nenya.data.spectra import run

    return run(options)
