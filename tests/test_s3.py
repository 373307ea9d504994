import contextlib
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from s3_server import (  # noqa: F401 - fixtures
    FaultProxy,
    call,
    cut_request,
    cut_response,
    delay,
    flip_request,
    flip_response,
    page,
    s3_bucket,
    s3_proxy,
    s3_server,
    s3_service,
    status,
)

from nenya.errors import Interrupted, OptionError, OutputError, StorageError
from nenya.s3 import S3Object, S3Store, is_s3, join_url, split_url, store

KIB = 1024
SMALL, LARGE = 3 * KIB, 300 * KIB + 17  # one part, and five parts of 64 KiB
ALWAYS = float("inf")
ODD_KEYS = ["a b/c+d.h5", "søk/ü€.h5", "100%/x=1&y?.h5", "brackets[1].h5", "tilde~'(x)!.h5", "deep/" * 20 + "x"]


def make_store(attempts=3):
    return S3Store(attempts=attempts, part_size=64 * KIB)


def content(size, seed=0):
    return hashlib.shake_128(str(seed).encode()).digest(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bucket(s3_bucket):  # noqa: F811
    return s3_bucket


@pytest.fixture
def put(s3_service, bucket):  # noqa: F811
    """Put an object without the package: (key, data, metadata) -> url."""

    def call(key, data, **metadata):
        s3_service.client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata)
        return f"s3://{bucket}/{key}"

    return call


@pytest.fixture
def put_parts(s3_service, bucket):  # noqa: F811
    """Put an object in parts without the package, so without a sha256 of it."""

    def call(key, parts):
        client, target = s3_service.client(), {"Bucket": bucket, "Key": key}
        upload = client.create_multipart_upload(**target)["UploadId"]
        sent = [
            {"PartNumber": i, "ETag": client.upload_part(**target, UploadId=upload, PartNumber=i, Body=part)["ETag"]}
            for i, part in enumerate(parts, 1)
        ]
        client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": sent})
        return f"s3://{bucket}/{key}"

    return call


@pytest.fixture
def get(s3_service, bucket):  # noqa: F811
    """Get an object's bytes without the package: url -> bytes, or None."""

    def call(url):
        client = s3_service.client()
        with contextlib.suppress(client.exceptions.NoSuchKey):
            return client.get_object(Bucket=bucket, Key=url.removeprefix(f"s3://{bucket}/"))["Body"].read()

    return call


@pytest.fixture
def pending(s3_service, bucket):  # noqa: F811
    """Count the uploads in parts that were neither completed nor aborted."""
    return lambda: len(s3_service.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []))


@pytest.mark.parametrize("size", [0, 1, SMALL, 64 * KIB, 128 * KIB, LARGE])
def test_what_goes_up_comes_down(tmp_path, bucket, get, pending, size):
    source, url = tmp_path / "a.h5", f"s3://{bucket}/folder/a.h5"
    source.write_bytes(content(size))
    sent = make_store().upload(source, url, metadata={"rows": "12"})
    assert get(url) == content(size)
    assert (sent.url, sent.size, sent.name) == (url, size, "a.h5")
    assert sent.metadata == {"rows": "12", "sha256": sha256(content(size))}
    assert pending() == 0
    digest = make_store().download(sent, tmp_path / "new" / "b.h5")
    assert (tmp_path / "new" / "b.h5").read_bytes() == content(size)
    assert digest == sha256(content(size))
    assert os.listdir(tmp_path / "new") == ["b.h5"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys(tmp_path, bucket, get, key):
    (tmp_path / "a").write_bytes(content(SMALL))
    url = f"s3://{bucket}/{key}"
    make_store().upload(tmp_path / "a", url)
    assert get(url) == content(SMALL)
    assert [found.url for found in make_store().find(url)] == [url]
    folders = "/*" * key.count("/")
    assert [found.url for found in make_store().find(f"s3://{bucket}{folders}/*")] == [url]
    assert make_store().read_bytes(url) == content(SMALL)
