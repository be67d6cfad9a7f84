"""torch's number of threads for what one thread does, without a word to the others.

``torch.set_num_threads`` also sets what a thread is given that torch meets later: one that first used torch during a fit would
be left on one thread for good, and so would all begun after a fit of its own. So another thread, which ends at once, sets that
back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_threads(most: int | None) -> Iterator[None]:
    """At most so many torch threads inside, for this thread; None leaves them. Whatever is set inside, they are as before."""
    before = torch.get_num_threads()
    if most is None or most >= before:
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
        return
    usual = _given_to_others()
    try:
        _set(most, usual)
        yield
    finally:
        _set(before, usual)


def work_alone() -> None:
    """Has torch use no other thread beside this one, which is new, for what this one does."""
    _set(1, torch.get_num_threads())  # which a thread that is new to torch has to ask first


def _set(count: int, usual: int) -> None:
    """``count`` for this thread, ``usual`` for those to come."""
    torch.set_num_threads(count)
    if count != usual:
        _elsewhere(lambda: torch.set_num_threads(usual))


def _given_to_others() -> int:
    found = [torch.get_num_threads()]  # where the interpreter is about to end, and no thread can begin
    _elsewhere(lambda: found.append(torch.get_num_threads()))
    return found[-1]


def _elsewhere(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return
    thread.join()
