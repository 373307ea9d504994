"""Functions of the user's own that change the views of a training.

Letters in shapes: V views, C channels, S rows and columns of a view.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nenya.errors import NenyaError, OptionError
from nenya.options.own import load_named
from nenya.options.sections import AugmentOptions
from nenya.storage.texts import first_words

_TRIED = 4  # views


class ExtraViews:
    """Applies the functions of `augment.extra` to views, one after the other.

    A function is called as `function(views, generator)`, with views (V, C, S, S) float32 on the device of the training
    and a `torch.Generator` on the CPU, and returns views of the same shape. The generator is its own, and depends on
    the seed of the run, the epoch, the batch and the first row of the process, only: so a resumed run draws the same
    numbers. It may change the views in place. With `augment.demean` the mean of each view is removed afterwards.

    Args:
        options: `extra` names the functions, see `nenya.options.own`.

    Raises:
        OptionError: The user has not named a function, it cannot be imported, or it is none.
    """

    def __init__(self, options: AugmentOptions) -> None:
        self.demean = options.demean
        self.functions: list[tuple[str, Callable[[Tensor, torch.Generator], Tensor]]] = [
            (name, load_named(name, "augment.extra", "a function of (views, generator)", _is_function))
            for name in options.extra
        ]

    def __call__(self, views: Tensor, key: Sequence[int]) -> Tensor:
        """Return the changed views.

        Args:
            views: (V, C, S, S) float32.
            key: integers that the random numbers depend on.

        Raises:
            OptionError: A function fails, or returns something else than finite views of the same shape.
        """
        for place, (name, function) in enumerate(self.functions):
            drawn = np.random.SeedSequence([*key, place]).generate_state(1, np.uint64)[0]
            views = _applied(name, function, views, torch.Generator().manual_seed(int(drawn >> 1)))
        if self.functions and self.demean:
            views = views - views.mean((2, 3), keepdim=True)
        return views

    def check(self, size: int) -> None:
        """Try the functions on a few views of noise of `size` x `size` pixels.

        Raises:
            OptionError: As for a call.
        """
        if self.functions:
            self(torch.randn(_TRIED, 1, size, size, generator=torch.Generator().manual_seed(0)), [0])


def _is_function(found: object) -> bool:
    return callable(found) and not isinstance(found, type)


def _applied(
    name: str, function: Callable[[Tensor, torch.Generator], Tensor], views: Tensor, generator: torch.Generator
) -> Tensor:
    """Return what a function makes of views, checked."""
    given, shape = f"augment.extra=[{name}]", tuple(views.shape)
    was_finite = bool(torch.isfinite(views).all())
    try:
        changed = function(views, generator)
    except NenyaError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise OptionError(
            f"{given}: it fails for views of shape {shape}: {type(error).__name__}: {first_words(error)}"
        ) from error
    if not isinstance(changed, Tensor) or changed.shape != views.shape:
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise OptionError(f"{given}: expected views of shape {shape}, got {got}")
    if not changed.is_floating_point():
        raise OptionError(f"{given}: expected float32 views, got {str(changed.dtype).removeprefix('torch.')}")
    if was_finite and not bool(torch.isfinite(changed).all()):
        bad = int((~torch.isfinite(changed)).flatten(1).any(dim=1).sum())
        raise OptionError(f"{given}: expected finite views, got NaN or infinity in {bad} of {len(changed)}")
    return changed.to(views.dtype)
