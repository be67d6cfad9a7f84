"""Steps taken one after another: learning rate, noise and rows of each, the ELBO watched, the best state kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.aside import Aside
from bnn_pyro.batching import bytes_made
from bnn_pyro.compiled import members_in_block
from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.inductor import sentence
from bnn_pyro.interrupts import Interrupts
from bnn_pyro.minibatches import Batches
from bnn_pyro.stepping import WINDOW, make_stepper
from bnn_pyro.steps import Objective, State, Step, adam_step, by_autograd, compile_step, expect, plain_step

ERRORS = 2.0  # standard errors that tell two stretches' ELBO apart
# ... and the last window's from the best of many, which is the luckiest of them too
BEST_ERRORS = 4.0


class Schedule(Protocol):
    """What a method says of its steps."""

    @property
    def steps(self) -> int: ...
    @property
    def lr_decay(self) -> float: ...


@dataclass
class Training:
    """A compiled step and where it stands.

    Attributes:
        noise: Shape of one step's standard normal numbers.
        batches: The rows of each step; None where each sees all.
        more: Tensors that each step takes after those.
    """

    step: Step
    state: State
    noise: torch.Size
    batches: Batches | None = None
    more: list[Tensor] = field(default_factory=list)


def compile_training(
    objective: Objective,
    plain: Objective,
    start: Tensor,
    noise: Tensor,
    clip: float,
    work: int,
    backend: str,
    batches: Batches | None,
    more: list[Tensor],
) -> Training:
    """The training of members (m, k) from ``start``, by a compiled step; by ``plain`` with autograd where ``backend`` is
    ``"pyro"``, or with the reason where there is no other.

    Args:
        objective: What ``steps.adam_step`` takes, of the flat vector as one part.
        plain: The same, written so that it is checked against.
        noise: (m, particles, k) of one step.
        clip: Bound of each entry of the gradient of all rows' objective.
        work: Numbers times rows, by which a step is compiled or not.
        more: Tensors that each step takes after those of its batch.
    """
    shapes = [start.shape[1:]]
    one, state = by_autograd(plain, shapes), State(start, [start.shape[1]])
    if backend == "pyro":
        return Training(plain_step(one, clip, 1), state, noise.shape, batches, more)
    function = adam_step(objective, shapes, clip, shared=False)
    rows = [*(batches.first() if batches is not None else []), *more]
    try:
        expected = expect(one, clip, start, noise, *rows)
        each = 3 * bytes_made(lambda: objective((start[0],), noise[0, 0], *(r[0] for r in rows)))
        block = members_in_block(len(start), each)
        step = compile_step(function, expected, state, noise, work, backend, *rows, block=block)
    except Exception as error:  # tracing runs a user's program on symbolic tensors: anything may be raised
        step = plain_step(one, clip, 1, f"the program cannot be traced: {sentence(error)}")
    return Training(step, state, noise.shape, batches, more)


def optimise(
    trained: Training,
    method: Schedule,
    lr: float,
    record: ElboRecord,
    interrupts: Interrupts,
    patience: int | None = None,
) -> None:
    """Takes ``method.steps`` steps, fewer if an interrupt comes or the ELBO has not risen for ``patience`` steps.

    The parameters kept are the last, unless the ELBO was higher before by more than ``BEST_ERRORS`` standard errors.
    """
    decay = method.lr_decay ** (1 / method.steps)
    state = trained.state
    stepper = make_stepper(trained.step, state, trained.noise, trained.batches, trained.more)
    best, best_elbo = Aside(state.position), (-np.inf, 0.0)
    for start in range(1, method.steps + 1, WINDOW):
        counts = range(start, min(start + WINDOW, method.steps + 1))
        terms = stepper.take(counts, [lr * decay**count for count in counts])
        record.add(terms.mean(1).cpu().numpy())
        window = _mean(record.elbo(WINDOW))
        if window[0] > best_elbo[0]:
            best_elbo = window
            best.put(state.position)
        if interrupts.pressed or (patience is not None and _settled(record, patience)):
            break
    if best_elbo[0] - window[0] > BEST_ERRORS * np.hypot(best_elbo[1], window[1]):
        state.position.copy_(best.take())


def _mean(elbo: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, from differences of neighbours, which a trend leaves alone."""
    if len(elbo) < 2:
        return float(elbo.mean()), np.inf
    return float(elbo.mean()), float(np.diff(elbo).std() / np.sqrt(2 * len(elbo)))


def _settled(record: ElboRecord, patience: int) -> bool:
    """Whether the last ``patience`` steps have an ELBO no higher than those before them, within ``ERRORS`` errors."""
    elbo = record.elbo(2 * patience)
    if len(elbo) < 2 * patience:
        return False
    before, last = _mean(elbo[:patience]), _mean(elbo[patience:])
    return last[0] - before[0] <= ERRORS * float(np.hypot(before[1], last[1]))
