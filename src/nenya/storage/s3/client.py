"""The connection to an S3 service, configured by the environment."""

import os
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


def connect(attempts: int, connections: int) -> Any:
    """Return a boto3 client for the service; no request is made yet.

    Args:
        attempts: How often a request that fails because of the service or the network is made.
        connections: Connections to keep open.

    Raises:
        OptionError: The address of the service is invalid.
    """
    import boto3
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
    )
    try:
        return session.client("s3", endpoint_url=address, region_name=session.region_name or "us-east-1", config=config)
    except ValueError as error:
        raise OptionError(f"{variable}={address}: expected the address of a service, https://host") from error


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
