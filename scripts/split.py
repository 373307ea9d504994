"""Divide cutouts into training and validation: `python scripts/split.py cutouts.parquet out=split.parquet`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("split"))
