"""What a user hands in as x and y, checked and turned into tensors.

Arrays, tensors, data frames and dicts of tensors become one ``Data`` value. Nothing here draws a random number or
runs a model, so every complaint about data comes before any work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro import labels
from bnn_pyro.errors import DataError, ShapeError, printable, unknown
from bnn_pyro.frames import MISSING, Encoding, complete_rows, encode_numbers, learn_encoding

RESERVED = ("chain", "draw", "row", "feature", "probe", "probe_row", "class")  # dimensions of the results
Inputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Rows on the CPU as a user gave them, in original units.

    ``x`` is (n, ...) or a dict of such arrays; ``y`` is (n,) or (n, k), or None; ``columns`` names the last axis of x.
    ``encoding`` says how a data frame became x. Where y are labels, they are codes 0, 1, ... of ``classes``.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    columns: tuple[str, ...] | None = None
    target: str | None = None
    encoding: Encoding | None = None
    classes: np.ndarray | None = None

    @property
    def n(self) -> int:
        return rows(self.x)

    def checksum(self) -> str:
        """SHA-256 of names, shapes, dtypes and values of x, y and the classes."""
        digest = hashlib.sha256()
        arrays = {"x": self.x} if not isinstance(self.x, dict) else dict(sorted(self.x.items()))
        for name, array in [*arrays.items(), ("y", self.y)]:
            if array is not None:
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        if self.classes is not None:
            digest.update(f"classes {labels.as_list(self.classes)}".encode())
        return digest.hexdigest()


def collect(
    x: Any,
    y: Any = None,
    *,
    where: str = "fit",
    missing: str = "refuse",
    classes: bool = False,
    count: int | None = None,
    like: Data | None = None,
    empty: bool = False,
) -> Data:
    """Checks x and y and returns them as numpy arrays of their own kind (float, int or bool), copied.

    Args:
        missing: What to do with missing values of a data frame: ``"refuse"``, ``"impute"`` or ``"drop"`` (see ``frames``).
        classes: Whether y are labels of classes; ``count`` is how many there have to be, if that is fixed.
        like: Training rows: a data frame is encoded as theirs was, and holds numbers only if they came as an array.
        empty: Whether no rows at all will do.
    Raises: DataError for values that are not numbers or not finite, naming row and column; ShapeError for lengths
        that differ or a transposed x.
    """
    if missing not in MISSING:
        raise unknown("value of missing", missing, MISSING)
    columns = target = encoding = known = None
    if y is not None:
        target = str(y.name) if getattr(y, "name", None) is not None else None
    if missing == "drop" and not isinstance(x, Mapping):
        x, y = _complete(x, y)
    if is_frame(x):
        if like is None:
            encoding = learn_encoding(x, where, missing)
        else:
            encoding = like.encoding if like.encoding is not None else encode_numbers(x, where)
        x, columns = encoding.apply(x, where), encoding.names
    if isinstance(x, str | Path):
        raise DataError(
            f"{where}, x: expected rows, got the text {printable(x)}. Read the file first: pandas.read_csv(...)."
        )
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
    n = rows(arrays)
    if classes and y is not None:
        shape = labels.to_array(y).shape
        if not is_frame(y) and shape and shape[0] != n and (len(shape) == 1 or shape == (1, n)):
            raise _lengths_differ(arrays, shape, where)
        y, known = labels.learn_classes(y, f"{where}, y", count)
    elif y is not None:
        y = _array(y.to_numpy() if hasattr(y, "to_numpy") else y, "y", where, None)
        if y.shape[0] != n:
            raise _lengths_differ(arrays, y.shape, where)
    if n == 0 and not empty:
        raise DataError(f"{where}, x: expected at least one row, got none.")
    return Data(arrays, y, columns, target, encoding, known)


def is_frame(x: Any) -> bool:
    """Whether x is a data frame, of whatever library."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy") and not isinstance(x, Mapping)


def holds_both(x: Any) -> bool:
    """Whether x is an object with rows in .x and .y, such as a part of a data set; columns of a frame are none."""
    return hasattr(x, "x") and hasattr(x, "y") and not is_frame(x)


def unmasked(values: Any) -> Any:
    """A masked array with NaN where it is masked, in floats if it is anywhere; anything else as it is."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if values.dtype.kind not in "fiub" or not np.ma.is_masked(values):
        return values.data  # what is neither masked nor a number is refused as such
    floats = values.data.astype(values.dtype if values.dtype.kind == "f" else np.float64)  # a copy
    floats[np.ma.getmaskarray(values)] = np.nan
    return floats


def _complete(x: Any, y: Any) -> tuple[Any, Any]:
    """The rows of a data frame or an array, and of y, in which nothing is missing."""
    x = x if is_frame(x) else np.asarray(unmasked(x))
    kept = complete_rows(x, y)
    if y is None:
        return x[kept], None
    return x[kept], y[kept] if hasattr(y, "to_numpy") else np.asarray(y)[kept]


def rows(x: Any) -> int:
    """Length of the row axis of x."""
    return next(iter(x.values())).shape[0] if isinstance(x, Mapping) else x.shape[0]


def _lengths_differ(x: Any, y: tuple[int, ...], where: str) -> ShapeError:
    text = f"{where}: expected x and y of equal length, got x with {rows(x)} rows and y of shape {y}."
    if not isinstance(x, Mapping) and x.ndim == 2 and x.shape[1] == y[0]:
        return ShapeError(f"{text} x looks transposed: rows are observations, so pass x.T.")
    if len(y) == 2 and y[0] == 1:
        return ShapeError(f"{text} Pass y.reshape(-1).")
    return ShapeError(f"{text} Drop the rows that lack a partner.")


def _array(value: Any, name: str, where: str, columns: tuple[str, ...] | None) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            kind = "one without values" if value.is_meta else f"one of layout {value.layout}"
            raise DataError(f"{where}, {name}: expected a dense tensor, got {kind}. Pass x.to_dense(), or an array.")
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    try:
        array = np.array(unmasked(value))  # a copy: the caller's array is never shared or changed
    except ValueError as error:
        raise ShapeError(
            f"{where}, {name}: expected rows of equal length, got a ragged list. Pass an array."
        ) from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}, {name}: expected numbers, got {_what(array)}. {_remedy(array, name)}")
    if array.ndim == 0:
        raise ShapeError(f"{where}, {name}: expected rows on the first axis, got a single number. Pass an array.")
    if array.dtype.kind == "f":
        refuse_not_finite(array, name, where, columns)
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise DataError(
            f"{where}, {name}: expected whole numbers below 2**63, which torch can hold, got {array.max()}. "
            "Pass floats, or smaller numbers."
        )
    return array


def _what(array: np.ndarray) -> str:
    """What an array holds that is no array of numbers, by the first of its values that is none."""
    strange = [v for v in array.ravel().tolist() if not isinstance(v, Real)]
    if array.dtype == object and not strange:
        return "numbers kept as objects"
    kind = "text" if all(isinstance(v, str) for v in strange[:1]) else f"values of type {array.dtype}"
    return f"{kind}, such as {labels.shown(strange[0])}" if strange else kind


def _remedy(array: np.ndarray, name: str) -> str:
    if array.dtype == object and all(isinstance(v, Real) for v in array.ravel().tolist()):
        return f"Pass {name}.astype(float)."
    if name == "y":
        return "Use a model for classification, or numbers."
    return "Encode it as numbers, or pass a data frame, whose text columns are encoded."


def refuse_not_finite(
    array: np.ndarray,
    name: str,
    where: str,
    columns: tuple[str, ...] | None,
    expected: str = "finite numbers",
    remedy: str = "Drop or impute those rows.",
) -> None:
    """Raises: DataError that names the first row and column of an array (n, ...) where it is not finite."""
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    column = ""
    if len(index) == 2:
        column = f", column {index[1]}" + (f" ({columns[index[1]]!r})" if columns else "")
    raise DataError(
        f"{where}, {name}: expected {expected}, got {array[index]} at row {index[0]}{column}; "
        f"{int(bad.sum())} of {array.size} values are not finite. {remedy}"
    )


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
