"""``bnn-pyro predict``: a run directory and a file of new rows in, a line for each row out; ``predicted_page`` prints them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro import labels
from bnn_pyro.columns import refuse_infinite
from bnn_pyro.errors import DataError, OptionError, RunError, place, printable, unknown
from bnn_pyro.files import read_toml
from bnn_pyro.frames import Encoding
from bnn_pyro.out_files import new_file, write_csv
from bnn_pyro.runner import Finished, held_out, read
from bnn_pyro.table_files import TEXT_SUFFIXES, read_table


@dataclass(frozen=True)
class Predicted:
    """Predictions of a run at new rows: a data frame of numbers, and scores where the rows hold the target."""

    run: Finished
    data: str
    table: pd.DataFrame
    scores: dict[str, Any]
    scored: int  # rows that hold the target
    seen: int  # rows that are training rows
    ignored: list[str]  # columns of the file
    outside: str  # a sentence on inputs that the training rows do not reach, or nothing
    out: Path | None


def carry_out(
    run: str,
    data: str,
    out: str | None = None,
    interval: float = 0.9,
    na: tuple[str, ...] = (),
    overwrite: bool = False,
    keep: Sequence[str] = (),
    skip_unknown: bool = False,
) -> Predicted:
    """Reads the run and the rows, predicts, and writes ``out`` if one is given.

    Raises: BNNError, before anything is predicted, for a run, rows or a file that cannot be used.
    """
    if not 0 < interval < 1:
        raise OptionError(f"--interval: expected a probability between 0 and 1, got {interval:g}. Use 0.9 for 90 %.")
    target = None if out is None else new_file(out, overwrite)
    if target is not None and target.exists() and Path(data).exists() and target.samefile(data):
        raise RunError(f"--out {target}: expected another file than --data, got the same. Choose another name.")
    fitted = _Fitted.of(read_toml(run))
    frame = _frame(fitted.source, data, na, fitted.text)
    for column in keep:
        if column not in frame.columns:
            raise unknown(f"column of {data}", column, list(frame.columns))
        if column in names_of(fitted.classes, interval):
            raise OptionError(
                f"--keep {printable(column)}: expected another name than those of the predictions' own columns, got one of "
                f"them. Rename the column in {data}."
            )
    x, y = _rows(fitted, data, frame)
    predicted = ~_unknown(fitted.encoding, x) if skip_unknown else np.ones(len(x), dtype=bool)
    if not predicted.any():
        raise DataError(f"{data}: expected a row whose values the training rows know, got none. Fit with such rows.")
    x, y = x[predicted], None if y is None else y[predicted]
    if fitted.encoding is not None:
        fitted.encoding.apply(x, f"{fitted.model}, predict")  # complaints need not wait for torch, as the run does
        x = x[fitted.encoding.required]  # what is new in columns that were left out has now been warned of
    finished = read(run)
    posterior = finished.posterior
    prediction = posterior.predict(x)
    scores, scored = {}, 0
    if y is not None:
        known = ~y.isna().to_numpy()
        scored = int(known.sum())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of the same rows once more: what is odd about them has been said
            scores = held_out(posterior, _Rows(x[known], y[known]))[1]
    table = as_frame(prediction, interval)
    if not predicted.all() and "label" in table:
        table["label"] = table["label"].convert_dtypes()  # whole numbers stay whole beside empty rows
    table = table.drop(columns="row").set_axis(np.flatnonzero(predicted)).reindex(np.arange(len(predicted)))
    table = table.rename_axis("row").reset_index()
    for i, column in enumerate(dict.fromkeys(keep)):
        table.insert(1 + i, column, frame[column].to_numpy())
    used = {*x.columns, fitted.target, *keep}
    ignored = [c for c in frame.columns if c not in used]
    if target is not None:
        kept = (_as_text(fitted.source, data, na, frame) if keep else frame)[list(dict.fromkeys(keep))]
        write_csv(table.assign(**{column: _exact(values) for column, values in kept.items()}), target)
    training, given = _encoded(posterior, x)
    outside = _outside(training, given, posterior.data.columns, frame, np.flatnonzero(predicted))
    return Predicted(finished, data, table, scores, scored, _seen(training, given), ignored, outside, target)


@dataclass(frozen=True)
class _Fitted:
    """What a run's run.toml says of the rows that it was fitted to: all that new rows are checked against."""

    model: str
    target: str
    columns: Sequence[str]
    encoding: Encoding | None
    classes: np.ndarray | None
    source: dict[str, Any]  # where the training rows came from, of a run of the command line

    @property
    def text(self) -> list[str]:
        """Columns whose values are text: those of a new file may all read as numbers, or as true and false."""
        columns = self.encoding.columns if self.encoding is not None else ()
        values = [(c.name, c.levels) for c in columns] + [(self.target, () if self.classes is None else self.classes)]
        return [name for name, levels in values if len(levels) and all(isinstance(level, str) for level in levels)]

    @classmethod
    def of(cls, content: dict[str, Any]) -> _Fitted:
        rows = content["data"]
        encoding = Encoding.from_table(rows["encoding"]) if "encoding" in rows else None
        classes = labels.from_list(rows["classes"]) if "classes" in rows else None
        return cls(
            content["model"]["name"], rows["target"], rows["columns"], encoding, classes, content.get("dataset", {})
        )


@dataclass(frozen=True)
class _Rows:
    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.y)


def names_of(classes: Sequence[Any] | np.ndarray | None, interval: float = 0.9) -> list[str]:
    """The columns of ``as_frame`` for predictions of ``classes``, or of numbers if that is None."""
    if classes is not None:
        return ["row", "label", *(f"p({name})" for name in classes), "entropy", "epistemic", "aleatoric"]
    percent = f"{100 * interval:g}"
    return ["row", "mean", "sd", "epistemic_sd", "aleatoric_sd", f"lower_{percent}", f"upper_{percent}"]


def as_frame(prediction: Any, interval: float = 0.9) -> pd.DataFrame:
    """A prediction as a data frame, a line for each row: ``row`` counts from 0, all else as ``bnn-pyro predict --help``."""
    from bnn_pyro.class_prediction import ClassPrediction

    if isinstance(prediction, ClassPrediction):
        names = names_of(prediction.classes)
        values = [prediction.label, *prediction.probs.T, prediction.entropy, prediction.epistemic, prediction.aleatoric]
    else:
        if prediction.mean.ndim > 1:
            raise DataError("predict: expected one number for each row, got several. Use posterior.predict in Python.")
        names = names_of(None, interval)
        values = [prediction.mean, prediction.std, np.sqrt(prediction.epistemic), np.sqrt(prediction.aleatoric)]
        values += [bound.astype(np.float64) for bound in prediction.interval(interval)]  # as the others, and --json
    return pd.DataFrame(dict(zip(names, [np.arange(len(values[0])), *values], strict=True)))


def _unknown(encoding: Encoding | None, x: pd.DataFrame) -> np.ndarray:
    """bool (n,): rows in which a text column has a value that the training rows lack."""
    out = np.zeros(len(x), dtype=bool)
    for column in encoding.columns if encoding is not None else ():
        if column.kind == "category" and column.used:
            out |= (~x[column.name].isna() & ~x[column.name].isin(column.levels)).to_numpy()
    return out


def _encoded(posterior: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Training rows and new rows as numbers, (n, d) each."""
    from bnn_pyro.data import collect

    given = collect(x, where=f"{posterior.model.name}, predict", like=posterior.data).x
    return np.asarray(posterior.data.x, dtype=np.float64), np.asarray(given, dtype=np.float64)


def _seen(training: np.ndarray, given: np.ndarray) -> int:
    """How many new rows are training rows: equal in every input."""
    known = {row.tobytes() for row in training}
    return sum(row.tobytes() in known for row in given)


def _outside(
    training: np.ndarray, given: np.ndarray, names: Sequence[str], frame: pd.DataFrame, numbers: np.ndarray
) -> str:
    """The value furthest outside of its column's training range, in widths of that range, and how many rows have one.

    ``numbers`` (n,) are the new rows' positions in ``frame``, the whole file.
    """
    low, high = training.min(0), training.max(0)
    beyond = np.maximum(low - given, given - high) / np.where(high > low, high - low, 1.0)
    rows = (beyond > 0).any(1)
    if not rows.any():
        return ""
    row, column = divmod(int(beyond.argmax()), beyond.shape[1])
    more = f", and {rows.sum() - 1} more row{'s' if rows.sum() > 2 else ''}" if rows.sum() > 1 else ""
    return (
        f"outside of the training rows: {names[column]} {given[row, column]:g} at {place(frame, int(numbers[row]))} "
        f"({low[column]:g} to {high[column]:g} there){more}. What holds there the data do not say."
    )


def _as_text(about: dict[str, Any], data: str, na: tuple[str, ...], frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of a CSV file as they stand there (007, 1.50), missing ones empty; anything else is ``frame``."""
    if not data.lower().endswith(TEXT_SUFFIXES):
        return frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file has been read, and what is odd about it said
        return _frame(about, data, na, list(frame.columns))


def _exact(column: pd.Series) -> Any:
    """A column for a file: whole numbers that are floats for the sake of gaps are written without a point."""
    whole = column.dtype.kind == "f" and column.abs().max() < 2**53
    return (column.convert_dtypes() if whole else column).array


def _frame(about: dict[str, Any], data: str, na: tuple[str, ...], text: Sequence[str]) -> pd.DataFrame:
    """The file, or the held-out rows of a data set, as a table with text for column names; ``text``: see ``read_table``."""
    from bnn_pyro.datasets import load_dataset
    from bnn_pyro.sources import is_table

    if not is_table(data):
        split = about.get("split", "0") if data == about.get("name") else "0"
        test = load_dataset(data, split=int(split) if split.isdigit() else split).test
        table = pd.concat([test.x, test.y], axis=1)
    else:
        table = read_table(data, na=tuple(na) or tuple(about.get("na", ())), text=text)
    return table.set_axis([str(c) for c in table.columns], axis=1)


def _rows(fitted: _Fitted, data: str, table: pd.DataFrame) -> tuple[Any, Any]:
    """x of the new rows with the columns that the run was fitted to, and y, with gaps, where the file holds the target.

    x has those of the columns that fit left out, too, which the file holds.
    """
    encoding = fitted.encoding
    needed = encoding.required if encoding is not None else list(fitted.columns)
    if not needed:
        raise DataError(
            f"{data}: expected a run that was fitted to named columns, got one fitted to an array. Use bnn.load(run).predict "
            "in Python."
        )
    absent = [name for name in needed if name not in table.columns]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        by_case = {c.casefold(): c for c in table.columns}
        near = by_case.get(absent[0].casefold()) or next(
            iter(difflib.get_close_matches(absent[0], table.columns, n=1)), None
        )
        hint = f"Did you mean {near!r}?" if near else f"The file has {', '.join(map(repr, list(table.columns)[:10]))}."
        shown = ", ".join(map(repr, absent[:5]))
        raise DataError(
            f"{data}: expected the columns that the run was fitted to, got none called {shown}{more}. {hint} Rename or add it."
        )
    names = needed if encoding is None else [c.name for c in encoding.columns if c.name in table.columns]
    goal = fitted.target
    if goal not in table.columns or table[goal].isna().all():
        return table[names], None
    y = table[goal]
    known = y[~y.isna()]
    if fitted.classes is not None:
        labels.encode(known, fitted.classes, f"{data}, column {goal!r}")
    elif not pd.api.types.is_numeric_dtype(y):
        raise DataError(
            f"{data}, column {goal!r}: expected numbers, as in the training rows, got text, such as {known.iloc[0]!r}. "
            "Mend it, or leave the column out."
        )
    else:
        refuse_infinite(known.to_numpy(dtype=np.float64), known, goal, data)
    return table[names], y
