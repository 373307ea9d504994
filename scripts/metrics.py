"""Measure latents: `python scripts/metrics.py cutouts_preproc_latents.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("metrics"))
