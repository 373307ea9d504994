"""Find similar cutouts: `python scripts/search.py index=archive.index like=1234 region=gulfstream`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("search"))
