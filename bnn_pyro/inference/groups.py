"""Chains in groups, each in a thread of its own, and NUTS's: between two pauses none of these waits for another.

That pays where a group spends its time in C++, which needs no interpreter. A chain's draws don't depend on its group: numbers
come by chain and step, gradients in the same blocks, and after a pause all groups go on from the same step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bnn_pyro.inference.metric import GradientCall, Metric
from bnn_pyro.inference.walk import Ended, Walk
from bnn_pyro.threads import work_alone

_WAITING = 8  # batches of each group that wait to be yielded
_PATIENCE = 0.1  # seconds between two looks whether anybody still wants them


def shares(gradient: GradientCall, position: Tensor, threads: int) -> list[slice]:
    """Chains of each group: as many blocks in one as in another, give or take one; all in one where C++ cannot take gradients.

    Args:
        position: (chains, dim)
        threads: Groups, at most, if ``gradient.groups`` has as many.
    """
    most, block = min(threads, getattr(gradient, "groups", 0)), getattr(gradient, "block", 1)
    if most < 2 or len(position) <= block:
        return [slice(0, len(position))]
    parts = torch.arange(0, len(position), block).tensor_split(most)
    starts = [int(part[0]) for part in parts if len(part)]
    return [slice(*pair) for pair in zip(starts, [*starts[1:], len(position)], strict=True)]


class Worker:
    """A thread for one call after another. Not one of ``concurrent.futures``, whose pools end with the main thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._errors: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        work_alone()
        while (call := self._calls.get()) is not None:
            try:
                call()
                self._errors.put(None)
            except BaseException as error:  # which is raised where the call is waited for
                self._errors.put(error)

    def begin(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def wait(self) -> None:
        """Until the first call begun that was not waited for is over. Raises: what it raised."""
        if error := self._errors.get():
            raise error

    def close(self) -> None:
        """Waits for all calls."""
        self._calls.put(None)
        self._thread.join()


class Groups:
    """Walks of consecutive chains, as one.

    Args:
        walks: With the same metric, at the same step.
    """

    def __init__(self, walks: list[Walk]):
        self.walks = walks
        counts = torch.tensor([len(walk.transition) for walk in walks])
        self._first = [int(first) for first in counts.cumsum(0) - counts]

    @property
    def metric(self) -> Metric:
        return self.walks[0].trees.metric

    @property
    def step_size(self) -> Tensor:
        """(chains,)"""
        return torch.cat([walk.trees.step_size for walk in self.walks])

    def use(self, metric: Metric, longer: Tensor) -> None:
        """Another metric, in whose units steps are ``longer`` () times as long; dual averaging begins anew."""
        for walk in self.walks:
            walk.averaging.restart(walk.averaging.average * longer)
            walk.trees.use(metric, walk.averaging.step_size)

    def to(self, pause: int, should_stop: Callable[[], bool]) -> Iterator[Ended]:
        """As ``Walk.to``."""
        if len(self.walks) == 1:
            yield from self.walks[0].to(pause, should_stop)
            return
        yield from self._in_threads(pause, should_stop)
        uniforms = [walk.trees.uniforms for walk in self.walks]
        latest = max(numbers.step for numbers in uniforms)
        for numbers in uniforms:
            numbers.go_to(latest)

    def _in_threads(self, pause: int, should_stop: Callable[[], bool]) -> Iterator[Ended]:
        ready: queue.Queue[Ended | BaseException | None] = queue.Queue(_WAITING * len(self.walks))
        over = threading.Event()
        stop = lambda: over.is_set() or should_stop()

        def hand_over(what: Ended | BaseException | None) -> None:
            while not over.is_set():
                try:
                    ready.put(what, timeout=_PATIENCE)
                except queue.Full:
                    continue
                return

        def work(walk: Walk, first: int) -> None:
            try:
                work_alone()
                with torch.no_grad():
                    for ended in walk.to(pause, stop):
                        hand_over(ended._replace(rows=ended.rows + first))
                hand_over(None)
            except BaseException as error:  # which is raised where the walk is waited for
                hand_over(error)

        threads = [
            threading.Thread(target=work, args=pair, daemon=True) for pair in zip(self.walks, self._first, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            going = len(threads)
            while going:
                what = ready.get()
                if isinstance(what, BaseException):
                    raise what
                if what is None:
                    going -= 1
                else:
                    yield what
        finally:
            over.set()
            for thread in threads:
                if thread.ident is not None:  # it has begun
                    thread.join()
