"""Figures of a table and its cutouts: `python scripts/figures.py table=cutouts.parquet kind=umap`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("figures"))
