"""``--data`` of the command line: the name of a data set, or the path of a user's own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnn_pyro.datasets import DataSet, dataset_card, list_datasets, load_dataset
from bnn_pyro.errors import DataError, OptionError, unknown
from bnn_pyro.own_table import OwnTable, read_own
from bnn_pyro.table_files import PARQUET_SUFFIXES, TEXT_SUFFIXES, read_table

HELD_OUT = 0.2


def is_table(data: str) -> bool:
    """Whether ``--data`` names a file rather than a data set."""
    return data.lower().endswith((*TEXT_SUFFIXES, *PARQUET_SUFFIXES)) or (
        data not in list_datasets() and data != "" and Path(data).exists()
    )


@dataclass(frozen=True)
class Named:
    """What ``--data`` names, checked as far as no model (and so no torch) is needed; a table has been read."""

    data: str
    table: OwnTable | None = None  # None for a data set
    split: int | str = 0
    arguments: list[str] = field(default_factory=list)  # words of the command line that name the same rows again
    na: tuple[str, ...] = ()

    def rows(self, task: str, model: str) -> tuple[DataSet, dict[str, Any]]:
        """The rows, and a table for run.toml that says which. Raises: BNNError for rows that are not for ``task``."""
        if self.table is not None:
            rows = self.table.parts(task)
            return rows, self._described(rows, self.table.name) | {"na": list(self.na)}
        card = dataset_card(self.data)
        if card.task != task:
            raise OptionError(
                f"{model}: expected data for {task}, got {card.name!r}, which is for {card.task}. bnn-pyro datasets lists "
                "all."
            )
        rows = load_dataset(self.data, split=self.split)
        return rows, self._described(rows, self.data) | {"split": str(self.split)}

    def _described(self, rows: DataSet, name: str) -> dict[str, Any]:
        return {"name": name, "test_rows": len(rows.test), "target": rows.card.target, "arguments": self.arguments}


def named(
    data: str,
    *,
    target: str | None = None,
    drop: Sequence[str] = (),
    held_out: float | None = None,
    na: Sequence[str] = (),
    split: str | None = None,
    missing: str = "refuse",
) -> Named:
    """What ``--data`` and its options name.

    Raises: BNNError for options that do not go together, and for a table that cannot be used.
    """
    if not is_table(data):
        number = _split(split)
        if target is not None or Path(data).suffix:
            files = [
                p.name for p in Path(".").iterdir() if p.name.lower().endswith((*TEXT_SUFFIXES, *PARQUET_SUFFIXES))
            ]
            alike = [file for file in files if file.partition(".")[0] == data]
            if alike:
                raise DataError(f"--data: expected a data set or a file, got {data!r}. Did you mean {alike[0]!r}?")
            if data not in list_datasets():
                raise unknown("data set or file", data, [*list_datasets(), *files])
        for option, given in (("--target", target), ("--drop", drop), ("--held-out", held_out), ("--na", na)):
            if given not in (None, (), []):
                raise OptionError(
                    f"{option}: expected a table of your own (--data mine.csv), got {data!r}, a data set."
                )
        dataset_card(data)
        return Named(data, None, number, ["--split", str(number)] if split is not None else [])
    if split is not None:
        raise OptionError(
            f"--split: expected a data set with fixed splits, got {data!r}. --held-out sets a share aside."
        )
    if target is None:
        names = ", ".join(map(str, read_table(data, na=tuple(na)).columns))
        raise OptionError(f"--target: expected the column of {data} to predict, got none. Its columns are {names}.")
    share = HELD_OUT if held_out is None else held_out
    table = read_own(data, target, drop=tuple(drop), held_out=share, missing=missing, na=tuple(na))
    arguments = ["--target", target]
    for column in drop:
        arguments += ["--drop", column]
    for value in na:
        arguments += ["--na", value]
    arguments += ["--held-out", f"{share:g}"] if held_out is not None else []
    arguments += ["--missing", missing] if missing != "refuse" else []
    return Named(data, table, 0, arguments, tuple(na))


def open_data(data: str, task: str, model: str, **options: Any) -> tuple[DataSet, dict[str, Any]]:
    """``named`` and its ``rows`` in one call, where nothing is gained by checking first."""
    return named(data, **options).rows(task, model)


def _split(split: str | None) -> int | str:
    if split is None:
        return 0
    return int(split) if split.lstrip("-").isdigit() else split


def check_rows(model: Any, rows: DataSet, missing: str) -> None:
    """What ``fit`` and the scores after it would complain of, before any work. Raises: DataError or ShapeError."""
    from bnn_pyro import labels
    from bnn_pyro.data import collect
    from bnn_pyro.rows_to_target import training_rows

    training = training_rows(model, rows.train, None, missing)
    if not len(rows.test):
        return
    try:
        collect(rows.test.x, where=f"{model.name}, held-out rows", like=training)
        if training.classes is not None:
            labels.encode(rows.test.y, training.classes, f"{model.name}, held-out rows, y")
    except DataError as error:
        raise type(error)(f"{error} These rows were set aside to score the fit.") from None
