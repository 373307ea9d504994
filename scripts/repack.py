"""Rewrite cutout files with chunks that read fast: `python scripts/repack.py cutouts_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("repack"))
