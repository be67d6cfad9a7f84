"""A stream of rows as a fit takes it: read once for what has to be known beforehand, then batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from bnn_pyro.data import Inputs, refuse_not_finite
from bnn_pyro.errors import DataError, OptionError, ShapeError
from bnn_pyro.inference import MAP, SVI, Method
from bnn_pyro.isolation import derive_seed, isolated, on_cpu
from bnn_pyro.labels import learn_classes
from bnn_pyro.minibatches import Batches
from bnn_pyro.model import Model
from bnn_pyro.streams import Arrays, Source, find_source, joined
from bnn_pyro.units import Units

SAMPLE = 1000  # rows kept, at least
MOST_CLASSES = 10_000
ALL_Y = "/y"  # among the names of inputs, which have no slash


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
            if y.ndim != 1:
                learn_classes(y, f"{where}, y")  # says what is wrong with that shape
            classes = np.unique(y) if classes is None else np.union1d(classes, y)
            if len(classes) > MOST_CLASSES:
                raise DataError(f"{where}, y: expected at most {MOST_CLASSES:,} classes, got more. Use a regression.")
        _keep(kept, x, y, stream.n, sample, generator)
        stream.n += len(y)
    if not kept:
        raise DataError(f"{where}, x: expected at least one row, got none.")
    x, y = joined([({n: a[None] for n, a in own.items()}, np.asarray(label)[None]) for own, label in kept])
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

    def _next(self) -> list[Tensor]:
        with on_cpu():  # what a loader makes is no program's
            arrays, targets = next(self._parts)
        x, y = self._encode(arrays if self.names is not None else arrays[""], targets)
        return [t[None].contiguous() for t in (*(x.values() if isinstance(x, dict) else [x]), y)]


def open_stream(bnn: Model, x: Any, y: Any, method: Method, engine: str, seed: int) -> tuple[Stream | None, Method]:
    """The rows that stay where they are, read once, and the method with its size of a batch; None for rows in memory.

    Raises: OptionError for a method that needs all rows at once.
    """
    loader = isinstance(x, DataLoader)
    if not loader and not (isinstance(method, SVI | MAP) and method.batch_size is not None):
        return None, method  # all rows at once, and with them a file's in memory
    with isolated(derive_seed(seed, "rows")):  # a loader may draw from torch's generator
        source = find_source(x, y)
    if source is None:
        return None, method
    if not isinstance(method, SVI | MAP) or engine == "pyro":
        by = f"engine='pyro' and {method.name}" if engine == "pyro" else method.name
        raise OptionError(
            f"{bnn.name}: expected inference='svi' or 'map' for a DataLoader, got {by}, which needs all rows at once. Pass "
            "arrays."
        )
    if method.batch_size is None:
        size = getattr(x, "batch_size", None)
        if size is None:
            raise OptionError(
                f"{bnn.name}, batch_size: expected a number, as the DataLoader has none. Pass batch_size=128."
            )
        method = replace(method, batch_size=size)
    assert method.batch_size is not None
    with isolated(derive_seed(seed, "rows")):
        stream = survey(source, bnn.name, bnn.task == "classification", derive_seed(seed, "rows"),
                        max(SAMPLE, method.batch_size))  # fmt: skip
    return stream, method


def all_rows_units(stream: Stream, units: Units) -> Units:
    """Units as learnt on a sample, with the means and standard deviations of all rows."""
    pairs = {name: stream.moments[name].mean_and_sd() for name in units.x}
    return Units(pairs, None if units.y is None else stream.moments[ALL_Y].mean_and_sd())
