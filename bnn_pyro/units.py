"""Original and standard units: what a model sees has mean 0 and standard deviation 1 in the training rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_pyro.data import Data
from bnn_pyro.errors import place, warn


@dataclass(frozen=True)
class Units:
    """Affine maps between original and standard units: standard = (original - mean) / sd, by column.

    ``x`` maps an input's name ("" for an x that is no dict) to (mean, sd), each of the trailing shape of that input;
    ``y`` is (mean, sd) of the target, or None where it keeps its units. Float64 throughout.
    """

    x: dict[str, tuple[np.ndarray, np.ndarray]]
    y: tuple[np.ndarray, np.ndarray] | None = None

    def inputs(self, x: np.ndarray | dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """x in standard units."""
        if isinstance(x, dict):
            return {name: self._standard(name, a) for name, a in x.items()}
        return self._standard("", x)

    def targets(self, y: np.ndarray) -> np.ndarray:
        """y in standard units."""
        return y if self.y is None else (y.astype(np.float64) - self.y[0]) / self.y[1]

    @property
    def y_mean(self) -> np.ndarray:
        return np.zeros(()) if self.y is None else self.y[0]

    @property
    def y_sd(self) -> np.ndarray:
        return np.ones(()) if self.y is None else self.y[1]

    @property
    def log_jacobian(self) -> float:
        """Log sd of y, summed over outputs: subtract it from a log density in standard units to get original ones."""
        return float(np.log(self.y_sd).sum())

    def _standard(self, name: str, array: np.ndarray) -> np.ndarray:
        if name not in self.x:
            return array
        mean, sd = self.x[name]
        return (array.astype(np.float64) - mean) / sd


def learn_units(data: Data, *, x: bool, y: bool, where: str) -> Units:
    """Means and standard deviations (ddof 0) of the columns of x and of y; constant columns keep sd 1, with a warning.

    Columns of 0 and 1 that stand for a category keep their values: in standard units a rare category would be a huge
    number. A dict's integers keep theirs too, as they may be an index.
    """
    named = data.x if isinstance(data.x, dict) else {"": data.x}
    real = {name: a for name, a in named.items() if name == "" or a.dtype.kind == "f"}
    for name, array in real.items():
        _warn_of_columns(array, name, data, where, centred=x)
    kept = data.encoding.indicators if data.encoding is not None else None
    pairs = {name: _moments(a, kept) for name, a in real.items()} if x else {}
    warn_of_outliers(Units(pairs), data.x, data, where)
    if not y or data.y is None:
        return Units(pairs)
    if len(data.y) > 1 and np.any(_constant(data.y)):
        warn(f"{where}, y: constant in the training rows, so it carries no information and is only centred.")
    return Units(pairs, _moments(data.y, None))


FAR = 100.0  # a standard deviation beyond 1/FAR to FAR is not what priors in standard units expect


def warn_of_units(data: Data, y: bool, where: str) -> None:
    """Warns of columns, and of y if asked, that are far from standard units where a model's priors expect those."""
    named = data.x if isinstance(data.x, dict) else {"": data.x}
    for name, array in {**named, **({"y": data.y} if y and data.y is not None else {})}.items():
        if len(array) < 2 or array.ndim > 2 or array.dtype.kind == "b":
            continue
        mean, sd = (np.atleast_1d(moment) for moment in _mean_and_sd(array))
        level = np.abs(mean)
        far = ~np.atleast_1d(_constant(array)) & ((sd > FAR) | (sd < 1 / FAR) | (level > FAR))
        if far.any():
            i = int(np.flatnonzero(far)[0])
            label = "y" if name == "y" and array is data.y else f"x{f'[{name!r}]' if name else ''}"
            which = f", {_named(np.flatnonzero(far), data, array)}" if array.ndim == 2 else ""
            warn(
                f"{where}, {label}{which}: the priors expect numbers near 0 of standard deviation near 1, got mean "
                f"{mean[i]:.3g} and standard deviation {sd[i]:.3g}. "
                "Leave standardize=True, or rescale."
            )


FURTHEST = (
    50.0  # standard deviations from the training mean; a column that is constant but for a few rows has such values
)


def warn_of_outliers(
    units: Units, x: np.ndarray | dict[str, np.ndarray], data: Data, where: str, rows: Any = None
) -> None:
    """Warns, once for each input, of the value that is largest in standard units if it is beyond what a network can bear.

    Args:
        units: As learnt from the training rows ``data``.
        x: Rows in original units, of the kind of ``data.x``.
        rows: What a user passed as x, to say which row it is; None says none.
    """
    for name, array in x.items() if isinstance(x, dict) else [("", x)]:
        if name not in units.x or array.ndim > 2 or not array.size:
            continue
        size = np.abs(units._standard(name, array)).reshape(len(array), -1)
        far = np.flatnonzero(size.max(0) > FURTHEST)
        if not len(far):
            continue
        row, i = divmod(int(size.argmax()), size.shape[1])
        mean, sd = (float(np.ravel(moment)[i]) for moment in units.x[name])
        learnt = data.x[name] if isinstance(data.x, dict) else data.x
        distance = (
            f"{size[row, i]:.0f} standard deviations from the mean of the training rows ({mean:.3g}, sd {sd:.3g})"
        )
        if np.atleast_1d(_constant(learnt))[i]:
            distance = f"where all training rows have {mean:.3g}"
        which = f", {_named([i, *far[far != i]], data, array)}" if array.ndim == 2 else ""
        at = "" if rows is None else f" at {place(rows, row)}"
        warn(
            f"{where}, x{f'[{name!r}]' if name else ''}{which}: expected values within {FURTHEST:.0f} standard deviations, "
            f"got {array.reshape(size.shape)[row, i]:g}{at}, {distance}: predictions for such a row are not to be relied on. "
            "Leave nearly constant columns out, or mend the value."
        )


def _moments(array: np.ndarray, kept: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if len(array) == 0:
        return np.zeros(array.shape[1:]), np.ones(array.shape[1:])
    mean, sd = _mean_and_sd(array)
    sd = np.where(_constant(array), 1.0, sd)
    return (mean, sd) if kept is None else (np.where(kept, 0.0, mean), np.where(kept, 1.0, sd))


def _mean_and_sd(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of an array with rows, float64.

    Taken of numbers between -1 and 1, since squares of numbers beyond 1e154 or below 1e-162 are infinite or 0. Dividing by
    a power of two rounds nothing.
    """
    array = array.astype(np.float64)
    largest = np.frexp(np.abs(array).max(0))[1]
    scaled = np.ldexp(array, -largest)
    return np.ldexp(scaled.mean(0), largest), np.ldexp(scaled.std(0), largest)


def _constant(array: np.ndarray) -> np.ndarray:
    """By column, whether all rows hold the same number, but for rounding."""
    if not len(array):
        return np.zeros(array.shape[1:], dtype=bool)
    mean, sd = _mean_and_sd(array)
    return sd <= 1e-12 * np.abs(mean)


def _warn_of_columns(array: np.ndarray, name: str, data: Data, where: str, centred: bool) -> None:
    """One warning for constant columns and one for columns that repeat others: their weights learn nothing of their own."""
    if len(array) < 2 or array.ndim > 2:
        return
    label = f"{where}, x{f'[{name!r}]' if name else ''}"
    constant = np.atleast_1d(_constant(array))
    if constant.any():
        which = _named(np.flatnonzero(constant), data, array)
        end = "and is only centred" if centred else "that an intercept does not"
        warn(f"{label}, {which}: constant in the training rows, so it carries no information {end}.")
    first: dict[bytes, int] = {}
    twins = {}
    for i in np.flatnonzero(~constant) if array.ndim == 2 else ():
        twin = first.setdefault(hashlib.sha256(np.ascontiguousarray(array[:, i]).tobytes()).digest(), int(i))
        if twin != i:
            twins[int(i)] = twin
    if twins:
        which = _named(list(twins), data, array)
        others = _named(list(dict.fromkeys(twins.values())), data, array)
        warn(f"{label}, {which}: equal to {others} in each training row, so only the sum of their weights is learnt.")


def _named(which: Any, data: Data, array: np.ndarray) -> str:
    """Columns by name or number, at most ten of them."""
    named = data.columns if data.columns and array.ndim == 2 and len(data.columns) == array.shape[1] else None
    shown = [str(named[i]) if named else str(int(i)) for i in which][:10]
    more = f" and {len(which) - 10} more" if len(which) > 10 else ""
    return f"column{'s' if len(which) > 1 else ''} {', '.join(shown)}{more}"
