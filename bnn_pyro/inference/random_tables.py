"""Random numbers for samplers, made in blocks ahead of use: each depends on its chain and step only.

``Noise`` costs a few hundred small operations a call, whatever the amount, so tables hold many steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.noise import Noise

_STEPS = 512  # of either kind made at once, at most
_NUMBERS = 2**19  # of either kind made at once, about


class Uniforms:
    """Four uniform numbers for each chain and step, (c, 4) float64 at a time."""

    def __init__(self, noise: Noise, chains: Tensor):
        self.noise, self.chains = noise, chains
        self.step = 0
        self._from = 0
        self._make()

    def now(self) -> Tensor:
        return self._rows[self.step - self._from]

    def next(self) -> Tensor:
        self.step += 1
        if self.step - self._from == len(self._rows):
            self._make()
        return self.now()

    def _make(self) -> None:
        self._from = self.step
        count = max(1, min(_STEPS, _NUMBERS // (4 * len(self.chains))))
        steps = torch.arange(self._from, self._from + count, device=self.chains.device)
        self._rows = self.noise.uniforms(self.chains[None], steps[:, None], 4).unbind()


class Momenta:
    """Standard normal numbers (dim,) for each chain and transition.

    Attributes:
        ahead: Transitions for which numbers are made at once.
        table: (chains * ahead, dim), chain by chain.
        first: (chains,): the transition that a chain's first row is for.
    """

    def __init__(self, noise: Noise, chains: Tensor, dim: int, dtype: torch.dtype):
        self.noise, self.chains, self.dim = noise, chains, dim
        self.ahead = max(1, min(_STEPS, _NUMBERS // max(len(chains) * dim, 1)))
        self.table = torch.zeros(len(chains) * self.ahead, dim, dtype=dtype, device=chains.device)
        self.first = np.full(len(chains), -self.ahead, dtype=np.int64)

    def take(self, rows: Tensor, transition: Tensor) -> Tensor:
        """Numbers (k, dim) for chains ``rows`` at their transitions (k,), which do not go back."""
        chains, now = rows.cpu().numpy(), transition.cpu().numpy()
        offset = now - self.first[chains]
        if len(offset) and offset.max() >= self.ahead:
            late = offset >= self.ahead
            self._make(chains[late], now[late])
            offset = now - self.first[chains]
        return self.table.index_select(0, torch.from_numpy(chains * self.ahead + offset).to(rows.device))

    def _make(self, chains: np.ndarray, first: np.ndarray) -> None:
        """Numbers of ``chains`` (k,) from their transitions ``first`` (k,) on."""
        steps = torch.from_numpy(first[:, None] + np.arange(self.ahead)).to(self.chains.device)
        rows = torch.from_numpy(chains).to(self.chains.device)
        numbers = self.noise.normals(self.chains[rows][:, None], steps, self.dim).to(self.table.dtype)
        self.table.view(-1, self.ahead, self.dim)[rows] = numbers
        self.first[chains] = first
