"""Step sizes that warmup finds: a first guess, then a chain's own by dual averaging or one that all chains share.

Sources: Hoffman & Gelman 2014, JMLR 15, section 3.2 (dual averaging); Andrieu & Thoms 2008, Statistics and Computing 18,
section 4.2 (a step that all chains share).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnn_pyro.inference.metric import GradientCall, Metric, leapfrog, log_acceptance
from bnn_pyro.noise import Noise

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75


class DualAveraging:
    """Step sizes (c,) float64 whose acceptance rate approaches ``target``, each on its own.

    Attributes:
        centre: (c,), the log step sizes that each is drawn towards.
        state: (4, c): transition count, mean error, log step, its average. Both change in place.
    """

    def __init__(self, step_size: Tensor, target: float):
        self.target = target
        self.centre = torch.empty_like(step_size)
        self.state = step_size.new_empty(4, len(step_size))
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Forgets all but the step sizes, and is drawn towards ten times as much: a low step is found out slowly."""
        log_step = step_size.log()
        none = torch.zeros_like(log_step)
        self.centre.copy_(log_step + math.log(10.0))
        self.state.copy_(torch.stack([none, none, log_step, log_step]))

    def update(self, acceptance_rate: Tensor, mask: Tensor | None = None) -> None:
        """Takes in a transition (c,) of each chain, or of those where ``mask`` (c,)."""
        count, error, _, log_average = self.state.unbind()
        count = count + 1
        error = error.lerp(self.target - acceptance_rate, 1 / (count + T0))
        log_step = self.centre - count.sqrt() / GAMMA * error
        log_average = log_average.lerp(log_step, count**-KAPPA)
        state = torch.stack([count, error, log_step, log_average])
        self.state.copy_(state if mask is None else torch.where(mask, state, self.state))

    @property
    def step_size(self) -> Tensor:
        return self.state[2].exp()

    @property
    def average(self) -> Tensor:
        """The step sizes to keep, (c,)."""
        return self.state[3].exp()


class SharedStep:
    """One step size () float64 for all chains, whose acceptance rate, pooled over them, approaches ``target``.

        log step <- log step + t^-1/2 (rate - target),   t = 1, 2, ... since the last restart

    and the average of the log steps is kept (Robbins & Monro 1951; Polyak & Juditsky 1992). Dual averaging moves by
    t^1/2 / (0.05 (t + 10)) times the error, which is 1.8 to 3.2 for the first hundred t. A pooled rate falls by two or three
    per unit of log step where leapfrog steps become unstable, so that each correction overshoots: steps swing over a
    factor of ten to the end of warmup, and the mean of their logarithms is too low.
    """

    def __init__(self, step_size: Tensor, target: float):
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Forgets all but the step size."""
        self._log_step = self._log_average = step_size.log()
        self._count = 0

    def update(self, acceptance_rate: Tensor) -> None:
        """Takes in the pooled rate () of one iteration."""
        self._count += 1
        self._log_step = self._log_step + self._count**-0.5 * (acceptance_rate - self.target)
        decay = self._count**-KAPPA
        self._log_average = decay * self._log_step + (1 - decay) * self._log_average

    @property
    def step_size(self) -> Tensor:
        return self._log_step.exp()

    @property
    def average(self) -> Tensor:
        """The step size to keep, ()."""
        return self._log_average.exp()


def first_step_size(gradient: GradientCall, position: Tensor, metric: Metric, noise: Noise) -> Tensor:
    """Step sizes (c,) at which one leapfrog step is accepted about as often as not, by doubling and halving from 0.1.

    Source: Hoffman & Gelman 2014, algorithm 4; capped at 2**30 either way.
    """
    chains, dim = position.shape
    everyone = torch.arange(chains, device=position.device)
    momentum = metric.momentum(noise.normals(everyone, torch.zeros_like(everyone), dim).to(position.dtype))
    grad, log_density = gradient(position)
    energy = metric.kinetic(momentum) - log_density

    def accepted(step: Tensor) -> Tensor:
        *_, end_momentum, end_density = leapfrog(position, momentum, grad, step, metric, gradient)
        return log_acceptance(energy, metric.kinetic(end_momentum) - end_density) > -0.7

    step = torch.full((chains,), 0.1, dtype=torch.float64, device=position.device)
    growing = accepted(step)
    going = torch.ones_like(growing)
    for _ in range(30):
        trial = torch.where(growing, step * 2, step / 2)
        crossed = accepted(trial) != growing
        # a growing step keeps its last accepted value, a shrinking one its first
        step = torch.where(going & ~(crossed & growing), trial, step)
        going = going & ~crossed
        if not going.any():
            break
    return step
