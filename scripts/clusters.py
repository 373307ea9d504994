"""Clusters of latents: `python scripts/clusters.py data=cutouts_preproc_latents.h5 k=20`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("clusters"))
