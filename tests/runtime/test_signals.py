"""Signals that end a run: when they raise, and that the handlers from before come back."""

import os
import signal

import pytest

from nenya.errors import Interrupted
from nenya.runtime.signals import Termination, interrupted_between

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def before():
    """Handlers of before; SIGUSR1 is ignored."""
    kept = {number: signal.getsignal(number) for number in STOPPING}
    there = {signal.SIGUSR1: signal.SIG_IGN, signal.SIGINT: signal.default_int_handler}
    for number, handler in there.items():
        signal.signal(number, handler)
    yield {**kept, **there}
    for number, handler in kept.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    signal.sigpending()  # the handler has run by the next bytecode


def test_the_first_signal_interrupts_and_only_a_later_ctrl_c_insists(before):
    with pytest.raises(KeyboardInterrupt):
        with Termination() as termination:
            send(signal.SIGUSR1)  # ignored before, ignored within
            termination.check()
            with pytest.raises(Interrupted, match="run the same command again"):
                send(signal.SIGTERM)
            send(signal.SIGTERM)
            with pytest.raises(Interrupted):
                termination.check()
            send(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in STOPPING} == before


def test_a_signal_between_pieces_waits_for_the_next_and_a_second_one_does_not(before):
    with pytest.raises(Interrupted, match="resumes there"):
        with interrupted_between("interrupted; the same command resumes there") as check:
            check()
            send(signal.SIGINT)
            with pytest.raises(Interrupted):
                check()
            send(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in STOPPING} == before
