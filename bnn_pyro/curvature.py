"""Curvature of a target at a point: Hessians of the log prior and log density, and generalised Gauss-Newton matrices.

    H = H_prior + H_likelihood,  H_likelihood ~ sum_i J_i^T F_i J_i   (generalised Gauss-Newton, "ggn")

with J_i (k, dim) the Jacobian of row i's likelihood parameters and F_i the information that y has of them (``outputs``). The
Gauss-Newton part is positive semi-definite anywhere; the exact Hessian is positive definite at a mode only. All of minus the
log density, so that H is a precision. Source: Martens 2020, arXiv:1412.1193; Daxberger et al. 2021, arXiv:2106.14806.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from bnn_pyro.data import Inputs
from bnn_pyro.errors import OptionError
from bnn_pyro.graphs import normal_priors
from bnn_pyro.linearized import outputs_at
from bnn_pyro.outputs import information, root
from bnn_pyro.target import Target

FEW = 256  # entries of a site, up to which a Hessian is computed whole
BLOCK = 2**26  # bytes of Jacobians at once
SAME_ROWS = 1e-8  # relative difference of a row by itself and among all, below which rows are called independent


def likelihood_parameters(target: Target, mode: Tensor) -> tuple[Tensor, str]:
    """Roots L (n, k, k) of the information that y has of its parameters at ``mode``, and its kind: ``outputs.information``."""
    with torch.no_grad():
        found = outputs_at(target, mode, target.x)
        inside, kind = information(found, target.y.to(target.dtype))
        return root(inside), kind


def ggn(target: Target, mode: Tensor, index: Tensor) -> Tensor:
    """Gauss-Newton matrix of minus the log likelihood, (b, b), for the entries ``index`` (b,) of z."""
    total = mode.new_zeros(len(index), len(index))
    for rows in rooted_jacobians(target, mode, index):
        total += rows.mT @ rows
    return total


def ggn_diagonal(target: Target, mode: Tensor, index: Tensor) -> Tensor:
    """Its diagonal, (b,)."""
    total = mode.new_zeros(len(index))
    for rows in rooted_jacobians(target, mode, index):
        total += rows.square().sum(0)
    return total


def rooted_jacobians(target: Target, mode: Tensor, index: Tensor) -> Iterator[Tensor]:
    """L_i^T J_i of all rows, some rows at a time, as matrices (rows k, b): their squares add up to the Gauss-Newton matrix."""
    roots, _ = likelihood_parameters(target, mode)
    n, k, _ = roots.shape
    here = mode[index]

    def eta(part: Tensor, x: Inputs) -> Tensor:
        return outputs_at(target, mode.index_put((index,), part), x).eta

    def of_rows(rows: Tensor, x: Inputs) -> Tensor:
        return (rows.mT @ jacrev(lambda part: eta(part, _unsqueezed(x))[0])(here)).reshape(k, -1)

    mapped = vmap(of_rows)
    independent = _rows_are_independent(lambda x: eta(here, x), target.x)
    if independent and _tried(mapped, roots[:1], _sliced(target.x, 0, 1)) is not None:
        size = max(1, BLOCK // (8 * k * max(1, len(index))))
        for start in range(0, n, size):
            x = _sliced(target.x, start, start + size)
            yield mapped(roots[start : start + size], x).reshape(-1, len(index))
        return
    basis = torch.eye(len(index), dtype=mode.dtype, device=mode.device)
    size = max(1, BLOCK // (8 * k * n))

    def column(direction: Tensor) -> Tensor:
        return jvp(lambda part: eta(part, target.x), (here,), (direction,))[1]

    columns = torch.cat([vmap(column)(part) for part in basis.split(size)])
    yield torch.einsum("nji,bnj->nib", roots, columns).reshape(n * k, -1)


def hessian(function: Callable[[Tensor], Tensor], mode: Tensor, index: Tensor) -> Tensor:
    """Minus the Hessian (b, b) of a scalar function of z, for the entries ``index``."""
    here = mode[index]

    def gradient(part: Tensor) -> Tensor:
        return grad(lambda part: function(mode.index_put((index,), part)))(part)

    basis = torch.eye(len(index), dtype=mode.dtype, device=mode.device)
    size = max(1, min(len(index), 64))
    columns = torch.cat([vmap(lambda v: jvp(gradient, (here,), (v,))[1])(part) for part in basis.split(size)])
    return -(columns + columns.mT) / 2


def hessian_diagonal(function: Callable[[Tensor], Tensor], mode: Tensor) -> Tensor:
    """The diagonal (dim,) of minus the Hessian, a product with the Hessian for each entry."""

    def entry(direction: Tensor) -> Tensor:
        return (jvp(grad(function), (mode,), (direction,))[1] * direction).sum()

    parts = torch.arange(len(mode), device=mode.device).split(64)
    basis = [torch.nn.functional.one_hot(part, len(mode)).to(mode) for part in parts]
    return -torch.cat([vmap(entry)(part) for part in basis])


def prior_hessian(target: Target, mode: Tensor, index: Tensor) -> Tensor:
    """Minus the Hessian (b, b) of the log prior of z, its log-Jacobian included, for the entries ``index``."""
    normal = normal_priors(target)
    total = torch.diag(normal.precision[index])
    function, sites = _rest_of_prior(target, mode, normal.sites)
    rest = torch.isin(index, _entries(target, sites))
    if rest.any():
        own = torch.nonzero(rest)[:, 0]
        total[own[:, None], own] += hessian(function, mode, index[own])
    return total


def prior_diagonal(target: Target, mode: Tensor) -> Tensor:
    """The diagonal (dim,) of minus that Hessian.

    Raises: OptionError for a large site without a fixed Normal prior, where entries are not independent given others.
    """
    normal = normal_priors(target)
    total = normal.precision.clone()
    function, sites = _rest_of_prior(target, mode, normal.sites)
    for site in target.sites:
        if site.name in sites:
            index = torch.arange(site.start, site.stop, device=mode.device)
            few = len(index) <= FEW
            total[index] += (
                hessian(function, mode, index).diagonal() if few else _by_signs(function, mode, index, site.name)
            )
    return total


def _by_signs(function: Callable[[Tensor], Tensor], mode: Tensor, index: Tensor, site: str) -> Tensor:
    """Minus the diagonal of a Hessian that is diagonal: its product with signs is the diagonal times those signs."""

    def gradient(part: Tensor) -> Tensor:
        return grad(lambda part: function(mode.index_put((index,), part)))(part)

    signs = torch.where(torch.arange(len(index), device=mode.device) % 3 == 0, -1.0, 1.0).to(mode)
    ones, turned = (jvp(gradient, (mode[index],), (v,))[1] for v in (torch.ones_like(signs), signs))
    if not torch.allclose(ones, turned * signs, rtol=1e-6, atol=1e-9):
        raise OptionError(
            f"laplace, site {site!r}: expected a prior whose entries are independent given other sites, got one that ties "
            "them. Use structure='full'."
        )
    return -ones


def _rest_of_prior(
    target: Target, mode: Tensor, left_out: frozenset[str]
) -> tuple[Callable[[Tensor], Tensor], frozenset[str]]:
    """The log prior of z without the sites ``left_out``, and the sites that it depends on: means and scales of others too."""
    parts = {name: part.detach().requires_grad_() for name, part in target.parts(mode).items()}
    with torch.enable_grad():
        value = target.evaluate_sites(parts, leave_out=left_out).log_prior
        slopes = torch.autograd.grad(value, list(parts.values()), allow_unused=True) if value.requires_grad else ()
    sites = frozenset(name for name, slope in zip(parts, slopes, strict=False) if slope is not None)
    return lambda z: target.evaluate_sites(target.parts(z), leave_out=left_out).log_prior, sites


def _entries(target: Target, names: frozenset[str]) -> Tensor:
    parts = [torch.arange(s.start, s.stop, device=target.device) for s in target.sites if s.name in names]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=target.device)


def _unsqueezed(x: Inputs) -> Inputs:
    return {k: v[None] for k, v in x.items()} if isinstance(x, dict) else x[None]


def _sliced(x: Inputs, start: int, stop: int) -> Inputs:
    return {k: v[start:stop] for k, v in x.items()} if isinstance(x, dict) else x[start:stop]


def _tried(function: Callable[..., Tensor], *args: Any) -> Tensor | None:
    """What ``function`` gives; None for a program that insists on its rows, or looks at values that are mapped over."""
    try:
        return function(*args)
    except Exception:  # a user's program may raise anything; the way round needs neither, and says what else is wrong
        return None


def _rows_are_independent(function: Callable[[Inputs], Tensor], x: Inputs) -> bool:
    """Whether a row by itself has the parameters that it has among all: not so where a program fixes its rows."""
    with torch.no_grad():
        whole = function(x)
        for i in {0, len(whole) - 1}:
            alone = _tried(function, _sliced(x, i, i + 1))
            if (
                alone is None
                or alone.shape[0] != 1
                or not torch.allclose(alone[0], whole[i], rtol=SAME_ROWS, atol=SAME_ROWS)
            ):
                return False
    return True
