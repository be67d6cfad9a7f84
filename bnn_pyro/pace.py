"""Compiled code on one thread or on several, whichever is faster at the time.

Small parallel regions that pay on an idle machine cost more than they save where another process, or a hypervisor, has the
processors: the second thread then comes late to each of them. That comes and goes within minutes, so it is measured on the
calls themselves, again and again. Use it only where the number of threads changes no bit of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

TRIED = 8  # calls on each number of threads in a trial, of which the fastest counts: whatever interrupts makes longer
SHARE = 50  # times as long as a trial lasted is what it found relied on


class FasterThreads:
    """``call``, on one thread or on as many as torch is set to; torch's number is as before when it returns."""

    def __init__(self, call: Callable[..., Any], clock: Callable[[], float] = time.perf_counter):
        self.call, self._clock = call, clock
        self._allowed = 0
        self._begin_trial(0.0)

    def __call__(self, *args: Any) -> Any:
        allowed = torch.get_num_threads()
        began = self._clock()
        if allowed != self._allowed or (self.threads and began > self._until):
            self._allowed = allowed
            self._begin_trial(began)
        threads = self.threads or (1 if len(self._seconds[1]) < TRIED else allowed)
        torch.set_num_threads(threads)
        try:
            result = self.call(*args)
        finally:
            torch.set_num_threads(allowed)
        if not self.threads:
            self._note(threads, self._clock() - began)
        return result

    def _begin_trial(self, now: float) -> None:
        self.threads = 0  # none is known to be faster
        self._seconds: dict[int, list[float]] = {1: [], self._allowed: []}
        self._began = now

    def _note(self, threads: int, seconds: float) -> None:
        self._seconds[threads].append(seconds)
        if all(len(tried) == TRIED for tried in self._seconds.values()):
            self.threads = min(self._seconds, key=lambda count: min(self._seconds[count]))
            now = self._clock()
            self._until = now + SHARE * (now - self._began)
