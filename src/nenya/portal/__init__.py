"""The web portal: data, selections, figures and the page that connects them."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return the names that users import from the package; Panel and Bokeh are loaded for them only."""
    if name in ("Image", "OSSinglePortal", "Server"):
        from nenya.portal import single

        return getattr(single, name)
    raise AttributeError(f"module {__name__} has no {name}")
