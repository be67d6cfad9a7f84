"""The mode of a target's log density: found by L-BFGS in coordinates where the curvature is near one.

    z = m + R u,  R R^T = H^-1 at the point m reached last,  minimise over u

Whether it has been reached is said by the gradient in those coordinates:  half |R^T g|^2 nats is what the log density would
still rise by, if the curvature were as it is here. Of ReLU networks that need not go to 0: their density has kinks, and a mode
may sit on one. The search ends there too, once a round no longer gains what counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_pyro.gaussians import Gaussian

ITERATIONS = 200  # of L-BFGS in the same coordinates
HISTORY = 20
SMALLEST = 1e-9  # step, or gain in nats, that L-BFGS goes on for
PATIENCE = 40  # gradients without a gain that counts, after which new coordinates are better than more iterations
POLISH = 10  # Newton steps at the end, each of which has to make the rise to come smaller


class Mode(NamedTuple):
    """``position`` (dim,), ``rise``: nats that the log density would still rise by, ``gradients`` evaluated.

    ``stalled``: whether the rise is more than was asked for, but another round gained less than that.
    """

    position: Tensor
    rise: float
    gradients: int
    stalled: bool = False


def find_mode(
    gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    curvature: Callable[[Tensor], Gaussian],
    tolerance: float,
    rounds: int,
    watch: Callable[[float, float], None] = lambda *_: None,
) -> Mode:
    """The mode near ``start`` (dim,).

    Args:
        gradient: z (1, dim) -> gradient (1, dim) and log density (1,).
        curvature: z -> a normal density around z, whose precision is near the curvature there and positive definite.
        tolerance: Rise in nats that is small enough.
        rounds: At most so many times L-BFGS begins anew around the point reached.
        watch: Told the log density and the rise after each round.
    """
    count = 0

    def evaluate(z: Tensor) -> tuple[Tensor, float]:
        nonlocal count
        count += 1
        grad, value = gradient(z[None])
        return grad[0], float(value[0])

    z, density, before = start, curvature(start), -torch.inf
    for _ in range(rounds):
        z = _climb(evaluate, z, density, tolerance)
        density = curvature(z)
        z, rise, value = _polish(evaluate, z, density)
        watch(value, rise)
        stalled = rise > tolerance > value - before
        if rise <= tolerance or stalled:
            break
        before = value
    return Mode(z, rise, count, stalled)


class _Enough(Exception):
    """Ends L-BFGS, which has no word for it: at a kink it would use up its iterations on next to nothing."""


def _climb(
    evaluate: Callable[[Tensor], tuple[Tensor, float]], start: Tensor, density: Gaussian, tolerance: float
) -> Tensor:
    u = torch.zeros_like(start, requires_grad=True)
    best, highest = start, -torch.inf
    mark, waited = -torch.inf, 0
    small = math.sqrt(tolerance / (2 * density.dim))  # in each entry: a quarter of the rise that is allowed
    optimiser = torch.optim.LBFGS(
        [u],
        max_iter=ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=small,
        tolerance_change=SMALLEST,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal best, highest, mark, waited
        with torch.no_grad():
            z = start + density.displace(u)
            grad, value = evaluate(z)
            if value > highest:
                best, highest = z, value
            if value > mark + tolerance:
                mark, waited = value, 0
            waited += 1
            if waited > PATIENCE:
                raise _Enough
            u.grad = -density.turn(grad)
        return torch.tensor(-value, dtype=torch.float64)

    with suppress(_Enough):
        optimiser.step(closure)
    return best


def _polish(
    evaluate: Callable[[Tensor], tuple[Tensor, float]], z: Tensor, density: Gaussian
) -> tuple[Tensor, float, float]:
    """Newton's steps with the curvature held, while they help: they reach a rounding error that values cannot tell from 0."""
    grad, value = evaluate(z)
    step = density.solve(grad)
    rise = float(grad @ step) / 2
    for _ in range(POLISH):
        there, there_value = evaluate(z + step)
        next_step = density.solve(there)
        there_rise = float(there @ next_step) / 2
        if not there_rise < rise / 2:
            break
        z, step, rise, value = z + step, next_step, there_rise, there_value
    return z, rise, value
