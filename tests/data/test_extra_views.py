import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from nenya.data.extra_views import ExtraViews
from nenya.errors import OptionError
from nenya.options import own
from nenya.options.sections import AugmentOptions


def stripes(views, generator):
    return views + torch.randn(len(views), 1, views.shape[2], 1, generator=generator)


def louder(views, generator):
    return views.mul_(2).add_(1)


WRONG = {
    "smaller": (lambda views, generator: views[:, :, 1:], "expected views of shape (4, 1, 8, 8), got (4, 1, 7, 8)"),
    "nothing": (lambda views, generator: None, "got NoneType"),
    "whole": (lambda views, generator: views.long(), "expected float32 views, got int64"),
    "nan": (lambda views, generator: views.index_fill(0, torch.tensor([1]), np.nan), "NaN or infinity in 1 of 4"),
    "fails": (lambda views, generator: 1 / 0, "fails for views of shape (4, 1, 8, 8): ZeroDivisionError"),
    "alone": (lambda views: views, "TypeError"),
}


@pytest.fixture(autouse=True)
def module(monkeypatch):
    found = ModuleType("own_views")
    vars(found).update(stripes=stripes, louder=louder, number=3, **{name: made[0] for name, made in WRONG.items()})
    monkeypatch.setitem(sys.modules, "own_views", found)
    monkeypatch.setattr(own, "_permitted", set())


def extra(*names, demean=True):
    full = [f"own_views.{name}" for name in names]
    own.permit(*full)
    return ExtraViews(AugmentOptions(extra=full, demean=demean))


def views(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_functions_are_applied_in_order_with_numbers_of_their_own():
    both = extra("stripes", "louder", demean=False)
    one = both(views(), [1, 0, 2, 3, 0])
    assert torch.equal(one, both(views(), [1, 0, 2, 3, 0])), "the same step draws the same numbers"
    for other in ([2, 0, 2, 3, 0], [1, 0, 2, 4, 0], [1, 0, 3, 3, 0], [1, 1, 2, 3, 0], [1, 0, 2, 3, 8]):
        assert not torch.equal(one, both(views(), other))
    drawn = (one - 1) / 2 - views()
    assert torch.allclose(drawn, drawn[..., :1].expand_as(drawn), atol=1e-5)
    twice = extra("stripes", "stripes", demean=False)(views(), [1]) - views()
    once = extra("stripes", demean=False)(views(), [1]) - views()
    assert not torch.allclose(twice, 2 * once), "each function has a generator of its own"


def test_the_mean_is_removed_afterwards_and_nothing_happens_without_functions():
    assert extra("louder")(views(), [1]).mean((2, 3)).abs().max() < 1e-6
    given = views()
    assert extra()(given, [1]) is given


@pytest.mark.parametrize("name", WRONG)
def test_what_a_function_returns_is_checked_before_a_training(name):
    with pytest.raises(OptionError) as error:
        extra(name).check(8)
    assert str(error.value).startswith(f"augment.extra=[own_views.{name}]: ")
    assert WRONG[name][1] in str(error.value)
    assert "\n" not in str(error.value)


def test_views_that_were_not_finite_before_are_left_to_the_loss():
    bad = views()
    bad[2] = torch.nan
    assert torch.isnan(extra("stripes")(bad, [1])[2]).all()


def test_only_functions_that_the_user_names_are_imported():
    with pytest.raises(OptionError, match="named by a file"):
        ExtraViews(AugmentOptions(extra=["own_views.stripes"]))
    with pytest.raises(OptionError, match="expected a function of"):
        extra("number")
    with pytest.raises(OptionError, match="has no missing"):
        extra("missing")
