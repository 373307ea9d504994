"""What a preparation says of its files, and why a run has no cutout."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from nenya.options.commands import PrepareOptions
from nenya.prepare.account import Account, masked_words, merged, say_account
from nenya.prepare.places import Fates, summary
from nenya.prepare.work import Outcome, Task

log = logging.getLogger(__name__)


def accounts_of(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Account]]:
    """Yield name and account of each file, whose times may have been shared among tasks."""
    shares = tasks[0].share[1] if tasks else 1
    for start in range(0, len(tasks), shares):
        yield tasks[start].name, merged(outcome.account for outcome in outcomes[start : start + shares])


def account_of(number: int, tasks: Sequence[Task], outcomes: Mapping[int, Outcome]) -> Account | None:
    """Return the account of the file of a task, None if others of its tasks are not done or it has no cutout."""
    shares = tasks[number].share[1]
    start = number - number % shares
    if any(n not in outcomes for n in range(start, start + shares)):
        return None
    whole = merged(outcomes[n].account for n in range(start, start + shares))
    return whole if whole.cutouts else None


def say_rest(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> None:
    """Log the files without a cutout, kept back for the case that others have one, and what was left out."""
    for name, account in accounts_of(tasks, outcomes):
        if not account.cutouts:
            say_account(name, account)
    for note in dict.fromkeys(note for outcome in outcomes for note in outcome.notes):
        log.warning("%s", note)


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
