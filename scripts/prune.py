"""Choose cutouts to train on: `python scripts/prune.py cutouts_latents.h5 cosine=0.98 out=pruned.parquet`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("prune"))
