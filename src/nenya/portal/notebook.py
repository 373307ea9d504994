"""The portal in a notebook: the page in a frame, and its selection as a DataFrame.

Letters: N rows of the table, D dimensions of a latent, H x W pixels.
"""

import asyncio
import html
import json
import logging
import os
import shutil
import tempfile
import threading
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.files import Latents, open_latents
from nenya.options.extras import need
from nenya.portal.columns import Columns, compact
from nenya.portal.dataset import Dataset
from nenya.portal.state import View as Shown
from nenya.storage.paths import fetch, find_sources, local_path
from nenya.storage.table_files import check_arrow

if TYPE_CHECKING:
    import pandas as pd

    from nenya.portal.holding import Portal

log = logging.getLogger(__name__)

_SECONDS = 60.0  # within which the server must start
_PARTITION = "valid"


class View:
    """Cutouts that are shown in a notebook.

    Args:
        dataset: what is shown.
        table: of its rows.
        height: of the frame, pixels.
        proxy: whether the frame uses jupyter-server-proxy; None if it is to be found out.
        folder: of temporary files, removed at the end.

    Attributes:
        table: the complete table, N rows.
        url: address of the page on this machine, with its secret token.
    """

    def __init__(
        self, dataset: Dataset, table: "pd.DataFrame", height: int, *, proxy: bool | None, folder: str | None
    ) -> None:
        self.table, self._dataset, self._height, self._proxy = table, dataset, height, proxy
        server = _Server(dataset, folder)
        self._server = server
        self.url = f"http://127.0.0.1:{server.port}/{server.token}/"
        self.close = weakref.finalize(self, server.stop)
        """End the server; the page stays and says that it lost its connection."""

    @property
    def selection(self) -> "pd.DataFrame":
        """The rows that the page has selected, in the order of the table; all before it is opened.

        Of several pages of this view it is the one changed last.
        """
        mask = self._dataset.masks.all_of(self._server.shown.filters)
        return self.table if mask is None else self.table[mask]

    @property
    def chosen(self) -> "pd.Series[Any] | None":
        """The row of the cutout that was chosen by a click; None if none was."""
        row = self._server.shown.row
        return None if row is None else self.table.iloc[row]

    @property
    def is_open(self) -> bool:
        """Whether its server runs."""
        return bool(self.close.alive)

    def __repr__(self) -> str:
        rows = f"{len(self.table):,} rows"
        return f"nenya.view of {rows}: open {self.url}" if self.is_open else f"nenya.view of {rows}, closed"

    def _repr_html_(self) -> str:
        """Return the frame of a notebook."""
        if not self.is_open:
            return html.escape(repr(self))
        source = html.escape(_base(self._server.port, self._proxy) + f"{self._server.token}/")
        return (
            f'<iframe src="{source}" title="nenya: {len(self.table):,} cutouts" width="100%" height="{self._height}" '
            'allow="clipboard-write" style="border: 0"></iframe>'
        )


class _Server:
    """The portal's server in a thread of its own.

    Args:
        dataset: what it serves.
        folder: removed when it stops.

    Attributes:
        port: on 127.0.0.1.
        token: first part of all addresses.
        shown: the view of the page changed last.
    """

    def __init__(self, dataset: Dataset, folder: str | None) -> None:
        from nenya.portal.server import make_token

        self.port, self.token, self.shown = 0, make_token(), Shown(dataset.first)
        self._folder, self._loop = folder, asyncio.new_event_loop()
        self._trouble: Exception | None = None
        self._ready = threading.Event()
        self._portal = _portal(dataset, self)
        self._thread = threading.Thread(target=self._run, name="nenya.view", daemon=True)
        self._thread.start()
        if not self._ready.wait(_SECONDS) or self._trouble is not None:
            self.stop()
            raise OptionError(f"the server of nenya.view did not start: {self._trouble or 'no answer'}")

    def _run(self) -> None:
        from nenya.portal.server import make_server

        asyncio.set_event_loop(self._loop)
        try:
            server = make_server(self._portal, "127.0.0.1", 0, [], in_path=True)
            server.start()
        except Exception as error:
            self._trouble = error
            self._ready.set()
            return
        self.port = server.port
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        server.stop()
        server._http.stop()  # the port is free at once
        self._portal.close()

    def stop(self) -> None:
        """Stop serving, and remove the temporary files."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _portal(dataset: Dataset, server: _Server) -> "Portal":
    """Return a portal whose pages tell the server what they show."""
    from nenya.portal.holding import Portal

    class Noted(Portal):
        def page(self) -> Any:
            known = set(self.sessions)
            page = super().page()
            (session,) = (session for key, session in self.sessions.items() if key not in known)
            told = session.changed

            def changed() -> None:
                told()
                server.shown = session.selection.view

            session.changed = changed
            server.shown = session.selection.view
            return page

    return Noted(dataset, "notebook", token=server.token, upload="none")


def view(
    table: Any,
    latents: Any = None,
    images: Any = None,
    *,
    height: int = 800,
    proxy: bool | None = None,
    cache_dir: str | None = None,
) -> View:
    """Show cutouts in a notebook; see `nenya.view`."""
    need("portal", "nenya.view")
    frame = _frame(table)
    folder: str | None = None
    if isinstance(latents, np.ndarray) or isinstance(images, np.ndarray):
        folder = tempfile.mkdtemp(prefix="nenya_view_")
    try:
        return View(_dataset(frame, latents, images, cache_dir, folder), frame, height, proxy=proxy, folder=folder)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _frame(table: Any) -> "pd.DataFrame":
    """Return the table; a path is read."""
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        found = table
    elif isinstance(table, str | os.PathLike):
        found = read_table(local_path(str(table)))
    else:
        raise InputFileError(f"expected a DataFrame or the path of a table, got {type(table).__name__}")
    if not len(found):
        raise InputFileError("expected a table with rows, got an empty one")
    return found


def _dataset(frame: "pd.DataFrame", latents: Any, images: Any, cache_dir: str | None, folder: str | None) -> Dataset:
    import pyarrow as pa

    try:
        arrow = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputFileError(f"the table cannot be shown: {error}") from error
    columns = Columns(compact(check_arrow(arrow, "table")))
    in_order = [name for name, given in (("latents", latents), ("images", images)) if isinstance(given, np.ndarray)]
    found: Latents | None = None
    if isinstance(latents, np.ndarray):
        place = Path(str(folder)) / "view_preproc_latents.h5"
        found = Latents([_written(place, latents, len(frame), "latents", 2)])
    elif latents is not None:
        found = open_latents(latents, cache_dir)
    if found is not None:
        found.hold()
    if isinstance(images, np.ndarray):
        paths = [_written(Path(str(folder)) / "view_preproc.h5", images, len(frame), "images", 3)]
    else:
        paths = fetch(find_sources(images), cache_dir) if images is not None else []
    dataset = Dataset(columns, found, paths, in_order=in_order)
    dataset.warm()
    return dataset


def _written(path: Path, values: "np.ndarray[Any, Any]", rows: int, name: str, axes: int) -> Path:
    """Write an array to a file of the kind that the portal reads.

    Raises:
        InputFileError: It does not have one row for each row of the table, or holds no numbers.
    """
    if values.ndim == axes + 1 and values.shape[1] == 1:
        values = values[:, 0]
    wanted = {2: "(N, D)", 3: "(N, H, W)"}[axes]
    if values.ndim != axes or len(values) != rows or values.dtype.kind not in "fiu":
        raise InputFileError(
            f"expected {name} as numbers of shape {wanted}, a row for each of the {rows:,} rows of the table, got "
            f"{values.dtype} of shape {values.shape}"
        )
    with h5py.File(path, "w") as file:
        file[_PARTITION] = (values[:, None] if axes == 3 else values).astype(np.float32, copy=False)
    return path


def _base(port: int, proxy: bool | None) -> str:
    """Return the address of a port as the browser of the notebook reaches it."""
    hub = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if proxy is None:
        proxy = hub is not None or (find_spec("jupyter_server_proxy") is not None and _server_base() is not None)
    if not proxy:
        return f"http://127.0.0.1:{port}/"
    return f"{hub or _server_base() or '/'}proxy/{port}/"


def _server_base() -> str | None:
    """Return the path at which the Jupyter server of this kernel serves; None if that is not known."""
    parent = os.environ.get("JPY_PARENT_PID", "")
    if not parent.isdecimal() or find_spec("jupyter_core") is None:
        return None
    from jupyter_core.paths import jupyter_runtime_dir

    try:
        base = json.loads((Path(jupyter_runtime_dir()) / f"jpserver-{parent}.json").read_text())["base_url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(base)
