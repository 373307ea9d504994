"""Replacing a small object on S3 only if it is unchanged since it was read, by conditional writes (`If-Match`).

A service without them cannot tell two writers apart: both compare, and then both write. So nothing that several may
write is written there, unless `storage.one_writer=true` states that nobody else does.
"""

import logging
import os
import secrets

from nenya.errors import OutputError
from nenya.storage.s3.access import ONE_WRITER
from nenya.storage.s3.conditional import NoConditionsError, ReplacedError
from nenya.storage.s3.service import join_url, store

log = logging.getLogger(__name__)

NO_SUCH = "0" * 32
"""No object has this ETag."""


def replace_if_same(url: str, data: bytes, before: str, error: OutputError, *, safe: bool = True) -> str:
    """Replace a small object on S3 if its ETag is still `before`, else raise `error`; see `S3Store.replace`.

    Args:
        url: of the object.
        data: its new content.
        before: the ETag that was read, empty for none.
        error: that is raised if it has another one now.
        safe: whether the service supports conditional writes.

    Raises:
        OutputError: `error`, or the service has no conditional writes after all.
    """
    try:
        found = store().head(url)
        if (found.etag if found else "") != before:
            raise error
        return store().replace(url, data, before if safe else None)
    except NoConditionsError:
        allow_without(url)
        return store().replace(url, data, None)
    except ReplacedError:
        raise error from None


def compares(folder: str) -> bool:
    """Return whether a service compares before it writes below an address: it is asked to do what it should refuse.

    Some services refuse conditions that they do not know, others ignore them.

    Args:
        folder: s3:// address, below which an object is written and removed.

    Raises:
        StorageError: The service does not accept it.
    """
    url = join_url(folder, f"probe-{secrets.token_hex(8)}")
    try:
        store().replace(url, b"0", "")
        for number, wrong in enumerate(("", NO_SUCH), 1):
            try:
                store().replace(url, b"%d" % number, wrong)
            except ReplacedError:
                continue
            return False
        return True
    except NoConditionsError:
        return False
    finally:
        store().delete(url)


def check_conditions(folder: str) -> bool:
    """Return whether writes below an address are conditional.

    Raises:
        OutputError: They are not, and nobody stated that there is one writer.
    """
    if compares(folder):
        return True
    allow_without(folder)
    return False


def allow_without(place: str) -> None:
    """Refuse a place on a service without conditional writes, unless it is stated that nobody else writes.

    Raises:
        OutputError: It is not stated.
    """
    if os.environ.get(ONE_WRITER) != "true":
        raise OutputError(
            f"{place}: the S3 service has no conditional writes (If-Match), so two machines could overwrite each "
            "other's work: give storage.one_writer=true if no other machine writes there, or use another service"
        )
    log.warning(
        "%s: the S3 service has no conditional writes (If-Match): storage.one_writer=true states that no other machine "
        "writes there", place,
    )  # fmt: skip
