"""What latents tell: `python scripts/audit.py data=cutouts_preproc_latents.h5 table=cutouts.parquet`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("audit"))
