"""Chains of NUTS from one pause to the next: each begins its next tree when one has ended, with the step size it has by then.

``Walk`` is torch's, for ``Trees`` on any device; ``native_walk`` has the one for a CPU. Of a device it asks for nothing but
whole iterations: what chains do with a tree that has ended, and their step sizes, are decided there, and trees that end are
laid down where the host, which looks in now and then, will find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_pyro import replay
from bnn_pyro.inference.figures import stacked, unstacked
from bnn_pyro.inference.metric import fuses
from bnn_pyro.inference.step_sizes import DualAveraging
from bnn_pyro.inference.trees import Info, Trees, put
from bnn_pyro.replay import OnItsWay, Replay

_LOOK = 32  # iterations between two looks, at most
_BYTES = 2**28  # of positions that wait to be looked at, about


class Ended(NamedTuple):
    """Trees that ended, a chain's in order of time; on the CPU.

    Attributes:
        rows: Their chains (k,); one may come more than once.
        transition: Which of its chain's transitions each made (k,), from 0.
        position: Where each led, (k, dim).
        info: Statistics of each.
    """

    rows: Tensor
    transition: Tensor
    position: Tensor
    info: Info


@dataclass
class _Leaving:
    """``Ended``, under way to the CPU."""

    rows: np.ndarray
    transition: np.ndarray
    position: OnItsWay
    figures: OnItsWay

    def take(self) -> Ended:
        rows, transition = torch.from_numpy(self.rows), torch.from_numpy(self.transition)
        return Ended(rows, transition, self.position.take(), unstacked(Info, self.figures.take()))


class Walk:
    """All chains of ``trees``, at rest until ``to`` is called.

    Args:
        averaging: Adapts the step sizes of ``trees`` in the first ``warmup`` transitions of each chain, and its average is
            what they have afterwards.

    Attributes:
        transition: How many each chain has made, (c,), as of the last look.
    """

    def __init__(self, trees: Trees, averaging: DualAveraging, warmup: int):
        self.trees, self.averaging, self.warmup = trees, averaging, warmup
        self.transition = np.zeros(len(trees.position), dtype=np.int64)
        self._at: _Place | None = None

    def to(self, pause: int, should_stop: Callable[[], bool]) -> Iterator[Ended]:
        """Trees as they end, until each chain has made ``pause`` transitions and rests, or ``should_stop()``."""
        trees = self.trees
        at = self._place(pause)
        begun, leaving = False, None
        while (self.transition < pause).any() and not should_stop():
            trees.uniforms.ready(at.look)
            trees.momenta.ready(self.transition, at.look)
            if not begun:
                at.begin()
            begun = True
            for _ in range(at.look):
                if at.waits and (should_stop() or not trees.active.any()):
                    break
                at.replay()
            if leaving is not None:
                yield leaving.take()
            leaving = at.look_in(self.transition)
        if leaving is not None:
            yield leaving.take()

    def _place(self, pause: int) -> _Place:
        """The one of before, unless what was recorded no longer holds."""
        if self._at is None or self._at.dense != self.trees.metric.dense:
            self._at = _Place(self)
        self._at.until(pause)
        return self._at


class _Place:
    """What an iteration changes on the device."""

    def __init__(self, walk: Walk):
        self.trees, self.averaging, self.warmup = walk.trees, walk.averaging, walk.warmup
        trees, device = self.trees, walk.trees.chains.device
        chains, dim = trees.position.shape
        self.dense = trees.metric.dense
        # Momenta are made for a chain when it may come to the end of those it has, most of which it should have used.
        ahead = min(trees.uniforms.steps_ahead, max(trees.momenta.ahead // 3, 1))
        self.look = max(1, min(_LOOK, ahead, _BYTES // max(trees.position.numel() * trees.position.element_size(), 1)))
        self.transition = torch.tensor(walk.transition, device=device)  # as the chains go
        self.pause = torch.zeros_like(self.transition[:1])
        self.waits = replay.waits(device)  # the host, which can stop anywhere then
        self.idle = torch.zeros_like(self.transition[:1])  # iterations since the last look in which all chains rested
        # trees that have ended since the last look: how many of each chain, and the n-th of each in row n * chains + chain
        self.ended = torch.zeros_like(self.transition)
        self.position = trees.position.new_empty(self.look * chains, dim)
        self.figures = torch.empty(len(Info._fields), self.look * chains, dtype=torch.float64, device=device)
        self.replay = Replay(self.iterate, device, fuses(trees.gradient))

    def until(self, pause: int) -> None:
        self.pause.fill_(pause)
        self.adapting = self.warmup > 0 and (not self.waits or bool((self.transition < self.warmup).any()))

    def begin(self) -> None:
        self._begin(torch.ones_like(self.trees.active))

    def iterate(self) -> None:
        """A leapfrog step of all chains, and what follows where a tree has ended with it."""
        trees = self.trees
        if not self.waits:
            self.idle += ~trees.active.any()
        ended = trees.advance_all()
        if not trees.some(ended):
            return
        # of a tree that goes on, too: what is laid down for it is overwritten
        row = self.ended * len(trees.chains) + trees.chains
        info = trees.info_all()
        self.position.index_copy_(0, row, trees.position)
        self.figures.index_copy_(1, row, stacked(info))
        self.ended += ended
        self.transition += ended
        if self.adapting:
            self._adapt(ended & (self.transition <= self.warmup), info.acceptance_rate)
        resting = ended & (self.transition >= self.pause)
        trees.rest_where(resting)
        self._begin(ended & ~resting)

    def _adapt(self, mask: Tensor, acceptance_rate: Tensor) -> None:
        self.averaging.update(acceptance_rate, mask)
        last = self.transition == self.warmup
        put(self.trees.step_size, torch.where(last, self.averaging.average, self.averaging.step_size), mask)

    def _begin(self, mask: Tensor) -> None:
        trees = self.trees
        if trees.some(mask):
            trees.begin_where(mask, trees.metric.momentum(trees.momenta.take_all(self.transition)))

    def look_in(self, transition: np.ndarray) -> _Leaving | None:
        """Waits for the device, and takes away what lies there, if anything does; ``transition`` (c,) moves on."""
        *ended, idle = torch.cat([self.ended, self.idle]).tolist()
        self.trees.uniforms.back(idle)  # as if the chains had stopped at once
        self.idle.zero_()
        if not any(ended):
            return None
        count = np.array(ended)
        self.ended.zero_()
        chains = np.repeat(np.arange(len(count)), count)
        nth = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        row = torch.from_numpy(nth * len(count) + chains).to(self.ended.device)
        made = transition[chains] + nth
        transition += count
        position, figures = self.position.index_select(0, row), self.figures.index_select(1, row)
        return _Leaving(chains, made, OnItsWay(position), OnItsWay(figures))
