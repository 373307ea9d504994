"""Errors of nenya are OSErrors and ValueErrors too: nobody who catches these may swallow or reword ours unnamed."""

import ast
from pathlib import Path

import pytest
from test_layers import SOURCE, name_of, parsed

WIDE = {"OSError", "ValueError"}
Function = tuple[str, str]  # its module, and its name with that of its class


def words(node: ast.AST | None) -> set[str]:
    """Return the names of the classes of a handler, without those of their modules."""
    if isinstance(node, ast.Tuple):
        return set().union(*map(words, node.elts))
    if isinstance(node, ast.Call):
        return words(node.func)
    name = getattr(node, "id", None) or getattr(node, "attr", None)
    return {name} if name else set()


class House:
    """All modules, and which of their functions can raise an error of nenya, as far as plain calls tell."""

    def __init__(self, source: Path):
        self.trees = {name_of(path, source): parsed(path.read_text()) for path in source.rglob("*.py")}
        nodes = {module: list(ast.walk(tree)) for module, tree in self.trees.items()}
        self.imports: dict[str, dict[str, Function]] = {}
        for module, found in nodes.items():
            lines = [n for n in found if isinstance(n, ast.ImportFrom)]
            self.imports[module] = {a.asname or a.name: (str(n.module), a.name) for n in lines for a in n.names}
        self.errors = {"NenyaError"}
        classes = [n for found in nodes.values() for n in found if isinstance(n, ast.ClassDef)]
        for _ in range(4):  # of errors of errors
            self.errors |= {n.name for n in classes if set().union(*map(words, n.bases), ()) & self.errors}
        self.functions: dict[Function, ast.AST] = {}
        for module, tree in self.trees.items():
            for owner in (tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))):
                prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
                inner = [n for n in owner.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                self.functions |= {(module, prefix + n.name): n for n in inner}
        self.nodes = {key: list(ast.walk(node)) for key, node in self.functions.items()}
        self.raising = {key for key, inner in self.nodes.items() if self._raises(inner)}
        called = {key: self.called(*key, inner) for key, inner in self.nodes.items()}
        while more := {key for key, found in called.items() if found & self.raising} - self.raising:
            self.raising |= more

    def _raises(self, nodes: list[ast.AST]) -> bool:
        return any(isinstance(node, ast.Raise) and bool(words(node.exc) & self.errors) for node in nodes)

    def called(self, module: str, owner: str, nodes: list[ast.AST]) -> set[Function]:
        """Return the functions that a piece of code calls by their name, or as methods of `self`."""
        found = set()
        for node in (n.func for n in nodes if isinstance(n, ast.Call)):
            if isinstance(node, ast.Name):
                place, name = self.imports[module].get(node.id, (module, node.id))
                found |= {(place, name), (place, f"{name}.__init__")}
            elif isinstance(node, ast.Attribute) and words(node.value) == {"self"}:
                found.add((module, f"{owner.partition('.')[0]}.{node.attr}"))
        return found & self.functions.keys()

    def wrong(self) -> list[str]:
        """Return the places that catch OSError or ValueError, and with it an error of nenya that they do not name."""
        return sorted(
            f"{key[0]}:{node.lineno}"
            for key, inner in self.nodes.items()
            for node in inner
            if isinstance(node, ast.Try | ast.With) and self._catches(node) and self._may_raise(key, node)
        )

    def _catches(self, node: ast.AST) -> bool:
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            groups = [set().union(*map(words, call.args), ()) for call in calls if words(call.func) == {"suppress"}]
        else:
            groups = [words(handler.type) for handler in getattr(node, "handlers", ())]
        named: set[str] = set()
        for group in groups:
            named |= group
            if group & WIDE and not named & self.errors:
                return True
        return False

    def _may_raise(self, key: Function, node: ast.AST) -> bool:
        nodes = [inner for statement in node.body for inner in ast.walk(statement)]
        managed = any(words(decorator) == {"contextmanager"} for decorator in self.functions[key].decorator_list)
        passes = managed and any(isinstance(inner, ast.Yield) for inner in nodes)
        return passes or self._raises(nodes) or bool(self.called(*key, nodes) & self.raising)


def test_errors_of_nenya_are_named_by_who_catches_them():
    wrong = House(SOURCE).wrong()
    assert not wrong, f"`except NenyaError: raise` comes first, or its class stands beside: {wrong}"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("try:\n        read()\n    except OSError:\n        pass", 1),
        ("try:\n        read()\n    except NenyaError:\n        raise\n    except OSError:\n        pass", 0),
        ("try:\n        read()\n    except (InputFileError, OSError):\n        pass", 0),
        ("try:\n        len('')\n    except OSError:\n        pass", 0),
        ("with contextlib.suppress(ValueError):\n        raise InputFileError('')", 1),
        ("with contextlib.suppress(KeyError):\n        read()", 0),
    ],
)
def test_the_rule_finds_them(tmp_path, body, count):
    (tmp_path / "nenya").mkdir()
    (tmp_path / "nenya" / "errors.py").write_text("class InputFileError(NenyaError): pass")
    (tmp_path / "nenya" / "a.py").write_text("def read():\n    inner()\ndef inner():\n    raise InputFileError('')")
    (tmp_path / "nenya" / "b.py").write_text(f"from nenya.a import read\ndef f():\n    {body}\n")
    assert len(House(tmp_path / "nenya").wrong()) == count
