"""Replacing a small object on S3 only if it is unchanged since it was read."""

from nenya.errors import OutputError
from nenya.storage.s3.conditional import NoConditionsError, ReplacedError
from nenya.storage.s3.service import store


def replace_if_same(url: str, data: bytes, before: str, error: OutputError, *, safe: bool = True) -> str:
    """Replace a small object on S3 if its ETag is still `before`, else raise `error`; see `S3Store.replace`."""
    try:
        found = store().head(url)
        if (found.etag if found else "") != before:
            raise error
        return store().replace(url, data, before if safe else None)
    except NoConditionsError:
        return store().replace(url, data, None)
    except ReplacedError:
        raise error from None
