"""Pyro's own SVI over a program and any guide (``engine="pyro"``), and draws of a fitted guide by running it.

The ELBO is kept as its two terms, expected log likelihood and KL, as each step estimated them.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.guides import PATH_GRADIENT_GUIDES, latents_only
from bnn_pyro.handlers import data_dim, is_deterministic, is_factor
from bnn_pyro.inference import MAP, SVI
from bnn_pyro.interrupts import Interrupts
from bnn_pyro.likelihoods import split
from bnn_pyro.target import Program, Target


class TwoTermELBO(Trace_ELBO):
    """Trace_ELBO that notes the log likelihood of each step beside the loss.

    With ``path_gradient``, parameters are held fixed inside log q, so that only its dependence on the draw is followed
    ("sticking the landing"): what is dropped has mean zero, and the noise vanishes where the guide is the posterior.
    Source: Roeder, Wu & Duvenaud 2017, arXiv:1703.09194, equation 8.
    """

    def __init__(self, particles: int, path_gradient: bool):
        super().__init__(num_particles=particles)
        self.log_likelihood = 0.0
        self.path_gradient = path_gradient

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        if self.path_gradient:
            for site in guide_trace.nodes.values():
                if site["type"] == "sample" and not isinstance(site["fn"], Delta):
                    tensors, make = split(site["fn"])
                    held = make([t.detach() for t in tensors])
                    value = site["value"]
                    surrogate = (
                        surrogate + (held.log_prob(value) - site["fn"].log_prob(value)).sum()
                    )  # zero, not so its gradient
        return loss, surrogate

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        model_trace, guide_trace = super()._get_trace(*args, **kwargs)
        for site in model_trace.nodes.values():
            if site["type"] == "sample" and site["is_observed"] and not is_deterministic(site):
                if is_factor(site) and data_dim(site) is None:
                    continue  # a term of the prior
                self.log_likelihood += float(site["log_prob_sum"].detach()) / self.num_particles
        return model_trace, guide_trace


def optimise_by_pyro(
    target: Target,
    program: Program,
    guide: Any,
    method: SVI | MAP,
    lr: float,
    record: ElboRecord,
    interrupts: Interrupts,
) -> None:
    """Trains the guide's parameters in Pyro's store by ``method.steps`` steps of ``pyro.infer.SVI``."""
    warnings.filterwarnings("ignore", message="Encountered NaN")  # the record's error says it, with a remedy
    particles = 1 if isinstance(method, MAP) else method.particles
    loss = TwoTermELBO(particles, isinstance(guide, PATH_GRADIENT_GUIDES))
    decay = method.lr_decay ** (1 / method.steps)
    optimiser = ClippedAdam({"lr": lr, "lrd": decay, "clip_norm": method.clip_norm})
    svi = PyroSVI(program, latents_only(guide), optimiser, loss=loss)
    for _ in range(method.steps):
        loss.log_likelihood = 0.0
        elbo = -svi.step(target.x, target.y)
        record.add(np.array([[loss.log_likelihood, loss.log_likelihood - elbo]]))
        if interrupts.pressed:
            break


@torch.no_grad()
def draw_by_pyro(target: Target, guide: Any, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """Constrained values (draws, ...) by site, and log q (draws,) there, by running the guide so often."""
    values: dict[str, list[Tensor]] = {s.name: [] for s in target.sites}
    log_q = []
    for _ in range(draws):
        trace = poutine.trace(latents_only(guide)).get_trace(target.x, target.y)
        for name, kept in values.items():
            kept.append(trace.nodes[name]["value"].detach())
        log_q.append(float(trace.log_prob_sum()))  # constrained: an autoguide's delta sites carry the log-Jacobian
    return {name: torch.stack(kept) for name, kept in values.items()}, torch.tensor(log_q, dtype=torch.float64)
