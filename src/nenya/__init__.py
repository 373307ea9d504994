"""Nenya turns archives of ocean images into latent vectors that people can search, map and trust."""

import importlib
import os
from typing import Any

__version__ = "1.0.0"


def open_archive(
    path: "str | os.PathLike[str]",
    *,
    table: "str | os.PathLike[str] | None" = None,
    version: str | None = None,
    as_: str = "xarray",
    cache_dir: str | None = None,
) -> Any:
    """Open an archive, latents files or a folder of `nenya publish`, with the table of the cutouts.

    Args:
        path: an archive folder of `nenya update` (also an s3:// address), a latents file or a folder of them, or a
            published folder.
        table: of the cutouts, for latents files; their keys alone without it.
        version: model version of an archive that has several.
        as_: `xarray`, `pandas` or `arrow`.
        cache_dir: of copies from S3; default `outputs/cache`.

    Returns:
        `xarray`: a Dataset with `latent` (row, dimension), float32, which dask reads as it is needed; the columns of
        the table along `row`; and the coordinates row (number of the latent), latitude, longitude (degrees) and time
        (UTC).
        `pandas`, `arrow`: a table with one row for each latent, and the column `latent`, all of it in memory.
        Latents that an archive or a file does not have are NaN.

    Raises:
        InputFileError: There is nothing of this kind, or it is damaged, or the table does not fit.
        OptionError: An argument is not possible, or dask is not installed (`xarray` only).
    """
    module = importlib.import_module("nenya.publish.opened")  # not before it is needed: `import nenya` stays quick
    return module.open_archive(path, table=table, version=version, as_=as_, cache_dir=cache_dir)


def view(
    table: Any,
    latents: Any = None,
    images: Any = None,
    *,
    height: int = 800,
    proxy: bool | None = None,
    cache_dir: str | None = None,
) -> Any:
    """Show cutouts in a notebook, in the panels of the portal, and get the selection back.

    Args:
        table: a DataFrame with one row for each cutout, or the path of a table; see `nenya portal`.
        latents: latents files of the rows (paths), or an array (N, D) of the rows of the table.
        images: cutout files of the rows (paths), or an array (N, H, W) of the rows, SSTa in K.
        height: of the frame, pixels.
        proxy: whether the frame reaches the server through jupyter-server-proxy; default: if that is installed or
            the notebook runs on a JupyterHub.
        cache_dir: of copies from S3; default `outputs/cache`.

    Returns:
        A `nenya.portal.notebook.View`: as the last value of a cell it shows the page, `.selection` is the selected part
        of `.table`, and `.close()` ends its server, as deleting it and ending the kernel do.

    Raises:
        InputFileError: A file cannot be used, or an array does not fit the table.
        OptionError: The portal's packages are not installed.
    """
    module = importlib.import_module("nenya.portal.notebook")  # not before it is needed: `import nenya` stays quick
    return module.view(table, latents, images, height=height, proxy=proxy, cache_dir=cache_dir)
