"""Make cutouts from ocean fields: `python scripts/prepare.py sensor=modis data=/path/to/granules out=x_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("prepare"))
