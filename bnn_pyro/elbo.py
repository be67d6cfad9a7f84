"""The ELBO of a guide as a pure function of the guide's parameters, noise and rows.

    ELBO = E_q[log p(y | x, theta)] - KL(q || p),  estimated by draws theta = T(parameters, noise)

A guide is any Pyro program with the model's latent sites, an autoguide or one written by hand. It is run once to find its
parameters; from then on ``Elbo`` gives them as arguments. All draws have to be differentiable in the parameters.
Source: Kingma & Welling 2014, arXiv:1312.6114; Roeder, Wu & Duvenaud 2017, arXiv:1703.09194, for the path gradient.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from bnn_pyro.data import Inputs
from bnn_pyro.errors import ModelError
from bnn_pyro.handlers import Run
from bnn_pyro.isolation import generator_states
from bnn_pyro.likelihoods import split
from bnn_pyro.substitution import Substituted
from bnn_pyro.target import Target, add_up

LARGE = 1_000_000  # latent numbers from which on memory is counted


class Terms(NamedTuple):
    """Estimates of the two terms of the ELBO, () float64."""

    log_likelihood: Tensor
    kl: Tensor


class Rows(NamedTuple):
    """A mini-batch: rows, and how many times as many all training rows are."""

    x: Inputs
    y: Tensor
    scale: float


@dataclass(frozen=True)
class Elbo:
    """Made by ``trace_elbo`` inside ``isolated``, and used there: the guide's parameters are in Pyro's store.

    Attributes:
        target, guide: The program with its rows, and the guide.
        leaves: Unconstrained parameters of guide and program, by the names that Pyro's store has.
        noise: Standard normal numbers that one draw takes.
        path_gradient: Whether parameters are held fixed inside log q, so that only its dependence on the draw is followed
            ("sticking the landing"): what is dropped has mean zero, and the noise vanishes where the guide is the posterior.
    """

    target: Target
    guide: Any
    leaves: dict[str, Tensor]
    noise: int
    path_gradient: bool

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the parts that ``terms`` takes, which follow each other as ``leaves`` do."""
        return [leaf.shape for leaf in self.leaves.values()]

    def draw(self, parts: Sequence[Tensor], noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """One draw of the guide: constrained values by latent site, and log q there, () float64.

        Args:
            parts: A value for each of ``leaves``.
            noise: (noise,) standard normal numbers; None for torch's generator.
        """
        with Substituted(list(self.leaves.values()), parts, noise):
            values, log_q, _ = run_guide(self.target, self.guide, self.path_gradient)
        return values, log_q

    def terms(self, parts: Sequence[Tensor] | None, noise: Tensor | None, rows: Rows | None = None) -> Terms:
        """The ELBO's terms by one draw, on all training rows or on a mini-batch, whose log likelihood is scaled up.

        ``parts`` of None leaves the parameters where guide and program have them.
        """
        x, y = (self.target.x, self.target.y) if rows is None else rows[:2]
        given = ([], []) if parts is None else (list(self.leaves.values()), parts)
        with Substituted(*given, noise):
            values, log_q, _ = run_guide(self.target, self.guide, self.path_gradient, x, y)
            run = run_program(self.target, values, x, y)
            log_prior = add_up(run.log_prior)
        return Terms(self.scaled(run.log_likelihood, rows), log_q - log_prior)

    def scaled(self, log_likelihood: dict[str, Tensor], rows: Rows | None) -> Tensor:
        """The sum over sites and rows, () float64, as of all rows."""
        total = sum(term.sum(dtype=torch.float64) for term in log_likelihood.values())
        return torch.as_tensor(total) if rows is None else torch.as_tensor(total * rows.scale)


def trace_elbo(target: Target, guide: Any, path_gradient: bool) -> Elbo:
    """Runs guide and program once, and collects their parameters.

    Raises: ModelError for a guide of sites whose draws cannot be differentiated; NotImplementedError for one whose random
        numbers cannot be made of normal ones.
    """
    with torch.no_grad(), poutine.trace(param_only=True) as params, Substituted() as counted:
        sites = _guide_sites(target, guide)
        run_program(target, {n: s["value"] for n, s in sites.items()}, target.x, target.y)
    for name, site in sites.items():
        if not (isinstance(site["fn"], Delta) or getattr(site["fn"], "has_rsample", False)):
            raise ModelError(
                f"{target.name}, guide, site {name!r}: expected a distribution whose draws can be differentiated, got "
                f"{type(site['fn']).__name__}. Use engine='pyro', which takes score-function gradients."
            )
    leaves: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, site in params.trace.nodes.items():
        if site["type"] == "param":
            leaf: Any = site["value"].unconstrained()  # type: ignore[union-attr]  # Pyro keeps a weak reference there
            if id(leaf) not in seen:
                seen.add(id(leaf))
                leaves[name] = leaf
    del sites, params, site
    before = generator_states()
    with torch.no_grad(), Substituted(noise=torch.zeros(counted.used, device=target.device)):
        _guide_sites(target, guide)
    if before != generator_states():
        raise NotImplementedError(f"{target.name}, guide: it draws by torch's generator where that cannot be seen")
    tidy(target, guide)
    return Elbo(target, guide, leaves, counted.used, path_gradient)


def tidy(target: Target, guide: Any) -> None:
    """Frees what is as large as a large guide: traces, which refer to each other, what Pyro's store made of parameters, and
    the values at which an autoguide looked at the program's shapes.
    """
    if target.dim >= LARGE:
        prototype = getattr(guide, "prototype_trace", None)
        for site in prototype.nodes.values() if prototype is not None else ():
            if site["type"] == "sample" and site["value"].numel() >= LARGE:
                site["value"] = site["value"].new_zeros(()).expand(site["value"].shape)
        store = pyro.get_param_store()
        state = store.get_state()  # the parameters alone
        store.clear()
        store.set_state(state)
        gc.collect()


def run_program(target: Target, values: dict[str, Tensor], x: Inputs, y: Tensor) -> Run:
    """The program run with constrained values for its latent sites."""
    zero = torch.zeros((), dtype=torch.float64, device=target.device)
    with Run(lambda name, fn: (values[name], zero), target.dtype) as run:
        target.program(x, y)
    return run


def run_guide(
    target: Target, guide: Any, path_gradient: bool, x: Inputs | None = None, y: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """Constrained values by latent site, log q () float64, and the guide's sample sites."""
    sites = _guide_sites(target, guide, x, y)
    log_q = torch.zeros((), dtype=torch.float64, device=target.device)
    for site in sites.values():
        fn = site["fn"]
        if path_gradient and not isinstance(fn, Delta):
            tensors, make = split(fn)
            fn = make([t.detach() for t in tensors])
        log_q = log_q + scale_and_mask(_log_prob(fn, site["value"]), site["scale"], site["mask"]).sum(
            dtype=torch.float64
        )
    latent = {s.name for s in target.sites}
    return {n: s["value"] for n, s in sites.items() if n in latent}, log_q, sites


def _guide_sites(target: Target, guide: Any, x: Inputs | None = None, y: Tensor | None = None) -> dict[str, Any]:
    trace = poutine.trace(guide).get_trace(target.x if x is None else x, target.y if y is None else y)
    return {
        n: s
        for n, s in trace.nodes.items()
        if s["type"] == "sample" and not s["is_observed"] and not site_is_subsample(s)
    }


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    """Log density of a value that was drawn from ``fn``, of its batch shape: a Delta has no need to compare."""
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if isinstance(inner, Delta):
        density = torch.as_tensor(inner.log_density).expand(inner.batch_shape)
        return (
            density.sum(list(range(len(fn.batch_shape), density.ndim)))
            if density.ndim > len(fn.batch_shape)
            else density
        )
    return fn.log_prob(value)
