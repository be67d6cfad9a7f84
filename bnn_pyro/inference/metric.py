"""Kinetic energy and the leapfrog integrator, for all chains at once.

    H(z, r) = -log density(z) + r' M^-1 r / 2,      r <- r + e/2 grad,  z <- z + e M^-1 r,  r <- r + e/2 grad

M^-1, the inverse mass matrix, estimates the posterior covariance: diagonal (dim,) or dense (dim, dim).
Source: Neal 2011, "MCMC using Hamiltonian dynamics".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bnn_pyro.blocks import in_blocks

BLOCK = 4  # rows that a dense matrix is multiplied with at once
DIVERGENCE = 1000.0  # energy error above which a step has left the level set

GradientCall = Callable[[Tensor], tuple[Tensor, Tensor]]


def fuses(gradient: GradientCall) -> bool:
    """Whether it may be compiled together with what is around it: where it doesn't say, it is of tensor operations only."""
    return getattr(gradient, "fuses", True)


class Metric:
    """The inverse mass matrix and what follows from it.

    Attributes:
        root: Its square root, (dim,), or its lower Cholesky factor, (dim, dim).
    """

    def __init__(self, inverse_mass_matrix: Tensor):
        self.dense = inverse_mass_matrix.ndim == 2
        if self.dense:
            inverse_mass_matrix, root = _factor(inverse_mass_matrix)
        else:
            root = inverse_mass_matrix.double().sqrt()
        self.inverse_mass_matrix = inverse_mass_matrix
        self.root = root.to(inverse_mass_matrix.dtype)

    def become(self, other: Metric) -> None:
        """Takes on the other's numbers: in the same tensors, if both are diagonal or both dense."""
        if self.dense == other.dense:
            self.inverse_mass_matrix.copy_(other.inverse_mass_matrix)
            self.root.copy_(other.root)
        else:
            self.dense, self.inverse_mass_matrix, self.root = other.dense, other.inverse_mass_matrix, other.root

    def variance(self) -> Tensor:
        """The diagonal of M^-1, (dim,) float64."""
        return (self.inverse_mass_matrix.diagonal() if self.dense else self.inverse_mass_matrix).double()

    def velocity(self, momentum: Tensor) -> Tensor:
        """M^-1 r for r (c, dim)."""
        if not self.dense:
            return momentum * self.inverse_mass_matrix
        return _by_rows(lambda rows: rows @ self.inverse_mass_matrix, momentum)

    def momentum(self, normal: Tensor) -> Tensor:
        """r ~ Normal(0, M) from standard normal numbers (c, dim)."""
        if not self.dense:
            return normal / self.root

        return _by_rows(lambda rows: torch.linalg.solve_triangular(self.root.mT, rows.mT, upper=True).mT, normal)

    def kinetic(self, momentum: Tensor) -> Tensor:
        """r' M^-1 r / 2, (c,) float64."""
        return 0.5 * dot(self.velocity(momentum), momentum)

    def whiten(self, difference: Tensor) -> Tensor:
        """L^-1 (z - z') for differences of positions (c, dim): units in which the posterior has about unit spread."""
        if self.dense:
            return torch.linalg.solve_triangular(self.root, difference.mT, upper=False).mT
        return difference / self.root


def _by_rows(call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``call`` on rows (c, dim): on a CPU a few at a time, so that none depends on how many others there are."""
    if rows.device.type != "cpu":
        return call(rows)
    return in_blocks(lambda some: (call(some),), BLOCK, rows)[0]


def _factor(inverse: Tensor) -> tuple[Tensor, Tensor]:
    """M^-1 and its factor L in float64, M^-1 = L L', so that r = L'^-1 n has covariance M.

    Rounded to float32, a covariance of which some directions are a thousand times narrower than others may have lost them. Its
    diagonal is then raised, as little as will do; any metric leaves the posterior as it is.
    """
    for raised in (0.0, *(10.0**k for k in range(-7, 0))):
        tried = inverse + torch.diag(raised * inverse.diagonal())
        root, info = torch.linalg.cholesky_ex(tried.double())
        if not int(info):
            return tried, root
    return inverse, torch.linalg.cholesky(inverse.double())  # which says what is wrong


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, float64: each the same whatever the other rows and torch's number of threads."""
    product = a * b
    if len(product) == 1:  # torch would give each thread a piece of a sole row, and add up the pieces
        return product.expand(2, -1).sum(-1, dtype=torch.float64)[:1]
    return product.sum(-1, dtype=torch.float64)


def leapfrog(
    position: Tensor, momentum: Tensor, grad: Tensor, step: Tensor, metric: Metric, gradient: GradientCall
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of signed size ``step`` (c,) for each chain: position, gradient, momentum (c, dim), log density (c,)."""
    step = step.to(position.dtype)[:, None]
    momentum = torch.addcmul(momentum, step, grad, value=0.5)
    position = torch.addcmul(position, step, metric.velocity(momentum))
    grad, log_density = gradient(position)
    return position, grad, torch.addcmul(momentum, step, grad, value=0.5), log_density


def log_acceptance(before: Tensor, after: Tensor) -> Tensor:
    """Energies' difference before - after, float64; minus infinity where either is not finite: never accepted."""
    difference = before - after
    finite = torch.isfinite(before) & torch.isfinite(after)
    return torch.where(finite, difference, torch.full_like(difference, -torch.inf))
