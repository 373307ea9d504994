"""The state of the portal's server: data set, sessions and thread pools."""

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import panel as pn

from nenya.errors import NenyaError
from nenya.portal import words
from nenya.portal.app import make_page
from nenya.portal.dataset import Dataset, Stamp, stamps_of
from nenya.portal.encoder import Encoder
from nenya.portal.guard import Door
from nenya.portal.intake import Intake
from nenya.portal.jail import Jail
from nenya.portal.jobs import Pools
from nenya.portal.saved import SavedViews
from nenya.portal.session import Session

log = logging.getLogger(__name__)


@dataclass
class Portal:
    """The state of the server.

    Attributes:
        dataset: what all sessions share.
        name: of the table.
        encoder: of uploaded images; None without weights.
        limit_mb: largest upload, MB.
        token: required of a browser; None admits everyone who reaches the server.
        reopen: opens the data set again after its files were replaced; None if it never changes.
        door: decides on admission; set by `make_server`.
        look_every: seconds between checks of the files.
        upload: who may upload images: `auto`, `local`, `any` or `none`, see `PortalOptions`.
        saved: named views, if visitors may save some.
        sessions: by their key.
    """

    dataset: Dataset
    name: str
    encoder: Encoder | None = None
    limit_mb: int = 20
    token: str | None = None
    door: Door = field(default_factory=Door)
    reopen: Callable[[], Dataset] | None = None
    look_every: float = 5.0
    upload: str = "auto"
    saved: SavedViews | None = None
    sessions: dict[str, Session] = field(default_factory=dict)
    pools: Pools = field(default_factory=Pools)
    jail: Jail = field(init=False)
    intake: Intake = field(init=False)
    _broken: bool = False
    _seen: dict[Path, Stamp] = field(default_factory=dict)
    _before: dict[Path, Stamp] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jail = Jail(512 + 3 * self.limit_mb)
        most = min(4, max(1, 200 // self.limit_mb))  # all of them are held in memory
        self.intake = Intake(most, most_bytes=most * self.limit_mb * 10**6)

    @property
    def takes_images(self) -> bool:
        """Whether anyone may upload images."""
        return self.encoder is not None and self.dataset.latents is not None and self.upload != "none"

    def page(self) -> Any:
        """Return the page of a new session."""
        given = {k: v[0].decode(errors="replace") for k, v in (pn.state.session_args or {}).items() if v}
        page, session = make_page(
            self.dataset,
            self.pools,
            name=self.name,
            can_upload=self.takes_images,
            limit_mb=self.limit_mb,
            arguments=given,
            saved=self.saved,
        )
        self.sessions[session.key] = session
        if self._broken:
            session.tell(words.changed_badly())

        def close(_context: Any) -> None:
            self.sessions.pop(session.key, None)
            session.close()

        pn.state.on_session_destroyed(close)
        return page

    def close(self) -> None:
        """End all work before the interpreter shuts down, when no thread can start another."""
        for session in list(self.sessions.values()):
            session.close()
        self.jail.close()
        self.pools.shutdown()

    async def look(self) -> None:
        """Check whether files were replaced; if so, open the data set again for new pages, and notify open ones.

        Open pages keep their files. Files are opened once two checks find them unchanged, as several may be
        replaced one after another.
        """
        if self.reopen is None:
            return
        loop = asyncio.get_running_loop()
        books = {id(one.tags): one.tags for one in (self.dataset, *(s.dataset for s in self.sessions.values()))}
        for book in filter(None, books.values()):
            await loop.run_in_executor(self.pools.quick, book.look)
        known = self._seen or self.dataset.files
        found = await loop.run_in_executor(self.pools.quick, stamps_of, list(known))
        settled, self._before = found == self._before, found
        if found == known or not settled:
            return
        self._seen = found
        log.info("portal: the files of the archive have changed; opening them")
        try:
            self.dataset = await loop.run_in_executor(self.pools.slow, self.reopen)
        except Exception as error:
            log.warning(
                "portal: the changed archive cannot be opened: %s", error, exc_info=not isinstance(error, NenyaError)
            )
            self._broken, news = True, words.changed_badly()
        else:
            self._broken, self._seen, news = False, {}, words.changed()
        for session in list(self.sessions.values()):
            if self._broken or session.dataset is not self.dataset:
                session.jobs.call(functools.partial(session.tell, news))
