"""Packages without the parts of them that nenya does not use, which take most of the time of a short command.

While a package is imported here, stand-ins take the place of those parts, if they are not loaded yet. Afterwards the
stand-ins are gone, or load the real thing at the first use, so that other code finds what it expects:

    torch._dynamo                    The first import of it loads it. `OptimizedModule` in Lightning looks there.
    torchmetrics                     `Metric` and `MetricCollection` are the real classes. The first use of any other
                                     name or submodule loads the rest. The first plot of a metric loads matplotlib.
    lance_namespace_urllib3_client   The first use of any name loads the rest: a client of a server's interface.

Where a stand-in does not suffice, as for other versions, the package is imported as usual.
"""

import contextlib
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, cast

log = logging.getLogger(__name__)

_DYNAMO, _PLOT, _METRICS = "torch._dynamo", "torchmetrics.utilities.plot", "torchmetrics"
_LANCE_CLIENT = "lance_namespace_urllib3_client"


def import_lightning() -> None:
    """Import `lightning.pytorch` without torch's compiler and without the metrics of torchmetrics."""
    dynamo, plot = ModuleType(_DYNAMO), ModuleType(_PLOT)
    vars(dynamo).update(OptimizedModule=late_class(f"{_DYNAMO}.eval_frame", "OptimizedModule"), disable=_disable)
    vars(plot).update(
        _AX_TYPE=late_class("matplotlib.axes", "Axes"),
        _PLOT_OUT_TYPE=object,
        plot_single_or_multi_val=_late_function(_PLOT, "plot_single_or_multi_val"),
    )
    names = {"Metric": "utilities.checks", "MetricCollection": "collections", "__version__": "__about__"}
    metrics = _lazy(_METRICS, names)
    for package in metrics.values():
        vars(package)["_logger"] = logging.getLogger(_METRICS)
    _import("lightning.pytorch", {_DYNAMO: dynamo, _PLOT: plot, **metrics})


def load_compiler() -> None:
    """Import torch's compiler, which the optimizers of torch load at their first step, before the time is taken."""
    importlib.import_module(_DYNAMO)


def import_lancedb() -> None:
    """Import `lancedb` without the client of a server's interface."""
    _import("lancedb", {**_lazy(_LANCE_CLIENT, {})})


def _import(name: str, stand_ins: Mapping[str, ModuleType]) -> None:
    """Import a module with stand-ins for those that are not loaded; as usual if that fails."""
    if name in sys.modules:
        return
    before = set(sys.modules)
    try:
        with _in_place(stand_ins):
            importlib.import_module(name)
    except Exception as error:  # of another version
        log.debug("%s is imported in full: %s", name, error)
        tops = {name.partition(".")[0], *(place for place, made in stand_ins.items() if isinstance(made, LazyPackage))}
        for loaded in set(sys.modules) - before:
            if loaded.partition(".")[0] in tops:
                del sys.modules[loaded]
        importlib.import_module(name)


@contextlib.contextmanager
def _in_place(stand_ins: Mapping[str, ModuleType]) -> Iterator[None]:
    """Put stand-ins in the place of modules that are not loaded; only lazy packages stay."""
    made = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in made.items():
            if isinstance(module, LazyPackage):
                module.close()
            elif sys.modules.get(name) is module:
                del sys.modules[name]


def _disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """Do as `torch._dynamo.disable` at the first call of the function, as torch itself does."""
    import torch

    return torch._disable_dynamo(function, recursive)  # type: ignore[attr-defined]


class _Late(type):
    """The class of classes in modules that may not be loaded yet; until then, nothing is an instance of them."""

    place: str

    def _real(cls) -> type | None:
        return getattr(sys.modules.get(cls.place), cls.__name__, None)

    def __instancecheck__(cls, instance: object) -> bool:
        real = cls._real()
        return real is not None and isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        real = cls._real()
        return subclass is cls or (real is not None and issubclass(subclass, real))


def late_class(place: str, name: str) -> type:
    """Return a stand-in for a class of the module `place` in `isinstance` and `issubclass`."""
    return _Late(name, (), {"place": place})


def _late_function(place: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(place), name)(*args, **kwargs)

    return call


def _lazy(name: str, early: Mapping[str, str]) -> "dict[str, LazyPackage]":
    """Return name -> lazy package; nothing if it is loaded or does not exist."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    return {} if spec is None else {name: LazyPackage(spec, early)}


class LazyPackage(ModuleType):
    """A package whose own code is not executed yet.

    At first its submodules can be imported, and the early names used. After `close`, the use of any other name, or the
    import of a submodule that is not loaded, executes its code.

    Args:
        spec: where it is.
        early: name -> submodule that has it.
    """

    def __init__(self, spec: Any, early: Mapping[str, str]) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__package__, self.__file__ = spec, spec.loader, spec.name, spec.origin
        self.__path__ = list(spec.submodule_search_locations)
        vars(self).update(_nenya_early=early, _nenya_lock=threading.RLock())

    def close(self) -> None:
        """End the time in which its submodules can be imported without it: imports ask for `__path__`."""
        vars(self).pop("__path__", None)

    def __getattr__(self, name: str) -> Any:
        if "__path__" in vars(self):
            early = vars(self)["_nenya_early"]
            if name not in early:
                raise AttributeError(f"module {self.__name__} has no attribute {name} yet")
            return getattr(importlib.import_module(f"{self.__name__}.{early[name]}"), name)
        if name.startswith("__") and name not in ("__path__", "__all__", "__version__"):
            raise AttributeError(name)
        with vars(self)["_nenya_lock"]:
            if type(self) is LazyPackage:
                self._execute()
        return getattr(self, name)

    def _execute(self) -> None:
        """Become the package."""
        spec, kept = cast("Any", self.__spec__), dict(vars(self))
        object.__setattr__(self, "__class__", ModuleType)
        try:
            self.__path__ = list(spec.submodule_search_locations)
            spec.loader.exec_module(self)
        except BaseException:
            vars(self).clear()
            vars(self).update(kept)
            object.__setattr__(self, "__class__", LazyPackage)
            raise
