"""Writing a small object only if what lies there is what was read: a step that two writers cannot both do."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from nenya.storage.s3.checks import md5

_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "InvalidArgument", "InvalidRequest", "501", "405"}


class ReplacedError(Exception):
    """What lies there is not what was read."""


class NoConditionsError(Exception):
    """The service does not know requests with a condition."""


def put_if(client: Any, bucket: str, key: str, data: bytes, metadata: Mapping[str, str], etag: str | None) -> str:
    """Write an object if what lies there has a certain ETag.

    Args:
        client: The boto3 client.
        bucket: The bucket.
        key: The key.
        data: The content.
        metadata: Texts to keep with it.
        etag: The ETag, empty for no object; None writes whatever lies there.

    Returns:
        The ETag of what was written.

    Raises:
        ReplacedError: Another object lies there, or none.
        NoConditionsError: The service says that it does not know conditions.
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
            return _ours(client, bucket, key, data)  # an earlier attempt may have written it, and its answer been lost
        raise
    return str(answer["ETag"]).strip('"')


def _ours(client: Any, bucket: str, key: str, data: bytes) -> str:
    """Return the ETag of an object that has this content.

    Raises:
        ReplacedError: It has not.
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
