"""Explore an archive in a browser: `python scripts/portal.py table=cutouts.parquet latents=... images=...`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("portal"))
