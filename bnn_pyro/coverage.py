"""``bnn-pyro coverage``: how often held-out y lies inside its predictive interval, by data set and method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bnn_pyro.errors import OptionError, unknown
from bnn_pyro.inference import METHODS, make_method
from bnn_pyro.isolation import check_seed
from bnn_pyro.options import of_method, parse_sets
from bnn_pyro.registry import get_model, model_class
from bnn_pyro.runner import held_out
from bnn_pyro.scores import COVERAGES
from bnn_pyro.sources import check_rows, is_table, open_data
from bnn_pyro.tables import aligned, plus_minus, title, wrapped


def carry_out(
    model: str,
    data: Sequence[str] = (),
    inference: Sequence[str] = ("svi", "nuts"),
    sets: Sequence[str] = (),
    seed: int = 0,
    split: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Fits ``model`` to each data set by each method; an entry for each, with scores, verdict and cost.

    Everything is checked, and all data are read, before the first fit.
    Raises: BNNError for names, options and data that do not go together.
    """
    kind = model_class(model)
    if kind.card.task != "regression":
        raise OptionError(
            f"coverage: expected a model for regression, got {model}, which gives classes. bnn-pyro fit {model} prints its "
            "calibration error."
        )
    for name in inference:
        if name not in METHODS:
            raise unknown("inference", name, METHODS)
    for name in data:
        if is_table(name):
            raise OptionError(
                f"coverage, --data: expected the name of a data set, got {name}, a table. bnn-pyro fit {model} --data {name} "
                "--target COLUMN prints the coverage of its held-out rows."
            )
    check_seed(seed)
    plans, methods = [], [METHODS[name] for name in inference]
    for name in inference:
        hyperparameters, options = parse_sets(of_method(sets, kind, METHODS[name], methods), kind, METHODS[name], model)
        plans.append((name, get_model(model, **hyperparameters), make_method(name, options)))
    sources = [open_data(name, kind.card.task, model, split=split)[0] for name in data or (kind.card.dataset,)]
    for rows in sources:
        check_rows(plans[0][1], rows, "refuse")
    entries = []
    for rows in sources:
        for name, made, method in plans:
            say(f"Fitting {model} to {rows.card.name} by {name}")
            posterior = made.fit(rows.train, inference=method, seed=seed, progress=progress)
            entries.append(
                {
                    "data": rows.card.name,
                    "inference": name,
                    "train_rows": len(rows.train),
                    "test_rows": len(rows.test),
                    "scores": held_out(posterior, rows.test)[1],
                    "verdict": posterior.verdict.verdict,
                    "seconds": posterior.draws.info["wall_time"],
                }
            )
    return entries


def page(model: str, entries: Sequence[dict[str, Any]]) -> str:
    """What ``bnn-pyro coverage`` prints."""
    names = [f"{100 * p:.0f}" for p in COVERAGES]
    table = [["data", "by", "rows", *(f"in {name} %" for name in names), "verdict"]]
    for entry in entries:
        cells = [plus_minus(entry["scores"][f"test_coverage_{name}"]) for name in names]
        table.append([entry["data"], entry["inference"], str(entry["test_rows"]), *cells, entry["verdict"]])
    note = "Share of held-out rows inside their central interval, ± one standard error; rows counts them."
    width = max(10, *(len(entry["data"]) + 2 for entry in entries))
    by = max(len(entry["inference"]) for entry in entries) + 1
    return f"{title(f'Coverage of {model}')}\n{aligned(table, [width, by, 5, 14, 14, 14, 14])}\n{wrapped(note, '  ')}"
