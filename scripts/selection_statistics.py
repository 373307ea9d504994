"""Compare selected cutouts with all: `python scripts/selection_statistics.py table=a.parquet where='DT > 2'`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("statistics"))
