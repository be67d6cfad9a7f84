"""Many steps of a training at once: one call after another on a CPU, one launch after another on a device.

A step takes noise, a step size and rows of its own. For a device these lie ready for many steps, and it finds its place in
them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_pyro import replay
from bnn_pyro.minibatches import Batches, ahead
from bnn_pyro.steps import State, Step, step_size

WINDOW = 100  # steps between two looks at the ELBO
NOISE_NUMBERS = 1_000_000  # drawn at once, where one step takes fewer


class Stepper:
    """Takes steps of ``state``; ``noise`` is the shape of one step's standard normal numbers, ``more`` what all have."""

    def __init__(self, step: Step, state: State, noise: torch.Size, batches: Batches | None, more: list[Tensor]):
        self.step, self.state, self.batches, self.more = step, state, batches, more
        self.ahead = max(1, min(WINDOW, NOISE_NUMBERS // max(1, noise.numel())))
        self.noise = state.position.new_empty(self.ahead, *noise)
        self._taken = 0

    def take(self, counts: range, rates: Sequence[float]) -> Tensor:
        """Steps with these numbers and learning rates; the terms (steps, members, 2) of each."""
        return torch.stack([self._one(count, rate) for count, rate in zip(counts, rates, strict=True)])

    def _one(self, count: int, rate: float) -> Tensor:
        at = self._taken % self.ahead
        if at == 0:
            self.noise.normal_()
        self._taken += 1
        return self.step(self.state, self.noise[at], count, rate, *self._rows(), *self.more)

    def _rows(self) -> list[Tensor]:
        return [] if self.batches is None else self.batches.draw()


class ReplayedStepper(Stepper):
    """``Stepper`` on a device, where a step is one launch."""

    def __init__(self, step: Step, state: State, noise: torch.Size, batches: Batches | None, more: list[Tensor]):
        super().__init__(step, state, noise, batches, more)
        if batches is not None:
            self.ahead = min(self.ahead, ahead(sum(t.numel() for t in batches.first())))
            self.noise = self.noise[: self.ahead]
        like, size = self.noise, self.ahead
        members = len(state.position)
        self._sizes = like.new_empty(size)
        self._ready = [] if batches is None else [t.new_empty(size, *t.shape) for t in batches.first()]
        self._terms = torch.empty(size, members, 2, dtype=torch.float64, device=like.device)
        self._place = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._replay = replay.Replay(self._next, like.device)

    def take(self, counts: range, rates: Sequence[float]) -> Tensor:
        done = []
        for start in range(0, len(counts), self.ahead):
            part = slice(start, start + self.ahead)
            done.append(self._take(counts[part], rates[part]))
        return torch.cat(done)

    def _take(self, counts: range, rates: Sequence[float]) -> Tensor:
        some = len(counts)
        sizes = [step_size(count, rate) for count, rate in zip(counts, rates, strict=True)]
        self._sizes[:some] = torch.tensor(sizes, dtype=self._sizes.dtype, device="cpu").to(self._sizes.device)
        self.noise.normal_()
        if self._ready:
            for table, parts in zip(self._ready, zip(*(self._rows() for _ in counts), strict=True), strict=True):
                torch.stack(parts, out=table[:some])
        self._place.zero_()
        for _ in counts:
            self._replay()
        return self._terms[:some].clone()

    def _next(self) -> None:
        noise, size, *rows = (
            table.index_select(0, self._place)[0] for table in (self.noise, self._sizes, *self._ready)
        )
        terms = self.step.call(*self.state.parts, noise, size, *rows, *self.more)
        self._terms.index_copy_(0, self._place, terms[None].double())
        self._place += 1


def make_stepper(step: Step, state: State, noise: torch.Size, batches: Batches | None, more: list[Tensor]) -> Stepper:
    """The one for where the state is."""
    kind = Stepper if replay.waits(state.position.device) else ReplayedStepper
    return kind(step, state, noise, batches, more)
