"""Random numbers for samplers, made in blocks ahead of use: each depends on its chain and step only.

``Noise`` costs a few hundred small operations a call, whatever the amount, so tables hold many steps. On a device that goes
through steps by itself, the host sees to it that the numbers of the next ones are there (``ready``), and the device finds
its place in the tables.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnn_pyro import replay
from bnn_pyro.noise import Noise

_STEPS = 512  # of either kind made at once, at most
_NUMBERS = 2**19  # of either kind made at once, about
_DEVICE_NUMBERS = 2**24  # the same on a device, where a block costs as many launches however small it is


class Uniforms:
    """Four uniform numbers for each chain and step, (c, 4) float64 at a time.

    ``now`` and ``next`` may be part of what a device replays, and don't ask the host there.
    """

    def __init__(self, noise: Noise, chains: Tensor):
        self.noise, self.chains = noise, chains
        self.step = 0
        self._from = 0
        waits = replay.waits(chains.device)
        count = max(2, min(_STEPS, (_NUMBERS if waits else _DEVICE_NUMBERS) // (4 * len(chains))))
        self._place = None if waits else torch.zeros(1, dtype=torch.int64, device=chains.device)
        self._table = torch.empty(count, len(chains), 4, dtype=torch.float64, device=chains.device)
        self._rows = self._table.unbind()
        self._make(0)

    def now(self) -> Tensor:
        if self._place is not None:
            return self._table.index_select(0, self._place)[0]
        return self._rows[self.step - self._from]

    def next(self) -> Tensor:
        if self._place is not None:
            self._place += 1
            return self.now()
        self.step += 1
        if self.step - self._from == len(self._rows):
            self._make(self.step)
        return self.now()

    def coming(self) -> Tensor:
        """What ``next`` will give, of one step and of as many more as are made, (steps, c, 4); on a CPU."""
        at = self.step - self._from + 1
        if at == len(self._rows):
            self._make(self.step + 1)
            at = 0
        return self._table[at:]

    def skip(self, steps: int) -> None:
        """As if ``next`` had been called so many times, of those that are ``coming``; on a CPU."""
        self.step += steps

    def go_to(self, step: int) -> None:
        """As if ``next`` had been called until ``step``, which lies ahead; on a CPU."""
        self.step = step
        if step - self._from >= len(self._rows):
            self._make(step)

    def ready(self, steps: int) -> None:
        """To be called before each so many calls of ``next``; at most ``steps_ahead``."""
        if self._place is None:
            return
        if self.step + steps - self._from >= len(self._rows):
            self._make(self.step)
        self.step += steps

    def back(self, steps: int) -> None:
        """Takes back the last ``steps`` calls of ``next``, which followed the last ``ready``."""
        if self._place is not None and steps:
            self._place -= steps
            self.step -= steps

    @property
    def steps_ahead(self) -> int:
        return len(self._rows) - 1

    def _make(self, step: int) -> None:
        self._from = step
        steps = torch.arange(self._from, self._from + len(self._rows), device=self.chains.device)
        self._table.copy_(self.noise.uniforms(self.chains[None], steps[:, None], 4))
        if self._place is not None:
            self._place.zero_()


class Momenta:
    """Standard normal numbers (dim,) for each chain and transition.

    Attributes:
        ahead: Transitions for which numbers are made at once.
        table: (chains * ahead, dim), chain by chain.
        first: (chains,): the transition that a chain's first row is for.
    """

    def __init__(self, noise: Noise, chains: Tensor, dim: int, dtype: torch.dtype):
        self.noise, self.chains, self.dim = noise, chains, dim
        numbers = _NUMBERS if replay.waits(chains.device) else _DEVICE_NUMBERS
        self.ahead = max(2, min(_STEPS, numbers // max(len(chains) * dim, 1)))
        self.table = torch.zeros(len(chains) * self.ahead, dim, dtype=dtype, device=chains.device)
        self.first = np.full(len(chains), -self.ahead, dtype=np.int64)
        # where ``take_all`` finds them
        self._first = torch.tensor(self.first, device=chains.device)
        self._row = torch.arange(len(chains), device=chains.device) * self.ahead

    def take(self, rows: Tensor, transition: Tensor) -> Tensor:
        """Numbers (k, dim) for chains ``rows`` at their transitions (k,), which do not go back."""
        chains, now = rows.cpu().numpy(), transition.cpu().numpy()
        self._see_to(chains, now, now)
        offset = now - self.first[chains]
        return self.table.index_select(0, torch.from_numpy(chains * self.ahead + offset).to(rows.device))

    def ready(self, transition: np.ndarray, more: int = 0) -> None:
        """Sees to it that ``take_all`` has the numbers of all chains from their transitions (c,) to ``more`` later ones.

        At most ``ahead - 1`` of these.
        """
        self._see_to(np.arange(len(self.first)), transition, transition + more)

    def take_all(self, transition: Tensor) -> Tensor:
        """``take`` for all chains; of those whose numbers are not ready, numbers that mean nothing."""
        offset = (transition - self._first).clamp(0, self.ahead - 1)
        return self.table.index_select(0, self._row + offset)

    def _see_to(self, chains: np.ndarray, now: np.ndarray, last: np.ndarray) -> None:
        """Has numbers up to transitions ``last`` (k,) of ``chains`` (k,), which are at ``now`` (k,)."""
        late = last - self.first[chains] >= self.ahead
        if late.any():
            self._make(chains[late], now[late])

    def _make(self, chains: np.ndarray, first: np.ndarray) -> None:
        """Numbers of ``chains`` (k,) from their transitions ``first`` (k,) on."""
        steps = torch.from_numpy(first[:, None] + np.arange(self.ahead)).to(self.chains.device)
        rows = torch.from_numpy(chains).to(self.chains.device)
        numbers = self.noise.normals(self.chains[rows][:, None], steps, self.dim).to(self.table.dtype)
        self.table.view(-1, self.ahead, self.dim)[rows] = numbers
        self.first[chains] = first
        self._first.copy_(torch.from_numpy(self.first))
