"""Create or extend a search index of latents: `python scripts/index.py data=latents/ table=archive.parquet`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("index"))
