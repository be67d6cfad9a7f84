"""Draws of the prior, and of y under it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from bnn_pyro.draws import Draws
from bnn_pyro.errors import ModelError
from bnn_pyro.handlers import Run
from bnn_pyro.inference import Prior
from bnn_pyro.isolation import derive_seed, isolated
from bnn_pyro.target import Target, add_up
from bnn_pyro.units import Units

Arrays = dict[str, np.ndarray]


def sample_prior(target: Target, method: Prior, seed: int) -> Draws:
    """Independent draws of the prior as a chain of ``method.draws``. Raises: ModelError for an improper prior."""
    rows: list[Tensor] = []
    lp: list[float] = []
    with isolated(seed=derive_seed(seed, "prior draws"), dtype=target.dtype), torch.no_grad():
        for _ in range(method.draws):
            run = Run(_sample, target.dtype, params=target.params)
            try:
                with run:
                    target.program(target.x, target.y)
            except NotImplementedError as error:
                raise ModelError(
                    f"{target.name}, inference='prior': expected priors that can be drawn from, got an improper one. Give "
                    "every site a proper prior."
                ) from error
            z, log_jacobian = target.unconstrain(run.values)
            rows.append(z)
            lp.append(float(add_up(run.log_prior) + log_jacobian))
    return Draws(torch.stack(rows)[None].cpu(), stats={"lp": np.array(lp)[None]})


def _sample(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
    value = fn.sample().to(torch.get_default_dtype())  # a prior may have been built under another default dtype
    return value, torch.zeros((), dtype=torch.float64)


def prior_draws(target: Target, units: Units, draws: int, seed: int) -> tuple[Arrays, Arrays] | None:
    """Sites (1, draws, ...) and y (1, draws, n) in original units, drawn by running the program forward.

    None if a prior is improper. y is left out (an empty dict) where the program observes several sites.
    """
    sites: dict[str, list[np.ndarray]] = {s.name: [] for s in target.sites}
    observed: list[np.ndarray] = []

    def latent(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
        value, log_jacobian = _sample(name, fn)
        sites[name].append(value.cpu().numpy())
        return value, log_jacobian

    with isolated(seed=seed, dtype=target.dtype), torch.no_grad():
        for _ in range(draws):
            run = Run(latent, target.dtype, params=target.params)
            try:
                with run:
                    target.program(target.x, target.y)
            except NotImplementedError:
                return None
            if target.predicted is not None:
                y = run.conditionals[target.predicted.name].sample()
                observed.append(y.cpu().double().numpy() * units.y_sd + units.y_mean)
    prior = {name: np.stack(values)[None] for name, values in sites.items()}
    return prior, {target.predicted.name: np.stack(observed)[None]} if target.predicted is not None else {}
