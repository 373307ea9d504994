"""The guide through clouds: its loss, its learning rates, and networks with a mask channel."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from nenya.errors import CheckpointError, OptionError
from nenya.models.backbones.make import FIRST_LAYERS
from nenya.models.checkpoint import infer_architecture, load_checkpoint, load_weights, save_pth
from nenya.models.clouds import GUIDED_RATE, Guide, guided_loss, with_clouds, with_mask_channel
from nenya.models.inference import make_runner
from nenya.models.resnet import ContrastiveNet
from nenya.models.schedule import Schedule


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=seeded(seed), dtype=torch.float64), dim=-1)


def tiny(*, mask_channel):
    torch.manual_seed(1)
    return ContrastiveNet("resnet18", 8, 1, 4, mask_channel=mask_channel).eval()


def test_the_guided_loss_is_zero_for_the_guides_latents_and_falls_towards_them():
    clear = unit(6, 1, 8)
    assert float(guided_loss(clear.expand(-1, 2, -1), clear)) == pytest.approx(0, abs=1e-12)
    latents = unit(6, 2, 8, seed=1).requires_grad_()
    before = guided_loss(latents, clear)
    before.backward()
    after = guided_loss(functional.normalize((latents - 0.01 * latents.grad).detach(), dim=-1), clear)
    assert after < before.detach()


def test_the_guided_loss_is_a_slow_sum():
    latents, clear = unit(5, 2, 8), unit(5, 2, 8, seed=1)
    wanted = functional.normalize(clear.mean(1), dim=1)
    total = 0.0
    for i in range(5):
        for view in latents[i]:
            own, seen = (10 * wanted @ z for z in (wanted[i], view))
            p = own.softmax(0)
            divergence = (p * (p.log() - seen.softmax(0).log())).sum()
            total += 5 * (1 - view @ wanted[i]) + 10 * divergence
    torch.testing.assert_close(guided_loss(latents, clear), total / 10)


def test_the_guided_loss_of_no_cutouts_is_zero():
    assert float(guided_loss(torch.zeros(0, 2, 8), torch.zeros(0, 2, 8))) == 0


def options_of(epochs, share=0.5, clouds=True, weight=1.0):
    return SimpleNamespace(
        augment=SimpleNamespace(clouds=clouds, clouds_from=share),
        loss=SimpleNamespace(clear_weight=weight),
        trainer=SimpleNamespace(max_epochs=epochs),
    )


def test_learning_rates_start_again_with_the_guide():
    schedule = Schedule(learning_rate=0.05, epochs=6, cosine=True, warm=False)
    both = with_clouds(schedule, options_of(6), 3)
    assert both.at_step(1, 0, 10) == 0.05
    assert both.at_step(2, 5, 10) == pytest.approx(0.025)
    warm = with_clouds(replace(schedule, warm=True), options_of(6), 3)
    first = Schedule(learning_rate=0.05, epochs=3, cosine=True, warm=True)
    assert [warm.at_step(e, 4, 10) for e in (1, 2, 3)] == [first.at_step(e, 4, 10) for e in (1, 2, 3)]
    assert both.at_step(4, 0, 10) == pytest.approx(GUIDED_RATE * 0.05)
    assert both.at_step(9, 0, 10) == pytest.approx(0)
    rates = [both.at_step(e, step, 10) for e in (4, 5, 6) for step in range(10)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.parametrize("options", [options_of(6, clouds=False), options_of(6, weight=0.0)])
def test_without_a_guide_learning_rates_are_as_before(options):
    schedule = Schedule(learning_rate=0.05, epochs=6, cosine=True, warm=False)
    assert with_clouds(schedule, options, 3) is schedule


def test_a_guide_stays_as_it_was_taken():
    net, guide = tiny(mask_channel=True), Guide()
    assert guide.state() is None
    guide.take(net)
    images = torch.randn(3, 2, 2, 16, 16, generator=seeded())
    before = guide.latents(images)
    assert before.shape == (3, 2, 8)
    assert not before.requires_grad
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.5)
    guide.take(net)
    assert torch.equal(guide.latents(images), before)
    other = Guide()
    other.restore(guide.state(), net, needed=True)
    assert torch.equal(other.latents(images), before)
    with pytest.raises(CheckpointError, match="lacks the guide"):
        Guide().restore(None, net, needed=True)


def test_latents_depend_on_clear_pixels_and_the_mask_alone():
    net = tiny(mask_channel=True)
    torch.nn.init.normal_(net.encoder.conv1.weight[:, 1:], generator=seeded())
    image = torch.randn(4, 1, 16, 16, generator=seeded())
    mask = torch.zeros_like(image)
    mask[:, :, 3:9, 2:12] = 1
    other = torch.where(mask > 0, 100.0, image)
    with torch.no_grad():
        for run in (net, *(make_runner(net, "projection", b, (4, 2, 16, 16)) for b in ("folded", "packed"))):
            found = run(torch.cat([image, mask], 1))
            assert torch.equal(found, run(torch.cat([other, mask], 1)))
            torch.testing.assert_close(found, run(torch.cat([image + 0.5, mask], 1)), rtol=0, atol=1e-5)
            whole = run(torch.cat([image, 0 * mask], 1))
            assert not torch.allclose(found, whole, atol=1e-3)
            torch.testing.assert_close(run(image), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ssl_model", ["convnext_tiny", "vit_tiny"])
def test_other_encoders_see_the_mask_too(ssl_model, tmp_path):
    torch.manual_seed(1)
    net = ContrastiveNet(ssl_model, 8, 1, 4, mask_channel=True).eval()
    first = next(p for n, p in net.named_parameters() if n in FIRST_LAYERS)
    assert first.shape[1] == 2 and (first[:, 1] == 0).all() and (first[:, 0] != 0).any()
    torch.nn.init.normal_(first, generator=seeded())
    if ssl_model.startswith("convnext"):
        for name, scale in net.named_parameters():
            if name.endswith("scale"):
                torch.nn.init.ones_(scale)
    image, mask = torch.randn(4, 1, 16, 16, generator=seeded()), torch.zeros(4, 1, 16, 16)
    mask[:, :, 3:9, 2:12] = 1
    with torch.no_grad():
        found = net(torch.cat([image, mask], 1))
        assert torch.equal(found, net(torch.cat([torch.where(mask > 0, 100.0, image), mask], 1)))
        assert not torch.allclose(found, net(torch.cat([image, 0 * mask], 1)), atol=1e-3)
        torch.testing.assert_close(net(image), net(torch.cat([image, 0 * mask], 1)), rtol=0, atol=1e-6)
    save_pth(tmp_path / "a.pth", net, options={}, epoch=1)
    again = load_checkpoint(tmp_path / "a.pth")
    assert infer_architecture(again.state_dict) == net.architecture
    other = ContrastiveNet(ssl_model, 8, 1, 4)
    with pytest.raises(CheckpointError, match=r"set model\.mask_channel=true"):
        load_weights(other, again)


def test_an_encoder_of_ones_own_is_refused_with_a_mask_channel():
    with pytest.raises(OptionError, match=r"expected one of .*vit_small with model\.mask_channel=true"):
        ContrastiveNet("torch.nn.Identity", 8, 1, 4, mask_channel=True)


@pytest.mark.parametrize(
    ("ssl_model", "channels"), [("resnet18", 1), ("resnet18", 3), ("convnext_tiny", 3), ("vit_tiny", 1)]
)
def test_weights_without_a_mask_channel_start_a_network_with_one(ssl_model, channels):
    plain = ContrastiveNet(ssl_model, 8, channels, 4).eval()
    checkpoint = with_mask_channel(_Checkpoint(plain.state_dict()))
    net = ContrastiveNet(ssl_model, 8, 1, 4, mask_channel=True).eval()
    net.load_state_dict(checkpoint.state_dict)
    image = torch.randn(4, 1, 16, 16, generator=seeded())
    image -= image.mean((2, 3), keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(net(torch.cat([image, 0 * image], 1)), plain(image), rtol=0, atol=1e-5)
    assert with_mask_channel(checkpoint) is checkpoint


def _Checkpoint(state_dict):
    from pathlib import Path

    from nenya.models.checkpoint import Checkpoint

    fields = {"path": Path("x"), "layout": "pth", "state_dict": dict(state_dict)}
    return Checkpoint(**{name: fields.get(name) for name in Checkpoint.__dataclass_fields__})
