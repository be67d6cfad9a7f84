"""``--data`` of the command line: the name of a data set, or the path of a user's own table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnn_pyro.datasets import DataSet, dataset_card, list_datasets, load_dataset
from bnn_pyro.errors import DataError, OptionError, unknown
from bnn_pyro.table_files import PARQUET_SUFFIXES, TEXT_SUFFIXES, read_table

HELD_OUT = 0.2


def is_table(data: str) -> bool:
    """Whether ``--data`` names a file rather than a data set."""
    return data.lower().endswith((*TEXT_SUFFIXES, *PARQUET_SUFFIXES)) or (
        data not in list_datasets() and data != "" and Path(data).exists()
    )


def open_data(
    data: str,
    task: str,
    model: str,
    *,
    target: str | None = None,
    drop: Sequence[str] = (),
    held_out: float | None = None,
    na: Sequence[str] = (),
    split: str | None = None,
    missing: str = "refuse",
) -> tuple[DataSet, dict[str, Any]]:
    """The rows that ``--data`` and its options name, and a table for run.toml that says which.

    ``arguments`` of that table are the words of the command line that name the same rows again.
    Raises: BNNError for options that do not go together, and for rows that are not for ``task``.
    """
    if not is_table(data):
        number = _split(split)
        if target is not None or Path(data).suffix:
            files = [
                p.name for p in Path(".").iterdir() if p.name.lower().endswith((*TEXT_SUFFIXES, *PARQUET_SUFFIXES))
            ]
            named = [file for file in files if file.partition(".")[0] == data]
            if named:
                raise DataError(f"--data: expected a data set or a file, got {data!r}. Did you mean {named[0]!r}?")
            if data not in list_datasets():
                raise unknown("data set or file", data, [*list_datasets(), *files])
        for option, given in (("--target", target), ("--drop", drop), ("--held-out", held_out), ("--na", na)):
            if given not in (None, (), []):
                raise OptionError(
                    f"{option}: expected a table of your own (--data mine.csv), got {data!r}, a data set."
                )
        card = dataset_card(data)
        if card.task != task:
            raise OptionError(
                f"{model}: expected data for {task}, got {card.name!r}, which is for {card.task}. bnn-pyro datasets lists "
                "all."
            )
        rows = load_dataset(data, split=number)
        arguments = ["--split", str(number)] if split is not None else []
        return rows, _described(rows, data, arguments) | {"split": str(number)}
    if split is not None:
        raise OptionError(
            f"--split: expected a data set with fixed splits, got {data!r}. --held-out sets a share aside."
        )
    if target is None:
        names = ", ".join(map(str, read_table(data, na=tuple(na)).columns))
        raise OptionError(f"--target: expected the column of {data} to predict, got none. Its columns are {names}.")
    from bnn_pyro.own_table import load_table

    share = HELD_OUT if held_out is None else held_out
    rows = load_table(data, target, task=task, drop=tuple(drop), held_out=share, missing=missing, na=tuple(na))
    arguments = ["--target", target]
    for column in drop:
        arguments += ["--drop", column]
    for value in na:
        arguments += ["--na", value]
    arguments += ["--held-out", f"{share:g}"] if held_out is not None else []
    arguments += ["--missing", missing] if missing != "refuse" else []
    return rows, _described(rows, Path(data).name, arguments) | {"na": list(na)}


def _described(rows: DataSet, name: str, arguments: list[str]) -> dict[str, Any]:
    return {"name": name, "test_rows": len(rows.test), "target": rows.card.target, "arguments": arguments}


def _split(split: str | None) -> int | str:
    if split is None:
        return 0
    return int(split) if split.lstrip("-").isdigit() else split


def check_rows(model: Any, rows: DataSet, missing: str) -> None:
    """What ``fit`` and the scores after it would complain of, before any work. Raises: DataError or ShapeError."""
    from bnn_pyro import labels
    from bnn_pyro.data import collect
    from bnn_pyro.fitting import training_rows

    training = training_rows(model, rows.train, None, missing)
    if not len(rows.test):
        return
    try:
        collect(rows.test.x, where=f"{model.name}, held-out rows", like=training)
        if training.classes is not None:
            labels.encode(rows.test.y, training.classes, f"{model.name}, held-out rows, y")
    except DataError as error:
        raise type(error)(f"{error} These rows were set aside to score the fit.") from None
