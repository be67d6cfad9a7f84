"""A target's log density and gradient, batched over chains, as one graph of tensor operations.

Two things make the graph smaller than the program. Latent sites are differentiated as arguments of their own and joined once.
And priors that are Normal with fixed parameters, the weights of most networks, are one operation on the whole of z, where
site by site they are what takes longest to compile.

In float32 on a CPU, tanh of many numbers is replaced by a rational function, which is faster than the vector library's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.func import functionalize, grad_and_value, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from bnn_pyro.failing import nan_where_it_fails
from bnn_pyro.simplify import simplify
from bnn_pyro.target import Target

VALUES_UP_TO = 1_000_000  # numbers of a copy's first argument, up to which a function is traced on values
FEW = 256  # numbers of a chain, such as those of a constraining map, up to which tanh stays as it is
# tanh x = x P(x^2) / Q(x^2) on |x| <= 9: minimax in the relative error, 1.5e-7; 4e-7 with float32's rounding
_TANH_LIMIT = 9.0
_TANH_P = (0.999999919, 0.133929074, 0.003507289, 2.06942041e-05, 1.32611073e-08)
_TANH_Q = (1.0, 0.467262571, 0.025927918, 0.000330023518, 7.78322731e-07)


@dataclass(frozen=True)
class NormalPriors:
    """The part of the log prior that is Normal(loc, scale) with fixed parameters, over the flat vector.

    Attributes:
        sites: Names of the sites whose prior this is.
        loc, precision: (dim,) in the target's dtype; precision 0 outside of these sites.
        constant: Sum of log densities at loc.
    """

    sites: frozenset[str]
    loc: Tensor
    precision: Tensor
    constant: float

    def log_density(self, z: Tensor) -> Tensor:
        """This part of the log prior, () float64, at z (dim,)."""
        away = z - self.loc
        return self.constant - 0.5 * (away * away * self.precision).sum(dtype=torch.float64)

    def add_to(self, z: Tensor, grad: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (c, dim) and log density (c,) with this part added, at z (c, dim)."""
        away = z - self.loc
        pull = away * self.precision
        return grad - pull, value - 0.5 * (away * pull).sum(-1, dtype=torch.float64) + self.constant


def normal_priors(target: Target) -> NormalPriors:
    """Finds the sites whose prior no latent value has a part in, by running the program with gradients followed."""
    z = torch.zeros(target.dim, dtype=target.dtype, device=target.device, requires_grad=True)
    with torch.enable_grad():
        priors = target.evaluate(z).priors
    loc, precision = torch.zeros_like(z, requires_grad=False), torch.zeros_like(z, requires_grad=False)
    names, constant = set(), 0.0
    for site in target.sites:
        prior = priors.get(site.name)
        while isinstance(prior, Independent):
            prior = prior.base_dist
        if not isinstance(prior, Normal) or prior.loc.requires_grad or prior.scale.requires_grad:
            continue
        names.add(site.name)
        part = slice(site.start, site.stop)
        loc[part] = prior.loc.expand(site.shape).reshape(-1)
        precision[part] = prior.scale.expand(site.shape).reshape(-1) ** -2
        constant += float(prior.log_prob(prior.loc).double().expand(site.shape).sum())
    return NormalPriors(frozenset(names), loc, precision, constant)


def trace(target: Target, priors: NormalPriors, z: Tensor, y: Tensor | None = None) -> GraphModule:
    """The graph of z (block, dim) -> gradient (block, dim), log density (block,).

    Args:
        priors: Those of ``target`` that are added for all sites at once.
        y: Targets (block, n, ...) of each chain's own, a second argument of the graph; None for the target's.
    Raises: whatever the program raises on symbolic tensors, with a note of the site that it had come to.
    """

    def density(parts: tuple[Tensor, ...], y: Tensor | None) -> Tensor:
        by_name = {site.name: part for site, part in zip(target.sites, parts, strict=True)}
        result = target.evaluate_sites(by_name, y=y, leave_out=priors.sites)
        return result.log_prior + sum(t.sum(dtype=torch.float64) for t in result.log_likelihood.values())

    def one_chain(z: Tensor, y: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        return grad_and_value(density)(tuple(site.take(z) for site in target.sites), y)

    def flat(z: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        grads, value = vmap(one_chain)(z, *y)
        grad = torch.cat([grad.reshape(len(grad), -1) for grad in grads], 1)
        return priors.add_to(z, grad, value) if priors.sites else (grad, value)

    return trace_function(flat, (z,) if y is None else (z, y), len(z))


def trace_function(function: Callable, example: tuple[Tensor, ...], copies: int) -> GraphModule:
    """The graph of ``function`` at arguments like ``example``, which ``copies`` of one computation share out."""
    table: dict[Any, Callable] = {}
    if example[0].dtype == torch.float32 and example[0].device.type == "cpu":
        few = FEW * copies
        table[torch.ops.aten.tanh.default] = lambda x: NotImplemented if x.numel() < few else rational_tanh(x)
    pure = functionalize(function, remove="mutations")  # a log density may fill what it has just made in place
    # Without values the intermediate ones of a large program take no memory; with them, programs may look at their data.
    large = example[0].numel() >= VALUES_UP_TO * copies
    tracer = make_fx(pure, table, tracing_mode="fake" if large else "real", _allow_non_fake_inputs=True)
    return simplify(nan_where_it_fails(tracer(*example)))


def rational_tanh(x: Tensor) -> Tensor:
    """tanh for float32, within 4e-7 of it, relative."""
    x = x.clamp(-_TANH_LIMIT, _TANH_LIMIT)
    square = x * x
    return (x * _polynomial(square, _TANH_P) / _polynomial(square, _TANH_Q)).clamp(-1.0, 1.0)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        result = result * x + coefficient
    return result
