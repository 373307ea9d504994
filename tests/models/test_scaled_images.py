import pytest
import torch

from nenya.errors import CheckpointError, OptionError
from nenya.models.checkpoint import infer_architecture, load_checkpoint, load_weights, save_safetensors
from nenya.models.inference import make_runner
from nenya.models.resnet import ContrastiveNet, scaled
from nenya.options.commands import ExtractOptions
from nenya.options.sections import build_options


def test_all_backends_scale_images(tmp_path):
    torch.manual_seed(0)
    net = ContrastiveNet("resnet18_scaled", 8, 1, 4, mask_channel=True).eval()
    images = torch.randn(3, 2, 32, 32)
    images[:, 1] = (images[:, 1] > 1).float()
    with torch.no_grad():
        wanted = net(images)
        for backend in ("folded", "packed"):
            torch.testing.assert_close(
                make_runner(net, "projection", backend, images.shape)(images), wanted, atol=1e-5, rtol=0
            )
        plain = ContrastiveNet("resnet18", 8, 1, 4, mask_channel=True).eval()
        plain.load_state_dict({k: v for k, v in net.state_dict().items() if k != "encoder.scaling"})
        assert not torch.allclose(plain(images), wanted, atol=1e-3)


def test_scaling_divides_by_the_root_of_the_deviation():
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64) * torch.tensor([0.1, 1.0, 4.0, 0.0])[:, None, None, None]
    deviation = images.std((1, 2, 3), correction=0)
    torch.testing.assert_close(scaled(images).std((1, 2, 3), correction=0)[:3], deviation[:3].sqrt())
    assert bool((scaled(images)[3] == 0).all())
    masked = torch.cat([images - images.mean((2, 3), keepdim=True), torch.zeros_like(images)], dim=1)
    torch.testing.assert_close(scaled(masked)[:, :1], scaled(masked[:, :1]))


def test_weights_tell_that_images_are_scaled(tmp_path):
    net = ContrastiveNet("resnet18_scaled", 8, 1, 4)
    assert infer_architecture(net.state_dict())["ssl_model"] == "resnet18_scaled"
    save_safetensors(tmp_path / "w.safetensors", net)
    with pytest.raises(CheckpointError, match=r"set model.ssl_model=resnet18_scaled"):
        load_weights(ContrastiveNet("resnet18", 8, 1, 4), load_checkpoint(tmp_path / "w.safetensors"))
    net.encoder.scaling.fill_(1.0)
    with pytest.raises(CheckpointError, match=r"to the power of 0\.5 .*got \[1\.0\]"):
        infer_architecture(net.state_dict())


@pytest.mark.parametrize("sides", [[32], [64, 32], [0, 32], [32, 64.5], "32", [True, 5]])
def test_sizes_of_a_version_are_two_integers(sides):
    with pytest.raises(OptionError, match=r"model.image_sizes"):
        build_options(ExtractOptions, {"model": {"image_sizes": sides}, "data": "a.h5"})


def test_cutouts_outside_the_sizes_of_a_version_are_refused(small_file, tiny_weights, nenya_cli, tmp_path):
    words = ["model=demo", str(small_file), f"ckpt={tiny_weights}", "out=l.h5", "trainer.accelerator=cpu"]
    code, said = nenya_cli("extract", [*words, "model.image_sizes=[48,64]"])
    assert code == 2 and len(said.splitlines()) == 1 and not (tmp_path / "l.h5").exists()
    assert "expected cutouts of 48 to 64 pixels a side for model demo, got 32" in said
    assert nenya_cli("extract", [*words, "model.image_sizes=[32,64]"])[0] == 0
