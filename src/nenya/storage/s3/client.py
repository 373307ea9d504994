"""The connection to an S3 service, configured by the environment."""

import os
import threading
import time
from typing import Any

from nenya.errors import OptionError
from nenya.storage.s3.errors import without_secrets

ENDPOINT_NAMES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "ENDPOINT_URL")
"""Environment variables that may hold the address of the service; the first one that is set counts."""


def endpoint() -> tuple[str | None, str]:
    """Return the address of the service without a password, and the variable that sets it, or could set it."""
    for name in ENDPOINT_NAMES:
        if value := os.environ.get(name, "").strip():
            return without_secrets(value if "://" in value else f"https://{value}"), name
    return None, "AWS_ENDPOINT_URL"


_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestExpired"}
_NO_REASON = (400, 401, 403)  # of an answer to HEAD, which has no body
_RENEWALS = 3  # of one request
_RECENT = 60.0  # seconds in which a renewal for another thread counts for this one


def has_credentials() -> bool:
    """Return whether there are credentials: in the environment, a file, or from the machine."""
    import boto3

    return boto3.session.Session().get_credentials() is not None


def connect(attempts: int, connections: int, *, signed: bool = True, pays: bool = False) -> Any:
    """Return a boto3 client for the service; no request is made yet.

    Args:
        attempts: How often a request that fails because of the service or the network is made.
        connections: Connections to keep open.
        signed: Whether requests are signed with the credentials; otherwise they are those of anybody.
        pays: Whether this account pays for transfers where a bucket demands it.

    Raises:
        OptionError: The address of the service is invalid.
    """
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session()
    address, variable = endpoint()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=connections,
        tcp_keepalive=True,
        # Not every service knows the newer checksums; what is sent and received is verified by this package.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **({} if signed else {"signature_version": UNSIGNED}),
    )
    region = session.region_name or "us-east-1"
    try:
        client = session.client("s3", endpoint_url=address, region_name=region, config=config)
    except ValueError as error:
        raise OptionError(f"{variable}={address}: expected the address of a service, https://host") from error
    if pays:
        client.meta.events.register("before-sign.s3", _pay)
    if signed:
        client.meta.events.register("needs-retry.s3", _Renewal(session.get_credentials()))
    return client


def _pay(request: Any, **_: Any) -> None:
    request.headers["x-amz-request-payer"] = "requester"


class _Renewal:
    """Reads credentials again, from a file or the environment, where the service says that they have expired.

    Those of roles and of machines are renewed by botocore.

    Args:
        credentials: of the client, which signs with them.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials, self._lock, self._renewed = credentials, threading.Lock(), -_RECENT

    def __call__(self, response: Any = None, operation: Any = None, attempts: int = 1, **_: Any) -> float | None:
        """Return 0, to repeat the request at once, if there are newer credentials; else None."""
        if response is None or attempts > _RENEWALS:
            return None
        answer, parsed = response
        bare = operation is not None and operation.name.startswith("Head") and answer.status_code in _NO_REASON
        if not bare and parsed.get("Error", {}).get("Code") not in _EXPIRED:
            return None
        return 0.0 if self._renew() else None

    def _renew(self) -> bool:
        import boto3
        from botocore.credentials import Credentials

        if type(self._credentials) is not Credentials:
            return False
        with self._lock:
            if time.monotonic() - self._renewed < _RECENT:
                return True
            found = boto3.session.Session().get_credentials()
            values = None if found is None else found.get_frozen_credentials()
            if (
                values is None
                or not values.access_key
                or not values.secret_key
                or values == self._credentials.get_frozen_credentials()
            ):
                return False
            self._credentials.access_key, self._credentials.secret_key = str(values.access_key), str(values.secret_key)
            self._credentials.token, self._renewed = values.token, time.monotonic()
            return True


def head_object(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    """Return the answer to HEAD, or None if the bucket exists and the object does not.

    An error answer to HEAD gives no reason, so GET is used to find it.
    """
    from botocore.exceptions import ClientError

    for _ in range(2):
        try:
            return dict(client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
                raise
        try:
            client.get_object(Bucket=bucket, Key=key)["Body"].close()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise
    return dict(client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"))
