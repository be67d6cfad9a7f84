"""A guide's training by compiled steps, over the parameters that Pyro's store has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bnn_pyro.elbo import LARGE, Elbo, tidy, trace_elbo
from bnn_pyro.guides import PATH_GRADIENT_GUIDES
from bnn_pyro.inductor import sentence
from bnn_pyro.inference import MAP, SVI
from bnn_pyro.isolation import derive_seed
from bnn_pyro.mean_field import mean_field
from bnn_pyro.minibatches import Batches, MiniBatches
from bnn_pyro.steps import (
    Gradient,
    Objective,
    State,
    adam_step,
    by_autograd,
    check_step,
    compile_step,
    expect,
    plain_step,
)  # fmt: skip
from bnn_pyro.target import Target
from bnn_pyro.training import Training


def compile_guide_step(
    target: Target, guide: Any, method: SVI | MAP, seed: int, backend: str, batches: Batches | None = None
) -> tuple[Training | None, str]:
    """The training, and why it is not faster; None and the reason where there is none. Call it inside ``isolated``.

    The parameters in Pyro's store are views of its position from then on. ``batches`` of None are those of the target's rows.
    """
    if batches is None and method.batch_size is not None and method.batch_size < target.n:
        batches = MiniBatches(target, method.batch_size, derive_seed(seed, "batches"))
    rows = batches.first() if batches is not None else []
    try:
        elbo = trace_elbo(target, guide, isinstance(guide, PATH_GRADIENT_GUIDES))
        if not elbo.leaves:
            return None, ""  # nothing to train
        if not elbo.noise and not isinstance(guide, AutoGuide):
            return None, "the guide draws nothing by torch's generator, so that each step would have the same draw"
        estimator = method.estimator if isinstance(method, SVI) else "weights"
        # Rows with noise of their own leave the weights' draw to the KL alone, where it would only add noise.
        closed = isinstance(method, SVI) and (method.closed_form_kl or estimator != "weights")
        # Over the flat vector a third more memory is taken than site by site.
        written = mean_field(elbo, closed) if closed or target.dim < LARGE else None
        if written is None and closed:
            return None, "it is known for mean-field normal guides only"
        if written is not None and estimator != "weights":
            some = batches.rows(*(r[0] for r in rows)) if batches is not None else None
            written = written.with_row_noise(estimator, some)
        fast: Elbo = elbo if written is None else written
        as_run: Elbo = elbo if written is None else written.as_run()
        leaves = list(fast.leaves.values())
        position = _joined(leaves)
        clip = method.clip_norm * (1.0 if batches is None else batches.scale)
        noise = torch.randn(1, 1 if isinstance(method, MAP) else method.particles, fast.noise)
        one = _at_leaves(as_run, batches)
        tidy(target, guide)
        expected = expect(one, clip, position, noise[..., : elbo.noise], *rows)
        tidy(target, guide)
        state = State(position, [shape.numel() for shape in fast.shapes])
        if written is not None and closed:
            # It equals what the guide's own run gives in the mean only: what it is made of is checked instead.
            sampled = replace(written, closed_form=False, estimator="weights", noise=elbo.noise)
            parts = plain_step(by_autograd(_objective(sampled, batches), written.shapes), clip, len(fast.shapes))
            check_step(parts, expected, state, noise[..., : elbo.noise], *rows)
            expected = expect(by_autograd(_objective(written, batches), written.shapes), clip, position, noise, *rows)
        function = adam_step(_objective(fast, batches), fast.shapes, clip, shared=False)
        work = position.numel() * (target.n if batches is None else batches.size)
        step = compile_step(function, expected, state, noise, work, backend, *rows)
        tidy(target, guide)
    except ArithmeticError as error:
        return None, str(error)
    except Exception as error:  # tracing runs a user's programs on symbolic tensors: anything may be raised
        return None, f"the guide or the program cannot be traced: {sentence(error)}"
    return Training(step, state, noise.shape, batches), step.reason


def _joined(leaves: list[Tensor]) -> Tensor:
    """The parameters (1, k), of which the leaves become views."""
    position = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
    for leaf, part in zip(leaves, position.split([leaf.numel() for leaf in leaves]), strict=True):
        leaf.data = part.reshape(leaf.shape)
    return position[None]


def _at_leaves(elbo: Elbo, batches: Batches | None) -> Gradient:
    """Gradient and terms with the parameters where guide and program have them, as Pyro's own step would find them."""
    leaves = list(elbo.leaves.values())

    def one(position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        data = batches.rows(*rows) if batches is not None else None
        with torch.enable_grad():
            terms = torch.stack([torch.stack(elbo.terms(None, own, data)) for own in noise]).mean(0)
            grads = torch.autograd.grad(terms[1] - terms[0], leaves, allow_unused=True)
        flat = torch.zeros_like(position)
        for grad, part in zip(grads, flat.split([leaf.numel() for leaf in leaves]), strict=True):
            if grad is not None:
                part.copy_(grad.reshape(-1))
        return flat, terms.detach()

    return one


def _objective(elbo: Elbo, batches: Batches | None) -> Objective:
    def objective(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        terms = elbo.terms(parts, noise, batches.rows(*rows) if batches is not None else None)
        return terms.kl - terms.log_likelihood, torch.stack(terms)

    return objective
