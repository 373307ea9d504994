"""Read latents files back and check them: `python scripts/verify.py cutouts_preproc_latents.h5`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("verify"))
