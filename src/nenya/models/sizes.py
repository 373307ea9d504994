"""Whether a model version takes cutouts of a size."""

import logging

from nenya.errors import InputFileError
from nenya.options.sections import ModelOptions

log = logging.getLogger(__name__)


def check_taken(model: ModelOptions, side: int, source: object) -> None:
    """Check that a version takes cutouts of `side` x `side` pixels.

    Args:
        model: its options.
        side: pixels.
        source: the file of the cutouts, or what they are, for messages.

    Raises:
        InputFileError: They are outside `model.image_sizes`.
    """
    least, most = model.image_sizes or (side, side)
    if not least <= side <= most:
        raise InputFileError(
            f"{source}: expected cutouts of {least} to {most} pixels a side for model {model.name}, got {side}: "
            "cut or average them to such a size, or take another model"
        )


def check_side(model: ModelOptions, side: int, source: object) -> None:
    """Check that a version takes cutouts of a size, as `check_taken` does; warn where it was trained on others."""
    check_taken(model, side, source)
    if model.image_size and side != model.image_size:
        log.warning(
            "%s: cutouts have %d pixels a side, but model %s is designed for %d",
            *(source, side, model.name, model.image_size),
        )
