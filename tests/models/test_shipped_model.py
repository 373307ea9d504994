import json
import shutil

import h5py
import numpy as np
import pytest
import safetensors
import torch

from nenya import analyze_image
from nenya.cli import main
from nenya.commands.compose import compose
from nenya.errors import CheckpointError, InputFileError, MissingCheckpointError, OptionError
from nenya.io import load_opt
from nenya.models.contrastive import load_model, weights_source
from nenya.storage import shipped

CPU = "trainer.accelerator=cpu"


def write(path, side, rows=5, masked=False):
    rng = np.random.default_rng(side)
    fields = rng.standard_normal((rows, side, side)).cumsum(1).cumsum(2).astype(np.float32) / side
    if masked:
        fields[1, : side // 4] = np.nan
        fields[2] = np.nan
    with h5py.File(path, "w") as h5:
        h5["train"] = fields[:, None]
    return fields


def read(path):
    with h5py.File(path) as h5:
        return h5["train"][()], dict(h5.attrs)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_cutouts_of_many_sizes_get_latents_without_any_weights_at_hand(tmp_path, side):
    write(tmp_path / "a.h5", side, masked=True)
    assert main(["extract", "model=ocean", f"data={tmp_path / 'a.h5'}", f"out={tmp_path / 'l.h5'}", CPU]) == 0
    found, about = read(tmp_path / "l.h5")
    assert found.shape == (5, 64) and np.isnan(found).any(axis=1).tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(np.linalg.norm(found[[0, 1, 3, 4]], axis=1), 1, atol=1e-5)
    assert about["model_version"] == "ocean" and about["checkpoint_sha256"] == shipped.SHA256["ocean"]
    assert np.ptp(found[[0, 1, 3, 4]], axis=0).max() > 0.01


@pytest.mark.parametrize("side", [16, 200])
def test_other_sizes_are_refused_in_a_line(tmp_path, capsys, side):
    fields = write(tmp_path / "a.h5", side)
    assert main(["extract", "model=ocean", f"data={tmp_path / 'a.h5'}", f"out={tmp_path / 'l.h5'}", CPU]) == 2
    said = f"expected cutouts of 32 to 128 pixels a side for model ocean, got {side}"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and not (tmp_path / "l.h5").exists()
    assert main(["train", "model=ocean", f"data={tmp_path / 'a.h5'}", f"out={tmp_path / 'run'}", CPU]) == 2
    opt, weights = load_opt("ocean")
    with pytest.raises(InputFileError, match="expected cutouts of 32 to 128"):
        analyze_image.get_latents(fields[0], weights, opt)
    assert not (tmp_path / "run").exists()


def test_an_image_is_searched_among_its_latents(tmp_path, nenya_cli):
    write(tmp_path / "a_preproc.h5", 48, rows=12)
    assert nenya_cli("extract", ["model=ocean", "a_preproc.h5", "out=.", CPU])[0] == 0
    code, said = nenya_cli("search", ["a_preproc_latents.h5", "image=a_preproc.h5:train:3", "k=2", "model=ocean"])
    assert code == 0 and " 1.0000 " in said, said


def test_weights_say_what_they_are():
    opt, path = load_opt("ocean")
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["license"] == "BSD-3-Clause" and about["card"].startswith("# ")
    assert {"recipe", "data"} <= about.keys() and json.loads(about["options"])["image_sizes"] == [32, 128]
    assert shipped.shipped_path("nenya://ocean").stat().st_size <= 5_000_000
    assert opt.ssl_model == "resnet18_scaled"


def test_damaged_missing_and_unknown_weights_are_refused(tmp_path, monkeypatch):
    real = shipped.FOLDER / "ocean.safetensors"
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    options = compose("extract", ["model=ocean", "data=a.h5"])
    with pytest.raises(MissingCheckpointError, match="install nenya again"):
        load_model(options, None)
    content = bytearray(real.read_bytes())
    content[-9] ^= 1
    (tmp_path / "ocean.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: expected sha256"):
        load_model(options, None)
    shutil.copyfile(real, tmp_path / "ocean.safetensors")
    assert load_model(options, None)[0].architecture["width"] == 16
    with pytest.raises(OptionError, match="expected one of nenya://ocean"):
        weights_source(options, "nenya://lake")


@pytest.mark.parametrize("model", ["v5", "demo", "custom"])
def test_versions_without_weights_say_that_ocean_has_some(monkeypatch, model, tmp_path):
    options = compose("extract", [f"model={model}", "data=a.h5"])
    monkeypatch.delenv("OS_SST", raising=False)
    with pytest.raises(OptionError, match="model=ocean has weights"):
        load_model(options, None)
    monkeypatch.setenv("OS_SST", str(tmp_path))
    with pytest.raises((OptionError, CheckpointError), match="model=ocean has weights"):
        load_model(options, None)


def test_training_starts_from_the_shipped_weights(tmp_path, nenya_cli):
    assert nenya_cli("generate", ["kind=ocean", "size=32", "n_train=16", "n_valid=8", "out=a_preproc.h5"])[0] == 0
    words = ["model=ocean", "a_preproc.h5", "init_from=nenya://ocean", "augment.random_jitter=[24,3]", CPU]
    little = ["trainer.max_epochs=1", "augment.clouds_from=0", "optim.learning_rate=1e-9", "loader.batch_size_train=8"]
    code, said = nenya_cli("train", [*words, *little, "out=run"])
    assert code == 0, said
    given, tuned = (load_model(compose("extract", ["model=ocean", "data=a"]), ckpt)[1].net.state_dict() for ckpt in
                    (None, str(tmp_path / "run" / "last.pth")))  # fmt: skip
    torch.testing.assert_close(tuned["encoder.conv1.weight"], given["encoder.conv1.weight"], atol=1e-5, rtol=0)
