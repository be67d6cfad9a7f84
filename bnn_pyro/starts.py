"""Where chains and optimisers begin: points of finite log density and gradient, or an error that names the term."""

from __future__ import annotations

import torch
from torch import Tensor

from bnn_pyro.compiled import Gradient, threads_for
from bnn_pyro.errors import ModelError
from bnn_pyro.isolation import derive_seed, isolated
from bnn_pyro.structure import draw_from_prior
from bnn_pyro.target import Run, Target

TRIES = 100


def starting_point(target: Target, gradient: Gradient, init: str, seed: int) -> Tensor:
    """A point (dim,) float64 where log density and gradient are finite, for ``init`` of ``NUTS``.

    Raises: ModelError after 100 tries, with the site and the term that was not finite.
    """
    z = torch.zeros(target.dim, dtype=torch.float64)
    for attempt in range(TRIES):
        with isolated(seed=derive_seed(seed, "start", attempt), dtype=target.dtype), torch.no_grad():
            if init == "uniform":
                z = torch.rand(target.dim, dtype=torch.float64) * 4 - 2
            else:
                z = prior_point(target).double()
        with isolated(dtype=target.dtype, threads=threads_for(target)):
            if init == "map":
                z = climb(gradient, z)
            grad, value = gradient(z)
        if torch.isfinite(value) and torch.isfinite(grad).all() and torch.isfinite(z).all():
            return z
    raise ModelError(_explain(target, z))


def prior_point(target: Target) -> Tensor:
    """One draw of the prior, unconstrained (dim,); random state is the caller's."""
    run = Run(draw_from_prior, target.dtype, params=target.params)
    with run:
        target.program(target.x, target.y)
    return target.unconstrain(run.values)[0]


def climb(gradient: Gradient, z: Tensor, steps: int = 500, lr: float = 0.05) -> Tensor:
    """Adam from z towards a mode of the unconstrained density."""
    z = z.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([z], lr=lr)
    for _ in range(steps):
        z.grad = -gradient(z.detach())[0]
        optimiser.step()
    return z.detach()


def _explain(target: Target, z: Tensor) -> str:
    """Which term was not finite at z."""
    with isolated(dtype=target.dtype), torch.no_grad():
        result = target.evaluate(z)
    terms = [(f"site {o.name!r}, log likelihood", result.log_likelihood[o.name]) for o in target.observed]
    terms += [(f"site {name!r}, value", value) for name, value in result.values.items()]
    terms += [("the log prior", result.log_prior)]
    for label, value in terms:
        bad = ~torch.isfinite(value)
        if bad.any():
            return (
                f"{target.name}, {label}: expected finite numbers at the start, got {float(value[bad].flatten()[0])} "
                f"in each of {TRIES} tries. Check the priors' scales and the units of the data."
            )
    return (
        f"{target.name}: expected a finite gradient at the start, got none in {TRIES} tries. Check the priors' scales."
    )
