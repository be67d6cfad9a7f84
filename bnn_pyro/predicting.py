"""``bnn-pyro predict``: a run directory and a file of new rows in, a line for each row out."""

from __future__ import annotations

import difflib
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro import labels
from bnn_pyro.errors import DataError, OptionError, RunError, place, printable, unknown
from bnn_pyro.files import read_toml
from bnn_pyro.frames import Encoding
from bnn_pyro.runner import Finished, held_out, read
from bnn_pyro.tables import WIDTH, aligned, number, score_lines, title, wrapped

SHOWN = 10  # rows in the table that is printed
LONGEST = 16  # characters of a label in that table


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
    frame = _frame(fitted.source, data, na)
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
        write_csv(table, target)
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
        values += prediction.interval(interval)
    return pd.DataFrame(dict(zip(names, [np.arange(len(values[0])), *values], strict=True)))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The table under a temporary name, then renamed: there whole or not at all. Raises: RunError."""
    try:
        handle, made = tempfile.mkstemp(prefix=f".{path.name[:50]}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
                table.to_csv(stream, index=False, float_format="%.9g")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(made, path)
        finally:
            if os.path.exists(made):
                os.unlink(made)
    except OSError as error:
        raise RunError(f"--out {path}: expected to write the predictions, got: {error.strerror or error}.") from error


def page(made: Predicted) -> str:
    """What ``bnn-pyro predict`` prints."""
    content, table = made.run.content, made.table
    head = f"{len(table)} rows of {made.data} by {content['model']['name']}, {content['inference']['name']}"
    first = table.head(SHOWN)
    cells = {
        c: [_short(c), *(_cell(0.0 if c == "epistemic" and value < 1e-12 else value) for value in first[c])]
        for c in table.columns
    }
    widths = {c: max(map(len, cells[c])) + 2 for c in cells}
    hidden: list[str] = []  # probabilities of the last classes, until the others fit into a line
    for c in reversed([c for c in cells if c.startswith("p(")]):
        if 2 + sum(widths[k] for k in cells if k not in hidden) > WIDTH:
            hidden.append(c)
    shown = [c for c in cells if c not in hidden]
    rows = list(zip(*(cells[c] for c in shown)))
    parts = [f"{title(head)}\n{aligned(rows, [widths['row'] + 2, *(widths[c] for c in shown[1:])])}"]
    notes = []
    if len(table) > SHOWN:
        notes.append(f"and {len(table) - SHOWN} more row{'s' if len(table) > SHOWN + 1 else ''}")
    if hidden:
        notes.append(
            f"probabilities of {len(hidden)} classes are not shown" if len(hidden) > 1 else "one class is not shown"
        )
    if notes:
        parts[0] += f"\n  ... {'; '.join(notes)}."
    unit = content["data"]["target"] or "y"
    if "label" in table:
        parts.append(wrapped(f"label is the most probable {unit}; entropy = epistemic + aleatoric, in nats.", "  "))
    else:
        parts.append(
            wrapped(
                f"In units of {unit}. sd**2 = epistemic_sd**2 + aleatoric_sd**2; the interval holds the noise.", "  "
            )
        )
    if made.ignored:
        parts.append(wrapped(f"ignored: {', '.join(made.ignored)}, which the run was not fitted to.", "  "))
    if made.outside:
        parts.append(wrapped(made.outside, "  note: "))
    if made.scores and made.seen:
        note = f"{made.seen} of these rows are training rows, on which scores flatter."
        parts.append(wrapped(note, "  warning: "))
    if made.scores:
        some = f" in {made.scored} of {len(table)} rows" if made.scored < len(table) else ""
        parts.append(f"{title(f'Scores: the file holds {unit}{some}')}\n{score_lines(made.scores)}")
    if made.run.content["verdict"]["verdict"] == "not converged":
        parts.append(
            wrapped(
                "the run has not converged, so these are not to be relied on: bnn-pyro summary says why.", "  warning: "
            )
        )
    parts.append(f"  written to {made.out}" if made.out else "  --out FILE.csv writes all rows; --json prints them.")
    return "\n\n".join(parts)


def as_rows(made: Predicted) -> dict[str, Any]:
    """All rows and scores, for ``--json``."""
    return {
        "run": str(made.run.path),
        "verdict": made.run.content["verdict"]["verdict"],
        "data": made.data,
        "scores": made.scores,
        "scored_rows": made.scored,
        "training_rows": made.seen,
        "ignored": made.ignored,
        "outside": made.outside,
        "rows": [
            {k: None if pd.isna(v) else v.item() if hasattr(v, "item") else v for k, v in row.items()}
            for row in made.table.to_dict("records")
        ],
    }


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "-"
    return number(float(value)) if isinstance(value, float | np.floating) else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


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


def _frame(about: dict[str, Any], data: str, na: tuple[str, ...]) -> pd.DataFrame:
    """The file, or the held-out rows of a data set, as a table with text for column names."""
    from bnn_pyro.datasets import load_dataset
    from bnn_pyro.sources import is_table
    from bnn_pyro.table_files import read_table

    if not is_table(data):
        split = about.get("split", "0") if data == about.get("name") else "0"
        test = load_dataset(data, split=int(split) if split.isdigit() else split).test
        table = pd.concat([test.x, test.y], axis=1)
    else:
        table = read_table(data, na=tuple(na) or tuple(about.get("na", ())))
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
    return table[names], y


def new_file(out: str, overwrite: bool) -> Path:
    """The path that ``--out`` names, if a file may be written there. Raises: RunError, before any work."""
    path = Path(out)
    if not out or any(not c.isprintable() for c in out):
        raise RunError(f"--out: expected the path of a file, got {printable(out)}.")
    if path.is_dir():
        raise RunError(f"--out {path}: expected a file, got a directory. Name a file in it.")
    if path.exists() and not overwrite:
        raise RunError(
            f"--out {path}: expected a new file, got one that exists. Choose another name, or add --overwrite."
        )
    if not path.parent.is_dir():
        raise RunError(f"--out {path}: expected a folder to write to, got none called {path.parent}. Make it first.")
    return path
