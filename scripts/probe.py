"""What latents know: `python scripts/probe.py latents=[a_latents.h5,b_latents.h5] table=cutouts.parquet`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("probe"))
