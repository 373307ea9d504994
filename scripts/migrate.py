"""Check a folder of the first nenya: `python scripts/migrate.py folder=/path/to/Nenya`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("migrate"))
