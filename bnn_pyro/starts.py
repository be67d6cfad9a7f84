"""Where chains and optimisers begin: points of finite log density and gradient, or an error that names the term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from bnn_pyro.compiled import Gradient, compile_gradient, threads_for
from bnn_pyro.errors import DataError, ModelError
from bnn_pyro.guides import init_to_prior
from bnn_pyro.handlers import Run
from bnn_pyro.isolation import derive_seed, isolated, reseed
from bnn_pyro.sites import draw_from_prior
from bnn_pyro.target import Target

TRIES = 100
HELD_OUT = 0.1  # share of the rows that members of an ensemble are not trained on
LOOK = 10  # steps of an optimiser between two looks at those rows


def starting_points(
    target: Target, gradient: Gradient, init: str, seed: int, chains: int, given: Tensor | None = None
) -> Tensor:
    """Points (chains, dim) in the target's dtype where log density and gradient are finite, for ``init`` of ``NUTS``.

    Chain i's point depends on (seed, i) only.

    Args:
        given: Points (k, dim) that the first k chains take, but for those where the density is not finite.
    Raises: ModelError after 100 tries, with the site and the term that was not finite.
    """
    z = torch.zeros(chains, target.dim, dtype=target.dtype, device=target.device)
    taken = torch.zeros(chains, dtype=torch.bool, device=target.device)
    if given is not None:
        given = given[:chains].to(z)
        z[: len(given)], taken[: len(given)] = given, usable(given, gradient, target)
        if taken.all():
            return z
    training = _without_held_out_rows(target, gradient, seed) if init == "ensemble" else None
    wanted = torch.arange(chains, device=target.device)[~taken]
    for attempt in range(TRIES):
        tries = torch.stack([_try(target, init, derive_seed(seed, "chain", int(i), "start", attempt)) for i in wanted])
        with isolated(dtype=target.dtype, threads=gradient.threads):
            if init == "map":
                tries = climb(gradient, tries)
            elif training is not None:
                tries = climb(training, tries, score=_held_out_score(gradient, training))
        good = usable(tries, gradient, target)
        z[wanted[good]] = tries[good]
        wanted, failed = wanted[~good], tries[~good]
        if not len(wanted):
            return z
    raise ModelError(_explain(target, failed[0]))


def learnt_params(target: Target) -> list[str]:
    """Names of the program's ``pyro.param`` statements."""
    with isolated(seed=0, dtype=target.dtype), torch.no_grad():
        target.evaluate(prior_point(target))
        return list(pyro.get_param_store().keys())


def usable(z: Tensor, gradient: Gradient, target: Target) -> Tensor:
    """Which of z (chains, dim) have finite log density and gradient."""
    with isolated(dtype=target.dtype, threads=gradient.threads):
        grad, value = gradient(z)
    return torch.isfinite(value) & torch.isfinite(grad).all(1) & torch.isfinite(z).all(1)


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


def feasible_point(target: Target, seed: int) -> Tensor:
    """Weights at a draw of the prior, scales at a feasible value: where networks are trained from (dim,)."""
    reseed(seed)
    run = Run(
        lambda name, fn: (init_to_prior({"name": name, "fn": fn}), torch.zeros((), dtype=torch.float64)), target.dtype
    )
    with torch.no_grad(), run:
        target.program(target.x, target.y)
    return target.unconstrain(run.values)[0].detach()


def climb(
    gradient: Gradient,
    z: Tensor,
    steps: int = 500,
    lr: float = 0.05,
    score: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Adam from each z (chains, dim) towards a mode of the unconstrained density.

    Args:
        score: (chains, dim) -> (chains,). Each chain gives, of the points looked at, the one of highest score instead of the
            last: its beginning, every ``LOOK``-th, and the end. The first of equal ones; one that is NaN never.
    """
    z = z.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([z], lr=lr)
    best, highest = z.detach().clone(), torch.full((len(z),), -torch.inf, dtype=torch.float64, device=z.device)
    for step in range(steps + 1):
        if score is not None and (step % LOOK == 0 or step == steps):
            seen = score(z.detach())
            better = seen > highest
            best = torch.where(better[:, None], z.detach(), best)
            highest = torch.where(better, seen, highest)
        if step < steps:
            z.grad = -gradient(z.detach())[0]
            optimiser.step()
    return z.detach() if score is None else best


def check_rows_part(target: Target) -> None:
    """Whether rows can be held out, as ``init="ensemble"`` does. Raises: ModelError or DataError where they cannot."""
    where, remedy = f"{target.name}, init='ensemble'", "Use init='map'."
    if target.joint:
        raise ModelError(
            f"{where}: expected observations inside pyro.plate('data', ...), got one joint observation of all rows, of which "
            f"none can be held out. {remedy}"
        )
    by_row = [s.name for s in target.sites if s.by_row]
    if by_row:
        raise ModelError(
            f"{where}: expected latent sites outside the data plate, got {by_row} inside, of which those of held-out rows "
            f"would not be trained. {remedy}"
        )
    if target.n < 2:
        raise DataError(f"{where}: expected at least 2 rows, one of them to hold out, got {target.n}. {remedy}")
    try:
        with isolated(seed=0, dtype=target.dtype), torch.no_grad():
            _on_rows(target, torch.arange(1, target.n)).log_density(prior_point(target))
    except Exception as error:  # whatever a program raises that insists on its rows
        raise ModelError(
            f"{where}: expected a program that runs on a part of its rows, got {type(error).__name__} without the first one. "
            f"Take the number of rows from x, or use init='map'."
        ) from error


def _without_held_out_rows(target: Target, gradient: Gradient, seed: int) -> Gradient:
    """The gradient of the density of the rows that are not held out: a tenth, the same for all chains, drawn from the seed.

    It runs uncompiled, since its few hundred steps gain less than another compilation takes.
    """
    check_rows_part(target)
    with isolated(derive_seed(seed, "held-out rows"), target.dtype, threads=threads_for(target)):
        held_out = max(1, round(HELD_OUT * target.n))
        training = _on_rows(target, torch.randperm(target.n)[held_out:].sort().values)
        points = torch.randn(3, target.dim, dtype=target.dtype, device=target.device) * 0.5
        backend = "pyro" if gradient.backend == "pyro" else "eager"
        return compile_gradient(training, points, backend, block=gradient.block)


def _held_out_score(gradient: Gradient, training: Gradient) -> Callable[[Tensor], Tensor]:
    """Log likelihood (chains,) of the held-out rows: what the density of all rows has beyond that of the training rows."""
    return lambda z: gradient(z)[1] - training(z)[1]


def _on_rows(target: Target, rows: Tensor) -> Target:
    rows = rows.to(target.device)
    x = {k: v[rows] for k, v in target.x.items()} if isinstance(target.x, dict) else target.x[rows]
    return replace(target, x=x, y=target.y[rows])


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
