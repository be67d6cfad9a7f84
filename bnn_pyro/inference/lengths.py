"""The trajectory length that ChEES-HMC learns, and how it is spread.

ChEES climbs

    ChEES(T) = E[(|z' - E z'|^2 - |z - E z|^2)^2] / 4

by Adam on log T, with distances in units of the metric, from all chains of an iteration weighed by their acceptance.
Source: Hoffman, Radul & Sountsov 2021, AISTATS 130, sections 3 and 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_pyro.inference.metric import Metric, dot


class Trajectory(NamedTuple):
    """What one iteration did: where it started, proposed to go, and how fast it was there."""

    start: Tensor  # (c, dim)
    proposal: Tensor
    velocity: Tensor
    acceptance_rate: Tensor  # (c,)

    def of(self, chains: Tensor) -> Trajectory:
        """That of the chains where ``chains`` (c,) is True."""
        return self if chains.all() else Trajectory(*(values[chains] for values in self))


class LengthAdaptation:
    """The trajectory length by Adam on its logarithm; the mean of the later iterations is kept."""

    def __init__(self, length: Tensor, lr: float = 0.025, decay: float = 0.95):
        self.log_length = length.double().log()
        self.lr, self.decay = lr, decay
        self._square, self._count = torch.zeros((), dtype=torch.float64), 0
        self._average = self.log_length.clone()

    @property
    def length(self) -> Tensor:
        return self.log_length.exp()

    def update(self, trajectory: Trajectory, metric: Metric, time: float, step_size: float, max_steps: int) -> None:
        """Follows the gradient of ChEES in log T, from trajectories that took ``time``; between 1 and ``max_steps`` steps."""
        rate = trajectory.acceptance_rate
        finite = torch.isfinite(trajectory.proposal).all(1) & torch.isfinite(trajectory.velocity).all(1)
        rate = torch.where(finite, rate, 0.0)
        if not rate.sum() > 0:
            return
        weight = (rate / rate.sum())[:, None]
        proposal = torch.where(finite[:, None], trajectory.proposal, trajectory.start)
        velocity = torch.where(finite[:, None], trajectory.velocity, 0.0)
        before = metric.whiten(trajectory.start - trajectory.start.mean(0))
        after = metric.whiten(proposal - (weight * proposal).sum(0).to(proposal.dtype))
        change = dot(after, after) - dot(before, before)
        slope = float((weight[:, 0] * change * dot(after, metric.whiten(velocity))).sum()) * time
        self._count += 1
        self._square = self.decay * self._square + (1 - self.decay) * slope**2
        scaled = slope / (float(self._square / (1 - self.decay**self._count)) ** 0.5 + 1e-20)
        self.log_length = self.log_length + self.lr * scaled
        self.log_length = self.log_length.clamp(math.log(step_size), math.log(step_size * max(max_steps / 2, 1.0)))
        keep = self._count**-0.5
        self._average = keep * self.log_length + (1 - keep) * self._average

    def finish(self) -> None:
        self.log_length = self._average


def halton(i: int) -> float:
    """The (i+1)-th number of the Halton sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    i, result, part = i + 1, 0.0, 0.5
    while i:
        result += part * (i & 1)
        i >>= 1
        part /= 2
    return result
