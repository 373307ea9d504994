"""Published latents: `python scripts/publish.py archive=archive out=published format=[geoparquet,stac]`."""

import sys

from nenya.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("publish"))
