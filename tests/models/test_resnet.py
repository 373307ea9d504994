import json

import numpy as np
import pytest
import torch
from golden_weights import golden_state_dict

from nenya.errors import InputFileError, OptionError
from nenya.models.resnet import ARCHITECTURES, MINIMUM_IMAGE_SIZE, ContrastiveNet, check_image_size

# Rows do not depend on each other in eval mode, so a part of the images is enough; the long tests see more of them.
EVERY = {"resnet18": 1, "resnet34": 3, "resnet50": 2, "resnet101": 4}
SOME = {"resnet18": 3, "resnet50": 6}
CASES = [(ssl_model, nchannels) for ssl_model in EVERY for nchannels in (1, 3)]
FAST = (("resnet18", 1), ("resnet18", 3), ("resnet50", 1))


@pytest.fixture(scope="module")
def arrays(goldens):
    with np.load(goldens / "golden_public.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def shapes(goldens):
    return json.loads((goldens / "state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def images(arrays):
    """(42, 1, 64, 64): the 24 images as they are, then the 18 real ones without their mean."""
    real = arrays["img/real"]
    demeaned = real - real.mean(axis=(1, 2), keepdims=True)
    return torch.from_numpy(np.concatenate([arrays["img/synthetic"], real, demeaned])[:, None])


def make_net(shapes, ssl_model, nchannels, *, damped=False):
    net = ContrastiveNet(ssl_model, 256, nchannels)
    net.load_state_dict(golden_state_dict(shapes[f"{ssl_model}/nc{nchannels}"], damped=damped))
    return net.eval()


@torch.inference_mode()
def features_and_latents(net, images):
    features = torch.cat([net.encode(batch) for batch in images.split(14)])
    return features.numpy(), torch.nn.functional.normalize(net.head(features), dim=1).numpy()


def small_net(ssl_model="resnet18", nchannels=1, **kwargs):
    torch.manual_seed(0)
    return ContrastiveNet(ssl_model, feat_dim=16, nchannels=nchannels, width=8, **kwargs)


@pytest.mark.parametrize(("ssl_model", "nchannels"), CASES)
def test_tensors_have_the_published_names_order_and_shapes(shapes, ssl_model, nchannels):
    with torch.device("meta"):
        net = ContrastiveNet(ssl_model, 256, nchannels)
    ours = [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in net.state_dict().items()
    ]
    assert ours == shapes[f"{ssl_model}/nc{nchannels}"]


def test_recipe_of_the_weights_is_the_goldens(goldens, shapes):
    checks = json.loads((goldens / "golden_public.json").read_text())["weights_check"]
    for case in ("resnet18/nc1", "resnet50/nc3"):
        state = golden_state_dict(shapes[case])
        for name, (total, first) in checks[case].items():
            values = state[name].double().flatten()
            assert [values.sum().item(), values[0].item()] == pytest.approx([total, first], rel=1e-9)


@pytest.mark.parametrize(
    ("ssl_model", "nchannels", "every"),
    [
        *((*case, SOME[case[0]]) for case in FAST),
        *(pytest.param(*case, EVERY[case[0]], marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_latents_equal_the_goldens(arrays, shapes, images, ssl_model, nchannels, every):
    case = f"{ssl_model}/nc{nchannels}"
    given = torch.cat([images[:24:every], images[24::every]])
    features, latents = features_and_latents(make_net(shapes, ssl_model, nchannels), given)
    extracted = arrays[f"latents/extract/{case}"][::every]
    single = arrays[f"latents/single/{case}"][::every]
    np.testing.assert_allclose(latents, np.concatenate([extracted, single]), rtol=0, atol=1e-5)
    wanted = arrays[f"feat/encoder/{case}"][::every]
    np.testing.assert_allclose(features[: len(wanted)], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("ssl_model", "nchannels", "every"),
    [
        ("resnet18", 1, 3),
        ("resnet50", 3, 6),
        *(pytest.param(name, n, EVERY[name], marks=pytest.mark.slow) for name in SOME for n in (1, 3)),
    ],
)
def test_damped_latents_equal_the_goldens(arrays, shapes, images, ssl_model, nchannels, every):
    net = make_net(shapes, ssl_model, nchannels, damped=True)
    _, latents = features_and_latents(net, images[:24:every])
    wanted = arrays[f"latents/damped/{ssl_model}/nc{nchannels}"][::every]
    np.testing.assert_allclose(latents, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_channel_is_the_channel_repeated(training):
    net = small_net(nchannels=3).train(training)
    x = torch.randn(5, 1, 16, 16)
    results = []
    for given in (x, x.repeat(1, 3, 1, 1)):
        net.zero_grad()
        out = net(given)
        (out * torch.arange(16.0)).sum().backward()
        results.append((out.detach(), [parameter.grad.clone() for parameter in net.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-6)
    for one, repeated in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, repeated, rtol=1e-3, atol=1e-4 * repeated.abs().max().item())


@pytest.mark.parametrize("ssl_model", ARCHITECTURES)
def test_width_sets_the_length_of_the_features(ssl_model):
    net = small_net(ssl_model).eval()
    x = torch.randn(2, 1, 12, 20)
    length = 8 * (32 if ARCHITECTURES[ssl_model].bottleneck else 8)
    assert net.encode(x).shape == (2, length)
    assert net(x).shape == (2, 16)
    torch.testing.assert_close(net(x).norm(dim=1), torch.ones(2))


def test_convolutions_start_with_kaiming_and_batch_norms_as_identity():
    net = ContrastiveNet("resnet18")
    weight = net.encoder.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert (net.encoder.bn1.weight == 1).all()
    assert (net.encoder.bn1.bias == 0).all()


def test_rows_do_not_depend_on_their_batch_in_eval_mode():
    net = small_net("resnet50").eval()
    x = torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(net(x), torch.cat([net(x[i : i + 1]) for i in range(6)]), rtol=0, atol=1e-6)


def test_empty_batch_gives_no_rows():
    assert small_net().eval()(torch.empty(0, 1, 16, 16)).shape == (0, 16)


def test_smallest_image_passes_in_training_and_eval():
    x = torch.randn(2, 1, MINIMUM_IMAGE_SIZE, MINIMUM_IMAGE_SIZE)
    net = small_net()
    assert torch.isfinite(net(x)).all()
    assert torch.isfinite(net.eval()(x)).all()
    check_image_size(MINIMUM_IMAGE_SIZE, 300)


def test_latents_have_length_one_under_bfloat16():
    net = small_net().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = net(torch.randn(4, 1, 16, 16))
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("nchannels", "shape", "message"),
    [
        (1, (2, 3, 16, 16), "expected images with 1 channel, got 3"),
        (3, (2, 2, 16, 16), "expected images with 1 or 3 channels, got 2"),
        (1, (1, 16, 16), r"expected images of shape \(B, C, H, W\)"),
    ],
)
def test_other_shapes_are_refused(nchannels, shape, message):
    with pytest.raises(ValueError, match=message):
        small_net(nchannels=nchannels)(torch.zeros(shape))


def test_bad_arguments_are_refused():
    with pytest.raises(OptionError, match=r"resnet12.*resnet18, resnet34, resnet50, resnet101"):
        ContrastiveNet("resnet12")
    with pytest.raises(OptionError, match="feat_dim=0"):
        ContrastiveNet("resnet18", feat_dim=0)
    with pytest.raises(InputFileError, match="7 x 64 px"):
        check_image_size(7, 64)
