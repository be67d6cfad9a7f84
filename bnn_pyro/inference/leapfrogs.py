"""Leapfrog steps of all chains, the same number in each; on a device a step is one launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bnn_pyro import replay
from bnn_pyro.inference.metric import GradientCall, Metric, fuses, leapfrog
from bnn_pyro.replay import Replay


class State(NamedTuple):
    """Of all chains: position and gradient (c, dim), log density (c,) float64."""

    position: Tensor
    grad: Tensor
    log_density: Tensor


class Leapfrogs:
    """Leapfrog steps of all chains in one metric."""

    def __init__(self, metric: Metric, gradient: GradientCall):
        self.metric, self.gradient = metric, gradient
        self._replay: Replay | None = None
        self._now: tuple[Tensor, ...] = ()
        self._dense = metric.dense

    def __call__(self, state: State, momentum: Tensor, step: Tensor, steps: int) -> tuple[State, Tensor]:
        """Where ``steps`` of size ``step`` (c,) lead from state and momentum (c, dim), which stay as they are."""
        now: tuple[Tensor, ...] = (*state, momentum, step)
        if replay.waits(step.device):
            for _ in range(steps):
                now = self._after(*now)
        else:
            if self._replay is None or self._dense != self.metric.dense:
                self._now = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in now)
                self._dense = self.metric.dense
                self._replay = Replay(self._go, step.device, fuses(self.gradient))
            self._put(now)
            for _ in range(steps):
                self._replay()
            now = tuple(t.clone() for t in self._now)
        return State(*now[:3]), now[3]

    def close(self) -> None:
        """Ends what it began; to be called when no more steps are to come."""

    def _go(self) -> None:
        self._put(self._after(*self._now))

    def _put(self, values: tuple[Tensor, ...]) -> None:
        for own, value in zip(self._now, values, strict=True):
            if own is not value:
                own.copy_(value)

    def _after(
        self, position: Tensor, grad: Tensor, log_density: Tensor, momentum: Tensor, step: Tensor
    ) -> tuple[Tensor, ...]:
        position, grad, momentum, log_density = leapfrog(position, momentum, grad, step, self.metric, self.gradient)
        return position, grad, log_density, momentum, step
