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


def starting_points(target: Target, gradient: Gradient, init: str, seed: int, chains: int) -> Tensor:
    """Points (chains, dim) in the target's dtype where log density and gradient are finite, for ``init`` of ``NUTS``.

    Chain i's point depends on (seed, i) only.
    Raises: ModelError after 100 tries, with the site and the term that was not finite.
    """
    z = torch.zeros(chains, target.dim, dtype=target.dtype, device=target.device)
    wanted = torch.arange(chains, device=target.device)
    for attempt in range(TRIES):
        tries = torch.stack([_try(target, init, derive_seed(seed, "chain", int(i), "start", attempt)) for i in wanted])
        with isolated(dtype=target.dtype, threads=threads_for(target)):
            if init in ("map", "ensemble"):
                tries = climb(gradient, tries)
            grad, value = gradient(tries)
        good = torch.isfinite(value) & torch.isfinite(grad).all(1) & torch.isfinite(tries).all(1)
        z[wanted[good]] = tries[good]
        wanted, failed = wanted[~good], tries[~good]
        if not len(wanted):
            return z
    raise ModelError(_explain(target, failed[0]))


def _try(target: Target, init: str, seed: int) -> Tensor:
    with isolated(seed=seed, dtype=target.dtype), torch.no_grad():
        if init == "uniform":
            return (torch.rand(target.dim, dtype=torch.float64) * 4 - 2).to(target.dtype).to(target.device)
        return prior_point(target)


def prior_point(target: Target) -> Tensor:
    """One draw of the prior, unconstrained (dim,); random state is the caller's."""
    run = Run(draw_from_prior, target.dtype, params=target.params)
    with run:
        target.program(target.x, target.y)
    return target.unconstrain(run.values)[0]


def climb(gradient: Gradient, z: Tensor, steps: int = 500, lr: float = 0.05) -> Tensor:
    """Adam from each z (chains, dim) towards a mode of the unconstrained density: members of a deep ensemble."""
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
