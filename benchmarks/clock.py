"""Seconds of a call, fit for comparing calls."""

import resource
import time

import torch


def seconds(call, *arguments):
    """Return what a call takes: with one thread of torch the processor's time, its ended child processes' too.

    Other programs on the machine disturb that time least. With several threads it would count those that wait, so
    that it is the wall clock's.
    """
    start = now()
    call(*arguments)
    return now() - start


def now():
    if torch.get_num_threads() > 1:
        return time.perf_counter()
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
