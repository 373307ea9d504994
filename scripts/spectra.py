"""Power spectra of cutouts and their slopes: `python scripts/spectra.py cutouts_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("spectra"))
