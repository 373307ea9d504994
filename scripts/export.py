"""Write the weights of a checkpoint as safetensors: `python scripts/export.py ckpt=... out=...`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("export"))
