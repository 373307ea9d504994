"""What a preparation says of its files while it works."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from nenya.prepare.account import Account, merged, say_account
from nenya.prepare.work import Outcome, Task

log = logging.getLogger(__name__)


def accounts_of(tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Account]]:
    """Yield name and account of each file; its times may have been shared among tasks."""
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
