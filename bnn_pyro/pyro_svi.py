"""Pyro's own SVI over a program and any guide (``engine="pyro"``), and draws of the fitted guide.

The ELBO is kept as its two terms, expected log likelihood and KL, as each step estimated them.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.optim import ClippedAdam
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from tqdm.auto import tqdm

from bnn_pyro.batching import gather_draws
from bnn_pyro.compiled import threads_for
from bnn_pyro.data import Inputs
from bnn_pyro.draws import Draws
from bnn_pyro.errors import ModelError
from bnn_pyro.guides import make_guide
from bnn_pyro.inference import MAP, SVI
from bnn_pyro.isolation import derive_seed, isolated, reseed
from bnn_pyro.likelihoods import split
from bnn_pyro.target import Program, Target, data_dim, is_deterministic, is_factor

# Guides whose densities depend on parameters alone, not on other latents: there the path gradient is the whole gradient.
PATH_GRADIENT_GUIDES = (AutoDiagonalNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal)
MEAN_FIELD_GUIDES = (AutoDiagonalNormal, AutoNormal)
# Learning rates where none is asked for. In the steps that are usual a mean-field guide reaches a higher ELBO by the larger
# one, a full-rank guide by the smaller: bnn-pyro fit MODEL --inference svi --set lr=0.02 (or 0.05) prints it.
MEAN_FIELD_LR, LR = 0.05, 0.02


class _TwoTermELBO(Trace_ELBO):
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


def fit_guide(target: Target, method: SVI | MAP, own_guide: Any, seed: int, progress: bool = True) -> Draws:
    """Fits the guide by Adam and draws from it: one chain of ``method.draws`` draws.

    ``stats`` has ``log_p`` and ``log_q``, unconstrained log densities up to the same constant, from which k-hat.
    Raises: ModelError where the guide does not have the program's latent sites, or the ELBO is not finite.
    """
    program = _float_observations(target)
    asked = "delta" if isinstance(method, MAP) else method.guide
    particles = 1 if isinstance(method, MAP) else method.particles
    where = f"{target.name}, guide"
    with isolated(derive_seed(seed, "svi"), target.dtype, threads=threads_for(target)):
        guide = make_guide(asked, own_guide, program, where)
        _check_sites(target, guide, where)
        path_gradient = isinstance(guide, PATH_GRADIENT_GUIDES)
        loss = _TwoTermELBO(particles, path_gradient)
        lr = method.lr or (MEAN_FIELD_LR if isinstance(guide, MEAN_FIELD_GUIDES) else LR)
        history = _optimise(target, method, lr, program, _latents_only(guide), loss, progress)
        if isinstance(guide, AutoLaplaceApproximation):
            guide = _laplace(guide, target, where)
        reseed(derive_seed(seed, "guide draws"))
        values, log_q = _draw(target, guide, method.draws)
        state = {name: value.detach().cpu().clone() for name, value in pyro.get_param_store().named_parameters()}
        params = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    with isolated(dtype=target.dtype):
        z, log_jacobian = gather_draws_of_values(target, values)
        stats = {}
        if not isinstance(guide, AutoDelta):
            log_p = gather_draws(target.log_density, z)
            stats = {"log_p": log_p.cpu().numpy()[None], "log_q": (log_q + log_jacobian.cpu()).numpy()[None]}
        stats["lp"] = gather_draws(target.log_density, z).cpu().numpy()[None]
    info = {"gradient_evaluations": method.steps * particles, "guide": type(guide).__name__, "lr": lr}
    return Draws(z.cpu()[None], stats=stats, history=history, state=state, params=params, info=info)


def _float_observations(target: Target) -> Program:
    """The program with the target's y as floats, as ``target.Run`` gives them to the likelihood."""

    def program(x: Inputs, y: Tensor | None = None) -> Any:
        if y is not None and not y.is_floating_point():
            y = y.to(target.dtype)
        return target.program(x, y)

    return program if not target.y.is_floating_point() else target.program


def _latents_only(guide: Any) -> Any:
    """The guide without observed sites. Pyro's messenger guides run the whole model: its likelihood would count as log q
    too, cancel in the ELBO, and leave the prior as the optimum.
    """
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def _check_sites(target: Target, guide: Any, where: str) -> None:
    try:
        trace = poutine.trace(guide).get_trace(target.x, target.y)
    except Exception as error:  # a guide is a user's program, or one of Pyro's that refuses this model
        first = next(iter(str(error).strip().splitlines()), "") or "no message"
        raise ModelError(
            f"{where}: expected to run on the training rows, got {type(error).__name__}: {first}."
        ) from error
    have = {n for n, s in trace.nodes.items() if s["type"] == "sample" and not s["infer"].get("is_auxiliary")}
    want = {s.name for s in target.sites}
    if want - have:
        raise ModelError(
            f"{where}: expected a sample statement for each latent site, got none for {sorted(want - have)}. "
            "Add pyro.sample for each, with the model's name and shape."
        )
    samples = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    observed = {n for n, s in samples.items() if s["is_observed"] or site_is_subsample(s)}
    if have - want - observed:
        raise ModelError(
            f"{where}: expected the program's latent sites {sorted(want)}, got {sorted(have - want - observed)} as well. "
            "Rename them, or mark helpers with infer={'is_auxiliary': True}."
        )


def _optimise(
    target: Target, method: SVI | MAP, lr: float, program: Program, guide: Any, loss: _TwoTermELBO, progress: bool
) -> dict[str, np.ndarray]:
    warnings.filterwarnings("ignore", message="Encountered NaN")  # the error below says it, with a remedy
    decay = method.lr_decay ** (1 / method.steps)
    optimiser = ClippedAdam({"lr": lr, "lrd": decay, "clip_norm": method.clip_norm})
    svi = PyroSVI(program, guide, optimiser, loss=loss)
    elbo, log_likelihood = np.empty(method.steps), np.empty(method.steps)
    shown = time.monotonic()
    with tqdm(total=method.steps, desc=method.name, disable=None if progress else True, unit="step") as bar:
        for step in range(method.steps):
            loss.log_likelihood = 0.0
            elbo[step] = -svi.step(target.x, target.y)
            log_likelihood[step] = loss.log_likelihood
            if not np.isfinite(elbo[step]):
                raise ModelError(
                    f"{target.name}, {method.name}: expected a finite ELBO, got {elbo[step]} at step {step + 1}. "
                    f"Lower lr (now {lr}), or standardise the data."
                )
            bar.update()
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                recent = slice(max(0, step - 99), step + 1)
                bar.set_postfix(ELBO=f"{elbo[recent].mean():.1f}", loglik=f"{log_likelihood[recent].mean():.1f}",
                                KL=f"{(log_likelihood[recent] - elbo[recent]).mean():.1f}")  # fmt: skip
    return {"elbo": elbo, "expected_log_likelihood": log_likelihood, "kl": log_likelihood - elbo}


def _laplace(guide: Any, target: Target, where: str) -> Any:
    try:
        return guide.laplace_approximation(target.x, target.y)
    except Exception as error:  # torch raises several kinds for a matrix that is not positive definite
        raise ModelError(
            f"{where}: expected a positive definite Hessian at the mode, got none ({type(error).__name__}). "
            "Use more steps and dtype='float64', or guide='multivariate'."
        ) from error


@torch.no_grad()
def _draw(target: Target, guide: Any, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    values: dict[str, list[Tensor]] = {s.name: [] for s in target.sites}
    log_q = []
    for _ in range(draws):
        trace = poutine.trace(_latents_only(guide)).get_trace(target.x, target.y)
        for name, kept in values.items():
            kept.append(trace.nodes[name]["value"].detach())
        log_q.append(float(trace.log_prob_sum()))  # constrained: an autoguide's delta sites carry the log-Jacobian
    return {name: torch.stack(kept) for name, kept in values.items()}, torch.tensor(log_q, dtype=torch.float64)


def gather_draws_of_values(target: Target, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """z (draws, dim) and log-Jacobians (draws,) from constrained values with a leading draw axis."""
    shapes = {s.name: s.shape for s in target.sites}
    flat = torch.cat([values[name].reshape(values[name].shape[0], -1) for name in shapes], dim=1)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]

    def one(row: Tensor) -> tuple[Tensor, Tensor]:
        parts = row.split(sizes)
        return target.unconstrain({n: p.reshape(shapes[n]) for n, p in zip(shapes, parts, strict=True)})

    return gather_draws(one, flat)
