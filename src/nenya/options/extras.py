"""Optional packages that only some commands need, installed by `pip install 'nenya[NAME]'`."""

import importlib.util
import os

from nenya.errors import OptionError

EXTRAS = {
    "dask": ("distributed",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "portal": ("bokeh", "panel"),
    "publish": ("dask",),
    "search": ("lancedb",),
    "slurm": ("hydra_plugins.hydra_submitit_launcher",),
}
"""Extra -> the modules that it installs."""


def need(extra: str, what: str) -> None:
    """Raise OptionError with the command that installs an extra, if it is missing.

    Args:
        extra: a name of `EXTRAS`.
        what: the feature that needs it, for the message.
    """
    lacking = [name for name in EXTRAS[extra] if not _there(name)]
    if lacking:
        names = " and ".join(name.rpartition(".")[2] for name in lacking)
        raise OptionError(
            f"{what} needs {names}, which is not installed: pip install 'nenya[{extra}]' "
            f"(in a checkout: pip install -e '.[{extra}]')"
        )
    if extra == "search":  # LanceDB's errors are reported in one line by nenya
        os.environ.setdefault("LANCEDB_LOG", "off")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
