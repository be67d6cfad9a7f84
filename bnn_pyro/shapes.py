"""Structures of a Laplace approximation: which entries of the curvature are kept, and the density that they make."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn_pyro import curvature
from bnn_pyro.errors import OptionError, warn
from bnn_pyro.gaussians import Block, Dense, Diagonal, Gaussian, Kronecker
from bnn_pyro.inference import Laplace
from bnn_pyro.layers import Layer, factors, layers
from bnn_pyro.target import Target

FULL_UP_TO = 2_000  # numbers, for structure "auto" and for those that are in no layer
LARGE = 2**30  # bytes, from which on they are said beforehand

Shaper = Callable[[Target, Tensor], Gaussian]


@dataclass(frozen=True)
class Shape:
    """``density``: the normal density around a point in the structure; ``guide``: one around any point, for the optimiser.

    ``every``: one of all entries, where ``density`` leaves some at a point: scales, prior sds and the evidence are by this.

    ``structure`` is its name, ``kind`` that of the curvature: ``"fisher"``, ``"observed"`` (of ``outputs.information``) or
    ``"exact"``.
    """

    structure: str
    kind: str
    density: Shaper
    guide: Shaper
    every: Shaper


def choose_shape(target: Target, method: Laplace, example: Tensor, opaque: bool, inner: Tensor) -> Shape:
    """The shape for the entries ``inner`` of z; ``opaque`` where the likelihood's parameters cannot be told from y's noise.

    Raises: OptionError for a structure that the program does not have, or that takes more memory than the machine has.
    """
    exact = opaque or method.curvature == "exact"
    kind = "exact" if exact else curvature.likelihood_parameters(target, example)[1]
    structure = method.structure
    if opaque and structure not in ("auto", "full", "diagonal"):
        raise OptionError(
            f"{target.name}, structure={structure!r}: expected a likelihood whose parameters can be differentiated. Use 'full'."
        )
    found: list[Layer] = []
    if structure in ("kronecker", "last_layer") or (structure == "auto" and target.dim > FULL_UP_TO and not opaque):
        found = _layers(target, example, structure)
    if structure == "auto":
        structure = "full" if target.dim <= FULL_UP_TO else "kronecker" if found and not exact else "diagonal"
    _check_memory(target, structure, found, method.draws)
    if structure == "full":
        made = _dense(inner, exact)
        return Shape(structure, kind, made, _guide(inner, exact), made)
    if structure == "diagonal":
        guide = _guide(inner, True) if opaque and len(inner) <= FULL_UP_TO else _diagonal(inner, opaque, guide=True)
        made = _diagonal(inner, exact)
        return Shape(structure, kind, made, guide, made)
    names = {layer.site for layer in found}
    if structure == "kronecker":
        made = _kronecker(names, inner)
        return Shape(structure, kind, made, _kronecker(names, inner, guide=True), made)
    inside = torch.cat([layer.index.reshape(-1) for layer in found[:-1]]) if len(found) > 1 else inner[:0]
    last = inner[~torch.isin(inner, inside)]
    every = _kronecker(names - {found[-1].site}, inner, exact, strict=False)
    return Shape(structure, kind, _dense(last, exact), _kronecker(names, inner, strict=False, guide=True), every)


def _layers(target: Target, example: Tensor, structure: str) -> list[Layer]:
    try:
        found, reason = layers(target, example), "no product of rows and weights that are used once"
    except NotImplementedError as error:
        found, reason = [], str(error)
    if not found and structure != "auto":
        raise OptionError(
            f"{target.name}, structure={structure!r}: expected layers to take apart, got {reason}. Use 'full' or 'diagonal'."
        )
    return found


def _dense(index: Tensor, exact: bool = False) -> Shaper:
    """All of the curvature of the entries ``index``; others are points."""

    def density(target: Target, z: Tensor) -> Gaussian:
        return Gaussian(z, [Dense.of(index, precision(target, z, index, exact))])

    return density


def precision(target: Target, z: Tensor, index: Tensor, exact: bool) -> Tensor:
    """Minus the Hessian (b, b) of the log density for the entries ``index``, of its likelihood's part exact or Gauss-Newton."""
    if exact:
        return curvature.hessian(target.log_density, z, index)
    return curvature.prior_hessian(target, z, index) + curvature.ggn(target, z, index)


def _guide(index: Tensor, exact: bool) -> Shaper:
    """``_dense`` with eigenvalues made positive, as away from a mode they need not be."""

    def density(target: Target, z: Tensor) -> Gaussian:
        return Gaussian(z, [Dense.of(index, _definite(precision(target, z, index, exact)))])

    return density


def _definite(matrix: Tensor) -> Tensor:
    if not int(torch.linalg.cholesky_ex(matrix).info):
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    values = values.abs().clamp(min=1e-6 * float(values.abs().max()))
    return (vectors * values) @ vectors.mT


def _diagonal(index: Tensor, exact: bool, guide: bool = False) -> Shaper:
    """The diagonal of the curvature; of a ``guide``, with entries made positive."""

    def density(target: Target, z: Tensor) -> Gaussian:
        if exact:
            diagonal = curvature.hessian_diagonal(target.log_density, z)[index]
        else:
            diagonal = curvature.prior_diagonal(target, z)[index] + curvature.ggn_diagonal(target, z, index)
        return Gaussian(z, [Diagonal(index, _positive(diagonal, guide))])

    return density


def _positive(diagonal: Tensor, guide: bool) -> Tensor:
    """Entries as they are; of a ``guide``, such that steps are short where a heavy tail or a log-Jacobian curves the other way.

    Raises: LinAlgError for one that is not positive: no normal density has it.
    """
    if guide:
        return torch.where(diagonal > 0, diagonal, diagonal.abs() + 1.0)
    if bool((diagonal <= 0).any()):
        raise torch.linalg.LinAlgError("an entry that is not positive")
    return diagonal


def _kronecker(names: set[str], inner: Tensor, exact: bool = False, strict: bool = True, guide: bool = False) -> Shaper:
    """A product of two matrices for each layer of these sites, and all of the curvature of other numbers, if they are few.

    A layer whose prior is no such product is an error, or, if not ``strict``, has the products' diagonal. A ``guide`` is made
    positive.
    """

    def density(target: Target, z: Tensor) -> Gaussian:
        roots, _ = curvature.likelihood_parameters(target, z)
        found = [layer for layer in layers(target, z) if layer.site in names]
        prior = curvature.prior_diagonal(target, z)
        blocks: list[Block] = []
        rest = torch.zeros(target.dim, dtype=torch.bool, device=z.device)
        rest[inner] = True
        for layer, (a, g) in zip(found, factors(target, z, roots, found), strict=True):
            own = _positive(prior[layer.index], guide)
            prior_a = own[:, 0]
            if torch.allclose(own, prior_a[:, None].expand_as(own)):
                blocks.append(Kronecker.of(layer.index, a, g, prior_a, torch.ones_like(own[0])))
            elif strict:
                raise OptionError(
                    f"{target.name}, structure='kronecker', site {layer.site!r}: expected one prior sd for all weights of an "
                    "input, got several. Use 'full' or 'diagonal'."
                )
            else:
                likelihood = torch.outer(a.diagonal(), g.diagonal())
                blocks.append(Diagonal(layer.index.reshape(-1), (own + likelihood).reshape(-1)))
            rest[layer.index.reshape(-1)] = False
        index = torch.nonzero(rest)[:, 0]
        if len(index) > FULL_UP_TO:
            diagonal = prior[index] + curvature.ggn_diagonal(target, z, index)
            blocks.append(Diagonal(index, _positive(diagonal, guide)))
        elif len(index):
            whole = precision(target, z, index, exact)
            blocks.append(Dense.of(index, _definite(whole) if guide else whole))
        return Gaussian(z, blocks)

    return density


def _check_memory(target: Target, structure: str, found: list[Layer], draws: int) -> None:
    """Says beforehand what a large fit takes. Raises: OptionError where that is more than the machine has."""
    numbers = {
        "full": 3 * target.dim**2,
        "diagonal": 4 * target.dim,
        "kronecker": sum(6 * (layer.index.shape[0] ** 2 + layer.index.shape[1] ** 2) for layer in found)
        + 4 * target.dim,
        "last_layer": 3 * (target.dim - sum(layer.index.numel() for layer in found[:-1])) ** 2 + 4 * target.dim,
    }[structure]
    size = torch.finfo(target.dtype).bits // 8
    needed, kept = numbers * size, 3 * draws * target.dim * size  # draws, their noise, their distances from the mode
    if needed + kept < LARGE:
        return
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed + kept
    text = (
        f"{target.name}, structure={structure!r}: {target.dim:,} latent numbers take about {needed / 2**30:.1f} GiB, and "
        f"draws={draws} of them {kept / 2**30:.1f}"
    )
    if needed + kept > has:
        remedy = "fewer draws" if kept > needed else "'kronecker', 'last_layer' or 'diagonal'"
        raise OptionError(f"{text}, and the machine has {has / 2**30:.1f}. Use {remedy}.")
    warn(f"{text}.")
