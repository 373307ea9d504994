"""`nenya portal`: checks and opens the files, then serves the portal or writes a page without a server."""

import gc
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nenya.archive.folder import open_version
from nenya.errors import OptionError
from nenya.latents.files import open_latents
from nenya.options.commands import PortalOptions
from nenya.options.declare import to_dict
from nenya.options.extras import need
from nenya.options.sections import build_options
from nenya.runtime.signals import on_interrupt
from nenya.storage.paths import local_path
from nenya.tables.tags import place_of_tags

if TYPE_CHECKING:
    from nenya.portal.dataset import Dataset
    from nenya.portal.saved import SavedViews

log = logging.getLogger(__name__)


def run(options: PortalOptions) -> int:
    """Serve the portal until interrupted, or write its page without a server.

    Args:
        options: of `scripts/portal.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be used, an option is not possible, or panel is not installed.
    """
    if options.table and options.archive_dir:
        raise OptionError(f"table={options.table} and archive={options.archive_dir}: give one of them")
    if not options.table and not options.archive_dir:
        raise OptionError("expected table=, such as table=cutouts.parquet, or archive=, an archive of nenya update")
    if options.latents and options.data:
        raise OptionError("latents= and data= mean the same: give one")
    need("portal", "the portal")
    found, name = _folder(options) if options.archive_dir else _files(options)

    def opened() -> "Dataset":
        from nenya.portal.uncertain import first_filters

        dataset = found()
        dataset.first = first_filters(dataset.columns, options.least_cosine, latents=dataset.latents is not None)
        if options.least_cosine is not None and not dataset.first:
            dataset.notes.append("least_cosine= leaves all rows selected: the table has no column cosine_low")
        _tag(dataset, options)
        return dataset

    def noted() -> "Dataset":
        dataset = opened()
        for note in dataset.notes:
            log.warning("%s", note)
        return dataset

    if options.export:
        from nenya.portal.export import write_page

        place = write_page(
            noted(), Path(local_path(options.export)), Path(name).stem if options.table else name, options
        )
        log.info("%s: open it in a browser; no server is needed", place)
        return 0
    return _serve(options, noted, name)


def _files(options: PortalOptions) -> tuple["Callable[[], Dataset]", str]:
    """Return a function that opens the given files, and the name to show."""
    from nenya.portal.dataset import open_dataset

    table, cache, external = local_path(str(options.table)), options.loader.cache_dir, options.loader.allow_external
    latents = options.latents or options.data
    projector = local_path(options.projector) if options.projector else None

    def opened() -> "Dataset":
        if table.is_file():
            log.info("reading %s", table)
        return open_dataset(
            table,
            open_latents(latents, cache, allow_external=external, least_cosine=options.least_cosine)
            if latents
            else None,
            options.images,
            cache,
            projector,
        )

    return opened, table.name


def _folder(options: PortalOptions) -> tuple["Callable[[], Dataset]", str]:
    """Return a function that opens an archive, and the name to show; its weights encode new images."""
    from nenya.portal.dataset import open_version_dataset

    place, cache = str(options.archive_dir), options.loader.cache_dir
    first = open_version(place, options.version, cache)
    if options.ckpt is None:
        found = build_options(PortalOptions, first.with_settings(to_dict(options)))
        options.model, options.preprocess, options.trainer = found.model, found.preprocess, found.trainer
        options.ckpt = str(first.weights())

    def opened() -> "Dataset":
        log.info("reading %s, version %s", place, first.name)
        return open_version_dataset(open_version(place, first.name, cache), options.least_cosine)

    return opened, f"{Path(place).name} {first.name}"


def reached_by(address: str) -> str:
    """Return the address by which other machines reach the server; `0.0.0.0` and `::` mean all interfaces."""
    if address in ("0.0.0.0", "::"):  # given by the user
        family, far = (socket.AF_INET, "192.0.2.1") if address != "::" else (socket.AF_INET6, "2001:db8::1")
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:  # selects the interface; nothing is sent
                probe.connect((far, 9))
                address = probe.getsockname()[0]
        except OSError:  # no network: only the host name is known
            address = socket.gethostname()
    return f"[{address}]" if ":" in address else address


def _saved(options: PortalOptions) -> "SavedViews | None":
    """Return the named views beside the table or in the archive; None for an archive on S3, unless they are requested.

    Raises:
        OptionError: They are requested, but the archive is on S3.
    """
    from nenya.portal.saved import SavedViews

    place = str(options.archive_dir or options.table)
    if "://" in place:
        if options.views:
            raise OptionError(f"views=true needs a folder of this machine for named views, got {place}")
        return None
    path = local_path(place)
    return SavedViews(path / "portal_views.json" if options.archive_dir else path.with_suffix(".views.json"))


def _tag(dataset: "Dataset", options: PortalOptions) -> None:
    """Let a data set show its tags: those asked for, else those beside the table, unless `tags=false`."""
    from nenya.portal.tag_book import open_tags

    if options.tags is False:
        return
    asked = options.tags is not None
    place = str(options.archive_dir or options.table)
    path = place_of_tags(options.tags, options.table, options.archive_dir) if asked or "://" not in place else None
    if path is None:
        path = place_of_tags(True, options.table, options.archive_dir) if "://" not in place else None
    dataset.tags, trouble = open_tags(dataset.columns, path, asked=asked, writable=options.tags is True)
    if trouble:
        dataset.notes.append(trouble)


def _serve(options: PortalOptions, opened: "Callable[[], Dataset]", name: str) -> int:
    from nenya.portal.encoder import Encoder
    from nenya.portal.guard import LOCAL
    from nenya.portal.holding import Portal
    from nenya.portal.server import make_server, make_token

    encoder = Encoder(options.ckpt, options) if options.ckpt else None

    def checked() -> "Dataset":
        dataset = opened()
        trust = encoder.check(dataset) if encoder is not None else ""
        if trust:
            dataset.notes.append(trust)
            log.warning("%s", trust)
        return dataset

    local = options.address in LOCAL
    token = options.token or (None if local else make_token())
    origins = [options.origins] if isinstance(options.origins, str) else list(options.origins or [])
    saved = _saved(options) if (local if options.views is None else options.views) else None
    limit, upload = options.limit_mb, options.upload
    portal = Portal(checked(), name, encoder, limit, token, reopen=checked, upload=upload, saved=saved)
    server = make_server(portal, options.address, options.port, origins)
    server.start()
    gc.freeze()  # existing objects stay: the collector need not scan them for each page that opens
    host = "127.0.0.1" if local else reached_by(options.address)
    login = f"login?token={token}" if token else ""
    log.info(
        "%s rows: open http://%s:%d/%s   (Ctrl-C ends it)", f"{portal.dataset.columns.rows:,}", host, server.port, login
    )
    if not local:
        log.info(
            "other users need the complete address with its token; traffic is not encrypted: use trusted networks only"
        )
    loop = server.io_loop.asyncio_loop
    try:
        with on_interrupt(lambda: loop.call_soon_threadsafe(loop.stop)):
            server.io_loop.start()
    finally:
        server.stop()
        portal.close()
    return 0
