"""Guides: Pyro's autoguides by name, started where a network can learn, and what a guide has to be.

Pyro starts the means of an autoguide at the median or at zero in unconstrained space. For a network that is a symmetric
start: all units of a layer are equal and most gradients vanish. Here weights start at a draw of their prior.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.transforms import block_autoregressive, iterated
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from bnn_pyro.data import Inputs
from bnn_pyro.errors import ModelError
from bnn_pyro.handlers import OwnParameters, is_factor
from bnn_pyro.isolation import forked_generators
from bnn_pyro.sites import draw_from_prior
from bnn_pyro.target import Program, Target

MEAN_FIELD_GUIDES = (autoguide.AutoDiagonalNormal, autoguide.AutoNormal)
# Guides whose densities depend on parameters alone, not on other latents: there the path gradient is the whole gradient.
PATH_GRADIENT_GUIDES = (
    *MEAN_FIELD_GUIDES,
    autoguide.AutoLowRankMultivariateNormal,
    autoguide.AutoMultivariateNormal,
)

CPU = torch.device("cpu")
INIT_SCALE = (
    0.05  # sd of each weight under a fresh guide: small beside a prior of sd 1, so that the first ELBO is finite
)


def init_to_prior(site: Any = None) -> Tensor:
    """Autoguide initialisation: a draw of the prior where the support is the reals, the feasible point elsewhere.

    Scales start at 1 rather than at a draw, since half-Cauchy draws can be anything.
    """
    if site is None:
        return init_to_prior  # type: ignore[return-value]  # Pyro's protocol for bare functions
    support = site["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return (
        draw_from_prior(site["name"], site["fn"])[0].detach() if support is constraints.real else init_to_feasible(site)
    )


_WITH_SCALE = {
    "diagonal": autoguide.AutoDiagonalNormal,
    "gaussian": autoguide.AutoGaussian,
    "lowrank": autoguide.AutoLowRankMultivariateNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "normal": autoguide.AutoNormal,
    "normal_messenger": autoguide.AutoNormalMessenger,
    "hierarchical_normal_messenger": autoguide.AutoHierarchicalNormalMessenger,
    "structured": autoguide.AutoStructured,
}
_WITHOUT_SCALE = {
    "delta": autoguide.AutoDelta,
    "iaf": autoguide.AutoIAFNormal,
    "laplace": autoguide.AutoLaplaceApproximation,
    "regressive_messenger": autoguide.AutoRegressiveMessenger,
}


def autoguide_by_name(name: str, program: Program) -> Any:
    """A fresh Pyro autoguide of ``program``; names are those of ``bnn_pyro.inference.svi.GUIDES``."""
    if name in _WITH_SCALE:
        return _WITH_SCALE[name](program, init_loc_fn=init_to_prior, init_scale=INIT_SCALE)
    if name == "flow":
        transform = partial(iterated, 2, partial(block_autoregressive, activation="tanh"))
        return autoguide.AutoNormalizingFlow(program, transform)
    return _WITHOUT_SCALE[name](program, init_loc_fn=init_to_prior)


def make_guide(
    guide: Any, own: Callable[[], Any] | None, program: Program, where: str, device: torch.device = CPU
) -> Any:
    """The guide that ``SVI(guide=...)`` asks for, on ``device``, where ``program`` is.

    It asks by name, by a class of autoguides or with a program; or there is the model's own.
    """
    if guide is None:
        guide = own() if own is not None else None
    if guide is None:
        guide = "normal"
    if isinstance(guide, str):
        return autoguide_by_name(guide, program)
    if isinstance(guide, type):
        if not issubclass(guide, autoguide.AutoGuide):
            raise ModelError(f"{where}: expected a subclass of AutoGuide, got the class {guide.__name__}.")
        return guide(program)
    return _copied(guide, program, device)


def _copied(guide: Any, program: Program, device: torch.device) -> Any:
    """A copy on ``device`` whose parameters a fit may change; the caller's guide stays as it is."""
    if not isinstance(guide, torch.nn.Module):
        return guide
    own = getattr(guide, "_model", None)
    made: Any = copy.deepcopy(guide).to(device)
    if own is not None:  # Pyro's autoguides drop their program, from the original too, when they are copied
        guide._model = own
        made._model = own if device == CPU else (program,)  # the user's is on the CPU
    return made


def float_observations(target: Target) -> Program:
    """The program with the target's y as floats, as ``handlers.Run`` gives them to the likelihood."""

    def program(x: Inputs, y: Tensor | None = None) -> Any:
        if y is not None and not y.is_floating_point():
            y = y.to(target.dtype)
        return target.program(x, y)

    return program if not target.y.is_floating_point() else target.program


def latents_only(guide: Any) -> Any:
    """The guide without observed sites. Pyro's messenger guides run the whole model: its likelihood would count as log q
    too, cancel in the ELBO, and leave the prior as the optimum.
    """
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def begin_parameters(target: Target) -> None:
    """Puts the program's parameters into Pyro's store, as copies; random numbers are none the fewer."""
    with forked_generators(), torch.no_grad(), OwnParameters():
        target.program(target.x, target.y)


def check_sites(target: Target, guide: Any, where: str) -> None:
    try:
        with OwnParameters():
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
    for site in target.sites:
        got = tuple(samples[site.name]["value"].shape)
        if got != site.shape:
            raise ModelError(
                f"{where}, site {site.name!r}: expected a value of shape {site.shape}, as the program has, got {got}. "
                "Give its distribution that shape, such as by .expand(...).to_event(...)."
            )
    factors = [n for n, s in samples.items() if is_factor(s) and n not in {o.name for o in target.observed}]
    if factors:
        raise ModelError(
            f"{where}: expected sample statements, got pyro.factor {factors[0]!r}, whose density no engine counts. Put it into "
            "the log_density of a Delta, or use a transformed distribution."
        )
    observed = {n for n, s in samples.items() if s["is_observed"] or site_is_subsample(s)}
    if have - want - observed:
        raise ModelError(
            f"{where}: expected the program's latent sites {sorted(want)}, got {sorted(have - want - observed)} as well. "
            "Rename them, or mark helpers with infer={'is_auxiliary': True}."
        )


def laplace(guide: Any, target: Target, where: str) -> Any:
    try:
        return guide.laplace_approximation(target.x, target.y)
    except Exception as error:  # torch raises several kinds for a matrix that is not positive definite
        raise ModelError(
            f"{where}: expected a positive definite Hessian at the mode, got none ({type(error).__name__}). "
            "Use more steps and dtype='float64', or guide='multivariate'."
        ) from error
