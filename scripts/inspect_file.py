"""Say what a file is and what is wrong with it: `python scripts/inspect_file.py cutouts_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("inspect"))
