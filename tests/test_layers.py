import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "nenya"

# From the ground up: a module imports from its own layer's earlier entries and from the layers before.
LAYERS = [
    [
        "nenya",
        "nenya.errors",
        "nenya.storage.names",
        "nenya.options.extras",
        "nenya.defs",
        "nenya.latents.metrics",
        "nenya.tables.grids",
        "nenya.tables.comparison",
        "nenya.storage.texts",
        "nenya.commands.output",
        "nenya.storage.small_files",
        "nenya.storage.arrays",
        "nenya.tables",
    ],
    ["nenya.options.sections", "nenya.options.commands"],
    ["nenya.storage.process", "nenya.storage.mounts", "nenya.storage.temporaries"],
    ["nenya.storage.disk", "nenya.storage.lockfile", "nenya.storage.s3.service", "nenya.runtime.ledger"],
    ["nenya.data", "nenya.options.files"],
    [
        "nenya.storage.table_files",
        "nenya.io",
        "nenya.latents.files",
        "nenya.tables.where",
        "nenya.tables.conditions",
        "nenya.latents.similarity",
    ],
    [
        *("nenya.latents.index", "nenya.latents.index_s3", "nenya.latents.index_build", "nenya.archive.manifest"),
        *("nenya.archive.commit", "nenya.archive.folder", "nenya.archive.lease"),
    ],
    ["nenya.models"],
    ["nenya.pca", "nenya.plotting", "nenya.data.spectra", "nenya.latents.neighbours"],
    [
        "nenya.plotting.metrics_page",
        "nenya.latents.invariance",
        "nenya.latents.eigen_images",
        "nenya.latents.projector",
    ],
    ["nenya.runtime.trainer", "nenya.extraction", "nenya.models.callbacks"],
    ["nenya.train", "nenya.latents_extraction", "nenya.train_util"],
    ["nenya.latents.embed", "nenya.nenya_umap"],
    [
        *(
            "nenya.analyze_image",
            "nenya.commands.export",
            "nenya.commands.demo",
            "nenya.commands.verify",
            "nenya.commands.repack",
            "nenya.prepare.job",
        ),
        *("nenya.commands.generate", "nenya.commands.inspect", "nenya.commands.migrate"),
        *("nenya.tables.statistics", "nenya.plotting.statistics", "nenya.latents.clusters", "nenya.commands.clusters"),
        *("nenya.commands.figures", "nenya.data.table_images"),
        *("nenya.commands.index", "nenya.commands.search"),
        *("nenya.archive.update", "nenya.commands.status"),
        "nenya.commands.metrics",
    ],
    ["nenya.portal"],
    ["nenya.cli", "nenya.commands.help", "nenya.commands.sweep"],
]
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    best = max(
        (entry for layer in LAYERS for entry in layer if module == entry or module.startswith(entry + ".")),
        key=len,
    )
    assert best != "nenya" or module == "nenya", f"{module} has no layer"
    return next(i for i, layer in enumerate(LAYERS) if best in layer)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name_of(p) for p in MODULES}
            found |= {name if name in modules else str(node.module) for name in inner}
    return {name for name in found if name.split(".")[0] == "nenya"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    own = layer_of(name_of(path))
    upward = {name for name in imports_of(path) if layer_of(name) > own}
    assert not upward, f"{name_of(path)} imports from a later layer: {upward}"


def test_the_checker_sees_an_upward_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from nenya.models import losses\n")
    assert {layer_of(n) for n in imports_of(bad)} == {layer_of("nenya.models")}
    assert layer_of("nenya.data.cutouts") < layer_of("nenya.models")


@pytest.mark.parametrize("script", sorted((SOURCE.parents[1] / "scripts").glob("*.py")), ids=lambda p: p.stem)
def test_scripts_are_short(script):
    assert len(script.read_text().splitlines()) < 30
