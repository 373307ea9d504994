"""Report the kind, contents and problems of a file: `python scripts/inspect_file.py cutouts_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("inspect"))
