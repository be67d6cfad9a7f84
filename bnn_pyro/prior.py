"""Draws of the prior, and of y under it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from bnn_pyro.data import Units
from bnn_pyro.isolation import isolated
from bnn_pyro.target import Run, Target

Arrays = dict[str, np.ndarray]


def prior_draws(target: Target, units: Units, draws: int, seed: int) -> tuple[Arrays, Arrays] | None:
    """Sites (1, draws, ...) and y (1, draws, n) in original units, drawn by running the program forward.

    None if a prior is improper. y is left out (an empty dict) where the program observes several sites.
    """
    sites: dict[str, list[np.ndarray]] = {s.name: [] for s in target.sites}
    observed: list[np.ndarray] = []

    def latent(name: str, fn: Distribution) -> tuple[Tensor, Tensor]:
        value = fn.sample()
        sites[name].append(value.cpu().numpy())
        return value, torch.zeros((), dtype=torch.float64)

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
