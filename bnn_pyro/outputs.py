"""A likelihood's parameters as free numbers, row by row: taken out of a distribution, put back, and what y says of them.

    eta_i = (T_1^-1(p_1i), T_2^-1(p_2i), ...),  such as (loc, log scale) of a Normal, or the logits of classes

Between weights and log likelihood stands eta: ``linearized`` makes it linear in the weights, and the generalised
Gauss-Newton matrix of ``curvature`` is J^T F J with J = d eta / d z and F the information below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Bernoulli, Categorical
from pyro.distributions import Distribution as PyroDistribution
from pyro.distributions import Normal as PyroNormal
from torch import Tensor
from torch.distributions import Independent, LogNormal, Normal, Poisson, biject_to
from torch.func import grad, jvp, vmap

from bnn_pyro.likelihoods import unwrapped

SUPPORT = 256  # values of y, up to which an expectation is taken over all of them


@dataclass(frozen=True)
class Outputs:
    """Free numbers ``eta`` (n, k) of a distribution over n rows, and ``make``: eta -> the distribution around them."""

    eta: Tensor
    make: Callable[[Tensor], Any]


def outputs(fn: Any, dim: int) -> Outputs:
    """The parameters of ``fn``, whose rows are its batch axis ``dim`` (negative). Pure, so that it can be differentiated.

    Raises: NotImplementedError for a distribution that is not made anew from its own parameters.
    """
    if isinstance(fn, Independent):
        inner = outputs(fn.base_dist, dim - fn.reinterpreted_batch_ndims)
        return Outputs(inner.eta, lambda eta: _as_pyro(inner.make(eta)).to_event(fn.reinterpreted_batch_ndims))
    kind, parts, backs = type(fn), [], {}
    names = [name for name in fn.arg_constraints if name in fn.__dict__]  # not probs, which logits were given for
    for name in names or fn.arg_constraints:
        given, constraint = getattr(fn, name, None), fn.arg_constraints[name]
        if not isinstance(given, Tensor):
            continue
        transform = biject_to(constraint)
        inside = constraint.event_dim
        batch = fn.batch_shape
        free = transform.inv(given.expand(batch + given.shape[given.ndim - inside :]))
        rows_first = torch.movedim(free, len(batch) + dim, 0)
        backs[name] = (transform, len(batch) + dim, rows_first.shape[1:])
        parts.append(rows_first.reshape(rows_first.shape[0], -1))
    if not parts:
        raise NotImplementedError(f"a {kind.__name__} is not made anew from parameters of its own")
    sizes = [part.shape[1] for part in parts]

    def make(eta: Tensor) -> Any:
        params = {}
        for (name, (transform, axis, shape)), part in zip(backs.items(), eta.split(sizes, 1), strict=True):
            params[name] = transform(torch.movedim(part.reshape(len(eta), *shape), 0, axis))
        return kind(**params)

    return Outputs(torch.cat(parts, 1), make)


def _as_pyro(fn: Any) -> Any:
    return fn if isinstance(fn, PyroDistribution) else fn.to_event(0)


def check_remade(found: Outputs, fn: Any, y: Tensor) -> None:
    """Raises: NotImplementedError unless ``found.make`` gives ``fn`` again, by the log densities of y."""
    try:
        made = found.make(found.eta).log_prob(y)
    except Exception as error:  # a distribution's class may take other arguments than it states
        raise NotImplementedError(f"a {type(unwrapped(fn)).__name__} is not made anew from its parameters") from error
    wanted = fn.log_prob(y)
    close = torch.isclose(made, wanted, rtol=1e-4, atol=1e-5) | (made == wanted)
    if made.shape != wanted.shape or not bool(close.all()):
        raise NotImplementedError(f"a {type(unwrapped(fn)).__name__} is not what its parameters say")


def information(found: Outputs, y: Tensor) -> tuple[Tensor, str]:
    """Information F (n, k, k) that y has of eta, positive semi-definite, and which kind it is.

    ``"fisher"``: minus the expected Hessian of log p(y | eta), for Normal, LogNormal, Poisson and likelihoods of few values;
    the same as the observed one where eta are natural parameters. ``"observed"``: minus the Hessian at y, with negative
    eigenvalues left out, for others.
    Source: Martens 2020, arXiv:1412.1193, sections 8 and 9.
    """
    closed = _closed_form(found)
    if closed is not None:
        return closed, "fisher"
    kind, score = _expected_log_prob(found, y)
    n, k = found.eta.shape
    basis = torch.eye(k, dtype=found.eta.dtype, device=found.eta.device)

    def column(direction: Tensor) -> Tensor:
        return jvp(grad(score), (found.eta,), (direction.expand(n, k),))[1]

    hessian = -vmap(column)(basis).movedim(0, 1)
    hessian = (hessian + hessian.mT) / 2
    values, vectors = torch.linalg.eigh(hessian)
    return (vectors * values.clamp(min=0.0)[:, None]) @ vectors.mT, kind


def _closed_form(found: Outputs) -> Tensor | None:
    """The information of the usual likelihoods, which ``_expected_log_prob`` gives ten times as slowly."""
    fn = found.make(found.eta)
    if type(fn) is PyroNormal and fn.loc.ndim == 1:  # loc and log scale of each row
        one = torch.ones_like(fn.loc)
        return torch.diag_embed(torch.stack([one / fn.scale**2, 2 * one], 1))
    if type(fn) is Bernoulli and "logits" in fn.__dict__ and fn.logits.ndim == 1:
        p = torch.sigmoid(found.eta[:, 0])
        return (p * (1 - p))[:, None, None]
    if type(fn) is Categorical and "logits" in fn.__dict__ and fn.logits.ndim == 2:
        p = torch.softmax(found.eta, 1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return None


def root(information: Tensor) -> Tensor:
    """L (n, k, k) with L L^T the information; columns of directions that y says nothing of are 0."""
    values, vectors = torch.linalg.eigh(information)
    return vectors * values.clamp(min=0.0).sqrt()[:, None]


def _expected_log_prob(found: Outputs, y: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """eta -> sum of E[log p(y | eta)], () up to a constant, y drawn as ``found.eta`` says; or log p(y | eta) at the y seen."""
    at = found.make(found.eta.detach())
    base = unwrapped(at)
    if isinstance(base, LogNormal):
        base = base.base_dist
    if isinstance(base, Normal):

        def normal(eta: Tensor) -> Tensor:
            fn = unwrapped(found.make(eta))
            fn = fn.base_dist if isinstance(fn, LogNormal) else fn
            square = base.scale.detach() ** 2 + (base.loc.detach() - fn.loc) ** 2
            return -(fn.scale.log() + 0.5 * square / fn.scale**2).sum()

        return "fisher", normal
    if isinstance(base, Poisson):
        rate = base.rate.detach()
        return "fisher", lambda eta: _poisson(rate, unwrapped(found.make(eta)).rate)
    if getattr(base, "has_enumerate_support", False) and not base.event_shape:
        values = base.enumerate_support(expand=False)
        if len(values) <= SUPPORT:
            chance = base.log_prob(values).exp().detach()
            return "fisher", lambda eta: (chance * unwrapped(found.make(eta)).log_prob(values)).sum()
    return "observed", lambda eta: found.make(eta).log_prob(y).sum()


def _poisson(expected: Tensor, rate: Tensor) -> Tensor:
    return (expected * rate.log() - rate).sum()
