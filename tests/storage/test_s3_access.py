"""Buckets without an account, buckets whose readers pay, credentials that expire: against a service that insists."""

import logging
import os
import threading

import pytest
from s3_server import call, status

from nenya.errors import OptionError, StorageError
from nenya.storage.s3.access import s3_access
from nenya.storage.s3.service import S3Store, store

ALWAYS = float("inf")


@pytest.fixture
def url(s3_service, s3_bucket):
    """The address of an object of 300 kB."""
    s3_service.client().put_object(Bucket=s3_bucket, Key="x/a.h5", Body=bytes(300_000), ACL="public-read")
    return f"s3://{s3_bucket}/x/a.h5"


def without_credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def refuse_signed(_, headers):
    """As a service does that does not know the key."""
    return status(403, "InvalidAccessKeyId") if "Authorization" in headers else None


def refuse_unsigned(_, headers):
    return status(403, "AccessDenied") if "Authorization" not in headers else None


def read_all(url, path):
    """Read an object in each way."""
    there = store()
    assert there.find(url.removesuffix("a.h5"))[0].url == url and there.head(url).size == 300_000
    there.check_bucket(url, write=False)
    assert there.read_bytes(url) == bytes(300_000)
    there.download(url, path)


def test_a_public_bucket_is_read_without_an_account(s3_proxy, url, tmp_path, monkeypatch):
    s3_proxy.guard = refuse_signed
    with pytest.raises(StorageError, match=r"InvalidAccessKeyId.*storage\.anonymous=true"):
        store().head(url)
    with s3_access(True, False):
        read_all(url, tmp_path / "a")
    with s3_access([url.split("/")[2]], False):
        read_all(url, tmp_path / "b")
    with s3_access(["another"], False), pytest.raises(StorageError, match="InvalidAccessKeyId"):
        store().head(url)
    assert "NENYA_S3_ANONYMOUS" not in os.environ


def test_without_credentials_it_is_tried_and_said_once(s3_proxy, url, tmp_path, monkeypatch, caplog):
    without_credentials(monkeypatch)
    s3_proxy.guard = refuse_signed
    with caplog.at_level(logging.INFO, "nenya"):
        read_all(url, tmp_path / "a")
    assert caplog.text.count("is read without an account") == 1 and "storage.anonymous=true" in caplog.text
    with pytest.raises(StorageError, match="missing or incomplete credentials"):
        store().upload(tmp_path / "a", url + "2")
    with s3_access(False, False), pytest.raises(StorageError, match="missing or incomplete credentials"):
        store().head(url)


def test_a_private_bucket_says_that_it_needs_an_account(s3_proxy, url, monkeypatch):
    s3_proxy.guard = refuse_unsigned
    assert store().head(url)
    with s3_access(True, False), pytest.raises(StorageError, match=r"without an account.*storage\.anonymous"):
        store().head(url)
    without_credentials(monkeypatch)
    with pytest.raises(StorageError, match=r"no credentials for S3.*set AWS_ACCESS_KEY_ID"):
        store().find(url)


def test_a_bucket_whose_readers_pay(s3_proxy, url, tmp_path):
    def guard(_, headers):
        signed = "x-amz-request-payer" in headers.get("Authorization", "")  # among the signed headers
        return None if headers.get("x-amz-request-payer") == "requester" and signed else status(403, "AccessDenied")

    s3_proxy.guard = guard
    with pytest.raises(StorageError, match=r"storage\.requester_pays=true"):
        store().head(url)
    with s3_access(None, True):
        read_all(url, tmp_path / "a")
        store().upload(tmp_path / "a", url + "2")
    with pytest.raises(OptionError, match="needs an account"), s3_access(True, True):
        pass


@pytest.fixture
def profile(s3_proxy, tmp_path, monkeypatch):
    """Credentials in a file, of which only those with the right token are valid: returns (write, valid)."""
    without_credentials(monkeypatch)
    place, valid = tmp_path / "credentials", {"token": "one"}
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(place))

    def write(token):
        place.write_text(
            f"[default]\naws_access_key_id=key{token}\naws_secret_access_key=s\naws_session_token={token}\n"
        )

    def guard(_, headers):
        good = headers.get("X-Amz-Security-Token") == valid["token"]
        return None if good else status(400, "ExpiredToken")

    write("one")
    s3_proxy.guard = guard
    return write, valid


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_credentials_that_expire_midway_are_read_again(s3_proxy, url, tmp_path, profile, method):
    write, valid = profile
    there = S3Store(attempts=2, part_size=64 * 1024)
    there.download(url, tmp_path / "a")

    def renew():
        write("two")
        valid["token"] = "two"

    s3_proxy.rule(method, r"a\.h5", call(renew), skip=2 if method == "GET" else 1)
    there.download(url, tmp_path / "b")
    assert valid["token"] == "two" and (tmp_path / "b").read_bytes() == bytes(300_000)
    renew_again = threading.Thread(target=lambda: there.download(url, tmp_path / "c"))
    renew_again.start()
    renew_again.join()
    assert (tmp_path / "c").exists()


def test_expired_credentials_that_nobody_renews_are_said(s3_proxy, url, profile):
    _, valid = profile
    valid["token"] = "two"
    with pytest.raises(StorageError, match=r"credentials have expired.*renew them"):
        S3Store(attempts=2).head(url)
    assert s3_proxy.count("HEAD") <= 6
