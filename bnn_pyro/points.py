"""The log joint density of a point of the constrained values, as ``steps`` maximises it: for modes, not densities.

sum_i w_i log p(y_i | theta, x_i) + log p(theta - shift),  theta = T(z),  without log |d theta / d z|
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from bnn_pyro.data import Inputs
from bnn_pyro.graphs import NormalPriors
from bnn_pyro.likelihoods import unwrapped
from bnn_pyro.target import Target, add_up


class PointData(NamedTuple):
    """What a member is trained on, where it is not the target's: None leaves that as it is.

    Attributes:
        x, y: Rows.
        weights: (n,) of rows.
        shift: (dim,) that is added to the means of Normal priors.
        scale: How many times as many all rows are.
        seen: Rows' own y, where ``y`` has noise added: the sd of a Normal likelihood is learnt from this.
    """

    x: Inputs | None = None
    y: Tensor | None = None
    weights: Tensor | None = None
    shift: Tensor | None = None
    scale: float = 1.0
    seen: Tensor | None = None


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
        terms = list(result.log_likelihood.values())
        if data.y is not None and data.seen is not None:
            assert target.predicted is not None
            terms.append(_sd_from(result.conditionals[target.predicted.name], data.y, data.seen))
        log_likelihood = add_up(
            (term if data.weights is None else term * data.weights).sum(dtype=torch.float64) for term in terms
        )
        return log_likelihood * data.scale, -log_prior

    def objective(self, unpack: Callable[..., PointData]) -> Callable[..., tuple[Tensor, Tensor]]:
        """The objective of ``steps.adam_step``; ``unpack`` makes a member's data of the step's tensors."""

        def objective(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
            log_likelihood, minus_log_prior = self.terms(parts[0], unpack(*rows))
            return minus_log_prior - log_likelihood, torch.stack([log_likelihood, minus_log_prior])

        return objective


def _sd_from(conditional: Any, y: Tensor, seen: Tensor) -> Tensor:
    """0 by row, with the gradient that makes the sd of a Normal likelihood of ``y`` that of ``seen``; the mean's stays."""
    fn = unwrapped(conditional)
    still = fn.loc.detach()
    difference = Normal(still, fn.scale).log_prob(seen) - Normal(still, fn.scale).log_prob(y)
    difference = difference.reshape(len(y), -1).sum(1)
    return difference - difference.detach()
