"""Private names of other packages: each is used in one module, which is the one to change when the name moves."""

import ast
import importlib
from collections.abc import Iterator

import pytest
from test_layers import SOURCE, parsed

# module -> names taken from it, and what they are for
PRIVATE = {
    "hydra._internal.hydra": (("Hydra",), "nenya extract --multirun"),
    "hydra._internal.utils": (("create_config_search_path",), "nenya extract --multirun"),
    "lightning.fabric.strategies.launchers.subprocess_script": (
        ("_ChildProcessObserver",),
        "the end of a process among several that extract",
    ),
    "torch._dynamo.config": (("disable",), "inference.backend=compiled"),
    "torch._dynamo.exc": (("TorchDynamoException",), "inference.backend=compiled"),
    "torch._inductor.config": (("patch",), "inference.backend=compiled"),
}


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules of other packages that are private, or of which a private name is taken."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            parts = [*module.split("."), name]
            if parts[0] not in ("nenya", "__future__") and any(part.startswith("_") for part in parts):
                yield module


USERS: dict[str, list[str]] = {}
for path in sorted(SOURCE.rglob("*.py")):
    for module in sorted(set(private_imports(parsed(path.read_text())))):
        USERS.setdefault(module, []).append(str(path.relative_to(SOURCE.parents[1])))


def test_no_other_private_module_is_imported():
    assert set(USERS) == set(PRIVATE), "list new ones above, each with its names and what it is for"


@pytest.mark.parametrize("module", PRIVATE)
def test_a_private_name_is_where_it_was_and_has_one_user(module):
    names, purpose = PRIVATE[module]
    users = USERS.get(module, [])
    assert len(users) == 1, f"expected one module that imports {module}, got {users}"
    place = f"{module} has moved: change {users[0]} ({purpose})"
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"{place}: {error}")
    missing = [name for name in names if not hasattr(found, name)]
    assert not missing, f"{place}: no {', '.join(missing)}"


def test_a_private_import_is_found():
    text = "import a._b.c\nfrom d import _e\nfrom nenya.f import _g\ndef h():\n    from i._j import k\n"
    assert sorted(private_imports(ast.parse(text))) == ["a._b.c", "d", "i._j"]
