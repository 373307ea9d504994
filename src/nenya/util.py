"""names of the first nenya: parts of a training loop; defined in `nenya.models.loop`."""

from nenya.models.loop import (
    AverageMeter,
    TwoCropTransform,
    accuracy,
    adjust_learning_rate,
    save_model,
    set_optimizer,
    warmup_learning_rate,
)

__all__ = [
    "AverageMeter",
    "TwoCropTransform",
    "accuracy",
    "adjust_learning_rate",
    "save_model",
    "set_optimizer",
    "warmup_learning_rate",
]
