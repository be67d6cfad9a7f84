"""A step of Adam on an objective as one graph: loss, gradient and update, for many members at once, compiled where it pays.

Each member has parameters, noise and, if asked, rows of its own; members share nothing but the code. The step is Pyro's
``ClippedAdam``: each gradient is clamped to +- ``clip``, the moments decay by 0.9 and 0.999, and 1e-8 is added to the root.
Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from bnn_pyro.aside import Aside, saved_aside
from bnn_pyro.compiled import COMPILE_FROM, relative_difference
from bnn_pyro.graphs import trace_function
from bnn_pyro.inductor import inductor, sentence, try_compiler
from bnn_pyro.rows_last import rows_last
from bnn_pyro.simplify import spell_fills, spell_thin_products, write_back

BETAS = (0.9, 0.999)
EPSILON = 1e-8
CHECKED_SIZE = 0.01  # of the step that is checked
CHECKED_AT_ONCE = 250_000  # parameters, which takes little memory
# Relative, compiled against plain: wider than a full gradient's, since a mini-batch's rounding is scaled up with it.
STEP_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class State:
    """Parameters and Adam's moments, each (members, parameters), which steps write in place.

    Attributes:
        parts: Views of each part's position, of each one's mean, and of each one's square: what a step takes.
    """

    def __init__(self, position: Tensor, sizes: Sequence[int]):
        self.position, self.mean, self.square = position, torch.zeros_like(position), torch.zeros_like(position)
        self.parts = [part for whole in (position, self.mean, self.square) for part in whole.split(list(sizes), 1)]


Objective = Callable[..., tuple[Tensor, Tensor]]
# (position, noise (particles, k), *rows) of a member -> gradient, terms
Gradient = Callable[..., tuple[Tensor, Tensor]]
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Step:
    """``step(state, noise, count, lr, *rows)`` moves the state, and gives the terms (members, 2) of the loss before.

    ``noise`` is (members, particles, k) and ``count`` the number of this step, from 1 on. ``call`` has the step's size in
    place of ``count`` and ``lr``. ``backend`` is what runs and ``reason`` says why a faster one does not.
    """

    call: Callable[..., Tensor]
    backend: str
    reason: str = ""

    def __call__(self, state: State, noise: Tensor, count: int, lr: float, *rows: Tensor) -> Tensor:
        return self.call(*state.parts, noise, noise.new_full((), step_size(count, lr)), *rows)


def step_size(count: int, lr: float) -> float:
    """That of step ``count``, from 1 on: the learning rate with what Adam's moments lack of their mean while they are young."""
    return lr * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count)


def adam_step(objective: Objective, shapes: Sequence[torch.Size], clip: float, shared: bool) -> Function:
    """The step as a pure function of (*state.parts, noise, step size, *rows), to be traced: the next parts, and the terms.

    Parts are updated each by itself: joined, their gradient alone would be as large as all parameters.

    Args:
        objective: (parts, noise (k,), *rows) -> loss () and terms (2,), of one draw; parts have ``shapes``.
        clip: Bound of each gradient's entries.
        shared: Whether all members have the same rows; else these have a leading axis for members.
    """
    count = len(shapes)

    def loss(parts: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        if len(noise) == 1:
            return objective(parts, noise[0], *rows)
        values, terms = vmap(lambda own: objective(parts, own, *rows))(noise)
        return values.mean(0), terms.mean(0)

    def one(position: tuple[Tensor, ...], noise: Tensor, *rows: Tensor) -> tuple[list[Tensor], Tensor]:
        parts = tuple(p.reshape(s) for p, s in zip(position, shapes, strict=True))
        grads, (_, terms) = grad_and_value(loss, has_aux=True)(parts, noise, *rows)
        return [g.reshape(-1) for g in grads], terms

    def step(*args: Tensor) -> tuple[Tensor, ...]:
        position, mean, square = (args[i * count : (i + 1) * count] for i in range(3))
        noise, size, *rows = args[3 * count :]
        if len(noise) == 1:  # without the batched products that vmap makes
            grads, terms = one(tuple(p[0] for p in position), noise[0], *(rows if shared else [r[0] for r in rows]))
            grads, terms = [g[None] for g in grads], terms[None]
        else:
            row_dims = [None if shared else 0] * len(rows)
            grads, terms = vmap(one, in_dims=(0, 0, *row_dims))(position, noise, *rows)
        moved = [
            _updated(p, m, s, g.clamp(-clip, clip), size)
            for p, m, s, g in zip(position, mean, square, grads, strict=True)
        ]
        return *(part for kind in zip(*moved) for part in kind), terms

    return step


def by_autograd(objective: Objective, shapes: Sequence[torch.Size]) -> Gradient:
    """The gradient and terms of one member by torch's autograd, one draw after another."""
    sizes = [shape.numel() for shape in shapes]

    def one(position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            position = position.detach().requires_grad_(True)
            parts = tuple(p.reshape(s) for p, s in zip(position.split(sizes), shapes, strict=True))
            values, terms = zip(*(objective(parts, own, *rows) for own in noise), strict=True)
            (grad,) = torch.autograd.grad(torch.stack(values).mean(0), position)
        return grad, torch.stack(terms).mean(0).detach()

    return one


def plain_step(one: Gradient, clip: float, count: int, reason: str = "") -> Step:
    """A step of ``count`` parts, member by member, each with rows of its own, where ``one`` gives gradient and terms."""

    @torch.no_grad()
    def call(*args: Tensor) -> Tensor:
        noise, size, *rows = args[3 * count :]
        position, mean, square = (torch.cat(args[i * count : (i + 1) * count], 1) for i in range(3))
        grad, terms = clipped(one, clip, position, noise, *rows)
        moved = _updated(position, mean, square, grad, size)
        new = [part for whole in moved for part in whole.split([p.shape[1] for p in args[:count]], 1)]
        for old, part in zip(args[: 3 * count], new, strict=True):
            old.copy_(part)
        return terms

    return Step(call, "pyro", reason)


def _updated(
    position: Tensor, mean: Tensor, square: Tensor, grad: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    mean = BETAS[0] * mean + (1 - BETAS[0]) * grad
    square = BETAS[1] * square + (1 - BETAS[1]) * grad * grad
    return position - size * mean / (square.sqrt() + EPSILON), mean, square


def compile_step(
    function: Function,
    expected: Expected,
    state: State,
    noise: Tensor,
    work: int,
    backend: str = "auto",
    *rows: Tensor,
    block: int | None = None,
) -> Step:
    """The fastest form of ``adam_step``'s function that does what is ``expected`` at ``state``, which is as new afterwards.

    Call it inside ``isolated``.

    Args:
        expected: What ``expect`` gave there, of the program as it is.
        work: Parameters times rows, by which ``"auto"`` chooses as ``compiled.compile_gradient`` does.
        block: Members that go through compiled code together, a divisor of their number, each with rows of its own; None for
            all, as without compiling, where each operation costs more than what it does.
    Raises: ArithmeticError where the function does not agree; whatever the program raises on symbolic tensors.
    """
    if backend == "auto":
        backend = "inductor" if work >= COMPILE_FROM else "eager"
    if backend == "inductor" and noise.device.type == "cpu":
        try_compiler()
    whole = (*state.parts, noise, noise.new_full((), CHECKED_SIZE), *rows)
    block = block if block and backend == "inductor" else len(noise)
    example = whole if block == len(noise) else _members(whole, 0, block)
    graph = trace_function(function, example, block)
    eager, reason = Step(_in_blocks(_without_grad(write_back(graph, len(state.parts))), block), "eager"), ""
    if backend != "eager":
        try:
            graph = rows_last(spell_thin_products(spell_fills(graph)))
            code = _without_grad(inductor(write_back(graph, len(state.parts)), example))
            fast = Step(_in_blocks(code, block), "inductor")
            check_step(fast, expected, state, noise, *rows)
            return fast
        except Exception as error:  # a missing C++ compiler, an operation without a lowering, a wrong result
            reason = f"inductor failed: {sentence(error)}"
    check_step(eager, expected, state, noise, *rows)
    return replace(eager, reason=reason)


def _members(args: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
    """A step's arguments of some members; the step size alone has no axis of them."""
    return tuple(a[start:stop] if a.ndim else a for a in args)


def _in_blocks(call: Callable[..., Tensor], block: int) -> Callable[..., Tensor]:
    """``call`` for so many members at a time: what one operation leaves for the next is in the processor's cache still."""

    def run(*args: Tensor) -> Tensor:
        members = len(args[0])
        if members == block:
            return call(*args)
        return torch.cat([call(*_members(args, start, start + block)) for start in range(0, members, block)])

    return run


def clipped(one: Gradient, clip: float, position: Tensor, noise: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped gradients (members, parameters) and terms (members, 2) by ``one``."""
    grads, terms = zip(*(one(*own) for own in zip(position, noise, *rows, strict=True)), strict=True)
    grad = grads[0][None] if len(grads) == 1 else torch.stack(grads)
    return grad.clamp_(-clip, clip), torch.stack(terms)


class Expected(NamedTuple):
    """Clipped gradients (members, parameters) and terms (members, 2) that a step is to have."""

    grad: Aside
    terms: Tensor


def expect(one: Gradient, clip: float, position: Tensor, noise: Tensor, *rows: Tensor) -> Expected:
    """What ``check_step`` compares with, by ``one``."""
    with saved_aside():
        grad, terms = clipped(one, clip, position, noise, *rows)
    return Expected(Aside(grad), terms)


def check_step(fast: Step, expected: Expected, state: State, noise: Tensor, *rows: Tensor) -> None:
    """Compares all that a step does, from second moments of 1: from 0 it would be the gradient's sign, however small.

    The state is as new afterwards.
    Raises: ArithmeticError where it is not what was expected.
    """
    before, size = Aside(state.position), noise.new_full((), CHECKED_SIZE)
    state.mean.zero_()
    state.square.fill_(1.0)
    try:
        found = fast.call(*state.parts, noise, size, *rows)
        gap = relative_difference((found,), (expected.terms,))
        gap = max(gap, _moved_apart(state, before, expected.grad, size))
    finally:
        state.position.copy_(before.take())
        state.mean.zero_()
        state.square.zero_()
    if not gap <= STEP_TOLERANCE[state.position.dtype]:
        raise ArithmeticError(f"a step differs from the program's by {gap:.1e}, relative")


def _moved_apart(state: State, before: Aside, grad: Aside, size: Tensor) -> float:
    """How far a state is from where a step by ``grad`` moves moments of 0 and 1 and a position ``before``, relative."""
    position, mean, square = (t.reshape(-1) for t in (state.position, state.mean, state.square))
    scale, gap = 1 / (1 - BETAS[0]), 0.0  # of the gradient in the first moment
    for start in range(0, len(position), CHECKED_AT_ONCE):
        part = slice(start, start + CHECKED_AT_ONCE)
        old, own = before.part(part.start, part.stop), grad.part(part.start, part.stop)
        wanted = _updated(old, torch.zeros_like(old), torch.ones_like(old), own, size)
        gap = max(
            gap,
            relative_difference((mean[None, part] * scale,), (wanted[1][None] * scale,)),
            relative_difference((position[None, part], square[None, part]), (wanted[0][None], wanted[2][None])),
        )
    return gap


def _without_grad(function: Callable) -> Any:
    def call(*args: Tensor) -> Any:
        with torch.no_grad():
            return function(*args)[0]

    return call
