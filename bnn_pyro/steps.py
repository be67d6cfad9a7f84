"""A step of Adam on an objective as one graph: loss, gradient and update, for many members at once, compiled where it pays.

Each member has parameters, noise and, if asked, rows of its own; members share nothing but the code. The step is Pyro's
``ClippedAdam``: each gradient is clamped to +- ``clip``, the moments decay by 0.9 and 0.999, and 1e-8 is added to the root.
Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from bnn_pyro.compiled import COMPILE_FROM, inductor, relative_difference, sentence
from bnn_pyro.graphs import trace_function
from bnn_pyro.simplify import spell_fills, spell_thin_products

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# Relative, compiled against plain: wider than a full gradient's, since a mini-batch's rounding is scaled up with it.
STEP_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class State(NamedTuple):
    """Parameters and Adam's moments, each (members, parameters)."""

    position: Tensor
    mean: Tensor
    square: Tensor


Objective = Callable[..., tuple[Tensor, Tensor]]
Function = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """``step(state, noise, count, lr, *rows)`` gives the next state and the terms (members, 2) of the loss before it.

    ``noise`` is (members, particles, k) and ``count`` the number of this step, from 1 on. ``backend`` is what runs and
    ``reason`` says why a faster one does not.
    """

    call: Function
    backend: str
    reason: str = ""

    def __call__(self, state: State, noise: Tensor, count: int, lr: float, *rows: Tensor) -> tuple[State, Tensor]:
        size = lr * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count)
        position, mean, square, terms = self.call(*state, noise, state.mean.new_full((), size), *rows)
        return State(position, mean, square), terms


def adam_step(objective: Objective, shapes: Sequence[torch.Size], clip: float, shared: bool) -> Function:
    """The step as a function of (position, mean, square, noise, step size, *rows), not compiled.

    Args:
        objective: (parts, noise (k,), *rows) -> loss () and terms (2,), of one draw; parts have ``shapes``.
        clip: Bound of each gradient's entries.
        shared: Whether all members have the same rows; else these have a leading axis for members.
    """
    sizes = [shape.numel() for shape in shapes]

    def loss(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        if len(noise) == 1:
            return objective(parts, noise[0], *rows)
        values, terms = vmap(lambda own: objective(parts, own, *rows))(noise)
        return values.mean(0), terms.mean(0)

    def one(position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        parts = tuple(p.reshape(s) for p, s in zip(position.split(sizes), shapes, strict=True))
        grads, (_, terms) = grad_and_value(loss, has_aux=True)(parts, noise, *rows)
        return torch.cat([g.reshape(-1) for g in grads]), terms

    def step(
        position: Tensor, mean: Tensor, square: Tensor, noise: Tensor, size: Tensor, *rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if len(position) == 1:  # without the batched products that vmap makes
            mine = rows if shared else [r[0] for r in rows]
            grad, terms = (t[None] for t in one(position[0], noise[0], *mine))
        else:
            row_dims = [None if shared else 0] * len(rows)
            grad, terms = vmap(one, in_dims=(0, 0, *row_dims))(position, noise, *rows)
        return *_updated(position, mean, square, grad.clamp(-clip, clip), size), terms

    return step


def by_autograd(objective: Objective, shapes: Sequence[torch.Size]) -> Callable[..., tuple[Tensor, Tensor]]:
    """(position, noise (particles, k), *rows) -> gradient and terms by torch's autograd, one draw after another."""
    sizes = [shape.numel() for shape in shapes]

    def one(position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            position = position.detach().requires_grad_(True)
            parts = tuple(p.reshape(s) for p, s in zip(position.split(sizes), shapes, strict=True))
            values, terms = zip(*(objective(parts, own, *rows) for own in noise), strict=True)
            (grad,) = torch.autograd.grad(torch.stack(values).mean(0), position)
        return grad, torch.stack(terms).mean(0).detach()

    return one


def plain_step(one: Callable[..., tuple[Tensor, Tensor]], clip: float) -> Function:
    """``adam_step`` for rows of each member's own, member by member, where ``one`` gives a gradient and terms."""

    def step(
        position: Tensor, mean: Tensor, square: Tensor, noise: Tensor, size: Tensor, *rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grads, terms = zip(*(one(*own) for own in zip(position, noise, *rows, strict=True)), strict=True)
        return *_updated(position, mean, square, torch.stack(grads).clamp(-clip, clip), size), torch.stack(terms)

    return step


def _updated(
    position: Tensor, mean: Tensor, square: Tensor, grad: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean = BETAS[0] * mean + (1 - BETAS[0]) * grad
    square = BETAS[1] * square + (1 - BETAS[1]) * grad * grad
    return position - size * mean / (square.sqrt() + EPSILON), mean, square


def compile_step(
    function: Function,
    reference: Function,
    state: State,
    noise: Tensor,
    work: int,
    backend: str = "auto",
    *rows: Tensor,
) -> Step:
    """The fastest form of ``adam_step``'s function that agrees with ``reference`` at ``state``.

    Call it inside ``isolated``.

    Args:
        reference: ``plain_step`` of the program as it is.
        work: Parameters times rows, by which ``"auto"`` chooses as ``compiled.compile_gradient`` does.
    Raises: whatever the program raises on symbolic tensors.
    """
    size = torch.full((), 0.01, dtype=noise.dtype)
    example = (*state, noise, size, *rows)
    plain = Step(reference, "pyro")
    if backend == "auto":
        backend = "inductor" if work >= COMPILE_FROM else "eager"
    graph = trace_function(function, example, state.position.shape[0])
    eager = Step(_without_grad(graph), "eager")
    check_step(eager, plain, example)
    if backend == "eager":
        return eager
    try:
        fast = Step(_without_grad(inductor(spell_thin_products(spell_fills(graph), example), example)), "inductor")
        check_step(fast, plain, example)
    except Exception as error:  # a missing C++ compiler, an operation without a lowering, a wrong result
        return Step(eager.call, "eager", f"inductor failed: {sentence(error)}")
    return fast


def check_step(fast: Step, plain: Step, example: tuple[Tensor, ...]) -> None:
    """Compares all that a step gives, from second moments of 1: from 0 it would be the gradient's sign, however small."""
    position, mean, square, *rest = example
    moments = torch.zeros_like(mean), torch.ones_like(square)
    got, expected = (step.call(position, *moments, *rest) for step in (fast, plain))
    scale = 1 / (1 - BETAS[0])  # of the gradient in the first moment
    gap = max(
        relative_difference((got[1] * scale, got[3]), (expected[1] * scale, expected[3])),
        relative_difference((got[0], got[2]), (expected[0], expected[2])),
    )
    if gap > STEP_TOLERANCE[position.dtype]:
        raise ArithmeticError(f"a step differs from the program's by {gap:.1e}, relative")


def _without_grad(function: Callable) -> Any:
    def call(*args: Tensor) -> Any:
        with torch.no_grad():
            return function(*args)

    return call
