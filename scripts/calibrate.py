"""Calibrate latents of masked cutouts: `python scripts/calibrate.py cutouts_preproc.h5 ckpt=run/last.pth`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("calibrate"))
