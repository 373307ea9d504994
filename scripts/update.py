"""Add new files to an archive: `python scripts/update.py archive=DIR new=/path/to/day/`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("update"))
