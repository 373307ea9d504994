"""Train and extract on generated cutouts: `python scripts/demo.py`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("demo"))
