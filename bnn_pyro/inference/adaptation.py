"""Warmup: step sizes by dual averaging, the mass matrix by pooled windows; both are fixed afterwards.

Sources: Hoffman & Gelman 2014, JMLR 15, section 3.2 (dual averaging); Stan reference manual, "HMC algorithm parameters"
(windows and shrinkage); pooling over chains makes a window worth as many draws as there are chains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn_pyro.inference.mcmc import MCMC
from bnn_pyro.inference.metric import GradientCall, Metric, leapfrog, log_acceptance
from bnn_pyro.noise import Noise

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75


class DualAveraging:
    """Step sizes (c,) float64 whose acceptance rate approaches ``target``, each on its own."""

    def __init__(self, step_size: Tensor, target: float):
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: Tensor) -> None:
        """Forgets all but the step sizes, and is drawn towards ten times as much: a low step is found out slowly."""
        self.log_step = step_size.log()
        self._centre = self.log_step + math.log(10.0)
        self._error, self._count = torch.zeros_like(self.log_step), torch.zeros_like(self.log_step)
        self._log_average = self.log_step.clone()

    def update(self, rows: Tensor, acceptance_rate: Tensor) -> None:
        """Takes in a transition of chains ``rows`` (k,)."""
        count = self._count[rows] + 1
        weight = 1 / (count + T0)
        error = (1 - weight) * self._error[rows] + weight * (self.target - acceptance_rate)
        log_step = self._centre[rows] - count.sqrt() / GAMMA * error
        decay = count**-KAPPA
        self._log_average[rows] = decay * log_step + (1 - decay) * self._log_average[rows]
        self._count[rows], self._error[rows], self.log_step[rows] = count, error, log_step

    @property
    def step_size(self) -> Tensor:
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """The step sizes to keep, (c,)."""
        return self._log_average.exp()


class Moments:
    """Running mean and (co)variance of positions, by chain; pooled when asked."""

    def __init__(self, chains: int, dim: int, dense: bool, device: torch.device):
        self._shape = (chains, dim)
        self._dense, self._device = dense, device
        self.restart()

    def restart(self) -> None:
        chains, dim = self._shape
        self._count = torch.zeros(chains, dtype=torch.float64, device=self._device)
        self._mean = torch.zeros(chains, dim, dtype=torch.float64, device=self._device)
        spread = (chains, dim, dim) if self._dense else (chains, dim)
        self._spread = torch.zeros(spread, dtype=torch.float64, device=self._device)

    def update(self, rows: Tensor, position: Tensor) -> None:
        position = position.double()
        count = self._count[rows] + 1
        before = position - self._mean[rows]
        mean = self._mean[rows] + before / count[:, None]
        after = position - mean
        self._count[rows], self._mean[rows] = count, mean
        self._spread[rows] += before[:, :, None] * after[:, None, :] if self._dense else before * after

    def metric(self, dtype: torch.dtype) -> Metric:
        """The metric of what was seen, which is then forgotten."""
        made = Metric(self.inverse_mass_matrix().to(dtype))
        self.restart()
        return made

    def inverse_mass_matrix(self) -> Tensor:
        """The pooled (co)variance, shrunk towards 1e-3 as if by five draws more; (dim,) or (dim, dim) float64."""
        count = self._count.sum()
        mean = (self._count[:, None] * self._mean).sum(0) / count
        away = self._mean - mean
        if self._dense:
            spread = self._spread.sum(0) + torch.einsum("c,ci,cj->ij", self._count, away, away)
        else:
            spread = self._spread.sum(0) + (self._count[:, None] * away**2).sum(0)
        variance = spread / (count - 1).clamp(min=1.0)
        floor = 1e-3 * (torch.eye(len(mean), device=self._device) if self._dense else 1.0)
        return variance * (count / (count + 5)) + floor * (5 / (count + 5))


def stretch(old: Metric, new: Metric) -> Tensor:
    """How much longer steps and trajectories are in units of the new metric than in those of the old one, on average."""
    return ((old.variance() / new.variance()).log().mean() / 2).exp()


@dataclass(frozen=True)
class Schedule:
    """Transitions of warmup at which a window ends and the mass matrix is learnt, in rising order.

    Attributes:
        begin: The first transition that counts towards a window.
        ends: Transition numbers after which a window ends; empty where warmup is too short.
    """

    begin: int
    ends: tuple[int, ...]


def windows(warmup: int, first: int = 25, head: int = 75, tail: int = 50) -> Schedule:
    """Windows that double in length between a head and a tail in which only step sizes adapt, as Stan's do.

    The tail is a fifth of a long warmup: for a while after the last restart, averaged step sizes are off. Head and tail
    shrink to 15 and 35 percent where warmup is shorter than they and one window are together; below 20 transitions there
    is no window.
    """
    if warmup < 20:
        return Schedule(warmup, ())
    tail = max(tail, warmup // 5)
    if head + first + tail > warmup:
        head, tail = int(0.15 * warmup), int(0.35 * warmup)
        first = warmup - head - tail
    ends, start, size = [], head, first
    while start < warmup - tail:
        end = start + size
        if end + 2 * size > warmup - tail:  # the next one would not fit
            end = warmup - tail
        ends.append(end)
        start, size = end, 2 * size
    return Schedule(head, tuple(ends))


def first_settings(gradient: GradientCall, position: Tensor, method: MCMC, seed: int) -> tuple[Metric, Tensor]:
    """The metric and the step sizes (chains,) float64 that a run begins with: ``method.adaptation``, or a unit metric."""
    chains, dim = position.shape
    if method.adaptation is not None:
        step_size = method.adaptation.step_size.double().expand(chains).clone()
        return Metric(method.adaptation.inverse_mass_matrix.to(position.dtype)), step_size
    unit = torch.ones(dim, dtype=position.dtype, device=position.device)
    metric = Metric(torch.diag(unit) if method.dense_mass else unit)
    return metric, first_step_size(gradient, position, metric, Noise(seed, "first step", position.device))


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
