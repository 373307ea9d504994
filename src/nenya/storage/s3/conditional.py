"""Conditional writes: a small object is replaced only if it is unchanged, so two writers cannot both succeed."""

import contextlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from nenya.storage.s3.checks import md5

_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "InvalidArgument", "InvalidRequest", "501", "405"}


class ReplacedError(Exception):
    """The object is not the one that was read."""


class NoConditionsError(Exception):
    """The service does not support conditional requests."""


def put_if(client: Any, bucket: str, key: str, data: bytes, metadata: Mapping[str, str], etag: str | None) -> str:
    """Write an object if the existing one has a given ETag.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key.
        data: The content.
        metadata: Strings to store with it.
        etag: The ETag, empty for no object; None writes unconditionally.

    Returns:
        The ETag of the object written.

    Raises:
        ReplacedError: Another object exists, or none.
        NoConditionsError: The service reports that it does not support conditions.
    """
    from botocore.exceptions import ClientError

    condition = {} if etag is None else {"IfMatch": f'"{etag}"'} if etag else {"IfNoneMatch": "*"}
    digest = b64encode(md5(data).digest()).decode()
    try:
        answer = client.put_object(
            Bucket=bucket, Key=key, Body=data, Metadata=dict(metadata), ContentMD5=digest, **condition
        )
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        if condition and code in _UNKNOWN:
            raise NoConditionsError from error
        if code in _CHANGED or (etag and code in ("NoSuchKey", "404")):
            return _ours(client, bucket, key, data)  # an earlier attempt may have succeeded and its answer been lost
        raise
    return str(answer["ETag"]).strip('"')


def get_tagged(client: Any, bucket: str, key: str, limit: int) -> tuple[str, bytes] | None:
    """Return ETag and content of a small object, of one and the same state; None if there is no object.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key.
        limit: Bytes of the content that are returned at most.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    for again in (True, False):
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                return str(answer["ETag"]).strip('"'), body.read(limit)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise
        except BotoCoreError:  # the connection broke
            if not again:
                raise
    return None


def _ours(client: Any, bucket: str, key: str, data: bytes) -> str:
    """Return the ETag of an object that has this content.

    Raises:
        ReplacedError: It has other content.
    """
    from botocore.exceptions import ClientError

    try:
        found = client.get_object(Bucket=bucket, Key=key)
        if found["ContentLength"] == len(data) and found["Body"].read() == data:
            return str(found["ETag"]).strip('"')
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("NoSuchKey", "404"):
            raise
    raise ReplacedError
