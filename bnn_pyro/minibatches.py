"""Rows in batches of one size: an order drawn anew for each epoch, cut into batches that may reach into the next."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.elbo import Rows
from bnn_pyro.errors import ModelError, OptionError, warn
from bnn_pyro.inductor import sentence
from bnn_pyro.isolation import isolated
from bnn_pyro.starts import prior_point
from bnn_pyro.target import Target

NUMBERS_AHEAD = 1_000_000  # gathered at once
MOST_AHEAD = 100  # batches gathered at once, at most


def ahead(numbers: int) -> int:
    """How many batches of so many ``numbers`` to gather at once."""
    return max(1, min(MOST_AHEAD, NUMBERS_AHEAD // max(1, numbers)))


class Batches(ABC):
    """Rows for one step after another.

    Args:
        size: Rows of a batch.
        scale: How many times as many all rows are.
        names: Of x, where it is a dict.
    """

    def __init__(self, size: int, scale: float, names: list[str] | None):
        self.size, self.scale, self.names = size, scale, names
        self._first: list[Tensor] | None = None

    def first(self) -> list[Tensor]:
        """What ``draw`` will give next, to try a step on."""
        self._first = self._first or self._next()
        return self._first

    def draw(self) -> list[Tensor]:
        """The tensors of the next batches, each (members, size, ...): those of x, and y."""
        drawn, self._first = self._first or self._next(), None
        return drawn

    @abstractmethod
    def _next(self) -> list[Tensor]:
        """As ``draw``."""

    def rows(self, *tensors: Tensor) -> Rows:
        """One member's part of what ``draw`` gave, as the program takes it."""
        *x, y = tensors
        return Rows(x[0] if self.names is None else dict(zip(self.names, x, strict=True)), y, self.scale)


class MiniBatches(Batches):
    """Batches of ``size`` rows of a target for each of ``members``, each in an order of its own that the seed gives.

    Args:
        y: Targets (members, n, ...) of each member's own; None for the target's.
        population: (members, n) indices of rows, each of which comes up once an epoch; None for each row.
    """

    def __init__(
        self,
        target: Target,
        size: int,
        seed: int,
        members: int = 1,
        y: Tensor | None = None,
        population: Tensor | None = None,
    ):
        x = target.x
        super().__init__(size, target.n / size, list(x) if isinstance(x, dict) else None)
        self._x = list(x.values()) if isinstance(x, dict) else [x]
        self._y, self._own_y = (target.y, False) if y is None else (y, True)
        self._count, self._members, self._population = target.n, members, population
        self._generator = torch.Generator().manual_seed(seed)  # orders are made on the CPU
        self._waiting = torch.empty(members, 0, dtype=torch.int64, device="cpu")
        numbers = members * size * sum(t[:1].numel() for t in [*self._x, target.y])
        self._ahead = ahead(numbers)
        self._ready: list[list[Tensor]] = []

    def _next(self) -> list[Tensor]:
        if not self._ready:
            self._ready = self._gather(self._ahead)[::-1]
        return self._ready.pop()

    def _gather(self, count: int) -> list[list[Tensor]]:
        """The next ``count`` batches, gathered at once: one by one they would cost as much as a small network's step."""
        while self._waiting.shape[1] < count * self.size:
            shape = (self._members, self._count)
            keys = torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu")
            order = torch.from_numpy(np.argsort(keys.numpy(), axis=1))  # up to ten times as fast as torch's
            if self._population is not None:
                order = self._population.gather(1, order)
            self._waiting = torch.cat([self._waiting, order], 1)
        mine, self._waiting = self._waiting.split([count * self.size, self._waiting.shape[1] - count * self.size], 1)
        mine = mine.reshape(self._members, count, self.size).transpose(0, 1).to(self._y.device)
        member = torch.arange(self._members, device=mine.device)[:, None]
        tensors = [_rows(t, mine) for t in self._x]
        tensors.append(self._y[member, mine] if self._own_y else _rows(self._y, mine))
        return [list(own) for own in zip(*(t.unbind() for t in tensors), strict=True)]


def _rows(t: Tensor, index: Tensor) -> Tensor:
    """``t[index]``, which copies number by number where this copies row by row: seven times as fast."""
    return t.index_select(0, index.flatten()).reshape(*index.shape, *t.shape[1:])


def check_batches(target: Target, size: int) -> None:
    """Whether the likelihood can be estimated from ``size`` rows.

    Raises: OptionError or ModelError where it cannot. Warns where the program scales its likelihood, since rows are scaled up
        here.
    """
    where = f"{target.name}, batch_size"
    if size > target.n:
        raise OptionError(
            f"{where}: expected at most the {target.n} training rows, got {size}. Use a smaller one, or None."
        )
    if target.joint:
        raise ModelError(
            f"{where}: expected observations inside pyro.plate('data', ...), got one joint observation of all rows, of which "
            "no part can stand for the whole. Use batch_size=None."
        )
    by_row = [s.name for s in target.sites if s.by_row]
    if by_row:
        raise ModelError(
            f"{where}: expected latent sites outside the data plate, got {by_row} inside, which have a value for each row. "
            "Use batch_size=None."
        )
    try:
        with isolated(seed=0, dtype=target.dtype), torch.no_grad():
            z = prior_point(target)
            mine = torch.randperm(target.n)[:size].to(target.device)
            x = {k: v[mine] for k, v in target.x.items()} if isinstance(target.x, dict) else target.x[mine]
            whole, part = target.evaluate(z), target.evaluate(z, x, target.y[mine])
        counts = {len(t) for t in part.log_likelihood.values()}
    except Exception as error:  # whatever a program raises that insists on its rows
        raise ModelError(
            f"{where}: expected a program that runs on a part of its rows, got {type(error).__name__} for {size} of "
            f"{target.n}: {sentence(error)}. Take the number of rows from x, as in pyro.plate('data', x.shape[0])."
        ) from error
    if counts != {size}:
        raise ModelError(
            f"{where}: expected {size} log likelihoods for {size} rows, got {sorted(counts)}. Take the number of rows "
            "from x, as in pyro.plate('data', x.shape[0])."
        )
    for name, terms in part.log_likelihood.items():
        if not _same(terms, whole.log_likelihood[name][mine]):
            raise ModelError(
                f"{where}, site {name!r}: expected a likelihood of each row that depends on that row alone, got another one "
                f"for the same row among {size} rows than among {target.n}. Compute what all rows share, such as a mean of x, "
                "before the fit."
            )
    if not _same(part.log_prior, whole.log_prior):
        raise ModelError(
            f"{where}: expected a prior that depends on no rows, got another one for {size} rows than for {target.n}. Compute "
            "what it takes from x before the fit, and put pyro.factor inside the plate."
        )
    for name in sorted(part.scaled):
        warn(
            f"{target.name}, site {name!r}: the program scales this log likelihood itself, and batches of {size} rows are "
            f"scaled by {target.n / size:g} on top of it. Take poutine.scale out of the program."
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, which another number of rows may change."""
    size = other[torch.isfinite(other)].abs().max() if torch.isfinite(other).any() else other.new_ones(())
    tolerance = (1e-4 if one.dtype == torch.float32 else 1e-6) * max(float(size), 1.0)
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)
