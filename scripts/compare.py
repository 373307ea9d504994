"""Compare two sets of latents: `python scripts/compare.py a=a_latents.h5 a_table=a.parquet b=...`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("compare"))
