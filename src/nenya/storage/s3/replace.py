"""Replacing a small object on S3 only if it is what was read."""

from nenya.errors import OutputError
from nenya.storage.s3.conditional import NoConditionsError, ReplacedError
from nenya.storage.s3.service import store


def replace_if_same(url: str, data: bytes, before: str, error: OutputError, *, safe: bool = True) -> str:
    """Replace a small object on S3 that still is what was read, else raise `error`; see `replace_object`."""
    try:
        found = store().head(url)
        if (found.etag if found else "") != before:
            raise error
        return store().replace(url, data, before if safe else None)
    except NoConditionsError:
        return store().replace(url, data, None)
    except ReplacedError:
        raise error from None
