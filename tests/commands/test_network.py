import json

import h5py
import numpy as np
import pytest

from nenya.commands.compose import compose
from nenya.commands.demo import draw
from nenya.commands.network import model_arguments, with_network
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.options.flat import flat_view

CPU = "trainer.accelerator=cpu"


def latents_of(path):
    with h5py.File(path) as file:
        return file["train"][()], dict(file.attrs)


def test_the_network_is_that_of_the_checkpoint_unless_a_model_is_named(small_file, tiny_weights, nenya_cli, tmp_path):
    for name, args in (("named", ["model=demo"]), ("found", []), ("backend", ["model.backend=eager"])):
        code, said = nenya_cli("extract", [small_file, f"ckpt={tiny_weights}", f"out={name}.h5", CPU, *args])
        assert code == 0, said
    named, found = (latents_of(tmp_path / f"{name}.h5") for name in ("named", "found"))
    np.testing.assert_allclose(named[0], found[0], atol=1e-6)
    assert named[1]["model_version"] == "demo" and found[1]["model_version"] == "custom"
    stored = json.loads(found[1]["options"])
    assert stored["model"]["feat_dim"] == 64 and stored["preprocess"]["dt_crop"] == 24
    code, said = nenya_cli("extract", [small_file, f"ckpt={tiny_weights}", "out=x.h5", CPU, "model.feat_dim=32"])
    assert code == 2 and "got a resnet18" in said and len(said.splitlines()) == 1


def test_what_else_the_checkpoint_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = compose("train", ["model=demo", "model.width=4", "model.latent=encoder", "preprocess.dt_crop=20"])
    save_pth("w.pth", make_net(options), options={**flat_view(options), "model_version": "mine"}, epoch=1)
    for command, args in (("extract", ["a.h5"]), ("portal", ["table=t.csv"]), ("export", ["out=x"])):
        given = [*args, "ckpt=w.pth"]
        found = with_network(compose(command, given), given)
        model = found.model
        assert (model.name, model.width, model.latent, model.image_size) == ("mine", 4, "encoder", 32)
        assert "model.width=4" in model_arguments(found) and found.preprocess.dt_crop == 20
    for given in (["like=1", "index=a"], ["image=a.npy", "archive=a", "ckpt=gone.pth"]):
        options = compose("search", given)
        assert with_network(options, given) is options  # nothing is encoded, or the archive says it


def test_images_are_searched_with_the_weights_of_the_latents_only(small_file, tiny_weights, nenya_cli, tmp_path):
    assert nenya_cli("extract", [small_file, f"ckpt={tiny_weights}", "out=.", CPU])[0] == 0
    save_pth(tmp_path / "other.pth", make_net(compose("extract", ["model=demo", "seed=9"])), options={}, epoch=1)
    search = ["small_preproc_latents.h5", f"image={small_file}:train:3", "k=2"]
    code, said = nenya_cli("search", [*search, "ckpt=other.pth"])
    assert code == 2 and len(said.splitlines()) == 1 and "other.pth: expected the weights that made the latents" in said
    code, said = nenya_cli("search", [*search, f"ckpt={tiny_weights}"])
    assert code == 0 and said.startswith(f"example: {small_file}:train:3\nexact\n") and " 1.0000 " in said


@pytest.mark.parametrize("rows", [40, 6])
def test_the_pictures_of_a_demo_of_the_first_latents_only(small_file, rows, tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["train"], file["valid"] = rng.normal(size=(rows, 8)), rng.normal(size=(min(rows, 24), 8))
    (tmp_path / "learning_curve").mkdir()
    (tmp_path / "learning_curve" / "a.csv").write_text("epoch,loss_train,loss_valid\n1,2.0,2.1\n2,1.5,1.6\n")
    draw(small_file, tmp_path / "l.h5", tmp_path, tmp_path)
    assert (tmp_path / "gallery.png").stat().st_size > 1000
