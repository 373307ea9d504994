"""Access to S3: with an account or without one, and who pays for transfers.

The choice is kept in the environment, so that processes started later make it too.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nenya.errors import OptionError
from nenya.storage.s3.client import connect, endpoint, has_credentials
from nenya.storage.s3.errors import Service

log = logging.getLogger(__name__)

ANONYMOUS, REQUESTER_PAYS = "NENYA_S3_ANONYMOUS", "NENYA_S3_REQUESTER_PAYS"
ONE_WRITER = "NENYA_S3_ONE_WRITER"


@contextmanager
def s3_access(anonymous: bool | Sequence[str] | None, requester_pays: bool, one_writer: bool = False) -> Iterator[None]:
    """Choose the access to S3 within the block, also for processes started in it.

    Args:
        anonymous: whether buckets are read without an account, or the names of those that are; None: if there are no
            credentials.
        requester_pays: whether transfers are paid by this account where a bucket demands it.
        one_writer: whether nobody else writes to an archive or an index, where the service cannot tell.

    Raises:
        OptionError: Both are chosen.
    """
    if anonymous is True and requester_pays:
        raise OptionError("storage.requester_pays=true needs an account: leave out storage.anonymous=true")
    chosen = {} if anonymous is None else {ANONYMOUS: json.dumps(anonymous)}
    chosen |= {REQUESTER_PAYS: "true"} if requester_pays else {}
    chosen |= {ONE_WRITER: "true"} if one_writer else {}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Clients:
    """The connections of a store, made at their first use; usable by several threads.

    Args:
        attempts: how often a request that fails because of the service or the network is made.
        connections: to keep open.
    """

    def __init__(self, attempts: int, connections: int) -> None:
        self._attempts, self._connections = attempts, connections
        self._endpoint, self._variable = endpoint()
        given = os.environ.get(ANONYMOUS)
        self._anonymous: bool | list[str] | None = json.loads(given) if given else None
        self._pays = os.environ.get(REQUESTER_PAYS) == "true"
        self._lock = threading.Lock()
        self._made: dict[bool, Any] = {}
        self._credentials: bool | None = None
        self._said: set[str] = set()

    def writer(self) -> Any:
        """Return a client that writes: with an account, unless all buckets are used without one."""
        return self._client(signed=self._anonymous is not True)

    def reader(self, bucket: str) -> Any:
        """Return a client that reads from a bucket."""
        signed = self.signed(bucket)
        with self._lock:
            new = not signed and self._anonymous is None and bucket not in self._said
            self._said |= {bucket} if new else set()
        if new:
            log.info(
                "no credentials for S3: bucket %s is read without an account, as storage.anonymous=true does", bucket
            )
        return self._client(signed=signed)

    def signed(self, bucket: str) -> bool:
        """Return whether a bucket is read with an account."""
        if self._anonymous is None:
            with self._lock:
                if self._credentials is None:
                    self._credentials = has_credentials()
            return self._credentials
        return bucket not in self._anonymous if isinstance(self._anonymous, list) else not self._anonymous

    def service(self, bucket: str) -> Service:
        """Return the service as shown in messages about a bucket."""
        made = next(iter(self._made.values()), None)
        region = made.meta.region_name if made else "us-east-1"
        chosen = bucket in self._anonymous if isinstance(self._anonymous, list) else self._anonymous is True
        access = "anonymous" if chosen else "no credentials" if self._credentials is False else "account"
        return Service(self._endpoint, self._variable, region, self._attempts, access)

    def _client(self, *, signed: bool) -> Any:
        with self._lock:
            if signed not in self._made:
                self._made[signed] = connect(self._attempts, self._connections, signed=signed, pays=self._pays)
            return self._made[signed]
