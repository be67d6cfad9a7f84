"""Chains of NUTS from one pause to the next: each begins its next tree when one has ended, with the step size it has by then.

``Walk`` is torch's, for ``Trees`` on any device; ``native_walk`` has the one for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.inference.step_sizes import DualAveraging
from bnn_pyro.inference.trees import Info, Trees


class Ended(NamedTuple):
    """Trees that ended, a chain's in order of time.

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


class Walk:
    """All chains of ``trees``, at rest until ``to`` is called.

    Args:
        averaging: Adapts the step sizes of ``trees`` in the first ``warmup`` transitions of each chain, and its average is
            what they have afterwards.
    """

    def __init__(self, trees: Trees, averaging: DualAveraging, warmup: int):
        self.trees, self.averaging, self.warmup = trees, averaging, warmup
        self.transition = np.zeros(len(trees.position), dtype=np.int64)  # how many each chain has made

    def to(self, pause: int, should_stop: Callable[[], bool]) -> Iterator[Ended]:
        """Trees as they end, until each chain has made ``pause`` transitions and rests, or ``should_stop()``."""
        trees, transition = self.trees, self.transition
        everyone = trees.chains
        trees.begin(everyone, torch.from_numpy(transition).to(everyone.device))
        left = int((pause - transition).sum())
        while left and not should_stop():
            rows = trees.advance()
            if not len(rows):
                continue
            # a few numbers that are looked at again and again: NumPy answers several times faster than torch
            ended = rows.cpu().numpy()
            before = transition[ended]
            now = transition[ended] = before + 1
            info = trees.info(rows)
            position = trees.position.index_select(0, rows)
            yield Ended(rows, torch.from_numpy(before).to(rows.device), position, info)
            if now.min() <= self.warmup:
                adapting, rate = _those(now <= self.warmup, rows, info.acceptance_rate)
                self.averaging.update(adapting, rate)
                trees.step_size.index_copy_(0, adapting, self.averaging.step_size.index_select(0, adapting))
                (fixed,) = _those(now == self.warmup, rows)
                if len(fixed):
                    trees.step_size[fixed] = self.averaging.average[fixed]
            left -= len(rows)
            (resting,) = _those(now >= pause, rows)
            if len(resting):
                trees.rest(resting)
            trees.begin(*_those(now < pause, rows, torch.from_numpy(now).to(rows.device)))


def _those(mask: np.ndarray, *columns: Tensor) -> list[Tensor]:
    """The columns (k, ...) where ``mask`` (k,) holds: mostly all of them or none."""
    if mask.all():
        return list(columns)
    at = torch.from_numpy(mask.nonzero()[0]).to(columns[0].device)
    return [column.index_select(0, at) for column in columns]
