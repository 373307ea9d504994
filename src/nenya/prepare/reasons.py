"""Why fields have no cutout, in a line."""

from collections.abc import Mapping, Sequence

from nenya.options.commands import PrepareOptions
from nenya.prepare.account import masked_words
from nenya.prepare.places import Fates, summary
from nenya.prepare.work import Outcome


def why_empty(outcomes: Sequence[Outcome], options: PrepareOptions) -> str:
    """Return why some fields have no cutout."""
    unclear = f"nowhere {options.clear_threshold:g} % clear"
    smaller = sum(outcome.smaller for outcome in outcomes)
    if not smaller:
        return unclear
    height, width = min((outcome.shape for outcome in outcomes if outcome.smaller), key=min)
    size = f"field_size={options.field_size}, such as one of {height} x {width} pixels"
    return f"{smaller} smaller than {size}; the others {unclear}"


def why_none(
    options: PrepareOptions,
    outcomes: Sequence[Outcome],
    failed: Mapping[str, str],
    done: int,
    fates: Fates | None = None,
) -> str:
    """Return the reason why there is no cutout, in one line."""
    if failed and not done:
        first = next(iter(failed.values()))
        return first if len(failed) == 1 else f"none of {len(failed)} granules can be read; the first error: {first}"
    clearest = max((outcome.clearest for outcome in outcomes), default=0.0)
    where = f"{done} granule{'s' if done > 1 else ''} of {options.data}"
    if fates is not None:
        return f"{where}: none of {len(fates.state)} places of {options.at} has a cutout ({summary(fates, options)})"
    if clearest == 0:
        side = f"{options.field_size} x {options.field_size} pixels"
        height, width = max((outcome.shape for outcome in outcomes), key=min, default=(0, 0))
        if 0 < min(height, width) < options.field_size:
            return (
                f"{where}: a field of {height} x {width} pixels has no cutout of field_size={options.field_size}: give "
                f"field_size={min(height, width)} or less"
            )
        if options.fixed_km is not None:
            side = f"fixed_km={options.fixed_km:g}"
        return (
            f"{where}: no cutout of {side} has a clear pixel: the field is "
            "smaller than that, or entirely masked (land, cloud, quality, temp_bounds)"
            + masked_words(outcome.account for outcome in outcomes)
        )
    wanted = f"clear_threshold={options.clear_threshold:g}"
    if constant := sum(outcome.account.tally.constant for outcome in outcomes):
        return f"{where}: all {constant} cutouts with enough clear pixels are constant; check level= and variable="
    if overshot := sum(outcome.account.tally.overshot for outcome in outcomes):
        return f"{where}: the filled pixels of all {overshot} cutouts would be impossible; raise clear_threshold="
    if clearest * 100 >= options.clear_threshold:
        return f"{where}: every cutout has masked pixels left (inpaint={options.inpaint}); inpaint=fast fills them"
    return f"{where}: no cutout reaches {wanted} %; the clearest has {100 * clearest:.1f} %: lower it, or field_size"
