"""Draws of a fitted guide: all at once where its draws can be batched, else by running it."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bnn_pyro.batching import gather_draws
from bnn_pyro.elbo import Elbo, trace_elbo
from bnn_pyro.pyro_svi import draw_by_pyro
from bnn_pyro.target import Target


def draw_guide(target: Target, guide: Any, draws: int) -> tuple[Tensor, Tensor]:
    """z (draws, dim) and log q(z) (draws,), float64, with the parameters that Pyro's store has.

    Call it inside ``isolated``, from whose generator the draws come.
    """
    try:
        elbo = trace_elbo(target, guide, path_gradient=False)
        alike = not elbo.noise and not isinstance(guide, AutoGuide)  # or drawn by something else than torch
        values, log_q = draw_by_pyro(target, guide, draws) if alike else _batched(elbo, draws)
    except Exception:  # a guide that cannot be batched may raise anything; run one by one, it works or says why
        values, log_q = draw_by_pyro(target, guide, draws)
    z, log_jacobian = _unconstrained(target, values)
    return z, log_q.to(log_jacobian) + log_jacobian


@torch.no_grad()
def _batched(elbo: Elbo, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    parts = list(elbo.leaves.values())
    noise = torch.randn(draws, max(elbo.noise, 1), device=elbo.target.device)  # a guide without noise still has draws
    return gather_draws(lambda own: elbo.draw(parts, own), noise)


def _unconstrained(target: Target, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """z (draws, dim) and log-Jacobians (draws,) from constrained values with a leading draw axis."""
    shapes = {s.name: s.shape for s in target.sites}
    flat = torch.cat([values[name].reshape(values[name].shape[0], -1) for name in shapes], dim=1)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]

    def one(row: Tensor) -> tuple[Tensor, Tensor]:
        parts = row.split(sizes)
        return target.unconstrain({n: p.reshape(shapes[n]) for n, p in zip(shapes, parts, strict=True)})

    return gather_draws(one, flat)
