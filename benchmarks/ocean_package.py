"""Writes the weights of `model=ocean` as nenya ships them: `python benchmarks/ocean_package.py FOLDER`.

FOLDER is that of `benchmarks/ocean.py`. The file gets the options of the version, the recipe, the data, the licence and
the model card (`docs/ocean_model.md`) as metadata; its sha256 belongs into `nenya.storage.shipped.SHA256`, and is
printed.
"""

import json
import sys
from pathlib import Path

from common import ROOT
from ocean_data import GENERATED, SEED, SOURCES

from nenya.models.checkpoint import load_checkpoint, save_safetensors
from nenya.models.pickled import plain_options
from nenya.options.files import read_group
from nenya.options.flat import flat_view
from nenya.options.sections import Options, build_options
from nenya.storage.disk import sha256_file
from nenya.storage.shipped import FOLDER

LARGEST = 5_000_000  # bytes


def main() -> int:
    """Write the file and print its sha256."""
    folder = Path(sys.argv[1])
    weights = load_checkpoint(folder / "last.safetensors")
    state = json.loads((folder / "run.json").read_text())
    recipe = {name: value for name, value in state["recipe"].items() if name not in ("out", "data")}
    options = plain_options(flat_view(build_options(Options, read_group("model", "ocean"))))
    files = [source.file for source in SOURCES.values()]
    metadata = {
        "model": "ocean",
        "license": "BSD-3-Clause",
        "recipe": json.dumps({"script": "benchmarks/ocean.py", **state, "recipe": recipe}),
        "data": json.dumps({"generated": {"seed": SEED, "rows": GENERATED}, "real": files}),
        "card": (ROOT / "docs" / "ocean_model.md").read_text(),
    }
    path = FOLDER / "ocean.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_safetensors(path, weights, metadata, options={**options, "model_version": "ocean"}, epoch=None)
    size = path.stat().st_size
    print(f"{path}: {size} bytes, sha256 {sha256_file(path)}")
    return 0 if size <= LARGEST else 1


if __name__ == "__main__":
    sys.exit(main())
