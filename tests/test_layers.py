import ast
import functools
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "nenya"

# From the ground up: a room imports from itself and from the rooms before it, and nothing imports in a circle.
ROOMS = [
    *("errors", "defs", "storage", "options", "io", "runtime", "tables", "data", "plotting", "prepare", "latents"),
    *("models", "extraction"),
    ("pca", "nenya_umap", "train", "train_util", "latents_extraction", "analyze_image", "tasks"),
    *("archive", "publish", "portal"),
    ("commands", "cli"),
]
# The original's other modules: they forward names, and belong to the room of what they forward.
FORWARDING = {
    **dict.fromkeys(("params",), "io"),
    **dict.fromkeys(("pk",), "plotting"),
    **dict.fromkeys(("util", "models.resnet_big"), "models"),
    **dict.fromkeys(("analysis", "losses", "single_image", "umap", "workflow"), "tasks"),
}
MODULES_AT_THE_TOP = 14
LINES = 500


parsed = functools.cache(ast.parse)
"""The tree of a text, parsed once for all tests; nobody changes it."""


def name_of(path: Path, source: Path = SOURCE) -> str:
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> int:
    """Return the place of a module's room; -1 for the package itself, which any may import."""
    if module == "nenya":
        return -1
    name = FORWARDING.get(module.split(".")[1], module.split(".")[1])
    found = [i for i, room in enumerate(ROOMS) if name in ((room,) if isinstance(room, str) else room)]
    assert found, f"{module} is in no room"
    return found[0]


def graph_of(source: Path) -> dict[str, set[str]]:
    """Return module -> modules that it imports, anywhere in its text."""
    paths = {name_of(path, source): path for path in sorted(source.rglob("*.py"))}
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(parsed(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {item if item in paths else str(node.module) for item in inner}
        graph[name] = {item for item in found if item.split(".")[0] == source.name and item != name}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle; an empty list if there are none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((circle for other in sorted(graph.get(name, ())) if (circle := visit(other))), [])
        path.pop()
        done.add(name)
        return found

    return next((circle for name in sorted(graph) if (circle := visit(name))), [])


@pytest.fixture(scope="module")
def graph():
    return graph_of(SOURCE)


@pytest.mark.parametrize("module", sorted(name_of(path, SOURCE) for path in SOURCE.rglob("*.py")))
def test_imports_run_downwards(graph, module):
    upward = {name for name in graph[module] if room_of(name) > room_of(module) and module != "nenya"}
    assert not upward, f"{module} imports from a room above: {upward}"


def test_no_imports_in_a_circle(graph):
    assert circle_in(graph) == []


def test_a_circle_inside_a_room_is_found(tmp_path):
    source = tmp_path / "nenya"
    (source / "tables").mkdir(parents=True)
    for name, text in {"__init__": "", "a": "from nenya.tables import b", "b": "from nenya.tables.a import f"}.items():
        (source / "tables" / f"{name}.py").write_text(text)
    assert circle_in(graph_of(source)) == ["nenya.tables.a", "nenya.tables.b"]
    (source / "tables" / "b.py").write_text("def f():\n    from nenya.tables import a\n")
    assert circle_in(graph_of(source)), "an import inside a function counts too"
    (source / "tables" / "b.py").write_text("")
    assert circle_in(graph_of(source)) == []


def test_an_upward_import_is_seen():
    assert room_of("nenya.data.cutouts") < room_of("nenya.models.losses") < room_of("nenya.cli")


@pytest.mark.parametrize(
    ("call", "module"),
    [("fcntl.flock", "nenya.storage.flock"), ("signal.signal", "nenya.runtime.signals")],
)
def test_one_module_does_it(call, module):
    texts = {name_of(path): text for path in SOURCE.rglob("*.py") if call in (text := path.read_text())}
    nodes = ((name, node) for name, text in texts.items() for node in ast.walk(parsed(text)))
    calling = {name for name, node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == call}
    assert calling == {module}


def test_the_house_stays_small():
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", *FORWARDING}
    assert len(modules) <= MODULES_AT_THE_TOP, sorted(modules)
    long = {name_of(p): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > LINES}
    assert not long, f"of more than {LINES} lines: {long}"


def test_each_package_says_its_purpose_and_holds_no_code():
    for path in SOURCE.rglob("*/__init__.py"):
        tree = parsed(path.read_text())
        assert ast.get_docstring(tree), path
        if path.parent.name not in ("plotting", "portal"):  # users import names from the packages themselves
            assert len(tree.body) == 1, f"{path} holds code"


def test_the_forwarding_modules_only_forward():
    found = {name_of(path).removeprefix("nenya.") for path in SOURCE.rglob("*.py") if path.read_text()[:50].lower().
             startswith('"""names of the first nenya: ')}  # fmt: skip
    assert found == set(FORWARDING)
    for name in FORWARDING:
        text = (SOURCE / f"{name.replace('.', '/')}.py").read_text()
        assert text.startswith('"""names of the first nenya: ')
        assert len(text.splitlines()) <= 60
        _, *imports, listed = ast.parse(text).body
        assert all(isinstance(node, ast.ImportFrom) for node in imports), f"{name} does more than forward"
        forwarded = sorted(alias.name for node in imports for alias in node.names if alias.asname is None)
        assert isinstance(listed, ast.Assign)
        assert forwarded == ast.literal_eval(listed.value) == sorted(set(forwarded))


@pytest.mark.parametrize("script", sorted((SOURCE.parents[1] / "scripts").glob("*.py")), ids=lambda p: p.stem)
def test_scripts_are_short(script):
    assert len(script.read_text().splitlines()) < 30


def test_the_picture_shows_the_rooms():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    lines = text.split("```text\n")[1].split("```")[0].splitlines()
    shown = [line.split("   ")[0].replace("/", "").split() for line in (line.strip() for line in lines)]
    below = [names for names in shown if names and names[0] not in "|v"][::-1]
    assert below == [[room] if isinstance(room, str) else list(room) for room in ROOMS]
