"""Rows that stay where they are: memory-mapped arrays, and what a torch ``DataLoader`` yields.

``survey`` reads all rows once, a part at a time, for their number, means, standard deviations and classes, and keeps a sample
of them, on which scores, verdict and ArviZ groups stand. Steps then take batches as they come; what is in memory does not
grow with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader

from bnn_pyro.errors import DataError
from bnn_pyro.labels import to_array
from bnn_pyro.minibatches import ahead
from bnn_pyro.permutation import permute

NUMBERS_AT_ONCE = 1_000_000  # of the first reading

Arrays = dict[str, np.ndarray]  # by name; "" for an x that is no dict
Part = tuple[Arrays, np.ndarray]


class Source(Protocol):
    """Where rows come from."""

    @property
    def named(self) -> bool:
        """Whether x is a dict."""
        ...

    def once(self) -> Iterator[Part]:
        """All rows, a part at a time."""
        ...

    def batches(self, size: int, seed: int) -> Iterator[Part]:
        """Batches of ``size`` rows without end."""
        ...


@dataclass(frozen=True)
class Mapped:
    """Arrays of which some are memory-mapped, read at the rows that a batch asks for, in an order that is a function of seed
    and epoch and takes no memory.
    """

    x: Arrays
    y: np.ndarray
    named: bool

    @property
    def n(self) -> int:
        return len(self.y)

    def once(self) -> Iterator[Part]:
        step = self._at_once(1)
        for start in range(0, self.n, step):
            yield self._at(slice(start, start + step))

    def batches(self, size: int, seed: int) -> Iterator[Part]:
        count, done = self._at_once(size), 0
        while True:
            places = np.arange(done, done + count * size)
            done += count * size
            order = np.concatenate(
                [permute(own % self.n, self.n, seed + 1_000_003 * epoch) for epoch, own in _by_epoch(places, self.n)]
            )
            sorted_order = np.argsort(order, kind="stable")  # files are quicker from front to back
            back = np.empty_like(sorted_order)
            back[sorted_order] = np.arange(len(order))
            x, y = self._at(order[sorted_order])
            for i in range(count):
                mine = back[i * size : (i + 1) * size]
                yield {name: a[mine] for name, a in x.items()}, y[mine]

    def _at_once(self, size: int) -> int:
        """Batches of ``size`` rows that are read together."""
        row = sum(a[:1].size for a in [*self.x.values(), self.y])
        return max(1, NUMBERS_AT_ONCE // (size * row)) if size == 1 else ahead(size * row)

    def _at(self, rows: Any) -> Part:
        return {name: np.array(a[rows]) for name, a in self.x.items()}, np.array(self.y[rows])


def _by_epoch(places: np.ndarray, n: int) -> Iterator[tuple[int, np.ndarray]]:
    for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
        yield epoch, places[places // n == epoch]


@dataclass(frozen=True)
class Loaded:
    """Batches of a loader, in its own order, cut anew where they are of another size than asked for."""

    loader: Any
    named: bool

    def once(self) -> Iterator[Part]:
        empty = True
        for batch in self.loader:
            x, y = _pair(batch, self.named)
            empty = empty and not len(y)
            yield x, y
        if empty:
            raise DataError(
                "fit, x: expected a DataLoader that can be gone through again and again, got one without rows the second time. "
                "An IterableDataset needs an __iter__ that begins anew."
            )

    def batches(self, size: int, seed: int) -> Iterator[Part]:
        del seed  # the loader shuffles, by torch's generator or its own
        waiting: list[Part] = []
        while True:
            for part in self.once():
                waiting.append(part)
                while sum(len(y) for _, y in waiting) >= size:
                    x, y = joined(waiting)
                    waiting = [({name: a[size:] for name, a in x.items()}, y[size:])]
                    yield {name: a[:size] for name, a in x.items()}, y[:size]


def joined(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    return {n: np.concatenate([x[n] for x, _ in parts]) for n in parts[0][0]}, np.concatenate([y for _, y in parts])


def _pair(batch: Any, named: bool) -> Part:
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise DataError(
            f"fit, x: expected a DataLoader of pairs (x, y), got one of {type(batch).__name__}"
            + (f" of length {len(batch)}" if isinstance(batch, list | tuple) else "")
            + ". Use a dataset whose items are pairs."
        )
    x, y = batch
    given = dict(x) if named else {"": x}
    return {str(name): to_array(a) for name, a in given.items()}, to_array(y)


def find_source(x: Any, y: Any) -> Source | None:
    """What a user passed, where rows can stay there: a DataLoader as x, or arrays of which one is a ``np.memmap``."""
    if isinstance(x, DataLoader):
        if y is not None:
            raise DataError("fit, y: expected none beside a DataLoader, whose batches hold x and y. Call fit(loader).")
        first = next(iter(x), None)
        if first is None:
            raise DataError("fit, x: expected a DataLoader of at least one batch, got none.")
        named = isinstance(first, list | tuple) and len(first) == 2 and isinstance(first[0], dict)
        return Loaded(x, named)
    arrays = x if isinstance(x, dict) else {"": x}
    if not any(isinstance(a, np.memmap) for a in [*arrays.values(), y]) or y is None:
        return None
    kept = {str(name): a if isinstance(a, np.memmap) else np.asarray(a) for name, a in arrays.items()}
    return Mapped(kept, y if isinstance(y, np.memmap) else to_array(y), isinstance(x, dict))
