"""The objectives of a training: a loss with the parts and the state that it needs besides the network.

An objective sees the features of the complete batch, gathered over all processes, so its statistics, queue and centre
are those of one process. Its parts are modules of the training: checkpoints hold them, and the network without them is
what extraction uses.

Letters in shapes: B images over all processes, V = 2 views of each, D length of a projection (`feat_dim`).
"""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nenya.models.losses import contrastive_loss
from nenya.models.objectives import teacher as teachers
from nenya.models.objectives.barlow_twins import barlow_twins_loss
from nenya.models.objectives.byol import byol_loss
from nenya.models.objectives.dino import dino_loss, moved_centre
from nenya.models.objectives.extracted import folded
from nenya.models.objectives.moco import moco_loss, turned
from nenya.models.objectives.vicreg import vicreg_loss
from nenya.models.resnet import ContrastiveNet, normalise
from nenya.options.objectives import LossOptions, teacher_momentum
from nenya.options.sections import Options


class Objective(nn.Module):
    """A loss of the features of two views, and its state.

    Args:
        loss: the options of the loss.
        net: the network at the beginning of the training; not kept.

    Attributes:
        normalised: whether the features are latents of length 1; otherwise they are the head's output itself.
        teacher: the network of the features `targets`; None without one.
    """

    normalised: ClassVar[bool] = True

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__()
        self.options = loss
        self.teacher: ContrastiveNet | None = None

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: (B, V, D) of the network.
            targets: (B, V, D) of the teacher, without gradients; None without one.
            labels: (B,) classes of the images; None without.
        """
        raise NotImplementedError

    def before_step(self, epoch: int) -> None:
        """Change the gradients of a step, in an epoch that is counted from 0."""

    def after_step(self, net: ContrastiveNet, done: float) -> None:
        """Update the teacher after a step, when a share `done` of the training's steps are done."""

    def kept(self, net: ContrastiveNet) -> ContrastiveNet:
        """Return the network of extraction, as `nenya.models.objectives.extracted` finds it in a checkpoint."""
        return net

    def latents(self, net: ContrastiveNet, images: Tensor) -> Tensor:
        """Return the latents (n, D) of images by the network of extraction, in evaluation."""
        return self.kept(net)(images)  # type: ignore[no-any-return]


class Contrastive(Objective):
    """SimCLR and SupCon; see `nenya.models.losses`."""

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch; see `Objective`."""
        options = self.options
        return contrastive_loss(features, labels, temperature=options.temp, contrast_mode=options.contrast_mode)


class _Expanded(Objective):
    """A loss of statistics of the batch, of embeddings that an expander makes of the head's output.

    Both views pass the expander together. A batch of one image has no statistics: its loss is 0.
    """

    normalised = False

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__(loss, net)
        width = loss.expander
        self.expander = nn.Sequential(
            *(nn.BatchNorm1d(net.feat_dim), nn.ReLU(), nn.Linear(net.feat_dim, width, bias=False)),
            *(nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, width, bias=False)),
        )

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch; see `Objective`."""
        if len(features) < 2:  # no variance
            return (features * 0).sum().float()
        embeddings = self.expander(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return self.loss(embeddings[:, 0], embeddings[:, 1])

    def kept(self, net: ContrastiveNet) -> ContrastiveNet:
        """Return a copy of the network with the expander's first batch norm in its head; see `folded`."""
        copied = copy.deepcopy(net)
        copied.load_state_dict(folded(net.state_dict(), self.expander[0].state_dict()))
        return copied

    def latents(self, net: ContrastiveNet, images: Tensor) -> Tensor:
        """Return the latents (n, D) of images, without a copy of the network; see `Objective`."""
        return normalise(self.expander[0](net.project(images)))

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of the embeddings (B, E) of both views."""
        raise NotImplementedError


class VICReg(_Expanded):
    """See `nenya.models.objectives.vicreg`."""

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of the embeddings (B, E) of both views."""
        o = self.options
        weights = {"invariance": o.invariance, "variance": o.variance, "covariance": o.covariance}
        return vicreg_loss(first, second, **weights)


class BarlowTwins(_Expanded):
    """See `nenya.models.objectives.barlow_twins`."""

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of the embeddings (B, E) of both views."""
        return barlow_twins_loss(first, second, redundancy=self.options.redundancy)


class _Taught(Objective):
    """An objective with a teacher."""

    teacher: ContrastiveNet
    rises: ClassVar[bool] = True  # whether the teacher's momentum rises to 1
    extracted: ClassVar[str] = "student"  # the network of extraction, or `teacher`

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__(loss, net)
        self.teacher = teachers.copy_of(net)

    def after_step(self, net: ContrastiveNet, done: float) -> None:
        """Let the teacher follow; see `Objective`."""
        teachers.follow(self.teacher, net, self.momentum(done))

    def kept(self, net: ContrastiveNet) -> ContrastiveNet:
        """Return the network of extraction; see `Objective`."""
        return self.teacher if self.extracted == "teacher" else net

    def momentum(self, done: float) -> float:
        """Return the teacher's momentum after a share of the training."""
        start = teacher_momentum(self.options)
        return teachers.rising(start, done) if self.rises else start


class BYOL(_Taught):
    """A predictor, of two layers, finds the teacher's projection of the other view; see `nenya.models.objectives.byol`.

    The head is the paper's projector, without its batch norm; the predictor has one.
    """

    normalised = False

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__(loss, net)
        self.predictor = nn.Sequential(
            nn.Linear(net.feat_dim, loss.predictor, bias=False),
            nn.BatchNorm1d(loss.predictor),
            nn.ReLU(inplace=True),
            nn.Linear(loss.predictor, net.feat_dim),
        )

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch; see `Objective`."""
        assert targets is not None
        predicted = self.predictor(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return byol_loss(predicted[:, 0], targets[:, 1]) + byol_loss(predicted[:, 1], targets[:, 0])


class DINO(_Taught):
    """Student and teacher agree on prototypes; see `nenya.models.objectives.dino`.

    The latents of length 1 are the paper's bottleneck; a layer with weights of length 1 follows. The teacher is kept
    for extraction, as in the paper. The student's prototypes are not trained in the first epoch.
    """

    extracted = "teacher"
    centre: Tensor

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__(loss, net)
        self.prototypes = nn.Linear(net.feat_dim, loss.prototypes, bias=False)
        nn.init.trunc_normal_(self.prototypes.weight, std=0.02)
        self.teacher_prototypes = teachers.copy_of(self.prototypes)
        self.register_buffer("centre", torch.zeros(loss.prototypes))

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch, and move the centre in training; see `Objective`."""
        assert targets is not None
        with torch.no_grad():
            given = _cosines(targets, self.teacher_prototypes)
        o = self.options
        temperatures = {"student_temp": o.student_temp, "teacher_temp": o.teacher_temp}
        loss = dino_loss(_cosines(features, self.prototypes), given, self.centre, **temperatures)
        if self.training:
            self.centre.copy_(moved_centre(self.centre, given, o.centre))
        return loss

    def before_step(self, epoch: int) -> None:
        """Keep the prototypes in the first epoch; see `Objective`."""
        if epoch == 0:
            self.prototypes.weight.grad = None

    def after_step(self, net: ContrastiveNet, done: float) -> None:
        """Let the teacher follow, prototypes included; see `Objective`."""
        super().after_step(net, done)
        teachers.follow(self.teacher_prototypes, self.prototypes, self.momentum(done))


class MoCo(_Taught):
    """SimCLR with a queue of the teacher's features of earlier batches; see `nenya.models.objectives.moco`.

    The queue begins with random directions, as in the paper. The first view of an image asks for the second one.
    """

    rises = False
    queue: Tensor
    oldest: Tensor

    def __init__(self, loss: LossOptions, net: ContrastiveNet) -> None:
        super().__init__(loss, net)
        self.register_buffer("queue", functional.normalize(torch.randn(loss.queue, net.feat_dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor, targets: Tensor | None, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch, and turn the queue in training; see `Objective`."""
        assert targets is not None
        keys = targets[:, 1]
        loss = moco_loss(features[:, 0], keys, self.queue.clone(), temperature=self.options.temp)
        if self.training:
            queue, oldest = turned(self.queue, self.oldest, keys)
            self.queue.copy_(queue)
            self.oldest.copy_(oldest)
        return loss


_OBJECTIVES: dict[str, type[Objective]] = {
    **{"SimCLR": Contrastive, "SupCon": Contrastive, "VICReg": VICReg, "BarlowTwins": BarlowTwins},
    **{"BYOL": BYOL, "DINO": DINO, "MoCo": MoCo},
}


def make_objective(options: Options, net: ContrastiveNet) -> Objective:
    """Return the objective of the options, with initial values drawn from `options.seed`.

    Args:
        options: `loss` and `seed` are used.
        net: the network at the beginning of the training, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed + 1)  # not the numbers that the network was drawn from
        return _OBJECTIVES[options.loss.ssl_method](options.loss, net)


def described(options: Options) -> dict[str, Any]:
    """Return what a checkpoint records of an objective besides its options: the network that it is of."""
    kind = _OBJECTIVES[options.loss.ssl_method]
    return {"extracted": kind.extracted} if issubclass(kind, _Taught) else {}


def _cosines(features: Tensor, prototypes: nn.Linear) -> Tensor:
    """Return the cosines (B, V, K) of features of length 1 with prototypes (K, D) of any length, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return functional.linear(features, functional.normalize(prototypes.weight.to(features.dtype), dim=1))
