"""Derive cutouts from cutouts: `python scripts/derive.py cutouts_preproc.h5 noise=0.04 out=noisy_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("derive"))
