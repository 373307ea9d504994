"""The calls of the first nenya in users' scripts and notebooks: which work, which change, and what to write instead.

Scripts are parsed, never executed. The imports show where a call leads of the script.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nenya
from nenya.errors import InputFileError
from nenya.options.declare import suggest
from nenya.storage.names import read_bytes
from nenya.storage.texts import shown

SCRIPT_SUFFIXES = (".py", ".ipynb")
WORKS, CHANGES, INSTEAD = "works", "changes in meaning", "write instead"

_MOST_CODE = 1 << 20  # bytes of code, which Python parses in seconds
_MOST = 1 << 26  # bytes of a notebook, which has its pictures inside
_MOST_CALLS, _MOST_PARTS = 5000, 16  # uses of nenya in a script; names between dots of each
_LONG_NAME = re.compile(rb"(\.\s*\w+\s*){64}")  # Python's parser takes long to join one of thousands of parts
_PYTHON_MAGICS = ("time", "timeit", "capture", "prun")
_OLD_PACKAGES = ("ulmo.nenya", "ulmo.ssl")
_OTHERS = ("ulmo", "wrangler", "remote_sensing")

_MAP = "a projector of our own (.h5) in place of a pickle; the sample of the fit is seeded"
_VIEWS = "random numbers come from torch: torch.manual_seed, not np.random.seed"
CHANGED: dict[str, str] = {
    "train.main": "an earlier run is set aside under its date; validation is in evaluation mode, on fixed views",
    "tasks.train": "an earlier run is set aside under its date; validation is in evaluation mode, on fixed views",
    "latents_extraction.main": "a_preproc.h5 becomes a_preproc_latents.h5; what exists is judged by its content",
    "latents_extraction.evaluate": "existing latents are judged by the weights and the file that they were made of",
    "tasks.evaluate": "existing latents are judged by the weights and the file that they were made of",
    "latents_extraction.prep": "nothing is downloaded: the place of the weights is returned",
    "latents_extraction.HDF5RGBDataset": "three channels unless nchannels= is given; the file is opened at first use",
    "analyze_image.get_latents": "pp_img is (N, 1, H, W), one channel; each image loses its own mean",
    "analyze_image.umap_image": "pp_img is (1, 1, H, W), one channel; the UMAP is a projector of our own",
    "nenya_umap.load": _MAP + "; a pickle is refused with the command that fits it again",
    "nenya_umap.umap_subset": _MAP + "; DT_cut and alpha_cut both apply",
    "nenya_umap.umap_latents": _MAP,
    "nenya_umap.cutouts_on_umap_grid": "the draw is seeded, and cells have their own height",
    "train_util.train_model": "with update_model=False the network is in evaluation mode",
    "train_util.nenya_loader": _VIEWS,
    "train_util.RandomFlip": _VIEWS,
    "train_util.RandomRotate": _VIEWS,
    "train_util.JitterCrop": _VIEWS,
    "train_util.RandomJitterCrop": _VIEWS,
    "train_util.GaussianNoise": _VIEWS,
    "train_util.GaussianBlurring": "rows and columns are blurred alike",
    "models.loop.save_model": "the options are saved as a plain dictionary",
    "models.loop.warmup_learning_rate": "with 10 epochs or fewer it rises to the base learning rate",
    "pca.fit_latents": "Y is float32",
    "portal.OSSinglePortal": "shows the image and a link to the portal of nenya at its nearest row",
}
"""Calls that work and mean something else than in the first nenya, by the module that defines them."""

REPLACED: dict[str, str] = {
    "io.load_model": "model, _ = nenya.train_util.set_model(opt); model.load_state_dict(...)",
    "train_util.modis_loader": "nenya.train_util.nenya_loader(opt)",
    "train_util.modis_loader_v2_with_blurring": "nenya.train_util.nenya_loader(opt)",
    "train_util.ModisDataset": "nenya.train_util.NenyaDataset",
    "train_util.valid_model": "nenya.train_util.train_model(..., update_model=False)",
    "single_image.BatchDataset": "nenya.analyze_image.get_latents, which needs no other images",
    "models.resnet_big.model_dict": "nenya.models.resnet.ARCHITECTURES",
    "models.resnet_big.ResNet": "nenya.models.resnet_big.SupConResNet",
    "nenya_umap.old_latents_umap": "nenya.nenya_umap.umap_latents",
    "defs.ssl_opt_dmodel": "nenya train --help, which has all options",
    "pk.test": "nenya spectra data=...",
}
"""Names of the first nenya that do not exist here -> what to write."""


@dataclass(frozen=True)
class Call:
    """A use of the first nenya in a script.

    Attributes:
        where: `line 12`, or `cell 3, line 2`.
        name: in full, such as nenya.train.main.
        verdict: `WORKS`, `CHANGES` or `INSTEAD`.
        what: what changes, or what to write.
    """

    where: str
    name: str
    verdict: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {shown(self.name)}: {self.verdict}{f': {self.what}' if self.what else ''}"


@dataclass
class Script:
    """What a script or notebook uses.

    Attributes:
        calls: of nenya, in the order of the lines.
        others: packages that came with the first nenya and are not part of this one.
        mentions: whether it imports nenya at all.
    """

    calls: list[Call] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    mentions: bool = False


def read_script(path: Path) -> Script:
    """Tell the calls of a script or notebook.

    Raises:
        InputFileError: It is not Python 3, or not a notebook.
    """
    found, names, size = Script(), dict[str, str](), 0
    for where, text in _cells(path):
        size += len(text)
        if size > _MOST_CODE:
            raise InputFileError(f"{path}: expected a script of at most {_MOST_CODE:,} bytes of code; split it")
        try:
            if _LONG_NAME.search(text):
                raise ValueError("names of too many parts")
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            raise InputFileError(
                f"{path}: {where}{'' if line is None else f'line {line}'} is not Python 3 ({_reason(error)}); convert "
                "it first, such as by 2to3"
            ) from error
        _imports(tree, names, found)
        found.calls += _calls(tree, names, where)
        found.calls += [call for call in _missing(tree, where) if call.name not in {c.name for c in found.calls}]
        if len(found.calls) > _MOST_CALLS:
            raise InputFileError(f"{path}: uses nenya more than {_MOST_CALLS} times; split it")
    return found


def _reason(error: BaseException) -> str:
    return error.msg if isinstance(error, SyntaxError) else type(error).__name__


def _cells(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the code of a script, or of each cell of a notebook, and how to name its place."""
    data = read_bytes(path, _MOST)
    if path.suffix != ".ipynb":
        yield "", data
        return
    try:
        cells = json.loads(data)["cells"]
        codes = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        joined = ["".join(code) if isinstance(code, list) else str(code) for code in codes]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputFileError(f"{path}: cannot be read as a notebook ({type(error).__name__}); copy it again") from error
    for number, code in enumerate(joined, 1):
        first, _, rest = code.lstrip().partition("\n")
        if first.startswith("%%"):
            code = "pass\n" + rest if first[2:].split(" ")[0] in _PYTHON_MAGICS else ""  # of another language
        lines = [_without_magic(line) for line in code.splitlines()]
        if code:
            yield f"cell {number}, ", "\n".join(lines).encode("utf-8", "replace")


def _without_magic(line: str) -> str:
    """Return a line of a notebook as plain Python: without commands of the shell and of IPython."""
    line = re.sub(r"^(\s*)%(?:time|timeit|prun)\s+(?=\w)", r"\1", line)
    line = re.sub(r"^(\s*[\w.,\s]+=\s*)[!%]\w.*", r"\1None", line)
    return re.sub(r"^(\s*)(?:[%!?].*|[\w.]+\?{1,2}\s*)$", r"\1pass", line)


def _missing(tree: ast.Module, where: str) -> Iterator[Call]:
    """Yield the imports of modules and names of nenya that do not exist: the script ends there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [_ours(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = _ours(node.module)
            there = _names_of(module) if _file_of(module) else {}
            inner = [alias.name for alias in node.names if alias.name != "*" and alias.name not in there]
            wanted = [f"{module}.{name}" for name in inner] if _file_of(module) else [module]
        else:
            continue
        for full in wanted:
            if full.startswith("nenya.") and not _file_of(full):
                yield Call(f"{where}line {node.lineno}", full, *_verdict(full, ()))


def _imports(tree: ast.Module, names: dict[str, str], found: Script) -> None:
    """Note which names of a script stand for modules and functions of nenya."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full, first = _ours(alias.name), alias.name.split(".")[0]
                _note(full if alias.asname else first, alias.asname or first, names, found)
                if alias.asname is None and alias.name != full:
                    names[alias.name] = full
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = _ours(node.module)
            for alias in node.names:
                if alias.name == "*" and module.startswith("nenya"):
                    names.update({name: f"{module}.{name}" for name in _names_of(module)})
                _note(_ours(f"{node.module}.{alias.name}"), alias.asname or alias.name, names, found)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            full = _resolved(node.value, names)
            if full:
                names[node.targets[0].id] = full


def _note(full: str, short: str, names: dict[str, str], found: Script) -> None:
    first = full.split(".")[0]
    if first == "nenya":
        names[short], found.mentions = full, True
    elif first in _OTHERS:
        found.others.add(first)


def _ours(name: str) -> str:
    """Return the name of a module of the first nenya, which was once part of another package."""
    for old in _OLD_PACKAGES:
        if name == old or name.startswith(old + "."):
            return "nenya" + name[len(old) :].replace(".ssl_umap", ".nenya_umap").replace(".train_modis", ".train")
    return name


def _resolved(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of an expression such as `nenya_io.load_opt`; empty if it is not of nenya."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < _MOST_PARTS:
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts = [node.id, *parts[::-1]]
    for length in range(len(parts), 0, -1):
        known = names.get(".".join(parts[:length]))
        if known:
            return ".".join([known, *parts[length:]])
    return ""


def _calls(tree: ast.Module, names: dict[str, str], where: str) -> list[Call]:
    found: dict[tuple[int, int], Call] = {}
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        for item in [called, *bases] if called is not None else bases:
            full = _resolved(item, names)
            if full.count(".") >= 1:
                keywords = [k.arg for k in node.keywords if k.arg] if isinstance(node, ast.Call) else []
                place = f"{where}line {item.lineno}"
                found[item.lineno, item.col_offset] = Call(place, full, *_verdict(full, tuple(keywords)))
                if len(found) > _MOST_CALLS:
                    return list(found.values())
    for node in ast.walk(tree):  # names that are used without a call
        if isinstance(node, ast.Attribute):
            full = _resolved(node, names)
            if full.removeprefix("nenya.") in REPLACED:
                place = f"{where}line {node.lineno}"
                found.setdefault((node.lineno, node.col_offset), Call(place, full, *_verdict(full, ())))
    return [found[place] for place in sorted(found)]


@functools.lru_cache(4096)
def _verdict(full: str, keywords: tuple[str, ...]) -> tuple[str, str]:
    """Return the verdict on a use of a name of nenya, and what changes or what to write."""
    name = full.removeprefix("nenya.")
    if name in REPLACED:
        return INSTEAD, REPLACED[name]
    module, _, inner = full.rpartition(".")
    home = _home(module, inner)
    if home is None:
        owner = _home(*module.rpartition(".")[::2]) if module.count(".") > 1 else None
        if owner is not None:  # a method of one of our classes: names in a class are not looked up
            return WORKS, ""
        hint = suggest(inner, sorted(_names_of(module)))
        return INSTEAD, f"nenya has no {shown(name)}{hint}" if _file_of(
            module
        ) else f"nenya has no module {shown(module)}"
    known = _arguments(*home)
    wrong = [key for key in keywords if known and key not in known]
    if wrong:
        return INSTEAD, f"there is no argument {shown(wrong[0])}{suggest(wrong[0], sorted(known))}"
    what = CHANGED.get(".".join(home).removeprefix("nenya."), "")
    return CHANGES if what else WORKS, what


@functools.cache
def _file_of(module: str) -> Path | None:
    """Return the file of a module of ours; it is not imported."""
    place = Path(nenya.__file__).parent.joinpath(*module.split(".")[1:])
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _tree_of(module: str) -> ast.Module:
    file = _file_of(module)
    return ast.parse(file.read_text()) if file else ast.Module([], [])


@functools.cache
def _names_of(module: str) -> dict[str, str]:
    """Return the names of a module of ours -> the module that defines them."""
    found: dict[str, str] = {}
    for node in _tree_of(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = module
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: module for target in targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nenya."):
            found.update({alias.asname or alias.name: str(node.module) for alias in node.names})
    if module == "nenya.portal":
        found.update(dict.fromkeys(("Image", "OSSinglePortal", "Server"), module))
    return found


def _home(module: str, name: str) -> tuple[str, str] | None:
    """Return the module that defines a name, and the name; None if there is none."""
    for _ in range(4):
        found = _names_of(module).get(name)
        if found is None or found == module:
            return None if found is None else (module, name)
        if _file_of(f"{found}.{name}"):
            return f"{found}.{name}", ""
        module = found
    return module, name


@functools.cache
def _arguments(module: str, name: str) -> frozenset[str]:
    """Return the names of the arguments of a function or class; empty if they cannot be told."""
    module = "nenya.portal.single" if module == "nenya.portal" else module
    for node in _tree_of(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
            return _of_function(inits[0]) if inits else frozenset()
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _of_function(node)
    return frozenset()


def _of_function(node: ast.FunctionDef) -> frozenset[str]:
    arguments = node.args
    if arguments.kwarg is not None:
        return frozenset()
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return frozenset(argument.arg for argument in every)
