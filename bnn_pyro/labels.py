"""Class labels as codes 0 to k - 1, and back: text, booleans, whole numbers or a pandas Categorical, (n,) of them.

Classes are kept as one numpy array of text, int64, bool or (declared by a Categorical only) float64, in the order of
their codes: sorted, or a Categorical's own.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd

from bnn_pyro.errors import DataError, ShapeError, place

if TYPE_CHECKING:
    from torch import Tensor

FEW = 20  # so many different whole numbers always pass for classes


def learn_classes(y: Any, where: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) int64 and the classes (k,), in order.

    Args:
        y: (n,) labels: an array, list, tensor or Series. A pandas Categorical's own order and unseen classes are kept.
        where: What an error begins with, such as ``"logistic, y"``.
        count: The number of classes that a model insists on. Whole numbers in 0 to count - 1 may lack some of them.
    Raises: ShapeError for any shape but (n,); DataError for missing, fractional or mixed labels, one class only,
        numbers that look like a regression target, and another number of classes than ``count``.
    """
    categories = _declared(y)
    if categories is None:
        values = _values(y, where)
        _refuse_fractions(values, y, where)
        classes, codes = np.unique(values, return_inverse=True)
        _refuse_regression(classes, len(values), where, count)
    else:
        classes = _one_kind(np.asarray(categories, dtype=object), where)
        codes = pd.Categorical(y).codes
        _refuse_missing(codes == -1, y, where)
    if len(codes) == 0 and categories is None:
        if count is None:
            raise DataError(
                f"{where}: expected at least one label, got none. A pandas Categorical declares classes without rows."
            )
        classes, codes = np.arange(count), np.zeros(0, dtype=np.int64)
    if count is not None and count != len(classes):
        if not (categories is None and _within(classes, count)):
            raise _wrong_count(classes, count, where)
        codes, classes = classes[codes], np.arange(count)
    if len(classes) < 2:
        raise DataError(
            f"{where}: expected at least two classes, got only {listed(classes)}. Add rows of another class; "
            "a pandas Categorical declares classes that these rows lack."
        )
    return codes.astype(np.int64), _typed(classes)


def encode(y: Any, classes: np.ndarray, where: str) -> np.ndarray:
    """Codes (n,) int64 of labels among ``classes``. Equal numbers match whatever their type; text never matches them.

    Raises: ShapeError for any shape but (n,); DataError for a missing label, or one that is no class.
    """
    values = _values(y, where)
    codes_of = {label: code for code, label in enumerate(as_list(classes))}
    if values.dtype.kind == "b" and set(codes_of) != {False, True}:
        codes_of = {}  # True equals 1, but is not a label among {1, 2}
    distinct, inverse = np.unique(values, return_inverse=True)
    codes = np.array([codes_of.get(label, -1) for label in distinct.tolist()], dtype=np.int64)[inverse]
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        raise DataError(
            f"{where}: expected a class known from training ({listed(classes)}), got {shown(values[row])} at "
            f"{place(y, row)}. Leave such rows out, or fit with them."
        )
    return codes


def as_list(classes: np.ndarray) -> list[str] | list[int] | list[bool] | list[float]:
    """The classes as plain Python values, which TOML and JSON can hold."""
    return classes.tolist()


def from_list(values: list[str] | list[int] | list[bool] | list[float]) -> np.ndarray:
    """The inverse of ``as_list``: an array (k,) of text, int64, bool or float64. Raises: DataError for anything else."""
    if isinstance(values, list) and values:
        if all(isinstance(v, bool) for v in values):
            return np.array(values, dtype=bool)
        if all(isinstance(v, str) for v in values):
            return np.array(values, dtype=str)
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            whole = all(isinstance(v, int) for v in values)
            return np.array(values, dtype=np.int64 if whole else np.float64)
    raise DataError(f"classes: expected a list of text, whole numbers or booleans, got {shown(values)}. Fit anew.")


def shown(value: Any) -> str:
    """A value as one would type it, at most 80 characters long."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def listed(values: Iterable[Any], most: int = 10) -> str:
    """The first ``most`` values as one would type them."""
    values = list(values)
    return ", ".join([shown(v) for v in values[:most]] + (["..."] if len(values) > most else []))


def kind_of(value: Any) -> str:
    """``text``, ``boolean``, ``number``, ``date`` or ``other``: what one element of an object array is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, np.datetime64 | np.timedelta64 | datetime.date | datetime.timedelta | pd.Period):
        return "date"
    return "number" if isinstance(value, Real | Decimal) else "other"


def to_array(values: Any) -> np.ndarray:
    """Any container as a numpy array, without letting numpy turn None, NaN or numbers among text into text."""
    if _is_tensor(values):
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    if isinstance(values, np.ma.MaskedArray):
        return np.array(values.tolist(), dtype=object)  # None where masked
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "to_numpy") and isinstance(getattr(values, "dtype", None), np.dtype):
        return values.to_numpy()
    return np.asarray(values, dtype=object)


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Without importing torch, for which a table of a user need not wait: before it is there, nothing is a tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _declared(y: Any) -> pd.Index | None:
    dtype = getattr(y, "dtype", None)
    return dtype.categories if isinstance(dtype, pd.CategoricalDtype) else None


def _values(y: Any, where: str) -> np.ndarray:
    """y (n,) without missing values, as an array of bool, int64, float64 (some are not whole) or text objects."""
    array = to_array(y)
    if array.ndim != 1:
        text = f"{where}: expected labels of shape (n,), got {array.shape}."
        if array.ndim == 2 and array.shape[1] == 1:
            raise ShapeError(f"{text} Pass {'y.iloc[:, 0]' if isinstance(y, pd.DataFrame) else 'y.reshape(-1)'}.")
        if array.ndim == 2 and not isinstance(y, pd.DataFrame):
            raise ShapeError(f"{text} Pass y.argmax(1) if each row marks its class with a 1.")
        raise ShapeError(f"{text} Pass one label for each row.")
    _refuse_missing(np.asarray(pd.isna(array), dtype=bool), y, where)
    if array.dtype.kind in "OU":
        return _one_kind(array.astype(object), where, y)
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (np.floor(array) == array)
        return _int64([int(v) for v in array], where) if whole.all() else array.astype(np.float64)
    if array.dtype.kind in "iu":
        return array.astype(np.int64) if array.dtype != np.uint64 else _int64(array.tolist(), where)
    if array.dtype.kind == "b":
        return array
    raise DataError(f"{where}: expected text, whole numbers or booleans, got {array.dtype}. Pass y.astype(str).")


def _one_kind(values: np.ndarray, where: str, rows: Any = None) -> np.ndarray:
    """An object array (n,) as bool, int64, float64 or objects that are all text: of the labels ``rows``, or categories."""

    def at(i: int) -> str:
        return f"category {i}" if rows is None else place(rows, i)

    kinds = [kind_of(v) for v in values]
    strange = next((i for i, kind in enumerate(kinds) if kind in ("date", "other")), None)
    if strange is not None:
        remedy = "y.astype(str)" if rows is not None else "y.cat.rename_categories(str)"
        what = f"{shown(values[strange])} at {at(strange)}"
        raise DataError(f"{where}: expected text, whole numbers or booleans, got {what}. Pass {remedy}.")
    if len(set(kinds)) > 1:
        other = next(i for i, kind in enumerate(kinds) if kind != kinds[0])
        raise DataError(
            f"{where}: expected labels of one kind, got {shown(values[0])} at {at(0)} and {shown(values[other])} "
            f"at {at(other)}. Make all of them text or all of them numbers."
        )
    if kinds and kinds[0] == "boolean":
        return values.astype(bool)
    if kinds and kinds[0] == "text":
        return np.array([str(v) for v in values], dtype=object)
    if all(isinstance(v, Integral) or (np.isfinite(float(v)) and v == int(v)) for v in values):
        return _int64([int(v) for v in values], where)
    return values.astype(np.float64)


def _int64(values: list[int], where: str) -> np.ndarray:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        large = max(values, key=abs)
        raise DataError(f"{where}: expected whole numbers of 64 bits, got {shown(large)}. Pass text instead.") from None


def _typed(classes: np.ndarray) -> np.ndarray:
    return classes.astype(str) if classes.dtype == object else classes


def _within(classes: np.ndarray, count: int) -> bool:
    return bool(classes.dtype.kind == "i" and len(classes) and classes.min() >= 0 and classes.max() < count)


def _refuse_missing(missing: np.ndarray, rows: Any, where: str) -> None:
    if missing.any():
        raise DataError(
            f"{where}: expected a label in each row, got none at {place(rows, int(np.argmax(missing)))}; "
            f"{int(missing.sum())} of {len(missing)} are missing. Leave such rows out."
        )


def _refuse_fractions(values: np.ndarray, rows: Any, where: str) -> None:
    if values.dtype.kind != "f":
        return
    row = int(np.argmax(~(np.isfinite(values) & (np.floor(values) == values))))
    raise DataError(
        f"{where}: expected text, whole numbers or booleans, got {shown(values[row])} at {place(rows, row)}. "
        "A regression model takes numbers."
    )


def _refuse_regression(classes: np.ndarray, n: int, where: str, count: int | None) -> None:
    expected = count is not None and len(classes) <= count  # so many classes were asked for
    if classes.dtype.kind == "i" and len(classes) > max(FEW, n / 2) and not expected:
        raise DataError(
            f"{where}: expected classes, got {len(classes)} different numbers in {n} rows, which looks like a number "
            "to predict. Use a regression model, or pass a pandas Categorical."
        )


def _wrong_count(classes: np.ndarray, count: int, where: str) -> DataError:
    text = f"{where}: expected {count} classes, got {len(classes)}: {listed(classes)}."
    if len(classes) > count:
        return DataError(f"{text} Choose a model for any number, such as mlp_categorical, or merge some.")
    fewer = ", or choose a model for any number" if len(classes) > 1 else ""
    return DataError(
        f"{text} Declare all {count} with a pandas Categorical, or number them from 0 to {count - 1}{fewer}."
    )
