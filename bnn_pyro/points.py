"""The log joint density of a point of the constrained values, as ``steps`` maximises it: for modes, not densities.

sum_i w_i log p(y_i | theta, x_i) + log p(theta - shift),  theta = T(z),  without log |d theta / d z|
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_pyro.data import Inputs
from bnn_pyro.graphs import NormalPriors
from bnn_pyro.target import Target, add_up


class PointData(NamedTuple):
    """What a member is trained on, where it is not the target's: None leaves that as it is.

    Attributes:
        x, y: Rows.
        weights: (n,) of rows.
        shift: (dim,) that is added to the means of Normal priors.
        scale: How many times as many all rows are.
    """

    x: Inputs | None = None
    y: Tensor | None = None
    weights: Tensor | None = None
    shift: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Point:
    """``terms`` of one point; ``priors`` are those whose density is computed for all sites at once, None for none."""

    target: Target
    priors: NormalPriors | None

    def terms(self, z: Tensor, data: PointData) -> tuple[Tensor, Tensor]:
        """Log likelihood and minus log prior at z (dim,), each () float64: their difference is the log joint density."""
        target = self.target
        leave_out = self.priors.sites if self.priors is not None else frozenset()
        result = target.evaluate_sites(target.parts(z), data.x, data.y, leave_out, jacobian=False)
        log_prior = result.log_prior
        if self.priors is not None:
            log_prior = log_prior + self.priors.log_density(z if data.shift is None else z - data.shift)
        log_likelihood = add_up(
            (term if data.weights is None else term * data.weights).sum(dtype=torch.float64)
            for term in result.log_likelihood.values()
        )
        return log_likelihood * data.scale, -log_prior

    def objective(self, unpack: Callable[..., PointData]) -> Callable[..., tuple[Tensor, Tensor]]:
        """The objective of ``steps.adam_step``; ``unpack`` makes a member's data of the step's tensors."""

        def objective(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
            log_likelihood, minus_log_prior = self.terms(parts[0], unpack(*rows))
            return minus_log_prior - log_likelihood, torch.stack([log_likelihood, minus_log_prior])

        return objective
