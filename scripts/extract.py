"""Extract a latent vector for each cutout: `python scripts/extract.py model=v5 data=... `."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("extract"))
