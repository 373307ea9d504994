"""Commands on buckets that are read without an account: their service refuses any signature."""

import h5py
import pytest
from conftest import QUICK
from s3_server import status


@pytest.fixture
def public(s3_proxy, s3_service, s3_bucket, small_file, monkeypatch):
    """The address of a cutout file in a public bucket, in an environment without credentials."""
    client = s3_service.client()
    client.put_object(Bucket=s3_bucket, Key="a_preproc.h5", Body=small_file.read_bytes(), ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3_proxy.guard = lambda _, headers: status(403, "InvalidAccessKeyId") if "Authorization" in headers else None
    return f"s3://{s3_bucket}/a_preproc.h5"


def test_extract_and_verify(public, tiny_weights, nenya_cli, tmp_path):
    args = ["model=demo", f"ckpt={tiny_weights}", "trainer=cpu"]
    code, said = nenya_cli("extract", [*args, f"data={public}", "out=a_preproc_latents.h5"])
    assert code == 0 and "is read without an account" in said, said
    with h5py.File(tmp_path / "a_preproc_latents.h5") as file:
        assert file["train"].shape[0] == 40 and file["valid"].shape[0] == 24
    code, said = nenya_cli("inspect", [f"data={public}", "sheet=false"])
    assert code == 0, said


def test_credentials_of_another_service_are_set_aside(public, nenya_cli, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    code, said = nenya_cli("inspect", [f"data={public}", "sheet=false"])
    assert code == 2 and "storage.anonymous=true" in said, said
    for access in ("true", f"[{public.split('/')[2]}]"):
        code, said = nenya_cli("inspect", [f"data={public}", "sheet=false", f"storage.anonymous={access}"])
        assert code == 0, said


def test_train(public, nenya_cli, tmp_path):
    code, said = nenya_cli("train", [*QUICK, "trainer.max_epochs=1", f"data={public}", "out=run"])
    assert code == 0 and "is read without an account" in said, said
