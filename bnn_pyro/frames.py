"""Data frames as matrices: text becomes 0/1 columns, missing values are refused or filled in, as the training rows say.

    number                 x                                   one column, unchanged
    category, two levels   name=<second level>                 one 0/1 column
    category, more levels  name=<level>                        one 0/1 column for each level
    with missing values    name=missing                        one more 0/1 column, after all others

What is learnt is an ``Encoding``: plain values that a run's TOML file can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro.columns import Column, learn_column, missing_rows, sound
from bnn_pyro.errors import DataError, OptionError, ShapeError, place, warn
from bnn_pyro.labels import listed, shown

MISSING = ("refuse", "impute", "drop")


@dataclass(frozen=True)
class Encoding:
    """What each column of a frame becomes; columns that say where values were missing come last."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns (d,): "age", "sex=male", "colour=blue", "colour=red", "age=missing"."""
        own = [name for column in self.columns for name in column.names]
        return (*own, *(f"{column.name}=missing" for column in self.columns if column.flagged))

    @property
    def indicators(self) -> np.ndarray:
        """bool (d,): the encoded columns that are 0/1 indicators made here, which keep their units."""
        own = [column.kind == "category" for column in self.columns for _ in column.names]
        return np.array(own + [True for column in self.columns if column.flagged], dtype=bool)

    @property
    def required(self) -> list[str]:
        """Names of the columns that a frame must have, in order: all but those that were left out."""
        return [column.name for column in self.columns if column.used]

    def apply(self, frame: Any, where: str) -> np.ndarray:
        """The encoded rows (n, d): of the columns' own type if all are numbers without flags, float64 otherwise.

        Raises: ShapeError if the columns are not those of the training rows, in their order; DataError for a level
            that they lack, text among numbers, infinities, and missing values in a column that had none.
        Warns: once for each column that was left out, may be missing, and holds another value than in training.
        """
        frame = self._needed(frame, where)
        parts, flags = [np.zeros((len(frame), 0))] if not self.names else [], []
        for i, column in enumerate(c for c in self.columns if c.used):
            values, gaps = column.encode(frame.iloc[:, i], where)
            if column.names:
                parts.append(values)
            if column.flagged:
                flags.append(gaps[:, None].astype(np.float64))
        return np.concatenate(parts + flags, axis=1)

    def _needed(self, frame: Any, where: str) -> Any:
        """The frame without columns that were the same in all training rows and so were left out."""
        names = column_names(frame, f"{where}, x")
        idle = {c.name: c for c in self.columns if not c.used}
        for i, name in enumerate(names):
            if name in idle:
                _warn_of_news(frame.iloc[:, i], idle[name], where)
        kept = [i for i, name in enumerate(names) if name not in idle]
        frame = frame.iloc[:, kept]
        _check_columns(frame, self.required, where)
        return frame

    def as_table(self) -> list[dict]:
        """The columns as dicts of text, numbers, booleans and lists; what has its default value is left out."""
        table = []
        for c in self.columns:
            entry: dict[str, Any] = {"name": c.name, "kind": c.kind}
            optional = {"levels": list(c.levels), "flagged": c.flagged}
            entry.update({key: value for key, value in optional.items() if value})
            table.append(entry if c.fill is None else {**entry, "fill": c.fill})
        return table

    @classmethod
    def from_table(cls, table: list[dict]) -> Encoding:
        """The inverse of ``as_table``. Raises: DataError for a table that it did not write."""
        columns = []
        for entry in table:
            try:
                column = Column(**{**entry, "levels": tuple(entry.get("levels", ()))})
            except (TypeError, AttributeError):
                column = None
            if column is None or column.kind not in ("number", "category") or not sound(column):
                raise DataError(f"encoding: expected name, kind and levels of a column, got {shown(entry)}. Fit anew.")
            columns.append(column)
        return cls(tuple(columns))


def learn_encoding(frame: Any, where: str, missing: str = "refuse") -> Encoding:
    """What the columns of a frame of training rows become, with a warning for text that is the same in all rows.

    Args:
        missing: "refuse" names a missing value; "impute" fills in the median or the most frequent level and adds a 0/1
            column that says so; for "drop" the caller has left such rows out (``complete_rows``).
    Raises: DataError for what cannot be encoded, naming column, row and value; OptionError for another ``missing``.
    """
    if missing not in MISSING:
        raise OptionError(f"{where}, missing: expected one of {', '.join(MISSING)}, got {shown(missing)}.")
    names = column_names(frame, f"{where}, x")
    if len(frame) == 0 and missing == "drop":
        raise DataError(f"{where}, x: expected at least one row without a missing value, got none.")
    columns = tuple(learn_column(frame.iloc[:, i], name, where, missing) for i, name in enumerate(names))
    encoding = Encoding(columns)
    seen: set[str] = set()
    for name in encoding.names:
        if name in seen:
            raise DataError(
                f"{where}, x: expected encoded columns of different names, got {name!r} twice (a level's column is "
                "called name=level, a flag name=missing). Rename a column or a level."
            )
        seen.add(name)
    for column in columns:
        if not column.used:
            warn(f"{where}, x: column {column.name!r} is the same in all rows, so it is left out.")
    return encoding


def encode_numbers(frame: Any, where: str) -> Encoding:
    """The encoding of new rows whose training rows were an array: their columns, each a number, so that text is refused."""
    return Encoding(tuple(Column(name, "number") for name in column_names(frame, f"{where}, x")))


def complete_rows(frame: Any, y: Any) -> np.ndarray:
    """bool (n,): rows without a missing value in frame (a data frame or an array) or y, which may be None."""
    complete = ~missing_rows(frame)
    if y is not None:
        gaps = missing_rows(y)
        if len(gaps) != len(complete):
            raise ShapeError(
                f"missing='drop': expected x and y of equal length, got {len(complete)} and {len(gaps)} rows. "
                "Drop the rows that lack a partner."
            )
        complete &= ~gaps
    return complete


def _warn_of_news(series: Any, column: Column, where: str) -> None:
    """A column that said nothing in training does not keep rows from being predicted, but another value is news."""
    for row, value in enumerate(series):
        if not pd.isna(value) and str(value) not in map(str, column.levels):
            warn(
                f"{where}, x: column {column.name!r} was {shown(column.levels[0])} in all training rows, got {shown(value)} at "
                f"{place(series, row)}: what that changes is not known, and predictions ignore it."
            )
            return


def column_names(frame: Any, where: str) -> list[str]:
    """The columns' names as text. Raises: DataError for one that stands twice, and for anything but a pandas frame."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"{where}: expected a pandas data frame, got {type(frame).__name__}. Pass x.to_pandas(), or "
            "pandas.DataFrame(x, columns=[...]) with the names of the training rows."
        )
    names = [str(c) for c in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: expected a name for each column, got {twice!r} twice. Rename one.")
    return names


def _check_columns(frame: Any, expected: list[str], where: str) -> None:
    names = column_names(frame, f"{where}, x")
    if names == expected:
        return
    label_of = dict(zip(names, frame.columns))
    for name in expected:
        if name not in label_of:
            got = f"columns {listed(names)}" if names else "no columns"
            raise ShapeError(f"{where}, x: expected column {name!r}, as in the training rows, got {got}. Add it.")
    few = [shown(label_of[name]) for name in expected[:5]] + (["..."] if len(expected) > 5 else [])
    remedy = f"Pass x[[{', '.join(few)}]]" + (", the columns of the training rows." if len(expected) > 5 else ".")
    for name in names:
        if name not in expected:
            raise ShapeError(f"{where}, x: expected the columns of the training rows, got also {name!r}. {remedy}")
    i = next(i for i, (a, b) in enumerate(zip(names, expected)) if a != b)
    raise ShapeError(
        f"{where}, x: expected the order of the training rows, {expected[i]!r} as column {i}, got {names[i]!r}. {remedy}"
    )
