"""The command `nenya portal`: checks, opens and serves, or writes the page without a server."""

import logging
from pathlib import Path

from nenya.analysis_options import PortalOptions
from nenya.data.files import local_path
from nenya.errors import OptionError
from nenya.extras import need
from nenya.latents import open_latents

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
    if not options.table:
        raise OptionError("table= is needed: the table of the cutouts, such as table=cutouts.parquet")
    if options.latents and options.data:
        raise OptionError("latents= and data= are the same: give one")
    need("portal", "the portal")
    from nenya.portal.archive import open_archive

    table = local_path(options.table)
    latents = options.latents or options.data
    cache = options.loader.cache_dir
    log.info("reading %s", table)
    archive = open_archive(table, open_latents(latents, cache) if latents else None, options.images, cache)
    for note in archive.notes:
        log.warning("%s", note)
    if options.export:
        from nenya.portal.export import write_page

        place = write_page(archive, Path(local_path(options.export)), table.stem, options)
        log.info("%s: open it in a browser, no server is needed", place)
        return 0
    return _serve(options, archive, table.name)


def _serve(options: PortalOptions, archive: object, name: str) -> int:
    from nenya.portal.archive import Archive
    from nenya.portal.server import Portal, make_server, make_token
    from nenya.portal.upload import Encoder

    assert isinstance(archive, Archive)
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
