"""Errors of an S3 service, worded in one line that a user can act on and that contains no secret."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nenya.errors import NenyaError, OptionError, OutputError, StorageError

_REFUSED = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "NotSignedUp"),
    "UnrecognizedClientException",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"}
_REGION = {
    *("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307", "AuthorizationHeaderMalformed"),
    *("IllegalLocationConstraintException", "IncorrectEndpoint", "InvalidRegion", "InvalidLocationConstraint"),
}
_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "503", "429"}
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class NotS3Error(Exception):
    """An answer that no S3 service gives; the message says which."""


def without_secrets(endpoint: str) -> str:
    """Return a web address without user, password, query and fragment."""
    parts = urlsplit(endpoint)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class Service:
    """The connection to a service, as shown in messages.

    Args:
        endpoint: Its address without secrets; None for that of AWS.
        variable: The environment variable that sets the address, or could set it.
        region: The region that requests are signed for.
        attempts: How often a request was made before giving up.
        access: "account"; "anonymous" if no account was to be used, "no credentials" if none were found.
    """

    endpoint: str | None
    variable: str
    region: str
    attempts: int
    access: str = "account"

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.variable})" if self.endpoint else f"AWS ({self.variable} is not set)"


def explain(error: BaseException, service: Service, url: str, doing: str) -> NenyaError:
    """Return nenya's error for one of boto3, botocore or s3transfer.

    Args:
        error: What they raised.
        service: The service that was asked.
        url: The s3:// address in question.
        doing: The operation: "download it".
    """
    from botocore.exceptions import ClientError

    error = getattr(error, "last_exception", None) or error
    if isinstance(error, ClientError):
        return _explain_answer(error.response, service, url, doing)
    return _explain_failure(error, service, url, doing)


def _no_service(service: Service, url: str, doing: str, answer: str) -> StorageError:
    """Return the error for an answer that no S3 service gives."""
    what = f"{service} gave {answer}, which no S3 service does; set {service.variable} to the address of the service"
    return StorageError(f"{url}: cannot {doing}: {what}")


def _explain_answer(answer: Any, service: Service, url: str, doing: str) -> NenyaError:
    """Return the error for an error answer of the service."""
    code = str(answer.get("Error", {}).get("Code", ""))
    about = answer.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    bucket = url.removeprefix("s3://").partition("/")[0]
    if code in _EXPIRED:
        what = f"the credentials have expired ({code}); renew them, then run the same command again"
    elif code in _REFUSED:
        what = f"{service} refuses the credentials ({code}); check {_CREDENTIALS}, or read a public bucket with "
        what += "storage.anonymous=true"
    elif code == "RequestTimeTooSkewed":
        what = f"the clock of this machine differs from that of {service}; correct it"
    elif code in _DENIED and service.access != "account":
        why = "storage.anonymous" if service.access == "anonymous" else "there are no credentials for S3"
        what = f"bucket {bucket} cannot be used without an account ({code}; {why}); set {_CREDENTIALS}"
    elif code in _DENIED:
        what = (
            f"access denied ({code}) by {service}; ask the owner of bucket {bucket} for permission, or check the name: "
            "without permission to list, S3 also denies access to missing objects. A requester-pays bucket needs "
            "storage.requester_pays=true"
        )
    elif code == "NoSuchBucket":
        what = f"bucket {bucket} does not exist at {service}; check the name and the service"
    elif code in ("NoSuchKey", "NoSuchVersion"):
        what = "the object does not exist; check the name"
    elif code in _REGION:
        there = about.get("HTTPHeaders", {}).get("x-amz-bucket-region") or answer["Error"].get("Region")
        what = f"bucket {bucket} is not in region {service.region} ({code}); set AWS_DEFAULT_REGION to "
        what += str(there or "the region of the bucket")
    elif code in _THROTTLED or status in (429, 503):
        what = f"{service} still throttles requests ({code}) after {service.attempts} attempts; "
        what += "try again later, or with fewer concurrent transfers"
    elif status >= 500 or code.startswith("5"):
        what = f"{service} failed {service.attempts} times ({code}); try again later, or check that it is an S3 service"
    elif code.isdecimal() or not code:
        return _no_service(service, url, doing, f"an error (HTTP {status or code}) without an S3 code")
    else:
        what = f"{service} refuses the request ({code})"
    return StorageError(f"{url}: cannot {doing}: {what}")


def _explain_failure(error: BaseException, service: Service, url: str, doing: str) -> NenyaError:
    """Return the error for a missing or unreadable answer."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    if isinstance(error, boto.ParamValidationError | boto.UnsupportedS3ArnError | boto.InvalidDNSNameError):
        return OptionError(f"{url}: cannot {doing}: invalid name or metadata of an object; expected s3://bucket/name")
    if isinstance(error, NotS3Error):
        return _no_service(service, url, doing, str(error))
    if isinstance(error, ResponseParserError):
        return _no_service(service, url, doing, "an answer that cannot be read")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        what = f"missing or incomplete credentials for S3; set {_CREDENTIALS}"
    elif isinstance(error, boto.ProfileNotFound):
        what = "AWS_PROFILE names a profile that does not exist; set it to one of `aws configure list-profiles`"
    elif isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.UnauthorizedSSOTokenError):
        what = f"no valid credentials were found; sign in again (aws sso login), or set {_CREDENTIALS}"
    elif isinstance(error, boto.SSLError):
        what = f"{service} has no valid certificate, or supports http only; check {service.variable} and AWS_CA_BUNDLE"
    elif isinstance(error, boto.ConnectionError):
        what = f"{service} cannot be reached; check the network and {service.variable}"
    elif isinstance(error, boto.HTTPClientError | boto.IncompleteReadError | OSError):
        what = f"the connection to {service} broke {service.attempts} times; try again"
    else:
        what = f"{type(error).__name__} in the transfer with {service}; try again"
    return StorageError(f"{url}: cannot {doing}: {what}")


@contextmanager
def disk_errors(doing: str, size: int = 0) -> Iterator[None]:
    """Turn errors of the local disk into nenya's.

    Args:
        doing: what is done, for the message.
        size: number of bytes to be written.

    Raises:
        OutputError: The disk reports one.
    """
    try:
        yield
    except NenyaError:
        raise
    except OSError as error:
        what = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"too little space ({what}): {size} bytes are needed; free some, or choose another folder"
        raise OutputError(f"cannot {doing}: {what}") from error
