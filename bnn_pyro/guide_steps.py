"""Trains a guide by compiled steps: compiles them, takes them, and writes the parameters back to Pyro's store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bnn_pyro.compiled import sentence
from bnn_pyro.elbo import Elbo, trace_elbo
from bnn_pyro.guides import PATH_GRADIENT_GUIDES
from bnn_pyro.inference import MAP, SVI
from bnn_pyro.isolation import derive_seed
from bnn_pyro.mean_field import mean_field
from bnn_pyro.minibatches import MiniBatches
from bnn_pyro.steps import Objective, State, Step, adam_step, by_autograd, check_step, compile_step, plain_step
from bnn_pyro.target import Target
from bnn_pyro.training import Training


@dataclass
class GuideStep:
    """The training of a guide, and the parameters that it is of, in the order of its state."""

    training: Training
    leaves: list[Tensor]

    def write_back(self) -> None:
        """Puts the parameters where the guide reads them."""
        parts = self.training.state.position[0].split([leaf.numel() for leaf in self.leaves])
        for leaf, part in zip(self.leaves, parts, strict=True):
            leaf.data.copy_(part.reshape(leaf.shape))


def compile_guide_step(
    target: Target, guide: Any, method: SVI | MAP, seed: int, backend: str
) -> tuple[GuideStep | None, str]:
    """The step, and why it is not faster; None and the reason where there is none. Call it inside ``isolated``."""
    batches = None
    if method.batch_size is not None and method.batch_size < target.n:
        batches = MiniBatches(target, method.batch_size, derive_seed(seed, "batches"))
    try:
        elbo = trace_elbo(target, guide, isinstance(guide, PATH_GRADIENT_GUIDES))
        if not elbo.leaves:
            return None, ""  # nothing to train
        if not elbo.noise and not isinstance(guide, AutoGuide):
            return None, "the guide draws nothing by torch's generator, so that each step would have the same draw"
        estimator = method.estimator if isinstance(method, SVI) else "weights"
        # Rows with noise of their own leave the weights' draw to the KL alone, where it would only add noise.
        closed = isinstance(method, SVI) and (method.closed_form_kl or estimator != "weights")
        written = mean_field(elbo, closed)
        if written is None and closed:
            return None, "it is known for mean-field normal guides only"
        rows = batches.draw() if batches is not None else []
        if written is not None and estimator != "weights":
            some = batches.rows(*(r[0] for r in rows)) if batches is not None else None
            written = written.with_row_noise(estimator, some)
        fast: Elbo = elbo if written is None else written
        as_run: Elbo = elbo if written is None else written.as_run()
        leaves = list(fast.leaves.values())
        position = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])[None]
        clip = method.clip_norm * (1.0 if batches is None else batches.scale)
        state = State(position, torch.zeros_like(position), torch.zeros_like(position))
        noise = torch.randn(1, 1 if isinstance(method, MAP) else method.particles, fast.noise)
        function = adam_step(_objective(fast, batches), fast.shapes, clip, shared=False)
        reference = plain_step(_at_leaves(as_run, batches), clip)
        if written is not None and closed:
            # It equals what the guide's own run gives in the mean only: what it is made of is checked instead.
            sampled = replace(written, closed_form=False, estimator="weights", noise=elbo.noise)
            parts = Step(adam_step(_objective(sampled, batches), written.shapes, clip, shared=False), "")
            size = noise.new_full((), 0.01)
            check_step(parts, Step(reference, ""), (*state, noise[..., : elbo.noise], size, *rows))
            reference = plain_step(by_autograd(_objective(written, batches), written.shapes), clip)
        count = target.n if batches is None else batches.size
        work = position.numel() * count
        step = compile_step(function, reference, state, noise, work, backend, *rows)
    except ArithmeticError as error:
        return None, str(error)
    except Exception as error:  # tracing runs a user's programs on symbolic tensors: anything may be raised
        return None, f"the guide or the program cannot be traced: {sentence(error)}"
    return GuideStep(Training(step, state, noise.shape, batches), leaves), step.reason


def _at_leaves(elbo: Elbo, batches: MiniBatches | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """Gradient and terms with the parameters where guide and program have them, as Pyro's own step would find them."""
    leaves = list(elbo.leaves.values())

    def one(position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        before = [leaf.detach().clone() for leaf in leaves]
        parts = position.split([leaf.numel() for leaf in leaves])
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.data.copy_(part.reshape(leaf.shape))
        data = batches.rows(*rows) if batches is not None else None
        with torch.enable_grad():
            terms = torch.stack([torch.stack(elbo.terms(None, own, data)) for own in noise]).mean(0)
            grads = torch.autograd.grad(terms[1] - terms[0], leaves, allow_unused=True)
        for leaf, value in zip(leaves, before, strict=True):
            leaf.data.copy_(value)
        flat = [torch.zeros_like(p) if g is None else g.reshape(-1) for g, p in zip(grads, parts, strict=True)]
        return torch.cat(flat), terms.detach()

    return one


def _objective(elbo: Elbo, batches: MiniBatches | None) -> Objective:
    def objective(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        terms = elbo.terms(parts, noise, batches.rows(*rows) if batches is not None else None)
        return terms.kl - terms.log_likelihood, torch.stack(terms)

    return objective
