"""Random numbers for samplers, made in blocks ahead of use: each depends on its chain and step only.

``Noise`` costs a few hundred small operations a call, whatever the amount, so tables hold many steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_pyro.noise import Noise

_STEPS = 256  # of uniforms made at once, at most
_NUMBERS = 2**17  # of either kind made at once, about


class Uniforms:
    """Four uniform numbers for each chain and step, (c, 4) float64 at a time."""

    def __init__(self, noise: Noise, chains: Tensor):
        self.noise, self.chains = noise, chains
        self.step = 0
        self._from = 0
        self._make()

    def now(self) -> Tensor:
        return self._table[self.step - self._from]

    def next(self) -> Tensor:
        self.step += 1
        if self.step - self._from == len(self._table):
            self._make()
        return self.now()

    def _make(self) -> None:
        self._from = self.step
        count = max(1, min(_STEPS, _NUMBERS // (4 * len(self.chains))))
        steps = torch.arange(self._from, self._from + count, device=self.chains.device)
        self._table = self.noise.uniforms(self.chains[None], steps[:, None], 4)


class Momenta:
    """Standard normal numbers (dim,) for each chain and transition."""

    def __init__(self, noise: Noise, chains: Tensor, dim: int, dtype: torch.dtype):
        self.noise, self.chains, self.dim = noise, chains, dim
        self.ahead = max(1, min(64, _NUMBERS // max(len(chains) * dim, 1)))
        self._table = torch.zeros(len(chains), self.ahead, dim, dtype=dtype, device=chains.device)
        self._from = torch.full_like(chains, -self.ahead)

    def take(self, rows: Tensor, transition: Tensor) -> Tensor:
        """Numbers (k, dim) for chains ``rows`` at their transitions (k,), which do not go back."""
        late = transition - self._from[rows] >= self.ahead
        if late.any():
            chains, first = rows[late], transition[late]
            steps = first[:, None] + torch.arange(self.ahead, device=first.device)
            self._table[chains] = self.noise.normals(self.chains[chains][:, None], steps, self.dim).to(
                self._table.dtype
            )
            self._from[chains] = first
        return self._table[rows, transition - self._from[rows]]
