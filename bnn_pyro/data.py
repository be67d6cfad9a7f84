"""What a user hands in as x and y, checked and turned into tensors, and the standard units that a model sees.

Arrays, tensors, data frames and dicts of tensors become one ``Data`` value. Nothing here draws a random number or
runs a model, so every complaint about data comes before any work.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.errors import DataError, ShapeError

RESERVED = ("chain", "draw", "row", "feature", "probe", "probe_row")  # dimensions of the results
Inputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Rows on the CPU as a user gave them, in original units.

    ``x`` is (n, ...) or a dict of such arrays; ``y`` is (n,) or (n, k), or None; ``columns`` names the last axis of x.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    columns: tuple[str, ...] | None = None
    target: str | None = None

    @property
    def n(self) -> int:
        return rows(self.x)

    def checksum(self) -> str:
        """SHA-256 of names, shapes, dtypes and values of x and y."""
        digest = hashlib.sha256()
        arrays = {"x": self.x} if not isinstance(self.x, dict) else dict(sorted(self.x.items()))
        for name, array in [*arrays.items(), ("y", self.y)]:
            if array is not None:
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def collect(x: Any, y: Any = None, *, where: str = "fit") -> Data:
    """Checks x and y and returns them as numpy arrays of their own kind (float, int or bool), copied.

    Raises: DataError for values that are not numbers or not finite, naming row and column; ShapeError for lengths
        that differ or a transposed x.
    """
    columns = target = None
    if hasattr(x, "columns") and hasattr(x, "to_numpy"):
        columns = tuple(str(c) for c in x.columns)
        x = _frame(x, where)
    if hasattr(y, "to_numpy"):
        target = str(y.name) if getattr(y, "name", None) is not None else None
        y = y.to_numpy()
    arrays: np.ndarray | dict[str, np.ndarray]
    if isinstance(x, Mapping):
        if not x:
            raise DataError(f"{where}, x: expected at least one array, got an empty dict. Pass {{name: array}}.")
        taken = [str(name) for name in x if str(name) in RESERVED or "/" in str(name)]
        if taken:
            raise DataError(f"{where}, x: expected names that a results file can hold, got {taken[0]!r}. Rename it.")
        arrays = {str(name): _array(value, f"x[{name!r}]", where, None) for name, value in x.items()}
        lengths = {name: a.shape[0] for name, a in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"{where}, x: expected arrays that share the row axis, got rows {lengths}.")
    else:
        arrays = _array(x, "x", where, columns)
    y = None if y is None else _array(y, "y", where, None)
    n = rows(arrays)
    if y is not None and y.shape[0] != n:
        raise _lengths_differ(arrays, y, where)
    if n == 0:
        raise DataError(f"{where}, x: expected at least one row, got none.")
    return Data(arrays, y, columns, target)


def rows(x: Any) -> int:
    """Length of the row axis of x."""
    return next(iter(x.values())).shape[0] if isinstance(x, Mapping) else x.shape[0]


def _lengths_differ(x: Any, y: np.ndarray, where: str) -> ShapeError:
    text = f"{where}: expected x and y of equal length, got x with {rows(x)} rows and y of shape {y.shape}."
    if not isinstance(x, Mapping) and x.ndim == 2 and x.shape[1] == y.shape[0]:
        return ShapeError(f"{text} x looks transposed: rows are observations, so pass x.T.")
    if y.ndim == 2 and y.shape[0] == 1:
        return ShapeError(f"{text} Pass y.reshape(-1).")
    return ShapeError(f"{text} Drop the rows that lack a partner.")


def _frame(x: Any, where: str) -> np.ndarray:
    if len(set(map(str, x.columns))) < len(x.columns):
        twice = next(c for c in x.columns if list(map(str, x.columns)).count(str(c)) > 1)
        raise DataError(f"{where}, x: expected a name for each column, got {str(twice)!r} twice. Rename one.")
    for name in x.columns:
        kind = getattr(x[name].dtype, "kind", "O")
        if kind not in "fiub":
            raise DataError(
                f"{where}, x: expected numbers, got column {str(name)!r} of type {x[name].dtype}. "
                "Encode it as numbers first, for example with pandas.get_dummies."
            )
    return x.to_numpy(
        dtype=np.result_type(*(x[name].to_numpy().dtype for name in x.columns)) if len(x.columns) else float
    )


def _array(value: Any, name: str, where: str, columns: tuple[str, ...] | None) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    try:
        array = np.array(value)  # a copy: the caller's array is never shared or changed
    except ValueError as error:
        raise ShapeError(
            f"{where}, {name}: expected rows of equal length, got a ragged list. Pass an array."
        ) from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}, {name}: expected numbers, got an array of type {array.dtype}. Encode it as numbers.")
    if array.ndim == 0:
        raise ShapeError(f"{where}, {name}: expected rows on the first axis, got a single number. Pass an array.")
    if array.dtype.kind == "f":
        refuse_not_finite(array, name, where, columns)
    return array


def refuse_not_finite(array: np.ndarray, name: str, where: str, columns: tuple[str, ...] | None) -> None:
    """Raises: DataError that names the first row and column of an array (n, ...) where it is not finite."""
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    column = ""
    if len(index) == 2:
        column = f", column {index[1]}" + (f" ({columns[index[1]]!r})" if columns else "")
    raise DataError(
        f"{where}, {name}: expected finite numbers, got {array[index]} at row {index[0]}{column}; "
        f"{int(bad.sum())} of {array.size} values are not finite. Drop or impute those rows."
    )


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
    """Means and standard deviations (ddof 0) of the columns of x and of y; constant columns keep sd 1, with a warning."""
    named = data.x if isinstance(data.x, dict) else {"": data.x}
    real = {name: a for name, a in named.items() if name == "" or a.dtype.kind == "f"}  # an index keeps its values
    pairs = {name: _moments(a, name, data.columns, where) for name, a in real.items()} if x else {}
    target = _moments(data.y, "y", None, where) if y and data.y is not None else None
    return Units(pairs, target)


def _moments(
    array: np.ndarray, name: str, columns: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, np.ndarray]:
    array = array.astype(np.float64)
    mean, sd = array.mean(0), array.std(0)
    constant = sd <= 1e-12 * np.abs(mean)
    if constant.any():
        which = [columns[i] if columns and constant.ndim else int(i) for i in np.flatnonzero(constant)]
        label = "y" if name == "y" else f"x{f'[{name!r}]' if name else ''}, column {', '.join(map(str, which))}"
        warnings.warn(
            f"{where}, {label}: constant in the training rows, so it carries no information and is only centred.",
            stacklevel=4,
        )
    return mean, np.where(constant, 1.0, sd)


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | str, *, floating: bool = False) -> Tensor:
    """A tensor of ``dtype`` for floats (or always, if ``floating``), of int64 or bool otherwise."""
    if floating or array.dtype.kind == "f":
        return torch.as_tensor(array.astype(np.float64)).to(device=device, dtype=dtype)
    return torch.as_tensor(array if array.dtype.kind == "b" else array.astype(np.int64), device=device)


def inputs_to_tensors(x: np.ndarray | dict[str, np.ndarray], dtype: torch.dtype, device: Any, floating: bool) -> Inputs:
    """``to_tensor`` over an x that may be a dict."""
    if isinstance(x, dict):
        return {name: to_tensor(a, dtype, device, floating=floating) for name, a in x.items()}
    return to_tensor(x, dtype, device, floating=floating)
