"""Rows that stay where they are: memory-mapped arrays, and what a torch ``DataLoader`` yields.

A fit reads all rows once, a part at a time, for their number, means, standard deviations and classes, and keeps a sample of
them, on which scores, verdict and ArviZ groups stand. Steps then take batches as they come; what is in memory does not grow
with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from bnn_pyro.data import Inputs, refuse_not_finite
from bnn_pyro.errors import DataError, ShapeError
from bnn_pyro.labels import to_array
from bnn_pyro.minibatches import Batches, ahead
from bnn_pyro.permutation import permute

SAMPLE = 1000  # rows kept, at least
NUMBERS_AT_ONCE = 1_000_000  # of the first reading
MOST_CLASSES = 10_000
ALL_Y = "y "  # among the names of inputs, none of which ends so

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
        for batch in self.loader:
            yield _pair(batch, self.named)

    def batches(self, size: int, seed: int) -> Iterator[Part]:
        del seed  # the loader shuffles, by torch's generator or its own
        waiting: list[Part] = []
        while True:
            for part in self.once():
                waiting.append(part)
                while sum(len(y) for _, y in waiting) >= size:
                    x, y = _joined(waiting)
                    waiting = [({name: a[size:] for name, a in x.items()}, y[size:])]
                    yield {name: a[:size] for name, a in x.items()}, y[:size]


def _joined(parts: list[Part]) -> Part:
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


@dataclass
class Moments:
    """Number, mean and sum of squares about it, by column, of rows that come in parts."""

    count: int = 0
    mean: Any = 0.0
    square: Any = 0.0

    def add(self, rows: np.ndarray) -> None:
        """Source: Chan, Golub & LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances."""
        rows = rows.astype(np.float64)
        count, mean = len(rows), rows.mean(0)
        total, away = self.count + count, mean - self.mean
        self.square = self.square + ((rows - mean) ** 2).sum(0) + away**2 * (self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total

    def mean_and_sd(self) -> tuple[np.ndarray, np.ndarray]:
        """With ddof 0; a constant column has sd 1."""
        mean, sd = np.asarray(self.mean), np.sqrt(self.square / self.count)
        return mean, np.where(sd <= 1e-12 * np.abs(mean), 1.0, sd)


@dataclass
class Stream:
    """A source, and what was found in reading it once.

    Attributes:
        n: Rows.
        x, y: A sample of them, drawn evenly, as a user would pass it.
        moments: Of each input whose values are numbers by kind, and of y under the name ``ALL_Y``; empty for labels.
    """

    source: Source
    n: int = 0
    x: Any = None
    y: Any = None
    moments: dict[str, Moments] = field(default_factory=dict)


def survey(source: Source, where: str, labels: bool, seed: int, sample: int = SAMPLE) -> Stream:
    """Reads all rows once.

    Args:
        labels: Whether y are labels of classes.
        sample: Rows that are kept, if there are so many.
    Raises: DataError for values that are not finite, ShapeError for parts that do not fit together.
    """
    generator = np.random.default_rng(seed)
    stream, kept, classes = Stream(source), list[Any](), None
    shapes: dict[str, tuple[int, ...]] | None = None
    for x, y in source.once():
        found = {name: a.shape[1:] for name, a in x.items()} | {ALL_Y: y.shape[1:]}
        shapes = shapes or found
        if found != shapes or any(len(a) != len(y) for a in x.values()):
            raise ShapeError(
                f"{where}: expected parts of rows of the shapes {shapes}, got {found} of "
                f"{[len(a) for a in x.values()]} rows with {len(y)} targets, after {stream.n} rows."
            )
        for name, array in [*x.items(), *([] if labels else [(ALL_Y, y)])]:
            label = "y" if name == ALL_Y else f"x[{name!r}]" if name else "x"
            if array.dtype.kind not in "fiub":
                raise DataError(f"{where}, {label}: expected numbers, got {array.dtype}. Encode them as numbers.")
            if array.dtype.kind == "f":
                refuse_not_finite(array, f"{label}, the rows from {stream.n} on", where, None)
            stream.moments.setdefault(name, Moments()).add(array)
        if labels:
            classes = np.unique(y) if classes is None else np.union1d(classes, y)
            if len(classes) > MOST_CLASSES:
                raise DataError(f"{where}, y: expected at most {MOST_CLASSES:,} classes, got more. Use a regression.")
        _keep(kept, x, y, stream.n, sample, generator)
        stream.n += len(y)
    if not kept:
        raise DataError(f"{where}, x: expected at least one row, got none.")
    x, y = _joined([({n: a[None] for n, a in own.items()}, np.asarray(label)[None]) for own, label in kept])
    stream.x = x if source.named else x[""]
    stream.y = pd.Categorical(y, categories=classes) if labels else y
    return stream


def _keep(kept: list[Any], x: Arrays, y: np.ndarray, before: int, most: int, generator: np.random.Generator) -> None:
    """Lets each row so far have the same chance to be among ``kept``. Source: Vitter 1985, ACM TOMS 11, algorithm R."""
    slots = np.where(
        np.arange(before, before + len(y)) < most,
        np.arange(before, before + len(y)),
        generator.integers(0, np.arange(before, before + len(y)) + 1),
    )
    for i in np.flatnonzero(slots < most):
        row = ({name: a[i].copy() for name, a in x.items()}, y[i])
        if slots[i] == len(kept):
            kept.append(row)
        else:
            kept[slots[i]] = row


class StreamedBatches(Batches):
    """Batches of a stream as a step takes them; ``encode`` makes tensors of rows as a user gave them."""

    def __init__(
        self, stream: Stream, size: int, seed: int, encode: Callable[[Any, np.ndarray], tuple[Inputs, Tensor]]
    ):
        names = list(stream.x) if stream.source.named else None
        super().__init__(size, stream.n / size, names)
        self._parts, self._encode = stream.source.batches(size, seed), encode

    def draw(self) -> list[Tensor]:
        """The tensors of the next batch, each (1, size, ...): those of x, and y."""
        arrays, targets = next(self._parts)
        x, y = self._encode(arrays if self.names is not None else arrays[""], targets)
        return [t[None].contiguous() for t in (*(x.values() if isinstance(x, dict) else [x]), y)]
