"""Generate cutouts with known properties: `python scripts/generate.py kind=ocean out=ocean_preproc.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("generate"))
