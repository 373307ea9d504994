"""Batches over S3, as users run them: the command against a real service, with what goes wrong on the way."""

import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts
from s3_server import call, cut_request, cut_response, flip_request, flip_response, status

from nenya.extraction import batch as batch_module
from nenya.models.contrastive import ContrastiveModule

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = float("inf")
LIMIT = 4_000_000
TINY = ["model=demo", "model.width=4"]


class Batch:
    """A bucket with cutout files, the command that extracts them, and what is there afterwards."""

    def __init__(self, cli, weights, client, bucket, proxy, folder):
        self.cli, self.weights, self.client, self.bucket, self.proxy = cli, weights, client, bucket, proxy
        self.folder, self.cache = folder, folder / "cache"
        self.local = folder / "local"
        self.local.mkdir()

    def url(self, key):
        return f"s3://{self.bucket}/{key}"

    def write(self, name, rows=12, seed=0):
        """Write a local cutout file of `rows` training and half as many validation cutouts."""
        return write_cutouts(
            self.local / name, train=red_noise(rows, seed=seed), valid=red_noise(rows // 2, seed=-seed % 97)
        )

    def put(self, name, rows=12, seed=0, prefix="PreProc/", **metadata):
        """Write such a file and put it into the bucket without the package; returns its address."""
        return self.put_bytes(prefix + name, self.write(name, rows, seed).read_bytes(), **metadata)

    def put_bytes(self, key, data, **metadata):
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata)
        return self.url(key)

    def get(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self, prefix="latents/"):
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix) for entry in found]

    def stamp(self, key):
        """Tell one version of an object from another."""
        found = self.client.head_object(Bucket=self.bucket, Key=key)
        return found["ETag"], found["LastModified"], found["ContentLength"]

    def args(self, data, *overrides):
        if isinstance(data, list | tuple):
            data = f"[{','.join(map(str, data))}]"
        defaults = {"ckpt": self.weights, "out": self.url("latents/"), "loader.cache_dir": self.cache}
        given = {override.partition("=")[0] for override in overrides}
        more = [f"{key}={value}" for key, value in defaults.items() if key not in given]
        model = [] if "model" in given else TINY
        return [*model, f"data={data}", "trainer.accelerator=cpu", *more, *overrides]

    def extract(self, data, *overrides):
        """Run the command: (exit code, error output)."""
        return self.cli("extract", self.args(data, *overrides))

    def start(self, data, *overrides):
        """Run the script as a process of its own."""
        command = [sys.executable, str(ROOT / "scripts" / "extract.py"), *self.args(data, *overrides)]
        return subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def at_home(self, names):
        """Return name -> latents of a local run of the same files."""
        out = self.folder / "at-home"
        code, said = self.extract([self.local / name for name in names], f"out={out}")
        assert code == 0, said
        return {name: read(out / latents_name(name)) for name in names}

    def latents(self, key):
        return read(io.BytesIO(self.get(f"latents/{key}")))

    def assert_clean(self, *, kept=False):
        """Nothing is half-written: no scratch file but latents that are `kept`, no upload in parts that was begun."""
        found = files(self.cache)
        assert [name for name in found if not (kept and name.startswith("latents/"))] == []
        assert self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []) == []


def latents_name(name):
    return name.replace(".h5", "_latents.h5")


def read(file):
    with h5py.File(file) as h5:
        return {name: h5[name][()] for name in h5}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_identical(latents, wanted):
    assert latents.keys() == wanted.keys()
    for name in wanted:
        assert latents[name].tobytes() == wanted[name].tobytes(), name


def entry(said, url):
    """The entry of the closing table for a file."""
    lines = [line for line in said.splitlines() if line.startswith("  ") and f" {url}" in line]
    assert len(lines) == 1, said
    return lines[0].strip()


def save_weights(path, seed=0):
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    save_pth(path, make_net(compose("extract", [*TINY, f"seed={seed}"])), options={}, epoch=0)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of an untrained network, quicker still than the demonstration's."""
    return save_weights(tmp_path_factory.mktemp("weights") / "tiny.pth")


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights") / "other.pth", seed=5)


@pytest.fixture
def batch(nenya_cli, weights, s3_proxy, s3_service, s3_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr("nenya.storage.s3.service.PART_SIZE", 16 * 1024)
    return Batch(nenya_cli, weights, s3_service.client(), s3_bucket, s3_proxy, tmp_path)


@contextlib.contextmanager
def watched(folder):
    """Measure from outside the most bytes that the files below a folder have at a time: yields [peak]."""
    peak, stop = [0], threading.Event()

    def watch():
        while not stop.is_set():
            total = 0
            for parent, _, names in os.walk(folder):
                for name in names:
                    with contextlib.suppress(OSError):
                        total += os.stat(os.path.join(parent, name)).st_size
            peak[0] = max(peak[0], total)
            time.sleep(0.003)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


# What data= and out= may be


def test_forms_of_data(batch):
    names = ["a.h5", "b.h5"]
    for i, name in enumerate(names):
        batch.put(name, seed=i)
    batch.put_bytes("PreProc/old_latents.h5", b"no cutouts")
    batch.put_bytes("PreProc/notes.txt", b"no cutouts")
    at, wanted = batch.url("PreProc"), batch.at_home(names)
    forms = {
        "glob": f"{at}/*.h5",
        "prefix": at,
        "slash": f"{at}/",
        "list": [f"{at}/a.h5", f"{at}/b.h5"],
        "globs": [f"{at}/b*.h5", f"{at}/?.h5"],
        "object": f"{at}/a.h5",
    }
    for form, data in forms.items():
        code, said = batch.extract(data, f"out={batch.url(form)}")
        assert code == 0, said
        expected = names[:1] if form == "object" else names
        assert batch.keys(f"{form}/") == [latents_name(name) for name in expected]
        for name in expected:
            assert_identical(read(io.BytesIO(batch.get(f"{form}/{latents_name(name)}"))), wanted[name])
            assert f"done: {at}/{name} -> {batch.url(form)}/{latents_name(name)}" in said
    batch.assert_clean()


def test_latents_go_beside_the_source_where_out_is_not_given(batch):
    url = batch.put("a.h5")
    assert batch.extract(url, "out=null")[0] == 0
    assert batch.keys("PreProc/") == ["a.h5", "a_latents.h5"]
    assert batch.extract(url, f"out={batch.url('deep/named.h5')}")[0] == 0
    assert batch.keys("deep/") == ["named.h5"]
    batch.assert_clean()


def test_local_and_remote_may_be_mixed(batch):
    url, here = batch.put("a.h5", seed=1), batch.write("b.h5", seed=2)
    wanted = batch.at_home(["a.h5", "b.h5"])
    code, said = batch.extract([url, here])
    assert code == 0, said
    for name in ("a.h5", "b.h5"):
        assert_identical(batch.latents(latents_name(name)), wanted[name])
    out = batch.folder / "out"
    code, said = batch.extract([url, here], f"out={out}")
    assert code == 0, said
    for name in ("a.h5", "b.h5"):
        assert_identical(read(out / latents_name(name)), wanted[name])
    assert files(batch.folder / "out") == ["a_latents.h5", "b_latents.h5"]
    assert batch.local.joinpath("b.h5").exists()
    batch.assert_clean()
    for place in (out, batch.url("latents")):
        code, said = batch.extract([url, here], f"out={place}")
        assert code == 0 and "2 files: 2 skipped" in said, said


def test_options_and_weights_may_be_objects(batch):
    url = batch.put("a.h5")
    weights = batch.put_bytes("models/tiny.pth", Path(batch.weights).read_bytes())
    values = {"ssl_model": "resnet18", "width": 4, "feat_dim": 64, "nchannels": 1, "batch_size_valid": 64}
    options = batch.put_bytes("models/opts.json", json.dumps(values).encode())
    code, said = batch.extract(url, f"model={options}", f"ckpt={weights}")
    assert code == 0, said
    assert_identical(batch.latents("a_latents.h5"), batch.at_home(["a.h5"])["a.h5"])
    batch.assert_clean()
    (batch.folder / "opts.json").write_text(json.dumps(values))
    code, said = batch.extract(url, "model=opts.json", f"ckpt={weights}")
    assert (code, "skipped" in said) == (0, True), said


# Faults: each file has its entry, nothing is half-written, and the rerun does what is left


def faults(batch):
    """What goes wrong for good: name of the file -> (how to do it, what its entry says, how to mend it)."""
    proxy, data = batch.proxy, batch.write("spare.h5", seed=77).read_bytes()

    def rules(*rules):
        for method, pattern, action in rules:
            proxy.rule(method, pattern, action, times=ALWAYS)

    def replace(name):
        versions = iter(range(100))
        return call(lambda: batch.put_bytes(f"PreProc/{name}", data + bytes(next(versions))))

    def put(name, content=data, **metadata):
        return lambda: batch.put_bytes(f"PreProc/{name}", content, **metadata)

    return {
        "throttled.h5": (lambda: rules(("GET", "/throttled.h5", status(503, "SlowDown"))), "throttles requests"),
        "cut-down.h5": (lambda: rules(("GET", "/cut-down.h5", cut_response(1000))), "broke"),
        "cut-up.h5": (lambda: rules(("PUT", "cut-up_latents.*partNumber", cut_request(500))), "broke"),
        "flipped.h5": (lambda: rules(("GET", "/flipped.h5", flip_response(99))), "expected the"),
        "flipped-up.h5": (lambda: rules(("PUT", "flipped-up_l.*partN", flip_request(99))), "part 1 arrived altered"),
        "denied.h5": (
            lambda: rules(*((m, "/denied.h5", status(403, "AccessDenied")) for m in ("GET", "HEAD"))),
            "access denied",
        ),
        "refused-up.h5": (
            lambda: rules(("POST", "refused-up_latents", status(403, "AccessDenied"))),
            "cannot upload it: access denied",
        ),
        "changing.h5": (
            lambda: rules(("GET", "/changing.h5", replace("changing.h5"))),
            "changed twice during the download",
        ),
        "truncated.h5": (put("truncated.h5", data[:-1000]), "the HDF5 file is truncated or damaged"),
        "altered.h5": (put("altered.h5", data, sha256="0" * 64), "expected the sha256 000000"),
        "empty.h5": (put("empty.h5", b""), "the file is empty"),
        "missing.h5": (
            lambda: batch.client.delete_object(Bucket=batch.bucket, Key="PreProc/missing.h5"),
            "no such object",
        ),
        "large.h5": (lambda: batch.put("large.h5", rows=1500), "raise loader.cache_limit"),
    }


def test_each_fault_has_its_entry_and_the_others_are_done(batch, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    wrong = faults(batch)
    names = sorted(["a-good.h5", *wrong, "z-good.h5"])
    for i, name in enumerate(names):
        batch.put(name, seed=i)
    wanted = batch.at_home(names)
    for make, _ in wrong.values():
        make()
    urls = [batch.url(f"PreProc/{name}") for name in names]
    code, said = batch.extract(urls, f"loader.cache_limit={LIMIT}")
    assert code == 1, said
    assert f"15 files: 2 done, {len(wrong)} failed" in said
    for name in names:
        line = entry(said, batch.url(f"PreProc/{name}"))
        if name in wrong:
            assert line.startswith("failed ") and wrong[name][1] in line, line
            assert str(batch.cache) not in line.partition("; its latents are kept in")[0]
        else:
            assert line.startswith("done ")
    assert batch.keys() == ["a-good_latents.h5", "z-good_latents.h5"]
    batch.assert_clean(kept=True)

    batch.proxy.clear()
    for i, name in enumerate(names):
        if name in wrong:
            batch.put(name, seed=i)
    code, said = batch.extract(urls)
    assert code == 0, said
    assert f"15 files: {len(wrong)} done, 2 skipped" in said
    for name in names:
        assert_identical(batch.latents(latents_name(name)), wanted[name])
    batch.assert_clean()


@pytest.mark.parametrize("name", ["throttled.h5", "cut-up.h5", "missing.h5"])
def test_a_single_file_that_fails_ends_with_2(batch, monkeypatch, name):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    url = batch.put(name)
    make, words = faults(batch)[name]
    make()
    code, said = batch.extract(url)
    assert code == 2
    assert said.splitlines()[-1].startswith("nenya extract: s3://") and words in said.splitlines()[-1]
    assert batch.keys() == []
    batch.assert_clean(kept=name == "cut-up.h5")


def disturb(proxy):
    """Let each tenth request fail in a way that a retry mends; returns the list of what was done."""
    kinds = {
        "parts down": [
            ("cut", cut_response(700)),
            ("flipped", flip_response(33)),
            ("throttled", status(503, "SlowDown")),
        ],
        "parts up": [("cut", cut_request(700)), ("flipped", flip_request(33)), ("throttled", status(503, "SlowDown"))],
        "others": [("throttled", status(503, "SlowDown")), ("broken", status(500, "InternalError"))],
    }
    counts, done, flipped = dict.fromkeys(kinds, 0), [], set()
    original, lock = proxy.take, threading.Lock()

    def take(method, path):
        action = original(method, path)
        down, up = method == "GET" and ".h5" in path, method == "PUT" and "partNumber" in path
        name = "parts down" if down else "parts up" if up else "others"
        with lock:
            counts[name] += 1
            if counts[name] % 10 != 5:
                return action
            what, fault = kinds[name][counts[name] // 10 % len(kinds[name])]
            if what == "flipped" and path in flipped:  # what arrives altered twice is given up
                return action
            flipped.add(path)
            done.append(f"{what} {name}")
            return fault

    proxy.take = take
    return done


@pytest.mark.slow
def test_twenty_files_with_faults(batch):
    """A tenth of the files is bad, a tenth of the requests fails: the good files equal those of a local run."""
    names = [f"{i:02d}.h5" for i in range(20)]
    for i, name in enumerate(names):
        batch.put(name, rows=12 + 6 * (i % 3), seed=i)
    good = [name for name in names if name not in ("05.h5", "13.h5")]
    wanted = batch.at_home(good)
    sizes = sorted((batch.local / name).stat().st_size for name in good)
    limit = 2 * sizes[-1] + 1_200_000
    batch.put_bytes("PreProc/05.h5", batch.get("PreProc/05.h5")[:-5000])
    batch.put_bytes("PreProc/13.h5", batch.get("PreProc/13.h5"), sha256="1" * 64)
    done = disturb(batch.proxy)
    with watched(batch.cache) as peak:
        code, said = batch.extract(batch.url("PreProc/*.h5"), f"loader.cache_limit={limit}")
    assert code == 1
    assert "20 files: 18 done, 2 failed" in said, said
    assert {"cut parts down", "flipped parts down", "cut parts up", "flipped parts up", "broken others"} <= set(done)
    assert "truncated" in entry(said, batch.url("PreProc/05.h5"))
    assert "expected the sha256 1111" in entry(said, batch.url("PreProc/13.h5"))
    assert batch.keys() == [latents_name(name) for name in good]
    for name in good:
        assert_identical(batch.latents(latents_name(name)), wanted[name])
    assert sizes[-1] < peak[0] <= limit
    batch.assert_clean()


CONCERNS_ALL = {
    "no bucket": ("data=s3://nenya-no-such/*.h5", "bucket nenya-no-such does not exist"),
    "no bucket for out": ("out=s3://nenya-no-such/latents/", "bucket nenya-no-such does not exist"),
    "empty prefix": ("data=s3://{bucket}/none/", "no HDF5 file (.h5) is below this prefix"),
    "empty glob": ("data=s3://{bucket}/none*.h5", "no object matches the pattern"),
    "no weights": ("ckpt=s3://{bucket}/none.pth", "none.pth does not exist"),
    "bad weights": ("ckpt=s3://{bucket}/PreProc/a.h5", "PreProc/a.h5"),
    "no options": ("model=s3://{bucket}/none.json", "none.json: the object does not exist"),
    "credentials": (status(403, "InvalidAccessKeyId"), "check AWS_ACCESS_KEY_ID"),
    "signature": (status(403, "SignatureDoesNotMatch"), "refuses the credentials"),
    "denied": (status(403, "AccessDenied"), "access denied"),
    "region": (
        status(400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-west-9"}),
        "set AWS_DEFAULT_REGION to eu-west-9",
    ),
    "endpoint": ("AWS_ENDPOINT_URL", "cannot be reached; check the network and AWS_ENDPOINT_URL"),
}


@pytest.mark.parametrize("what", CONCERNS_ALL)
def test_what_concerns_all_files_ends_with_2_before_any_work(batch, monkeypatch, what):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    cause, words = CONCERNS_ALL[what]
    overrides, data = [], [batch.put("a.h5"), batch.put("b.h5")]
    if cause == "AWS_ENDPOINT_URL":
        monkeypatch.setenv(cause, "http://me:hunter2@127.0.0.1:9")
    elif isinstance(cause, str):
        overrides = [cause.format(bucket=batch.bucket)]
    else:
        for method in ("GET", "HEAD"):
            batch.proxy.rule(method, ".", cause, times=ALWAYS)
    if overrides and overrides[0].startswith("data="):
        data, overrides = overrides[0].removeprefix("data="), []
    code, said = batch.extract(data, *overrides)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("nenya extract: ") and words in said
    assert "hunter2" not in said
    assert batch.keys() == []
    batch.assert_clean()


@pytest.fixture
def small_disk(batch):
    """A disk of 3 MB as the folder of temporary copies."""
    batch.cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(batch.cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield batch.cache
    subprocess.run(["umount", str(batch.cache)], check=True)


@pytest.mark.parametrize("rows", [800, 420], ids=["the copy does not fit", "the latents do not fit"])
def test_a_full_disk(batch, small_disk, rows, monkeypatch):
    monkeypatch.setattr("nenya.storage.s3.service.PART_SIZE", 2**20)
    names = ["a.h5", "b.h5", "c.h5"]
    sources = [batch.put(name, rows=rows if name == "b.h5" else 6, seed=i) for i, name in enumerate(names)]
    wanted = batch.at_home(names)
    code, said = batch.extract(sources, "loader.cache_limit=1GB")
    line = entry(said, sources[1])
    assert code == 1, said
    assert line.startswith("failed ") and "loader.cache_dir" in line, line
    assert batch.keys() == ["a_latents.h5", "c_latents.h5"]
    assert files(small_disk) == []
    batch.assert_clean()
    code, said = batch.extract(sources, f"loader.cache_dir={batch.folder / 'larger'}")
    assert code == 0, said
    for name in names:
        assert_identical(batch.latents(latents_name(name)), wanted[name])


def test_a_limit_that_one_file_alone_fills(batch):
    """No file waits for ever for the room of another."""
    names = [f"{i}.h5" for i in range(4)]
    sources = [batch.put(name, rows=40, seed=i) for i, name in enumerate(names)]
    limit = (batch.local / "0.h5").stat().st_size + 2 * 4 * 64 * 60 + 2**20
    with watched(batch.cache) as peak:
        code, said = batch.extract(sources, f"loader.cache_limit={limit}")
    assert code == 0, said
    assert peak[0] <= limit
    code, said = batch.extract(sources, f"loader.cache_limit={limit - 1}", "clobber=true")
    assert code == 1
    assert "4 files: 4 failed" in said and "raise loader.cache_limit" in said
    assert len(batch.keys()) == 4
    batch.assert_clean()


def test_a_missing_local_source_does_not_stop_the_others(batch):
    """Also where its latents are there already."""
    sources = [batch.write(f"{i}.h5", seed=i) for i in range(3)]
    assert batch.extract(sources)[0] == 0
    sources[1].unlink()
    code, said = batch.extract(sources)
    assert code == 1, said
    assert "3 files: 2 skipped, 1 failed" in said
    assert "No such file" in entry(said, sources[1])


# What is there already


def test_a_rerun_skips_what_is_whole_and_downloads_nothing(batch):
    sources = [batch.put(f"{i}.h5", seed=i) for i in range(3)]
    assert batch.extract(sources)[0] == 0
    before = [batch.stamp(f"latents/{i}_latents.h5") for i in range(3)]
    batch.proxy.clear()
    code, said = batch.extract(sources)
    assert code == 0
    assert "3 files: 3 skipped" in said
    for source in sources:
        assert "output exists and is complete" in entry(said, source)
    assert batch.proxy.count("GET", r"\.h5") == batch.proxy.count("PUT") == batch.proxy.count("POST") == 0
    assert [batch.stamp(f"latents/{i}_latents.h5") for i in range(3)] == before
    code, said = batch.extract(sources[:2], "clobber=true")
    assert code == 0 and "2 files: 2 done" in said
    batch.assert_clean()


def test_the_folder_of_a_run_killed_after_its_upload_goes(batch):
    source = batch.put("a.h5")
    assert batch.extract(source)[0] == 0
    place = hashlib.sha256(batch.url("latents/a_latents.h5").encode()).hexdigest()[:16]
    left = batch.cache / "latents" / place
    for names in ([], ["a_latents.h5.upload"]):
        left.mkdir(parents=True)
        for name in names:
            (left / name).write_text("no such upload")
        code, said = batch.extract(source)
        assert code == 0 and "skipped" in said, said
        assert not left.exists()


def test_what_would_be_made_otherwise_is_not_replaced(batch, other_weights):
    names = ["a.h5", "b.h5"]
    sources = [batch.put(name, seed=i) for i, name in enumerate(names)]
    assert batch.extract(sources)[0] == 0
    before = [batch.stamp(f"latents/{latents_name(name)}") for name in names]
    others = {
        f"ckpt={other_weights}": "checkpoint_sha256",
        "preprocess.file=demean": "made with preprocessing none instead of demean",
        "model.latent=encoder": "made with latent projection instead of encoder",
    }
    batch.proxy.clear()
    for override, words in others.items():
        code, said = batch.extract(sources, override)
        assert code == 1, said
        for source in sources:
            line = entry(said, source)
            assert line.startswith("failed ") and words in line and "clobber=true overwrites it" in line, line
    assert batch.proxy.count("GET", "PreProc/.*h5") == 0
    batch.put("b.h5", seed=50)
    code, said = batch.extract(sources)
    assert code == 1
    assert entry(said, sources[0]).startswith("skipped ")
    assert "a source that has changed since: clobber=true" in entry(said, sources[1])
    assert [batch.stamp(f"latents/{latents_name(name)}") for name in names] == before
    batch.assert_clean()
    assert batch.extract(sources, "clobber=true")[0] == 0
    for name, wanted in batch.at_home(names).items():
        assert_identical(batch.latents(latents_name(name)), wanted)


def test_the_same_bytes_under_another_etag_are_the_same_source(batch):
    source = batch.put("a.h5")
    assert batch.extract(source)[0] == 0
    data, target = batch.get("PreProc/a.h5"), {"Bucket": batch.bucket, "Key": "PreProc/a.h5"}
    upload = batch.client.create_multipart_upload(**target)["UploadId"]
    parts = [data[:20_000], data[20_000:]]
    sent = [
        {"PartNumber": i, "ETag": batch.client.upload_part(**target, UploadId=upload, PartNumber=i, Body=part)["ETag"]}
        for i, part in enumerate(parts, 1)
    ]
    batch.client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": sent})
    batch.proxy.clear()
    code, said = batch.extract(source)
    assert code == 0 and "skipped: " in said, said
    assert batch.proxy.count("GET", "PreProc/a.h5") > 0
    batch.assert_clean()


def test_latents_that_were_copied_by_other_means(batch):
    """Without our metadata the file itself says what it is; what is no latents file is never replaced unasked."""
    names = ["copied.h5", "garbage.h5", "truncated.h5", "foreign.h5"]
    sources = [batch.put(name, seed=i) for i, name in enumerate(names)]
    assert batch.extract(sources)[0] == 0
    whole = {name: batch.get(f"latents/{latents_name(name)}") for name in names}
    foreign = write_cutouts(batch.folder / "foreign.h5", train=np.zeros((12, 64), np.float32)).read_bytes()
    there = {
        "copied.h5": (whole["copied.h5"], "skipped"),
        "garbage.h5": (b"garbage" * 100, "not an HDF5 file"),
        "truncated.h5": (whole["truncated.h5"][:-2000], "is incomplete (the HDF5 file is truncated"),
        "foreign.h5": (foreign, "no provenance, so nothing shows whether it is complete"),
    }
    for name, (data, _) in there.items():
        batch.put_bytes(f"latents/{latents_name(name)}", data)
    code, said = batch.extract(sources)
    assert code == 1 and "4 files: 1 skipped, 3 failed" in said, said
    for source, (_, words) in zip(sources, there.values(), strict=True):
        line = entry(said, source)
        assert words in line and "clobber=true" in line
    for name, (data, _) in there.items():
        assert batch.get(f"latents/{latents_name(name)}") == data
    batch.assert_clean()
    assert batch.extract(sources, "clobber=true")[0] == 0
    for name in names:
        assert_identical(batch.latents(latents_name(name)), read(io.BytesIO(whole[name])))


def test_debug_latents_have_a_name_of_their_own(batch):
    source = batch.put("a.h5", rows=12)
    code, said = batch.extract(source, "debug=true", "loader.batch_size_valid=4")
    assert code == 0, said
    assert batch.keys() == ["a_latents_debug.h5"]
    assert len(batch.latents("a_latents_debug.h5")["train"]) == 8


# One comes and one goes while one is extracted


def test_transfers_run_while_a_file_is_extracted(batch, monkeypatch):
    """The extraction of each file ends only when the next one was asked for and the last one was sent."""
    names = [f"{i}.h5" for i in range(4)]
    sources = [batch.put(name, seed=i) for i, name in enumerate(names)]
    batch.proxy.clear()
    original, numbers, seen = batch_module.extract_file, iter(range(4)), []

    def wait_for(method, pattern):
        deadline = time.monotonic() + 300
        while not batch.proxy.count(method, pattern) and time.monotonic() < deadline:
            time.sleep(0.005)
        return batch.proxy.count(method, pattern) > 0

    def extract_file(*args, **more):
        i, said = next(numbers), original(*args, **more)
        seen.append((i == 3 or wait_for("GET", f"/{i + 1}.h5"), i == 0 or wait_for("PUT", f"/{i - 1}_latents.h5")))
        return said

    monkeypatch.setattr(batch_module, "extract_file", extract_file)
    code, said = batch.extract(sources)
    assert code == 0, said
    assert seen == [(True, True)] * 4


def test_files_that_need_no_work_do_not_keep_the_next_one_waiting(batch, monkeypatch):
    sources = [batch.put(f"{i}.h5", seed=i) for i in range(4)]
    assert batch.extract(sources[1:3])[0] == 0
    batch.proxy.clear()
    original, seen = batch_module.extract_file, []

    def extract_file(*args, **more):
        deadline = time.monotonic() + 300
        while not batch.proxy.count("GET", "/3.h5") and time.monotonic() < deadline:
            time.sleep(0.005)
        seen.append(batch.proxy.count("GET", "/3.h5"))
        return original(*args, **more)

    monkeypatch.setattr(batch_module, "extract_file", extract_file)
    code, said = batch.extract(sources)
    assert code == 0 and "4 files: 2 done, 2 skipped" in said, said
    assert len(seen) == 2 and all(seen)


# Signals


PHASES = {"download": ("GET", r"/1\.h5"), "extraction": None, "upload": ("PUT", "1_latents.h5.*partNumber=2")}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        *((phase, signal.SIGTERM) for phase in PHASES),
        ("extraction", signal.SIGINT),
        *(pytest.param(phase, signal.SIGINT, marks=pytest.mark.slow) for phase in ("download", "upload")),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the signal may meet a finaliser
@pytest.mark.slow
def test_a_signal_ends_the_batch_cleanly(batch, monkeypatch, phase, number):
    names = ["0.h5", "1.h5"]
    sources = [batch.put(name, seed=i, rows=24) for i, name in enumerate(names)]
    monkeypatch.setattr("nenya.storage.s3.service.PART_SIZE", 8 * 1024)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def stop():
        os.kill(os.getpid(), number)
        time.sleep(0.5)

    if PHASES[phase]:
        batch.proxy.rule(*PHASES[phase], call(stop))
    else:
        original, calls = ContrastiveModule.forward, []

        def forward(self, images):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), number)
            return original(self, images)

        monkeypatch.setattr(ContrastiveModule, "forward", forward)
    try:
        code, said = batch.extract(sources, "loader.batch_size_valid=8")
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGINT, handlers[1])
    assert code == 75, said
    assert said.splitlines()[-1].startswith("nenya extract: interrupted"), said
    assert "1_latents.h5" not in batch.keys()
    batch.assert_clean(kept=True)
    batch.proxy.clear()
    code, said = batch.extract(sources)
    assert code == 0, said
    assert "1 skipped" in said or batch.keys() == list(map(latents_name, names))
    batch.assert_clean()


@pytest.mark.slow
def test_processes_that_are_terminated_and_killed(batch):
    """The first one cleans up behind itself, the next batch behind the second one, and nobody behind one at work."""
    sources = [batch.put(f"{i}.h5", seed=i) for i in range(4)]
    go, reached, running = threading.Event(), [threading.Event() for _ in range(2)], []
    for i in range(2):
        batch.proxy.rule("GET", rf"/{2 * i}\.h5", call(lambda i=i: (reached[i].set(), go.wait(300))))
        running.append(batch.start(sources[2 * i : 2 * i + 2]))
    try:
        assert all(event.wait(300) for event in reached)
        folders = set(batch.cache.glob("batch-*"))
        assert batch.extract(sources[1])[0] == 0
        assert len(folders) == 2 and set(batch.cache.glob("batch-*")) == folders
        running[0].send_signal(signal.SIGTERM)
        running[1].kill()
        running[1].wait(300)
    finally:
        go.set()
    _, said = running[0].communicate(timeout=300)
    running[1].communicate()
    assert running[0].returncode == 75, said
    assert said.startswith("nenya extract: interrupted") and said.count("\n") == 1
    assert batch.keys() == ["1_latents.h5"]
    (left,) = batch.cache.glob("batch-*")
    assert left.name.startswith(f"batch-{running[1].pid}-")
    code, said = batch.extract(sources)
    assert code == 0 and "4 files: 3 done, 1 skipped" in said, said
    assert not any(batch.cache.glob("batch-*"))
    batch.assert_clean()


# Credentials


@pytest.mark.parametrize("wrong", [False, True])
def test_credentials_are_never_said(batch, monkeypatch, wrong):
    log = io.StringIO()

    def set_up_logging():
        logger = logging.getLogger("nenya")
        logger.handlers[:] = [logging.StreamHandler(log)]
        logger.setLevel(logging.DEBUG)
        logger.propagate = False

    monkeypatch.setattr("nenya.commands.compose.set_up_logging", set_up_logging)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    sources = [batch.put(f"{i}.h5", seed=i) for i in range(2)]
    if wrong:
        batch.proxy.rule("GET", "/0.h5", status(403, "SignatureDoesNotMatch"), times=ALWAYS)
        batch.proxy.rule("PUT", "1_latents", status(403, "InvalidAccessKeyId"), times=ALWAYS)
    code, said = batch.extract(sources, "traceback=true")
    assert code == (1 if wrong else 0)
    text = said + log.getvalue()
    assert "2 files: " in text
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in text


# The call that users' scripts make


def test_the_call_of_users_scripts(batch, monkeypatch):
    from nenya.errors import FilesFailed
    from nenya.latents_extraction import main

    values = {"ssl_model": "resnet18", "width": 4, "feat_dim": 64, "nchannels": 1, "batch_size_valid": 64}
    values |= {"model_root": "M", "s3_outdir": batch.url("SSL")}
    options = batch.put_bytes("opts.json", json.dumps(values).encode())
    from nenya.io import Params

    opt = Params(values)
    batch.put_bytes(f"SSL/{opt.model_folder}/last.pth", Path(batch.weights).read_bytes())
    sources = [batch.put(name, seed=i) for i, name in enumerate(("a.h5", "b.h5"))]
    wanted = batch.at_home(["a.h5", "b.h5"])
    main(options, sources)
    folder = f"SSL/{opt.latents_folder}/"
    assert batch.keys(folder) == ["a_latents.h5", "b_latents.h5"]
    for name in wanted:
        assert_identical(read(io.BytesIO(batch.get(folder + latents_name(name)))), wanted[name])
    batch.put("b.h5", seed=9)
    with pytest.raises(FilesFailed, match=r"1 of 2 files failed; the first: s3://.*b\.h5: .*changed since"):
        main(options, sources)
    main(options, sources, True)
    main(options, sources, debug=True)
    assert len(batch.keys(folder)) == 4
    batch.assert_clean()


def test_the_script_itself(batch, monkeypatch):
    """With the older name of the variable too."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("ENDPOINT_URL", batch.proxy.endpoint)
    for i in range(2):
        batch.put(f"{i}.h5", seed=i)
    process = batch.start(batch.url("PreProc/*.h5"))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "2 files: 2 done" in said
    assert batch.keys() == ["0_latents.h5", "1_latents.h5"]
    batch.assert_clean()
