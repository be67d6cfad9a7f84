"""A user's own table as a data set: a target column, the columns to learn from, and rows held out for scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro.columns import missing_rows, refuse_infinite
from bnn_pyro.datasets import DataCard, DataSet, Part
from bnn_pyro.embedded import SPLIT_SEED, checksum
from bnn_pyro.errors import DataError, OptionError, place, unknown
from bnn_pyro.frames import MISSING, column_names, complete_rows
from bnn_pyro.labels import learn_classes
from bnn_pyro.table_files import read_table


def load_table(
    source: str | Path | pd.DataFrame,
    target: str,
    *,
    task: str | None = None,
    drop: Sequence[str] = (),
    held_out: float = 0.2,
    missing: str = "refuse",
    na: tuple[str, ...] = (),
    name: str | None = None,
) -> DataSet:
    """A data set from a CSV or Parquet file, or a data frame: ``fit`` takes its ``train``, ``score`` its ``test``.

    Args:
        target: The column to predict.
        task: ``"regression"`` or ``"classification"``; None decides by the target: text and booleans are classes.
        drop: Columns to leave out, such as identifiers.
        held_out: Share of the rows in ``test``, chosen by a fixed permutation; 0 for none. A row stays in ``train`` if it
            is the last of its class, or the last with some value of a text column.
        missing: ``"refuse"`` a missing value, ``"drop"`` its row, or ``"impute"``: ``fit`` fills in the median or most frequent
            value of the training rows and adds a column that says where. Rows without a target are refused unless dropped.
        na: Further values that mean missing, such as ``("?",)``.
        name: What the data set is called; the file's name by default.
    Raises: DataError, UnknownNameError or OptionError, in one sentence.
    """
    return read_own(source, target, drop=drop, held_out=held_out, missing=missing, na=na, name=name).parts(task)


@dataclass(frozen=True)
class OwnTable:
    """A user's table: columns x (n, d) and the target y (n,), checked as far as no task is needed; rows as in the file."""

    x: pd.DataFrame
    y: pd.Series
    name: str
    held_out: float
    missing: str

    def parts(self, task: str | None = None) -> DataSet:
        """The table as a data set for ``task``; see ``load_table``. Raises: DataError for a target that is not for it."""
        x, y, name, target = self.x, self.y, self.name, str(self.y.name)
        task = task or _task(y)
        if task == "classification":
            learn_classes(y, f"{name}, column {target!r}")
        elif pd.api.types.is_bool_dtype(y) or not pd.api.types.is_numeric_dtype(y):
            raise DataError(
                f"{name}, column {target!r}: expected numbers for a regression, got {_kind(y)}, such as {y.iloc[0]!r}. Use a "
                "model for classification, or name another target."
            )
        test = _held_out(x, y if task == "classification" else None, self.held_out)
        train = np.setdiff1d(np.arange(len(y)), test)
        card = DataCard(name=name, task=task, target=target, about=f"{len(y)} rows of {name}.", source="your own",
                        checksum=checksum(x, y), where="table")  # fmt: skip
        return DataSet(_part(x, y, train, self.missing), _part(x, y, test, self.missing), card)


def read_own(
    source: str | Path | pd.DataFrame,
    target: str,
    *,
    drop: Sequence[str],
    held_out: float,
    missing: str,
    na: tuple[str, ...],
    name: str | None = None,
) -> OwnTable:
    """The table that ``load_table`` splits, with all of its checks that need no task (and no torch)."""
    table = source if isinstance(source, pd.DataFrame) else read_table(source, na=na)
    name = name or ("table" if isinstance(source, pd.DataFrame) else Path(source).name)
    names = column_names(table, name)
    for column in (target, *drop):
        if column not in names:
            raise unknown(f"column of {name}", column, names)
    if target in drop:
        raise OptionError(
            f"{name}: expected to keep the target {target!r}, got it among the columns to leave out. Name it once."
        )
    if missing not in MISSING:
        raise unknown("value of missing", missing, MISSING)
    number = isinstance(held_out, int | float) and not isinstance(held_out, bool)
    if not number or not 0 <= held_out < 1:
        raise OptionError(
            f"{name}, held_out: expected a share of the rows from 0 to below 1, got {held_out!r}. 0.2 is a fifth."
        )
    table = table.set_axis(names, axis=1).drop(columns=list(drop))
    if missing == "refuse":
        _refuse_gaps(table, name, target)
    x, y = table.drop(columns=[target]), table[target]
    if missing == "drop":
        kept = complete_rows(x, y)
        x, y = x[kept], y[kept]
    if not len(y):
        raise DataError(f"{name}: expected rows, got none{' without a missing value' if missing == 'drop' else ''}.")
    gaps = np.flatnonzero(pd.isna(y))
    if len(gaps):
        raise DataError(
            f"{name}, column {target!r}: expected a target in each row, got none at {place(y, int(gaps[0]))}; {len(gaps)} of "
            f"{len(y)} are missing. Leave such rows out: missing='drop' / --missing drop."
        )
    for column, values in (*x.items(), (target, y)):  # here, too, as a part counts its own rows
        if pd.api.types.is_float_dtype(values.dtype):
            refuse_infinite(values.to_numpy(dtype=np.float64, na_value=np.nan), values, str(column), name)
    return OwnTable(x, y, name, held_out, missing)


def _part(x: pd.DataFrame, y: pd.Series, rows: np.ndarray, missing: str) -> Part:
    return Part(x.iloc[rows].reset_index(drop=True), y.iloc[rows].reset_index(drop=True), missing)


def _refuse_gaps(table: pd.DataFrame, name: str, target: str) -> None:
    """Here, where rows are still counted as in the table. Raises: DataError."""
    for column in table.columns:
        gaps = missing_rows(table[column])
        if gaps.any():
            middle = "median" if pd.api.types.is_numeric_dtype(table[column]) else "most frequent value"
            impute = (
                ""
                if column == target
                else (f", missing='impute' / --missing impute fills in the {middle} and adds a column that says where")
            )
            raise DataError(
                f"{name}, column {column!r}: expected no missing value, got one at {place(table, int(gaps.argmax()))}; "
                f"{int(gaps.sum())} of {len(gaps)} are missing. missing='drop' / --missing drop leaves such rows out{impute}."
            )


def _task(y: pd.Series) -> str:
    """Text, booleans and categories are classes; numbers are numbers."""
    numbers = pd.api.types.is_numeric_dtype(y) and not pd.api.types.is_bool_dtype(y)
    return "regression" if numbers else "classification"


def _kind(y: pd.Series) -> str:
    return "true and false" if pd.api.types.infer_dtype(y.astype(object)) == "boolean" else "text"


def _held_out(x: pd.DataFrame, y: pd.Series | None, share: float) -> np.ndarray:
    """Rows for the test part, in order: what is learnt from the others (classes, levels, gaps) has to occur there too."""
    n = len(x)
    columns: list[Any] = [] if y is None else [y.astype(object)]
    for name in x.columns:
        gaps = x[name].isna()
        text = not pd.api.types.is_numeric_dtype(x[name])
        if text or gaps.any():
            columns.append(x[name].astype(object).where(~gaps, None) if text else gaps)
    values = [list(column) for column in columns]
    left = [Counter(column) for column in values]
    chosen: list[int] = []
    for row in np.random.default_rng(SPLIT_SEED).permutation(n):
        if len(chosen) >= int(n * share):
            break
        if all(count[column[row]] > 1 for count, column in zip(left, values)):
            chosen.append(int(row))
            for count, column in zip(left, values):
                count[column[row]] -= 1
    return np.sort(np.array(chosen, dtype=np.int64))
