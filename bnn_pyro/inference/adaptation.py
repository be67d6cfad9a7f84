"""Warmup: the mass matrix by pooled windows, and the settings it begins with; all are fixed afterwards.

Source: Stan reference manual, "HMC algorithm parameters" (windows and shrinkage). Pooling over chains makes a window worth
as many draws as there are chains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.errors import OptionError
from bnn_pyro.inference.mcmc import MCMC, Adaptation
from bnn_pyro.inference.metric import GradientCall, Metric
from bnn_pyro.inference.step_sizes import first_step_size
from bnn_pyro.noise import Noise

FAR = 10.0  # times the usual squared distance, from which on a chain may be left out of the metric
MAJORITY = 4  # chains, at least, for one of them to be called far out


class Moments:
    """Running mean and (co)variance of positions, by chain; pooled when asked, without chains that are far out."""

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
        """Takes in positions (k, dim) of chains ``rows`` (k,), of which one may come again, in order of time."""
        turns = list(_once_each(rows.cpu().numpy()))
        rows, position = rows.to(self._device), position.to(self._device)
        for places in turns:
            at = torch.from_numpy(places).to(self._device)
            self._update(rows[at], position[at])

    def _update(self, rows: Tensor, position: Tensor) -> None:
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

    def usual(self) -> Tensor:
        """Which chains are not far out, (chains,) bool; all where fewer than four have been seen.

        S = variance + (mean - centre)^2 is a chain's mean square around the median of the chains' means; D is the mean over
        coordinates of S in units of its median over chains. A chain is far out if its D is beyond ten times the median,
        and log D beyond the median by five standard deviations, taken from the median deviation. Chains that mix have
        equal D in the long run, and chains that lie apart, each in a mode of its own, have similar ones: all are kept.
        """
        seen = self._count > 0
        usual = torch.ones_like(seen)
        if int(seen.sum()) < MAJORITY:
            return usual
        count, mean = self._count[seen][:, None], self._mean[seen]
        spread = self._spread[seen]
        square = (spread.diagonal(dim1=1, dim2=2) if self._dense else spread) / count + (mean - median(mean)) ** 2
        distance = (square / median(square).clamp(min=1e-300)).mean(1).clamp(min=1e-300).log()
        above = distance - median(distance)
        usual[seen] = above <= max(math.log(FAR), 5 * 1.4826 * float(median(above.abs())))
        return usual

    def inverse_mass_matrix(self) -> Tensor:
        """The pooled (co)variance, shrunk towards 1e-3 as if by five draws more; (dim,) or (dim, dim) float64.

        Chains that are not ``usual`` are left out: one that is stuck far away adds the square of its distance.
        """
        usual = self.usual()
        counts, means = self._count[usual], self._mean[usual]
        count = counts.sum()
        mean = (counts[:, None] * means).sum(0) / count
        away = means - mean
        if self._dense:
            spread = self._spread[usual].sum(0) + torch.einsum("c,ci,cj->ij", counts, away, away)
        else:
            spread = self._spread[usual].sum(0) + (counts[:, None] * away**2).sum(0)
        variance = spread / (count - 1).clamp(min=1.0)
        floor = 1e-3 * (torch.eye(len(mean), device=self._device) if self._dense else 1.0)
        return variance * (count / (count + 5)) + floor * (5 / (count + 5))


def _once_each(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Places of ``rows`` at which each value comes for the first time, then those of the second, and so on."""
    order = rows.argsort(kind="stable")
    ordered = rows[order]
    nth = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    for turn in range(nth.max() + 1):
        yield order[nth == turn]


def median(values: Tensor) -> Tensor:
    """Over the first axis; of an even number, the mean of the middle two."""
    ordered = values.sort(0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


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


def check_adaptation(given: Adaptation, dim: int, where: str) -> None:
    """Raises: OptionError for what cannot have been learnt of a posterior of ``dim`` latent numbers."""
    mass, length, position = given.inverse_mass_matrix, given.trajectory_length, given.position
    fault = ""
    if tuple(mass.shape) not in ((dim,), (dim, dim)):
        fault = f"an inverse mass matrix of shape ({dim},) or ({dim}, {dim}), got {tuple(mass.shape)}"
    elif position is not None and (position.ndim != 2 or position.shape[1] != dim or not len(position)):
        fault = f"positions of shape (chains, {dim}), got {tuple(position.shape)}"
    elif not all(map(_positive, (given.step_size, mass, *(() if length is None else (length,))))):
        fault = "step sizes, trajectory length and inverse mass matrix that are positive (definite), got others"
    if fault:
        raise OptionError(f"{where}, adaptation: expected {fault}. Take it from a posterior of the same model by MCMC.")


def _positive(values: Tensor) -> bool:
    if not values.isfinite().all():
        return False
    if values.ndim == 2:
        values = values.double()
        rounding = 1e-6 * float(values.abs().max())
        return torch.allclose(values, values.mT, atol=rounding) and not int(torch.linalg.cholesky_ex(values).info)
    return bool((values > 0).all())


def first_settings(gradient: GradientCall, position: Tensor, method: MCMC, seed: int) -> tuple[Metric, Tensor]:
    """The metric and the step sizes (chains,) float64 that a run begins with: ``method.adaptation``, or a unit metric."""
    chains, dim = position.shape
    if method.adaptation is not None:
        step_size = method.adaptation.step_size.to(position.device).double().expand(chains).clone()
        mass = method.adaptation.inverse_mass_matrix.to(
            position.device, position.dtype, copy=True
        )  # it changes in place
        return Metric(mass), step_size
    unit = torch.ones(dim, dtype=position.dtype, device=position.device)
    metric = Metric(torch.diag(unit) if method.dense_mass else unit)
    return metric, first_step_size(gradient, position, metric, Noise(seed, "first step", position.device))
