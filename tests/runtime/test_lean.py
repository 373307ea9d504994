"""What is imported late: nothing heavy before it is used, and the real thing for everybody else."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from nenya.runtime import lean

HEAVY = ("torch._dynamo", "torch._inductor", "torchmetrics.functional", "scipy", "sympy", "matplotlib", "sklearn")
HEAVY += ("numba", "umap", "wandb", "tensorboard", "boto3", "lancedb", "panel")


def run(code: str, *args: object) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_cutouts_are_extracted_without_what_takes_long_to_load(small_file, tiny_weights, tmp_path):
    code = (
        "import sys; from nenya.cli import run_command\n"
        "assert not run_command('extract', ['--help'])\n"
        "assert not {'torch', 'numpy', 'h5py'} & set(sys.modules)\n"
        "assert not run_command('extract', sys.argv[1:])\n"
        "print('loaded', *sys.modules)"
    )
    options = ["model=demo", "trainer=cpu", f"data={small_file}"]
    said = run(code, *options, f"ckpt={tiny_weights}", f"out={tmp_path}/out.h5")
    assert (tmp_path / "out.h5").is_file()
    loaded = set(said.rpartition("loaded")[2].split())
    assert {"torch", "lightning.pytorch", "torchmetrics.metric"} <= loaded
    assert not loaded & set(HEAVY)


OTHERS = """
import sys
from nenya.runtime.lightning import lightning, pl
import torch
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
assert "torchmetrics.utilities.plot" not in sys.modules and "matplotlib" not in sys.modules
from lightning.pytorch.utilities import compile as theirs
layer = torch.nn.Linear(1, 1)
assert not isinstance(layer, theirs.OptimizedModule) and "torch._dynamo" not in sys.modules

from torchmetrics.classification import BinaryAccuracy  # a submodule: executes the package first
import torchmetrics
assert type(torchmetrics).__name__ == "module" and torchmetrics.__version__ and torchmetrics.functional
assert torchmetrics.Metric is pl.core.module.Metric and torchmetrics.Metric is torchmetrics.metric.Metric
assert torchmetrics.MetricCollection is pl.core.module.MetricCollection
assert issubclass(pl.trainer.connectors.logger_connector.result._ResultMetric, torchmetrics.Metric)
mean = torchmetrics.MeanMetric()
mean.update(2.0)
mean.plot()
assert "matplotlib.pyplot" in sys.modules
import matplotlib.axes
assert issubclass(matplotlib.axes.Axes, torchmetrics.metric._AX_TYPE)

compiled = torch.compile(layer)
import torch._dynamo
assert isinstance(compiled, theirs.OptimizedModule)
assert issubclass(torch._dynamo.OptimizedModule, theirs.OptimizedModule)
assert torch._dynamo.config is not None and theirs.OptimizedModule is not int
try:
    theirs.to_uncompiled(layer)
except ValueError:
    print("as Lightning says")
"""


@pytest.mark.slow
def test_what_was_left_out_is_there_for_others():
    assert run(OTHERS) == "as Lightning says\n"


def test_what_is_loaded_already_stays():
    import torchmetrics

    from nenya.runtime.lightning import pl

    assert torchmetrics.functional and type(torchmetrics) is ModuleType
    assert torchmetrics.Metric is pl.core.module.Metric and issubclass(torchmetrics.MeanMetric, torchmetrics.Metric)
    lean.import_lightning()
    assert sys.modules["torchmetrics"] is torchmetrics and sys.modules["lightning.pytorch"] is pl


@pytest.mark.slow
def test_lancedb_finds_the_client_that_it_left_out():
    run(
        "import sys; from nenya.runtime.lean import import_lancedb; import_lancedb()\n"
        "assert 'lance_namespace_urllib3_client.api' not in sys.modules\n"
        "import lance_namespace_urllib3_client as client; assert client.__version__ and client.TableApi\n"
        "assert 'lance_namespace_urllib3_client.api' in sys.modules"
    )


@pytest.mark.slow
def test_lightning_is_imported_in_full_where_a_stand_in_does_not_suffice():
    run(
        "import sys; from nenya.runtime import lean\n"
        "lean.late_class = lambda place, name: None  # Lightning makes a Union of it with 'Any'\n"
        "lean._disable = None\n"
        "lean.import_lightning()\n"
        "import torchmetrics, lightning.pytorch as pl\n"
        "assert type(torchmetrics).__name__ == 'module' and 'torch._dynamo' in sys.modules\n"
        "assert pl.core.module.Metric is torchmetrics.Metric and torchmetrics.functional"
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `slow_one` that says when it is executed."""
    folder = tmp_path / "slow_one"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import slow_log\nslow_log.lines.append('body')\nfrom slow_one.a import A\nB = 2\n"
    )
    (folder / "a.py").write_text("import slow_log\nslow_log.lines.append('a')\nclass A: pass\n")
    (folder / "c.py").write_text("C = 3\n")
    (tmp_path / "uses_it.py").write_text("from slow_one import A\n")
    log = ModuleType("slow_log")
    log.lines = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "slow_log", log)
    yield log.lines
    for name in [name for name in sys.modules if name.partition(".")[0] in ("slow_one", "uses_it")]:
        del sys.modules[name]


def import_early():
    lean._import("uses_it", lean._lazy("slow_one", {"A": "a"}))
    return sys.modules["slow_one"]


@pytest.mark.parametrize(
    "use",
    [
        lambda: importlib.import_module("slow_one.c"),
        lambda: importlib.import_module("slow_one").B,
        lambda: exec("from slow_one import B"),
        lambda: exec("from slow_one import *"),
    ],
)
def test_a_lazy_package_is_executed_at_the_first_use(package, use):
    lazy = import_early()
    assert package == ["a"] and isinstance(lazy, lean.LazyPackage)
    assert not hasattr(lazy, "__wrapped__") and package == ["a"]
    use()
    assert package == ["a", "body"] and type(lazy) is ModuleType and lazy is sys.modules["slow_one"]
    assert lazy.A is sys.modules["uses_it"].A and lazy.B == 2


def test_a_lazy_package_whose_code_fails_can_be_tried_again(package, tmp_path):
    lazy = import_early()
    body = tmp_path / "slow_one" / "__init__.py"
    working = body.read_text()
    body.write_text("import slow_log\nslow_log.lines.append('failed')\nraise ValueError('no')\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            _ = lazy.B
    assert package == ["a", "failed", "failed"] and isinstance(lazy, lean.LazyPackage)
    body.write_text(working)
    importlib.invalidate_caches()
    assert lazy.B == 2


def test_a_module_that_needs_more_than_the_early_names_is_imported_as_usual(package, tmp_path):
    (tmp_path / "uses_it.py").write_text("from slow_one import A, B\n")
    assert type(import_early()) is ModuleType and package[-2:] == ["body", "a"]
    assert sys.modules["uses_it"].B == 2 and sys.modules["uses_it"].A is sys.modules["slow_one"].A


def test_a_package_that_does_not_exist_has_no_stand_in():
    assert lean._lazy("no_such_package_anywhere", {}) == {}
