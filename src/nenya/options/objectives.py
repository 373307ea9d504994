"""Options of what a training minimises: the method, and the numbers of each."""

import dataclasses
from dataclasses import dataclass

from nenya.errors import OptionError
from nenya.options.declare import above, at_least, one_of, option, within

METHODS = ("SimCLR", "SupCon", "VICReg", "BarlowTwins", "BYOL", "DINO", "MoCo")
"""Training objectives; see `nenya.models.objectives.methods`."""

DEFAULT_EMA = {"BYOL": 0.996, "DINO": 0.996, "MoCo": 0.999}
"""Momentum of the teacher in each method's paper; the methods with a teacher."""

_USED_BY = {
    "temp": ("SimCLR", "SupCon", "MoCo"),
    "contrast_mode": ("SimCLR", "SupCon"),
    "invariance": ("VICReg",),
    "variance": ("VICReg",),
    "covariance": ("VICReg",),
    "redundancy": ("BarlowTwins",),
    "expander": ("VICReg", "BarlowTwins"),
    "predictor": ("BYOL",),
    "ema": tuple(DEFAULT_EMA),
    "queue": ("MoCo",),
    "prototypes": ("DINO",),
    "student_temp": ("DINO",),
    "teacher_temp": ("DINO",),
    "centre": ("DINO",),
}
_NEEDS_STATISTICS = ("VICReg", "BarlowTwins")


@dataclass
class LossOptions:
    """The training objective. Defaults are those of the papers, except for three sizes that are made for ImageNet."""

    ssl_method: str = option(
        "SimCLR", "SimCLR, VICReg, BarlowTwins, BYOL, DINO, MoCo (no labels) or SupCon (labels)", one_of(*METHODS)
    )
    temp: float = option(0.07, "temperature (SimCLR, SupCon, MoCo)", above(0))
    contrast_mode: str = option("all", "anchors: all views or the first one (SimCLR, SupCon)", one_of("all", "one"))
    clear_weight: float = option(
        1.0,
        "with augment.clouds, weight of the agreement with the clear cutout's latent; 0: twins under clouds agree",
        at_least(0),
    )
    invariance: float = option(25.0, "weight of the distance of the views (VICReg)", at_least(0))
    variance: float = option(25.0, "weight of the spread of each dimension (VICReg)", at_least(0))
    covariance: float = option(1.0, "weight of the covariance of dimensions (VICReg)", at_least(0))
    redundancy: float = option(0.005, "weight of the correlation of dimensions (BarlowTwins)", at_least(0))
    expander: int = option(
        2048,
        "width of the two layers behind the head in training (VICReg, BarlowTwins; papers: 8192)",
        within(2, 65_536),
    )
    predictor: int = option(4096, "width of the hidden layer of the predictor (BYOL)", within(1, 65_536))
    ema: float | None = option(
        None,
        "momentum of the teacher; default 0.996 and rising to 1 (BYOL, DINO), 0.999 (MoCo)",
        ("a number from 0 to below 1", lambda value: 0 <= value < 1),
    )
    queue: int = option(4096, "keys of earlier batches in the queue (MoCo; paper: 65536)", within(1, 16_777_216))
    prototypes: int = option(
        4096, "outputs that teacher and student agree on (DINO; paper: 65536)", within(2, 1_048_576)
    )
    student_temp: float = option(0.1, "temperature of the student (DINO)", above(0))
    teacher_temp: float = option(0.04, "temperature of the teacher (DINO)", above(0))
    centre: float = option(
        0.9, "momentum of the centre (DINO)", ("a number from 0 to below 1", lambda value: 0 <= value < 1)
    )


def teacher_momentum(loss: LossOptions) -> float:
    """Return the momentum of the teacher at the first step; 1 for a method without one."""
    return DEFAULT_EMA.get(loss.ssl_method, 1.0) if loss.ema is None else loss.ema


def check_objective(loss: LossOptions, batch: int, labels: str | None) -> None:
    """Check that the options of the objective suit each other and the batches.

    Args:
        loss: the options.
        batch: `loader.batch_size_train`.
        labels: `loader.labels`, where it is given.

    Raises:
        OptionError: An option of another method is set, a queue is shorter than a batch, a batch is too small, or
            labels are given to a method that takes none.
    """
    method = loss.ssl_method
    for field in dataclasses.fields(loss):
        users, value = _USED_BY.get(field.name), getattr(loss, field.name)
        if users and method not in users and value != field.default:
            raise OptionError(
                f"loss.{field.name}={value}: has an effect only with loss.ssl_method={' or '.join(users)}, "
                f"got {method}; leave it out"
            )
    if method == "MoCo" and loss.queue < batch:
        raise OptionError(
            f"loss.queue={loss.queue}: expected at least loader.batch_size_train={batch} keys, one for each cutout of "
            "a batch"
        )
    if method in _NEEDS_STATISTICS and batch < 2:  # a variance
        raise OptionError(f"loader.batch_size_train={batch}: {method} needs at least 2, for statistics of a batch")
    if method != "SupCon" and labels is not None:
        raise OptionError(
            f"loader.labels={labels}: {method} learns without labels; use loss.ssl_method=SupCon or leave "
            "loader.labels out"
        )
