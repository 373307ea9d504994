"""Report the state of an archive: `python scripts/status.py archive=DIR`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("status"))
