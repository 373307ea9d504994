"""The command `nenya portal`: checks, opens and serves, or writes the page without a server."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from nenya.analysis_options import PortalOptions
from nenya.archive_folder import open_version
from nenya.data.files import local_path
from nenya.errors import OptionError
from nenya.latents import open_latents
from nenya.options import build_options, to_dict

if TYPE_CHECKING:
    from nenya.portal.archive import Archive

log = logging.getLogger(__name__)


def run(options: PortalOptions) -> int:
    """Serve the portal until it is interrupted, or write its page without a server.

    Args:
        options: of `scripts/portal.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be used, an option is not possible, or panel is not installed.
    """
    if bool(options.table) == bool(options.archive_dir):
        raise OptionError(
            "table= is needed, such as table=cutouts.parquet, or archive=, an archive of nenya update; not both"
        )
    if options.latents and options.data:
        raise OptionError("latents= and data= are the same: give one")
    lacking = [name for name in ("bokeh", "panel") if importlib.util.find_spec(name) is None]
    if lacking:
        raise OptionError(
            f"{' and '.join(lacking)} is not installed, which the portal needs: pip install 'nenya[portal]'"
        )
    archive, name = _open_folder(options) if options.archive_dir else _open_files(options)
    for note in archive.notes:
        log.warning("%s", note)
    if options.export:
        from nenya.portal.export import write_page

        place = write_page(
            archive, Path(local_path(options.export)), Path(name).stem if options.table else name, options
        )
        log.info("%s: open it in a browser, no server is needed", place)
        return 0
    return _serve(options, archive, name)


def _open_files(options: PortalOptions) -> tuple["Archive", str]:
    from nenya.portal.archive import open_archive

    assert options.table is not None
    table, latents, cache = local_path(options.table), options.latents or options.data, options.loader.cache_dir
    log.info("reading %s", table)
    return open_archive(table, open_latents(latents, cache) if latents else None, options.images, cache), table.name


def _open_folder(options: PortalOptions) -> tuple["Archive", str]:
    """Open an archive, whose weights are then there for images of one's own."""
    from nenya.portal.archive import open_version_archive

    opened = open_version(str(options.archive_dir), options.version, options.loader.cache_dir)
    if options.ckpt is None:
        found = build_options(PortalOptions, opened.with_settings(to_dict(options)))
        options.model, options.preprocess, options.trainer = found.model, found.preprocess, found.trainer
        options.ckpt = str(opened.weights())
    log.info("reading %s, version %s", options.archive_dir, opened.name)
    return open_version_archive(opened), f"{Path(str(options.archive_dir)).name} {opened.name}"


def _serve(options: PortalOptions, archive: "Archive", name: str) -> int:
    from nenya.portal.server import Portal, make_server, make_token
    from nenya.portal.upload import Encoder

    local = options.address in ("127.0.0.1", "localhost", "::1")
    token = options.token or (None if local else make_token())
    side = archive.cutouts.side if archive.cutouts else 0
    encoder = Encoder(options.ckpt, options, side) if options.ckpt else None
    origins = [options.origins] if isinstance(options.origins, str) else list(options.origins or [])
    portal = Portal(archive, name, encoder, options.limit_mb, token)
    server = make_server(portal, options.address, options.port, origins)
    server.start()
    host = "127.0.0.1" if local else options.address
    login = f"login?token={token}" if token else ""
    log.info("%s rows: open http://%s:%d/%s   (Ctrl-C ends it)", f"{archive.columns.rows:,}", host, server.port, login)
    try:
        server.io_loop.start()
    finally:
        server.stop()
        portal.pool.shutdown(wait=False, cancel_futures=True)
    return 0
