import math

import numpy as np
import objective_references as by
import pytest
import torch
from objective_references import LIGHTLY, numbers, unit
from torch import nn

from nenya.errors import OptionError
from nenya.models.losses import contrastive_loss, gather_views
from nenya.models.objectives.barlow_twins import barlow_twins_loss
from nenya.models.objectives.byol import byol_loss
from nenya.models.objectives.dino import dino_loss, moved_centre
from nenya.models.objectives.methods import make_objective
from nenya.models.objectives.moco import moco_loss, turned
from nenya.models.objectives.teacher import copy_of, follow, rising
from nenya.models.objectives.vicreg import vicreg_loss
from nenya.models.resnet import ContrastiveNet
from nenya.options.objectives import LossOptions
from nenya.options.sections import Options

SIZES = list(LIGHTLY)
DTYPES = {torch.float64: 1e-10, torch.float32: 1e-6}


def views(size, dtype=torch.float64):
    """Two views (B, D) as numpy arrays and as tensors."""
    z, other = numbers(1, *size), numbers(2, *size)
    w = 0.7 * z + 0.3 * other
    return z, w, *(torch.from_numpy(x).to(dtype) for x in (z, w))


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.asarray(array)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_losses_equal_those_of_lightly(size, dtype):
    z, w, a, b = views(size, dtype)
    wanted = LIGHTLY[size]
    unit_views = torch.stack([tensor(unit(x), dtype) for x in (z, w)], dim=1)
    student = torch.stack([tensor(numbers(seed, *size), dtype) for seed in (3, 4)], dim=1)
    teacher, centre = torch.stack([a, b], dim=1), tensor(numbers(5, size[1]), dtype)
    bank = tensor(unit(numbers(6, 50, size[1])), dtype)
    found = {
        "vicreg": vicreg_loss(a, b),
        "vicreg_weights": vicreg_loss(a, b, invariance=10, variance=5, covariance=2, epsilon=1e-3),
        "barlow": barlow_twins_loss(a, b),
        "barlow_1": barlow_twins_loss(a, b, redundancy=0.05),
        "cosine": byol_loss(a, b) / 2 - 1,
        "simclr": contrastive_loss(unit_views, temperature=0.2, base_temperature=0.2),
        "dino": dino_loss(student, teacher, centre, student_temp=0.2, teacher_temp=0.07),
        "moco": moco_loss(unit_views[:, 0], unit_views[:, 1], bank, temperature=0.2),
    }
    for name, loss in found.items():
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(wanted[name], rel=DTYPES[dtype], abs=DTYPES[dtype]), name
    moved = moved_centre(centre, teacher)[:3].tolist()
    assert moved == pytest.approx(wanted["centre"], rel=1e-6)
    assert found.keys() == wanted.keys() - {"centre"}


@pytest.mark.parametrize("size", [(2, 3), (9, 5)])
def test_losses_equal_the_formulas_of_the_papers(size):
    z, w, a, b = views(size)
    exact = {"rel": 1e-12, "abs": 1e-12}
    assert vicreg_loss(a, b).item() == pytest.approx(by.vicreg(z, w), **exact)
    weights = {"invariance": 3.0, "variance": 2.0, "covariance": 0.5}
    assert vicreg_loss(a, b, **weights).item() == pytest.approx(by.vicreg(z, w, **weights), **exact)
    small = vicreg_loss(a / 9, b / 9).item()  # below the least standard deviation
    assert small == pytest.approx(by.vicreg(z / 9, w / 9), **exact)
    assert barlow_twins_loss(a, b, redundancy=0.3).item() == pytest.approx(by.barlow_twins(z, w, 0.3), **exact)
    assert byol_loss(a, b).item() == pytest.approx(by.byol(z, w), **exact)
    s, t, centre = [numbers(3, *size), numbers(4, *size)], [z, w], numbers(5, size[1])
    found = dino_loss(*(torch.stack([*map(tensor, x)], dim=1) for x in (s, t)), tensor(centre))
    assert found.item() == pytest.approx(by.dino(s, t, centre, 0.1, 0.04), **exact)
    q, k, queue = unit(z), unit(w), unit(numbers(6, 7, size[1]))
    assert moco_loss(*map(tensor, (q, k, queue))).item() == pytest.approx(by.moco(q, k, queue, 0.07), **exact)


def test_gradients_are_the_derivatives_and_stop_at_the_teacher():
    _, _, a, b = views((5, 3))
    check = torch.autograd.gradcheck
    a, b = (a / 3).requires_grad_(), (b / 3).requires_grad_()
    assert check(vicreg_loss, (a, b))
    assert check(barlow_twins_loss, (a, b))
    assert check(lambda x: byol_loss(x, b.detach()), a)
    student, teacher = (torch.stack([x, y], 1) for x, y in ((a, b), (b.detach(), a.detach())))
    assert check(lambda x: dino_loss(x, teacher, torch.zeros(3).double()), student.detach().requires_grad_())
    queue = tensor(unit(numbers(6, 4, 3)))
    assert check(lambda x: moco_loss(x, b.detach(), queue), a)
    assert not byol_loss(a.detach(), b).requires_grad
    assert not moco_loss(a.detach(), b, queue).requires_grad
    assert not dino_loss(student.detach(), student, torch.zeros(3).double()).requires_grad


def test_half_precision_is_computed_in_float32():
    _, _, a, b = views((16, 8), torch.bfloat16)
    queue = tensor(unit(numbers(6, 20, 8)), torch.bfloat16)
    stacked, centre = torch.stack([a, b], 1), torch.zeros(8)
    calls = (
        lambda x, y, q, s: vicreg_loss(x, y),
        lambda x, y, q, s: barlow_twins_loss(x, y),
        lambda x, y, q, s: byol_loss(x, y),
        lambda x, y, q, s: moco_loss(x, y, q),
        lambda x, y, q, s: dino_loss(s, s.flip(1), centre.to(s.dtype)),
    )
    for call in calls:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = call(a, b, queue, stacked)
        wanted = call(a.double(), b.double(), queue.double(), stacked.double())
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)


def test_equal_views_and_constant_embeddings_stay_finite():
    x = torch.ones(4, 3, requires_grad=True)
    for loss in (vicreg_loss(x, x), barlow_twins_loss(x, x), byol_loss(x, x), byol_loss(x * 0, x)):
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert vicreg_loss(x, x).item() == pytest.approx(25 * (1 - math.sqrt(1e-4)))
    assert barlow_twins_loss(x, x).item() == pytest.approx(3)


def test_wrong_shapes_are_refused():
    a = torch.zeros(4, 3)
    for loss in (vicreg_loss, barlow_twins_loss, byol_loss):
        with pytest.raises(ValueError, match=r"same shape \(B, D\), got \(4, 3\) and \(3, 3\)"):
            loss(a, a[:3])
    for loss in (vicreg_loss, barlow_twins_loss):
        with pytest.raises(ValueError, match="at least 2 images"):
            loss(a[:1], a[:1])
    with pytest.raises(ValueError, match=r"queue of shape \(Q, 3\)"):
        moco_loss(a, a, torch.zeros(5, 2))
    with pytest.raises(OptionError, match="above 0"):
        moco_loss(a, a, a, temperature=0)
    with pytest.raises(ValueError, match=r"a centre \(K,\)"):
        dino_loss(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="two views"):
        dino_loss(torch.zeros(4, 1, 3), torch.zeros(4, 1, 3), torch.zeros(3))


def test_the_queue_replaces_its_oldest_keys():
    queue, oldest = torch.zeros(5, 1), 0
    for batch in range(1, 5):
        queue, oldest = turned(queue, oldest, torch.full((3 if batch < 4 else 2, 1), float(batch)))
    assert oldest == 1
    assert queue.flatten().tolist() == [4, 3, 3, 3, 4]  # batches 1 to 3 of three keys, batch 4 of two


def test_the_teacher_follows_slowly():
    student = nn.Linear(3, 2)
    teacher = copy_of(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = teacher.weight.clone()
    with torch.no_grad():
        student.weight += 1
    follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, 0.9 * before + 0.1 * student.weight)
    assert rising(0.996, 0) == pytest.approx(0.996)
    assert rising(0.996, 0.5) == pytest.approx(0.998)
    assert rising(0.996, 1) == rising(0.996, 1.5) == 1


BATCH = 6
SPLITS = [(3, 3), (5, 1), (0, 6)]


def small_net():
    torch.manual_seed(3)
    net = ContrastiveNet("resnet18", feat_dim=4, width=2).double().eval()
    return net, {name: make(net) for name, make in OBJECTIVES.items()}


def make_part(method):
    def make(net):
        loss = LossOptions(ssl_method=method, expander=3, predictor=3, queue=7, prototypes=5)
        return make_objective(Options(loss=loss), net).double()

    return make


OBJECTIVES = {name: make_part(name) for name in ("VICReg", "BarlowTwins", "BYOL", "DINO", "MoCo")}


def steps_of(images, wrap):
    """Loss, gradients and state after a step with each objective on images (B, V, 1, H, W) of this process."""
    found = {}
    for name in OBJECTIVES:
        net, objectives = small_net()
        objective = objectives[name]
        forward = wrap(Both(net, objective))
        loss = forward(images)
        loss.backward()
        state = {key: value.clone() for key, value in objective.state_dict().items()}
        found[name] = (
            loss.item(),
            [p.grad.clone() for p in [*net.parameters(), *objective.parameters()] if p.requires_grad],
            state,
        )
    return found


class Both(nn.Module):
    """A network and its objective, as in a training."""

    def __init__(self, net, objective):
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, images):
        def features(net):
            made = net(images.flatten(0, 1)) if self.objective.normalised else net.project(images.flatten(0, 1))
            return gather_views(made.unflatten(0, images.shape[:2]))[0]

        with torch.no_grad():
            targets = None if self.objective.teacher is None else features(self.objective.teacher.eval())
        return self.objective(features(self.net), targets, None)


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for split in SPLITS:
        part = slice(0, split[0]) if rank == 0 else slice(split[0], BATCH)
        results[split] = steps_of(batch_of_images()[part], nn.parallel.DistributedDataParallel)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def batch_of_images():
    return torch.randn(BATCH, 2, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_two_processes_train_as_one(tmp_path):
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    wanted = steps_of(batch_of_images(), lambda module: module)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results.keys() == set(SPLITS)
        for split, by_name in results.items():
            for name, (loss, gradients, state) in by_name.items():
                expected_loss, expected, expected_state = wanted[name]
                assert loss == pytest.approx(expected_loss, rel=1e-12), (split, name)
                for gradient, one in zip(gradients, expected, strict=True):
                    torch.testing.assert_close(gradient, one, rtol=1e-8, atol=1e-12)
                for key, value in state.items():
                    torch.testing.assert_close(value, expected_state[key], rtol=1e-9, atol=1e-12)
