import contextlib
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import (
    FaultProxy,
    call,
    cut_request,
    cut_response,
    delay,
    flip_request,
    flip_response,
    page,
    pending_uploads,
    status,
)

from nenya.errors import Interrupted, OptionError, OutputError, StorageError
from nenya.storage.paths import is_s3
from nenya.storage.s3.service import S3Object, S3Store, join_url, split_url, store

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
def bucket(s3_bucket):
    return s3_bucket


@pytest.fixture
def put(s3_service, bucket):
    """Put an object without the package: (key, data, metadata) -> url."""

    def call(key, data, **metadata):
        s3_service.client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata)
        return f"s3://{bucket}/{key}"

    return call


@pytest.fixture
def put_parts(s3_service, bucket):
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
def get(s3_service, bucket):
    """Get an object's bytes without the package: url -> bytes, or None."""

    def call(url):
        client = s3_service.client()
        with contextlib.suppress(client.exceptions.NoSuchKey):
            return client.get_object(Bucket=bucket, Key=url.removeprefix(f"s3://{bucket}/"))["Body"].read()

    return call


@pytest.fixture
def pending(s3_service, bucket):
    """Count the uploads in parts that were neither completed nor aborted."""
    return lambda: len(pending_uploads(s3_service.client(), bucket))


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


def test_addresses():
    assert is_s3("s3://b/k") and not is_s3("/data/s3://b") and not is_s3(None)
    assert split_url("s3://b/a/b c?.h5") == ("b", "a/b c?.h5")
    assert split_url("s3://b") == split_url("s3://b/") == ("b", "")
    assert join_url("s3://b/", "/a/", "x.h5") == "s3://b/a/x.h5"
    assert join_url("s3://b/a", "", "x") == "s3://b/a/x"
    for bad in ("s3://", "s3:///a", "s3://b*/a", "/local"):
        with pytest.raises(OptionError, match="s3://bucket/name"):
            split_url(bad)
    with pytest.raises(OptionError, match="got a bucket"):
        S3Store().head("s3://b/")


def test_find(put, bucket, s3_server):
    keys = ["a/1.h5", "a/2.h5", "a/b/3.h5", "a/b/c/4.txt", "ab/5.h5", "a[1].h5", "a1.h5", "top.h5"]
    for key in [*keys, *(["a/"] if s3_server.is_moto else [])]:  # the mark of a folder is no object
        put(key, key.encode(), sha256="0")
    at, finder = f"s3://{bucket}", make_store()

    def found(text):
        return [item.url.removeprefix(at + "/") for item in finder.find(f"{at}{text}")]

    assert found("") == found("/") == found("/**") == sorted(keys)
    assert found("/a") == found("/a/") == ["a/1.h5", "a/2.h5", "a/b/3.h5", "a/b/c/4.txt"]
    assert found("/a/*.h5") == ["a/1.h5", "a/2.h5"]
    assert found("/a/**/*.h5") == ["a/1.h5", "a/2.h5", "a/b/3.h5"]
    assert found("/a*/*.h5") == ["a/1.h5", "a/2.h5", "ab/5.h5"]
    assert found("/a?/*") == ["ab/5.h5"]
    assert found("/a/[!2].h5") == ["a/1.h5"]
    assert found("/a/[1-2].h5") == ["a/1.h5", "a/2.h5"]
    assert found("/a[1].h5") == ["a[1].h5"]  # an object of that very name comes before the glob
    assert found("/[ab]1.h5") == ["a1.h5"]
    assert found("/none*") == found("/to") == found("/none/") == []
    item = finder.find(f"{at}/a/*.h5")[0]
    assert (item.size, item.name, item.metadata) == (6, "1.h5", {})
    assert finder.find(f"{at}/top.h5")[0].metadata == {"sha256": "0"}
    assert isinstance(item, S3Object) and len({item, item}) == 1


@pytest.mark.slow
def test_find_beyond_one_page(put, bucket):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(f"many/{number:04d}", b""), range(1003)))
    found = make_store().find(f"s3://{bucket}/many/*")
    assert [item.name for item in found] == [f"{number:04d}" for number in range(1003)]


def test_head_and_delete(put, bucket):
    url, there = put("a", b"12", rows="3"), make_store()
    assert there.head(url).metadata == {"rows": "3"}
    there.delete(url)
    assert there.head(url) is None
    there.delete(url)
    with pytest.raises(StorageError, match=r"/a: the object does not exist; check the name"):
        there.read_bytes(url)


def test_read_bytes_has_a_limit(put):
    url = put("options.json", b"x" * 100)
    assert make_store().read_bytes(url, limit=100) == b"x" * 100
    with pytest.raises(StorageError, match="expected at most 99 bytes, got 100"):
        make_store().read_bytes(url, limit=99)


# What goes wrong: the answers of a service that says no, and what its user reads.

REFUSALS = {
    "denied": (403, "AccessDenied", "access denied .* ask the owner of bucket"),
    "unknown key": (403, "InvalidAccessKeyId", "refuses the credentials .* check AWS_ACCESS_KEY_ID"),
    "bad signature": (403, "SignatureDoesNotMatch", "refuses the credentials"),
    "clock": (403, "RequestTimeTooSkewed", "the clock of this machine"),
    "bucket": (404, "NoSuchBucket", "bucket nenya-.* does not exist .* check the name"),
    "redirect": (301, "PermanentRedirect", "set AWS_DEFAULT_REGION to eu-west-9"),
    "region": (400, "AuthorizationHeaderMalformed", "not in region us-east-1 .* set AWS_DEFAULT_REGION to eu-west-9"),
    "location": (400, "IllegalLocationConstraintException", "set AWS_DEFAULT_REGION to"),
    "throttled": (503, "SlowDown", "still throttles requests .* after 2 attempts"),
    "broken": (500, "InternalError", r"failed 2 times \("),
    "other": (400, "EntityTooFunny", r"refuses the request \(EntityTooFunny\)"),
}
PAGES = {
    "web page": (200, b"<!DOCTYPE html><html><head><title>x</title></head><body>hello<br></body></html>"),
    "tidy web page": (200, b"<html><body>hello</body></html>"),
    "missing page": (404, b"<html><body>gone</body></html>"),
    "forbidden page": (403, b"<html><body>no</body></html>"),
}


def refusal(name):
    """Return an action for every request of a kind, and what the message says of it."""
    if name in PAGES:
        return page(*PAGES[name]), "(which no S3 service does; set AWS_ENDPOINT_URL|check that it is an S3 service)"
    code, error, match = REFUSALS[name]
    return status(code, error, {"x-amz-bucket-region": "eu-west-9"}), match


@pytest.mark.parametrize("name", [*REFUSALS, *PAGES])
def test_a_refused_download(tmp_path, s3_proxy, put, name):
    url = put("x/a.h5", content(LARGE))
    action, match = refusal(name)
    for method in ("GET", "HEAD"):
        s3_proxy.rule(method, ".", action, times=ALWAYS)
    there = make_store(attempts=2)
    for ask in (there.find, there.head, there.check_bucket, lambda url: there.download(url, tmp_path / "a.h5")):
        with pytest.raises(StorageError, match=match) as caught:
            ask(url)
        assert str(caught.value).startswith(url.removesuffix("/x/a.h5")) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    s3_proxy.clear()
    there.check_bucket(url)
    assert there.download(url, tmp_path / "a.h5") == sha256(content(LARGE))


@pytest.mark.parametrize("at", ["uploads", "partNumber=3", "uploadId=[^&]*$"], ids=["start", "part", "end"])
@pytest.mark.parametrize("name", ["denied", "region", "throttled", "other", "tidy web page", "missing page"])
@pytest.mark.slow
def test_a_refused_upload(tmp_path, s3_proxy, put, get, pending, name, at):
    url = put("a.h5", b"before")
    action, match = refusal(name)
    for method in ("PUT", "POST"):
        s3_proxy.rule(method, at, action, times=ALWAYS)
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    there = make_store(attempts=2)
    with pytest.raises(StorageError, match=match):
        there.upload(tmp_path / "a.h5", url)
    assert get(url) == b"before" and pending() == 0
    s3_proxy.clear()
    there.upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE)


def test_missing_things(tmp_path, bucket, pending):
    there = make_store()
    with pytest.raises(StorageError, match=r"/none\.h5: the object does not exist"):
        there.download(f"s3://{bucket}/none.h5", tmp_path / "a")
    for ask in (there.find, there.head, there.check_bucket, lambda url: there.download(url, tmp_path / "a")):
        with pytest.raises(
            StorageError, match=r"bucket nenya-no-such does not exist at http://127.*\(AWS_ENDPOINT_URL\)"
        ):
            ask("s3://nenya-no-such/a")
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(StorageError, match="bucket nenya-no-such does not exist"):
        there.upload(tmp_path / "a", "s3://nenya-no-such/a")
    with pytest.raises(OutputError, match=r"cannot read .*/b for s3://.*No such file"):
        there.upload(tmp_path / "b", f"s3://{bucket}/b")
    with pytest.raises(OptionError, match="invalid name or metadata"):
        there.upload(tmp_path / "a", f"s3://{bucket}/a", metadata={"name": "ü"})
    with pytest.raises(OptionError, match="invalid name"):
        there.find("s3://no bucket at all/a")
    assert pending() == 0


def test_no_credentials(s3_service, bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        StorageError, match=r"incomplete credentials for S3.* set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        make_store().check_bucket(f"s3://{bucket}")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="AWS_PROFILE names a profile that does not exist"):
        make_store().check_bucket(f"s3://{bucket}")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "service.invalid"], ids=["closed port", "unknown name"])
def test_an_endpoint_out_of_reach(s3_service, monkeypatch, host):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = host.format(port=probe.getsockname()[1])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hunter2@{host}/?token=hunter2")
    with pytest.raises(StorageError, match=f"http://{host}/? .AWS_ENDPOINT_URL. cannot be reached") as caught:
        make_store(attempts=2).check_bucket("s3://bucket/a")
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)


def test_endpoint_names(s3_service, put, monkeypatch):
    url, endpoint = put("a", b"1"), s3_service.endpoint
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("ENDPOINT_URL", endpoint)
    assert store().head(url).size == 1
    assert store() is store()
    first = store()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert store() is not first
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    assert store().head(url).size == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "s3.example.invalid")
    with pytest.raises(StorageError, match=r"https://s3\.example\.invalid \(AWS_ENDPOINT_URL_S3\) cannot be reached"):
        make_store(attempts=1).check_bucket(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://bad host")
    with pytest.raises(OptionError, match="AWS_ENDPOINT_URL_S3=http://bad host: expected the address of a service"):
        make_store().check_bucket(url)


def test_one_store_serves_several_threads(tmp_path, put, get, bucket):
    there, errors = make_store(), []

    def work(number):
        try:
            url = f"s3://{bucket}/{number}"
            (tmp_path / f"{number}").write_bytes(content(LARGE, number))
            there.upload(tmp_path / f"{number}", url)
            assert there.download(url, tmp_path / f"{number}.back") == sha256(content(LARGE, number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# Trouble on the way that passes, and trouble that does not.

PASSING = {
    "503": ("GET", status(503, "SlowDown"), 2),
    "500": ("GET", status(500, "InternalError"), 2),
    "503 of HEAD": ("HEAD", status(503, "SlowDown"), 1),
    "cut": ("GET", cut_response(1000), 2),
    "cut before": ("GET", cut_response(0), 2),
    "altered": ("GET", flip_response(1000), 1),
    "slow": ("GET", delay(0.2), 1),
}


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("trouble", PASSING)
def test_a_download_through_passing_trouble(tmp_path, s3_proxy, put, trouble, size):
    url = put("a.h5", content(size))
    method, action, times = PASSING[trouble]
    rule = s3_proxy.rule(method, r"a\.h5", action, times=times)
    assert make_store(attempts=4).download(url, tmp_path / "a.h5") == sha256(content(size))
    assert (tmp_path / "a.h5").read_bytes() == content(size)
    assert rule.acted == times


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("action", "match"),
    [
        (cut_response(1000), "the connection to http.* broke 2 times"),
        (flip_response(2000), "expected the MD5 .its ETag. .*, got .*, twice; the object or the network"),
    ],
    ids=["cut", "altered"],
)
def test_a_download_through_lasting_trouble(tmp_path, s3_proxy, put, action, match, size):
    url = put("a.h5", content(size))
    s3_proxy.rule("GET", r"a\.h5", action, times=ALWAYS)
    (tmp_path / "b.h5").write_bytes(b"before")
    there = make_store(attempts=2)
    for name in ("a.h5", "b.h5"):
        with pytest.raises(StorageError, match=match):
            there.download(url, tmp_path / name)
    assert os.listdir(tmp_path) == ["b.h5"] and (tmp_path / "b.h5").read_bytes() == b"before"
    s3_proxy.clear()
    assert there.download(url, tmp_path / "b.h5") == sha256(content(size))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_object_that_is_replaced_during_its_download(tmp_path, s3_proxy, put, size):
    url = put("a.h5", content(size))
    rule = s3_proxy.rule("GET", r"a\.h5", call(lambda: put("a.h5", content(size, 1))), skip=size == LARGE)
    there = make_store()
    assert there.download(url, tmp_path / "a.h5") == sha256(content(size, 1))
    assert rule.acted == 1
    seeds = iter(range(2, 1000))
    s3_proxy.rule("GET", r"a\.h5", call(lambda: put("a.h5", content(size, next(seeds)))), times=ALWAYS)
    with pytest.raises(StorageError, match="it changed twice during the download"):
        there.download(url, tmp_path / "b.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_an_object_that_goes_during_its_download(tmp_path, s3_proxy, put):
    url, there = put("a.h5", content(LARGE)), make_store()
    s3_proxy.rule("GET", r"a\.h5", call(lambda: S3Store.delete(there, url)), skip=2)
    with pytest.raises(StorageError, match="the object does not exist"):
        there.download(url, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == []


# What a download is compared with.


def proofs(s3_service, put, put_parts, kind):
    """Put an object that has one kind of checksum and no stronger one; returns its address."""
    if kind not in ("sha256", "MD5") and not s3_service.is_moto:
        pytest.skip("not every service makes such checksums")
    data, client = content(LARGE), s3_service.client()
    if kind == "sha256":
        return put("a.h5", data, sha256=sha256(data))
    if kind == "MD5":
        return put("a.h5", data)
    if kind.startswith("MD5 of parts"):
        size = 100 * KIB
        return put_parts("a.h5", [data[at : at + size] for at in range(0, LARGE, size)])
    if kind == "none":
        return put_parts("a.h5", [data[:1000], data[1000:5000], data[5000:]])
    bucket = put("a.h5", b"").split("/")[2]
    client.put_object(
        Bucket=bucket, Key="a.h5", Body=data, ChecksumAlgorithm=kind, ServerSideEncryption="aws:kms", SSEKMSKeyId="k"
    )
    return f"s3://{bucket}/a.h5"


@pytest.mark.parametrize("kind", ["sha256", "SHA256", "SHA1", "CRC32", "MD5", "MD5 of parts"])
def test_each_checksum_finds_an_altered_byte(tmp_path, s3_server, s3_proxy, put, put_parts, kind):
    url = proofs(s3_server, put, put_parts, kind)
    there = make_store()
    assert there.download(url, tmp_path / "a.h5") == sha256(content(LARGE))
    s3_proxy.rule("GET", r"a\.h5", flip_response(5), times=ALWAYS)
    with pytest.raises(StorageError, match=f"expected the {kind}( .its ETag.)? "):
        there.download(url, tmp_path / "b.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_an_etag_that_proves_nothing(tmp_path, s3_service, put, put_parts, caplog):
    url = proofs(s3_service, put, put_parts, "none")
    with caplog.at_level(logging.DEBUG, "nenya"):
        assert make_store().download(url, tmp_path / "a.h5") == sha256(content(LARGE))
    assert "only its size was verified" in caplog.text


def test_metadata_that_contradicts_the_content(tmp_path, put):
    url = put("a.h5", content(SMALL), sha256="0" * 64)
    with pytest.raises(StorageError, match="expected the sha256 0000"):
        make_store().download(url, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == []


# Uploads.

UPLOAD_TROUBLE = {
    "503 of a part": ("PUT", "partNumber=2", status(503, "SlowDown"), 2),
    "500 of the start": ("POST", "uploads", status(500, "InternalError"), 2),
    "503 of the end": ("POST", "uploadId", status(503, "SlowDown"), 2),
    "part cut": ("PUT", "partNumber=2", cut_request(1000), 2),
    "answer to a part cut": ("PUT", "partNumber=1", cut_response(0), 1),
    "answer to the end cut": ("POST", "uploadId", cut_response(5), 1),
    "part altered": ("PUT", "partNumber=3", flip_request(77), 2),
    "first part altered": ("PUT", "partNumber=1", flip_request(0), 3),
}


@pytest.mark.parametrize("trouble", UPLOAD_TROUBLE)
def test_an_upload_through_passing_trouble(tmp_path, s3_proxy, bucket, get, pending, trouble):
    method, pattern, action, times = UPLOAD_TROUBLE[trouble]
    rule = s3_proxy.rule(method, pattern, action, times=times)
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    url = f"s3://{bucket}/a.h5"
    make_store(attempts=4).upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE) and pending() == 0
    assert rule.acted == times


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize(
    ("action", "match"),
    [
        (flip_request(9), "(part 2 arrived altered|the service dropped the upload) 4 times,.* nothing was stored"),
        (cut_request(9), "the connection to http.* broke 2 times"),
    ],
    ids=["altered", "cut"],
)
def test_an_upload_through_lasting_trouble(tmp_path, s3_proxy, bucket, put, get, pending, action, match, before):
    url = f"s3://{bucket}/a.h5"
    if before:
        put("a.h5", before)
    s3_proxy.rule("PUT", "partNumber=2", action, times=ALWAYS)
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    there = make_store(attempts=2)
    with pytest.raises(StorageError, match=match):
        there.upload(tmp_path / "a.h5", url)
    assert get(url) == before and pending() == 0
    s3_proxy.clear()
    there.upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE)


@pytest.mark.parametrize("same_times", [False, True])
def test_a_file_that_changes_during_its_upload(tmp_path, s3_proxy, bucket, get, pending, same_times):
    source, url = tmp_path / "a.h5", f"s3://{bucket}/a.h5"
    source.write_bytes(content(LARGE))
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns

    def change():
        source.write_bytes(content(LARGE, 1))
        if same_times:
            os.utime(source, ns=times)

    s3_proxy.rule("POST", "uploads", call(change))
    with pytest.raises(OutputError, match=r"a\.h5 changed during its upload"):
        make_store().upload(source, url)
    assert get(url) is None and pending() == 0
    make_store().upload(source, url)
    assert get(url) == content(LARGE, 1)


def test_parts_without_md5_are_read_back(tmp_path, s3_proxy, bucket, get, s3_server):
    """A service that encrypts with a key of the user's gives ETags that are no hashes."""
    if not s3_server.is_moto:
        pytest.skip("not every service encrypts")
    client = s3_server.client()
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "k"}}
    client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    url, there = f"s3://{bucket}/a.h5", make_store()
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    original = there._clients.writer()

    def kms(parsed, **_):
        parsed["ServerSideEncryption"], parsed["ETag"] = "aws:kms", '"' + parsed["ETag"].strip('"')[::-1] + '"'

    numbers = {}

    def undo(params, **_):
        for part in params["MultipartUpload"]["Parts"]:
            part["ETag"] = '"' + part["ETag"].strip('"')[::-1] + '"'
        numbers.update(parts=len(params["MultipartUpload"]["Parts"]))

    original.meta.events.register("after-call.s3.UploadPart", kms)
    original.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", undo)
    there.upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE) and numbers == {"parts": 5}
    assert s3_proxy.count("GET", r"a\.h5") == 1
    s3_proxy.rule("PUT", "partNumber=2", flip_request(1))
    with pytest.raises(StorageError, match="returned other bytes than were uploaded, so the object was deleted"):
        there.upload(tmp_path / "a.h5", url)
    assert get(url) is None


def test_an_upload_that_the_service_drops_is_started_again(tmp_path, s3_proxy, bucket, get, pending):
    url, dropped = f"s3://{bucket}/a.h5", status(404, "NoSuchUpload")
    s3_proxy.rule("PUT", "partNumber=4", dropped, times=2)
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    make_store().upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE) and pending() == 0
    assert s3_proxy.count("POST", "uploads") == 3
    s3_proxy.clear()
    s3_proxy.rule("PUT", "partNumber=1", dropped, times=ALWAYS)
    (tmp_path / "a.h5").write_bytes(content(SMALL))
    with pytest.raises(StorageError, match="the service dropped the upload 4 times"):
        make_store().upload(tmp_path / "a.h5", url)
    assert get(url) == content(LARGE) and pending() == 0


# Stopping, and what must not be said.


def test_a_cancelled_download(tmp_path, s3_proxy, put):
    url, stop = put("a.h5", content(LARGE)), threading.Event()
    s3_proxy.rule("GET", r"a\.h5", call(stop.set), skip=2)
    with pytest.raises(Interrupted, match="was stopped and left no file"):
        make_store().download(url, tmp_path / "a.h5", cancelled=stop)
    assert os.listdir(tmp_path) == []
    with pytest.raises(Interrupted):
        make_store().download(url, tmp_path / "a.h5", cancelled=stop)


@pytest.mark.parametrize("at", ["uploads", "partNumber=2", "partNumber=5"])
def test_a_cancelled_upload(tmp_path, s3_proxy, put, get, pending, at):
    url, stop = put("a.h5", b"before"), threading.Event()
    (tmp_path / "a.h5").write_bytes(content(LARGE))
    for method in ("PUT", "POST"):
        s3_proxy.rule(method, at, call(stop.set))
    with pytest.raises(Interrupted):
        make_store().upload(tmp_path / "a.h5", url, cancelled=stop)
    assert get(url) == b"before" and pending() == 0


def test_nothing_secret_is_said(tmp_path, s3_proxy, put, monkeypatch, caplog):
    url = put("a.h5", content(LARGE))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint.replace("http://", "http://me:hunter2@"))
    caplog.set_level(logging.DEBUG, "nenya")
    there, said = make_store(attempts=2), []
    for fault in (status(403, "SignatureDoesNotMatch"), cut_response(3), flip_response(3)):
        s3_proxy.rule("GET", "a", fault, times=ALWAYS)
        with pytest.raises(StorageError) as caught:
            there.download(url, tmp_path / "a.h5")
        said += [str(caught.value), str(caught.value.__cause__)]
        s3_proxy.clear()
    there.download(url, tmp_path / "a.h5")
    there.upload(tmp_path / "a.h5", url)
    text = caplog.text + "".join(said)
    for secret in ("hunter2", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], "Signature="):
        assert secret not in text
    assert s3_proxy.count("PUT") == 5


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
from nenya.errors import OutputError
from nenya.storage.s3.service import S3Store

url, folder = sys.argv[1], Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
if len(sys.argv) > 3:  # the room seems enough at first
    import shutil
    shutil.disk_usage = lambda path, usage=shutil.disk_usage(folder): usage._replace(free=2**40)
try:
    S3Store(part_size=65536).download(url, folder / "a.h5")
except OutputError as error:
    print(error, os.listdir(folder))
"""


@pytest.mark.parametrize("late", [[], ["late"]], ids=["seen before", "met while writing"])
def test_a_full_disk(tmp_path, put, late):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk of their own")
    url = put("a.h5", content(2**21))
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, url, str(tmp_path), *late]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "too little space" in done.stdout and "2097152 bytes are needed" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("[]")


def test_the_module_is_quick_to_load():
    code = "import sys, nenya.storage.s3.service as s; print([m for m in ('boto3', 'botocore', 's3transfer', 'torch') if m in sys.modules])"  # noqa: E501
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_slow_line_is_slow(s3_service, put, tmp_path, monkeypatch):
    url = put("a.h5", content(LARGE))
    with FaultProxy(s3_service.endpoint, rate=600e3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        started = time.monotonic()
        make_store().download(url, tmp_path / "a.h5")
    assert time.monotonic() - started > 0.4


def test_an_object_that_boto3_uploaded_in_parts(s3_service, s3_bucket, tmp_path):
    """Its checksum is one of parts' checksums, whether or not the service says so."""
    from boto3.s3.transfer import TransferConfig

    data = os.urandom(3 * 2**20 + 17)
    (tmp_path / "file").write_bytes(data)
    config = TransferConfig(multipart_threshold=2**20, multipart_chunksize=2**20)
    s3_service.client().upload_file(str(tmp_path / "file"), s3_bucket, "parts", Config=config)
    digest = S3Store().download(f"s3://{s3_bucket}/parts", tmp_path / "got")
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "got").read_bytes() == data
