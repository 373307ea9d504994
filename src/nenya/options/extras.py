"""Packages that only some commands need, which `pip install 'nenya[NAME]'` brings."""

import importlib.util
import os

from nenya.errors import OptionError

EXTRAS = {
    "portal": ("bokeh", "panel"),
    "search": ("lancedb",),
    "slurm": ("hydra_plugins.hydra_submitit_launcher",),
}
"""Extra -> the modules that it is for."""


def need(extra: str, what: str) -> None:
    """Raise OptionError with the command that installs an extra, if it is not there.

    Args:
        extra: a name of `EXTRAS`.
        what: that needs it, for the message.
    """
    lacking = [name for name in EXTRAS[extra] if not _there(name)]
    if lacking:
        names = " and ".join(name.rpartition(".")[2] for name in lacking)
        raise OptionError(
            f"{what} needs {names}, not installed here: pip install 'nenya[{extra}]' "
            f"(in a checkout: pip install -e '.[{extra}]')"
        )
    if extra == "search":  # what LanceDB has to say comes as an error, which gets one line of ours
        os.environ.setdefault("LANCEDB_LOG", "off")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
