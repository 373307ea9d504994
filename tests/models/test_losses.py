import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from nenya.errors import OptionError
from nenya.models.losses import contrastive_loss, gather_views
from nenya.models.resnet import ContrastiveNet

GOLDEN_FILES = {"golden_public": "loss/", "golden_loss_public": ""}
CASES = [
    (batch, temperature, mode, kind)
    for batch in (8, 64)
    for temperature in (0.07, 0.5)
    for mode in ("all", "one")
    for kind in ("simclr", "labels")
]


def slow_loss(features, labels, temperature, base_temperature, mode):
    """Khosla 2020, eq. 2, written as its sums, in float64."""
    batch, views, _ = features.shape
    rows = [(i, v) for i in range(batch) for v in range(views)]
    x = features.double()
    anchors = rows if mode == "all" else [row for row in rows if row[1] == 0]
    total = 0.0
    for a in anchors:
        others = [row for row in rows if row != a]
        cosines = {row: float(x[a] @ x[row]) / temperature for row in others}
        denominator = math.log(sum(math.exp(value) for value in cosines.values()))
        positives = [row for row in others if labels[row[0]] == labels[a[0]]]
        if positives:
            total -= sum(cosines[row] - denominator for row in positives) / len(positives)
    return temperature / base_temperature * total / len(anchors)


def unit_features(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


@pytest.mark.parametrize("name", GOLDEN_FILES)
@pytest.mark.parametrize(("batch", "temperature", "mode", "kind"), CASES)
def test_values_and_gradients_equal_the_goldens(goldens, name, batch, temperature, mode, kind):
    wanted = json.loads((goldens / f"{name}.json").read_text())["loss"]
    case = f"b{batch}_T{temperature}_{mode}_{kind}"
    with np.load(goldens / f"{name}.npz", allow_pickle=False) as file:
        prefix = GOLDEN_FILES[name]
        features = torch.from_numpy(file[f"{prefix}features/b{batch}"]).requires_grad_()
        labels = torch.from_numpy(file[f"{prefix}labels/b{batch}"]) if kind == "labels" else None
        key = f"{prefix}grad/{case}"
        gradient = file[key] if key in file else None
    loss = contrastive_loss(features, labels, temperature=temperature, contrast_mode=mode)
    loss.backward()
    assert loss.item() == pytest.approx(wanted[case]["fp32"], rel=2e-6, abs=2e-6)
    assert features.grad.norm().item() == pytest.approx(wanted[case]["grad_norm"], rel=2e-5, abs=2e-6)
    if gradient is not None:
        np.testing.assert_allclose(features.grad.numpy(), gradient, rtol=1e-5, atol=2e-6)
    exact = contrastive_loss(features.double(), labels, temperature=temperature, contrast_mode=mode)
    assert exact.item() == pytest.approx(wanted[case]["fp64_features"], rel=2e-6, abs=2e-6)


@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_loss_is_equation_2_of_supcon(views, mode):
    features = unit_features(7, views, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    options = {"temperature": 0.3, "base_temperature": 0.1, "contrast_mode": mode}
    wanted = slow_loss(features, labels, 0.3, 0.1, mode)
    assert contrastive_loss(features, labels, **options).item() == pytest.approx(wanted, rel=1e-12)


def test_without_labels_each_image_is_its_class():
    features = unit_features(6, 2, 5)
    assert torch.equal(contrastive_loss(features), contrastive_loss(features, torch.arange(6)))


def test_gradient_is_the_derivative():
    features = unit_features(4, 2, 3, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, labels, temperature=0.5), features)


def test_loss_does_not_depend_on_the_order_of_images():
    features, labels = unit_features(9, 2, 5), torch.arange(9) % 4
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    expected = contrastive_loss(features, labels)
    torch.testing.assert_close(contrastive_loss(features[order], labels[order]), expected)


@pytest.mark.parametrize("shape", [(1, 1, 5), (4, 1, 5), (0, 2, 5), (1, 2, 5)])
def test_anchors_without_a_positive_give_zero_and_no_nan(shape):
    features = unit_features(*shape).requires_grad_()
    loss = contrastive_loss(features)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(features.grad).all()


def test_half_precision_features_are_computed_in_float32():
    features = unit_features(64, 2, 32).bfloat16()
    expected = contrastive_loss(features.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(features)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_equal_features_stay_finite_at_a_low_temperature():
    features = torch.ones(8, 2, 4).div(2).requires_grad_()
    loss = contrastive_loss(features, temperature=0.005)
    loss.backward()
    assert loss.item() == pytest.approx(0.005 / 0.07 * math.log(15), rel=1e-4)
    assert torch.isfinite(features.grad).all()


def test_bad_arguments_are_refused():
    features = unit_features(4, 2, 3)
    with pytest.raises(ValueError, match=r"expected features of shape \(B, V, D\)"):
        contrastive_loss(features[0])
    with pytest.raises(ValueError, match=r"shape \(4,\), one per image"):
        contrastive_loss(features, torch.zeros(3))
    with pytest.raises(OptionError, match="both"):
        contrastive_loss(features, contrast_mode="both")
    with pytest.raises(OptionError, match="above 0"):
        contrastive_loss(features, temperature=0.0)


def test_one_process_gathers_nothing():
    features = unit_features(4, 2, 3)
    labels = torch.arange(4)
    assert gather_views(features) == (features, None)
    assert gather_views(features, labels) == (features, labels)


BATCH = 6
SPLITS = [(3, 3), (4, 2), (1, 5), (6, 0), (0, 6)]


def small_net():
    torch.manual_seed(3)
    return ContrastiveNet("resnet18", feat_dim=8, width=4).double().eval()


def step(net, images, labels):
    """Loss and gradients of one step on images (B, V, 1, H, W); the network may be wrapped."""
    net.zero_grad()
    features = net(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    loss = contrastive_loss(*gather_views(features, labels), temperature=0.5)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in net.parameters()]


def batch_of_images():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(BATCH, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 1, 2, 0, 3])


def ddp_worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(small_net())
    images, labels = batch_of_images()
    results = {}
    for split in SPLITS:
        part = slice(0, split[0]) if rank == 0 else slice(split[0], BATCH)
        for supervised in (False, True):
            results[split, supervised] = step(net, images[part], labels[part] if supervised else None)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(ddp_worker, args=(str(tmp_path),), nprocs=2)
    images, labels = batch_of_images()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(results) == 2 * len(SPLITS)
        for (split, supervised), (loss, gradients) in results.items():
            wanted_loss, wanted = step(small_net(), images, labels if supervised else None)
            assert loss == pytest.approx(wanted_loss, rel=1e-12), (split, supervised)
            for gradient, expected in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
