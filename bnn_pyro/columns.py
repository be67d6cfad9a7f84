"""One column of a user's data frame: what it is, how it becomes numbers, and what cannot.

Numbers stay one column; text of k levels becomes k columns of 0 and 1, or one where k is 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from bnn_pyro.errors import DataError, place
from bnn_pyro.labels import kind_of, listed, shown, to_array

MANY = 50  # a column of text with more levels is taken for an identifier
Level = str | int | float | bool


@dataclass(frozen=True)
class Column:
    """One column of a user's frame, as learnt from training rows.

    ``kind`` is "number" or "category"; ``levels`` are a category's values, sorted or in a pandas Categorical's own
    order; ``fill`` is what a missing value becomes (median, or most frequent level), and None refuses it; ``flagged``
    columns get an extra 0/1 column "<name>=missing".
    """

    name: str
    kind: str
    levels: tuple[Level, ...] = ()
    fill: Level | None = None
    flagged: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Its encoded columns, without the flag."""
        if self.kind == "number":
            return (self.name,)
        own = {1: (), 2: self.levels[1:]}.get(len(self.levels), self.levels)
        return tuple(f"{self.name}={level}" for level in own)

    @property
    def used(self) -> bool:
        """Whether anything of it is encoded: text that was the same in all training rows is left out."""
        return bool(self.names) or self.flagged

    def encode(self, series: pd.Series, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Encoded values (n, len(names)), and where they were missing (n,)."""
        gaps = missing_rows(series)
        if gaps.any() and self.fill is None:
            raise DataError(
                f"{where}, x: expected a value in column {self.name!r}, as in all training rows, got none at "
                f"{place(series, int(np.argmax(gaps)))}; {int(gaps.sum())} of {len(gaps)} are missing. "
                "Fill it in, or leave such rows out."
            )
        if self.kind == "number":
            values = _numbers(series, gaps, self.name, where)
            if gaps.any():
                values = np.where(gaps, cast(float, self.fill), values)
            return values[:, None], gaps
        codes = _codes(series, gaps, self.levels, self.name, where)
        if gaps.any():
            codes[gaps] = self.levels.index(self.fill)
        shown_codes = {1: [], 2: [1]}.get(len(self.levels), range(len(self.levels)))
        return (codes[:, None] == np.array(shown_codes, dtype=np.int64)).astype(np.float64), gaps


def learn_column(series: pd.Series, name: str, where: str, missing: str) -> Column:
    """What a column of training rows is. Raises: DataError for what cannot be encoded, naming column, row and value."""
    if not len(series) and _is_numeric(series.dtype):
        return Column(name, "number")
    gaps = missing_rows(series)
    if gaps.all() and not len(gaps):
        raise DataError(f"{where}, x: expected rows, to learn the groups of column {name!r} from, got none.")
    if gaps.all():
        raise DataError(f"{where}, x: expected values in column {name!r}, got {len(gaps)} missing ones. Leave it out.")
    kind = _kind(series, gaps, name, where)
    if gaps.any() and missing != "impute":
        raise DataError(
            f"{where}, x: expected no missing value, got one in column {name!r} at {place(series, int(np.argmax(gaps)))}; "
            f"{int(gaps.sum())} of {len(gaps)} are missing there. missing='drop' leaves such rows out, "
            f"missing='impute' fills in the {'median' if kind == 'number' else 'most frequent level'} and adds a 0/1 "
            "column that says so."
        )
    flagged = bool(gaps.any())
    if kind == "number":
        values = _numbers(series, gaps, name, where)
        return Column(name, kind, (), float(np.median(values[~gaps])) if flagged else None, flagged)
    present = series[~gaps]
    if isinstance(series.dtype, pd.CategoricalDtype):
        levels = tuple(_plain(level) for level in series.dtype.categories)
        seen = len(set(present))
    else:
        levels = tuple(sorted({str(value) for value in present}))
        seen = len(levels)
    if len(levels) > MANY or (len(present) >= 20 and seen > len(present) / 2):
        raise DataError(
            f"{where}, x: expected groups in column {name!r}, got {max(len(levels), seen)} different values in "
            f"{len(present)} rows, which looks like an identifier or free text. Leave it out (drop=[{name!r}] / "
            f"--drop {name}), or group its values."
        )
    codes = _codes(series, gaps, levels, name, where)
    most_frequent = levels[int(np.argmax(np.bincount(codes[~gaps], minlength=len(levels))))]  # the first among equals
    return Column(name, kind, levels, most_frequent if flagged else None, flagged)


def _kind(series: pd.Series, gaps: np.ndarray, name: str, where: str) -> str:
    """ "number" or "category". Raises: DataError for dates, complex numbers, nested values, and text among numbers."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if _is_numeric(dtype):
        return "number"
    if getattr(dtype, "kind", "O") in "Mm" or isinstance(dtype, pd.PeriodDtype):
        raise _date(name, str(dtype), where)
    if getattr(dtype, "kind", "O") == "c":
        raise _odd(name, "complex numbers", where, "Split it into two columns of numbers, or leave it out.")
    values = np.asarray(series, dtype=object)
    rows = np.flatnonzero(~gaps).tolist()
    kinds = {row: kind_of(values[row]) for row in rows}
    for row, kind in kinds.items():
        if kind == "date":
            raise _date(name, f"{shown(values[row])} at {place(series, row)}", where)
        if kind == "other":
            remedy = "Make numbers or text of it, or leave it out."
            raise _odd(
                name, f"{type(values[row]).__name__} {shown(values[row])} at {place(series, row)}", where, remedy
            )
    text = [row for row, kind in kinds.items() if kind == "text"]
    if not text:
        return "number"
    unread = [row for row in text if not _reads_as_number(values[row])]
    if len(unread) < len(rows) / 2:
        row = unread[0] if unread else text[0]
        raise DataError(
            f"{where}, x: expected numbers in column {name!r}, most of whose values read as numbers, got the text "
            f"{shown(values[row])} at {place(series, row)}. Make numbers of it, with NaN for what is missing, or declare "
            f"groups with x[{name!r}].astype('category')."
        )
    if len(text) < len(rows):
        row = next(row for row, kind in kinds.items() if kind != "text")
        got = f"{shown(values[text[0]])} at {place(series, text[0])} and {shown(values[row])} at {place(series, row)}"
        raise _odd(name, got, where, f"Make all of it text, for example with x[{name!r}].astype(str).")
    return "category"


def _is_numeric(dtype: Any) -> bool:
    return bool(pd.api.types.is_numeric_dtype(dtype)) and not pd.api.types.is_complex_dtype(dtype)


def _numbers(series: pd.Series, gaps: np.ndarray, name: str, where: str) -> np.ndarray:
    """A column (n,) of numbers in its own type, or in float64 with NaN where values are missing."""
    if _is_numeric(series.dtype):
        values = series.to_numpy(dtype=np.float64, na_value=np.nan) if gaps.any() else np.asarray(series)
        values = values if values.dtype.kind in "biuf" else values.astype(np.float64)
    else:
        objects = np.asarray(series, dtype=object)
        kinds = [kind_of(v) for v in objects]
        for row in np.flatnonzero(~gaps).tolist():
            if kinds[row] not in ("number", "boolean"):
                raise DataError(
                    f"{where}, x: expected numbers in column {name!r}, as in the training rows, got "
                    f"{shown(objects[row])} at {place(series, row)}. Make numbers of it."
                )
        values = np.array(objects.tolist()) if not gaps.any() else np.empty(0, dtype=object)
        if values.dtype.kind not in "biuf":  # gaps, decimals, or numbers of more than 64 bits
            values = np.array([math.nan if gap else _float(v) for v, gap in zip(objects, gaps)], dtype=np.float64)
    refuse_infinite(values, series, name, f"{where}, x")
    return values


def refuse_infinite(values: np.ndarray, series: pd.Series, name: str, where: str) -> None:
    """Raises: DataError that names the first infinite one of the numbers (n,) in a column; NaN passes."""
    endless = np.isinf(values)
    if endless.any():
        row = int(np.argmax(endless))
        raise DataError(
            f"{where}: expected finite numbers, got {shown(values[row])} at {place(series, row)}, column {name!r}; "
            f"{int(endless.sum())} of {len(values)} are infinite. Mend or drop those rows."
        )


def _codes(series: pd.Series, gaps: np.ndarray, levels: tuple[Level, ...], name: str, where: str) -> np.ndarray:
    """Positions (n,) among the levels; -1 where a value is missing."""
    code_of = {level: code for code, level in enumerate(levels)}
    values = [_plain(value) for value in np.asarray(series, dtype=object)]
    codes = np.array([-1 if gap else code_of.get(v, -2) for v, gap in zip(values, gaps)], dtype=np.int64)
    if (codes == -2).any():
        row = int(np.argmax(codes == -2))
        raise DataError(
            f"{where}, x: expected a level of column {name!r} known from training ({listed(levels)}), got "
            f"{shown(values[row])} at {place(series, row)}. Leave such rows out, or fit with them."
        )
    return codes


def missing_rows(values: Any) -> np.ndarray:
    """bool (n,): where a column, an array (n, ...) or any column of a data frame holds None, NaN, NA or NaT."""
    if isinstance(values, pd.DataFrame):
        gaps = [missing_rows(values.iloc[:, i]) for i in range(values.shape[1])]
        return np.asarray(np.any(gaps, axis=0)) if gaps else np.zeros(len(values), dtype=bool)
    if isinstance(values, pd.Series) and _is_numeric(values.dtype):
        return np.isnan(values.to_numpy(dtype=np.float64, na_value=np.nan))  # pandas' isna misses a NaN in Float64
    if isinstance(values, pd.Series):
        return np.asarray(values.isna(), dtype=bool)
    array = np.atleast_1d(np.asarray(pd.isna(to_array(values)), dtype=bool))
    return np.asarray(array.any(axis=tuple(range(1, array.ndim))))


def _plain(value: Any) -> Level:
    """A level that TOML can hold: text, a number or a boolean; an interval or a date as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if type(value) in (str, int, float, bool) else str(value)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def sound(column: Column) -> bool:
    """Whether a column read from a file is one that ``learn_column`` could have made."""
    scalars = [*column.levels, column.name] + ([] if column.fill is None else [column.fill])
    filled = column.fill is None or (
        column.fill in column.levels if column.kind == "category" else not isinstance(column.fill, str)
    )
    typed = isinstance(column.name, str) and isinstance(column.flagged, bool)
    return typed and filled and all(isinstance(v, str | int | float) for v in scalars)


def _date(name: str, got: str, where: str) -> DataError:
    return _odd(name, got, where, "Make numbers of it, for example the year, or days since a date.")


def _odd(name: str, got: str, where: str, remedy: str) -> DataError:
    return DataError(f"{where}, x: expected numbers or text in column {name!r}, got {got}. {remedy}")
