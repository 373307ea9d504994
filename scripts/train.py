"""Train a contrastive model on cutouts: `python scripts/train.py model=v5 data=... `."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train"))
