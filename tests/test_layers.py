import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "nenya"

# From the ground up: a module imports from its own layer's earlier entries and from the layers before.
LAYERS = [
    [
        "nenya",
        "nenya.errors",
        "nenya.names",
        "nenya.extras",
        "nenya.defs",
        "nenya.metrics",
        "nenya.grids",
        "nenya.comparison",
        "nenya.texts",
        "nenya.report",
        "nenya.small_files",
        "nenya.arrays",
        "nenya.tables",
    ],
    ["nenya.options", "nenya.analysis_options"],
    ["nenya.process", "nenya.mounts", "nenya.temporaries"],
    ["nenya.storage", "nenya.lockfile", "nenya.s3", "nenya.ledger"],
    ["nenya.data", "nenya.configs"],
    ["nenya.table_files", "nenya.io", "nenya.latents", "nenya.where", "nenya.conditions", "nenya.similarity"],
    [
        *("nenya.archive", "nenya.archive_s3", "nenya.archive_build", "nenya.archive_manifest"),
        *("nenya.archive_commit", "nenya.archive_folder", "nenya.archive_lease"),
    ],
    ["nenya.models"],
    ["nenya.pca", "nenya.plotting", "nenya.spectra", "nenya.neighbours"],
    ["nenya.metrics_page", "nenya.invariance", "nenya.eigen_images", "nenya.projector"],
    ["nenya.runtime", "nenya.extraction", "nenya.training"],
    ["nenya.train", "nenya.latents_extraction", "nenya.train_util"],
    ["nenya.embed", "nenya.nenya_umap"],
    [
        *("nenya.analyze_image", "nenya.export", "nenya.demo", "nenya.verify", "nenya.repack", "nenya.data.prepare"),
        *("nenya.generate", "nenya.inspect_file", "nenya.migrate"),
        *("nenya.selection", "nenya.selection_figure", "nenya.clusters", "nenya.cluster_report"),
        *("nenya.figures", "nenya.table_images"),
        *("nenya.index", "nenya.search"),
        *("nenya.update", "nenya.status"),
        "nenya.latents_metrics",
    ],
    ["nenya.portal"],
    ["nenya.cli", "nenya.command_help", "nenya.sweep"],
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
