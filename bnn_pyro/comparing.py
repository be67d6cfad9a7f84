"""``bnn-pyro compare``: runs of the same rows side by side, by leave-one-out, held-out scores, cost and verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnn_pyro import results
from bnn_pyro.errors import DataError, OptionError
from bnn_pyro.runner import Finished, read
from bnn_pyro.tables import aligned, comparison_page, number, title, wrapped

UNRELIABLE = 0.05  # share of rows with Pareto k above 0.7 from which a LOO estimate is called unreliable


@dataclass(frozen=True)
class Compared:
    """Runs by name, and ArviZ's table of them (see ``results.compare``), the best first."""

    runs: dict[str, Finished]
    loo: pd.DataFrame


def compare_runs(directories: Sequence[str]) -> Compared:
    """Reads two or more runs and compares them by PSIS-LOO.

    Raises: OptionError for fewer than two runs or one given twice; DataError unless all were fitted to the same rows.
    """
    if len(directories) < 2:
        raise OptionError(
            f"compare: expected two or more run directories, got {len(directories)}. bnn-pyro fit makes them."
        )
    paths = [Path(d).resolve() for d in directories]
    twice = [str(d) for d, path in zip(directories, paths) if paths.count(path) > 1]
    if twice:
        raise OptionError(f"compare: expected different runs, got {twice[0]} twice. Name each once.")
    runs = {name: read(d) for name, d in zip(_names(directories), directories)}
    first, *others = runs
    for other in others:
        for what in ("checksum", "target"):
            if runs[other].content["data"][what] != runs[first].content["data"][what]:
                raise DataError(
                    f"compare: expected runs fitted to the same rows, got {first} ({_rows(runs[first])}) and {other} "
                    f"({_rows(runs[other])}). Fit both to one data set, with the same options."
                )
    return Compared(runs, results.compare({name: run.posterior.idata for name, run in runs.items()}))


def page(made: Compared) -> str:
    """What ``bnn-pyro compare`` prints."""
    first = next(iter(made.runs.values())).content
    head = f"Leave-one-out on {first['data']['rows']} training rows of {first.get('dataset', {}).get('name', 'data')}"
    width = min(max(18, *(len(name) + 2 for name in made.runs)), 24)
    table = [["", "elpd_loo", "se", "p_loo", "diff", "dse", "weight", "k>0.7"]]
    for name, row in made.loo.iterrows():
        cells = [number(row[c] if abs(row[c]) > 1e-9 else 0.0) for c in ("elpd_loo", "se", "p_loo", "elpd_diff", "dse")]
        shown = str(name) if len(str(name)) <= width - 2 else "…" + str(name)[3 - width :]
        table.append([shown, *cells, f"{row['weight']:.2f}", f"{100 * row['high_k']:.0f} %"])
    parts = [f"{title(head)}\n{aligned(table, [width, 10, 8, 8, 8, 8, 7, 7])}"]
    notes = [
        "elpd_loo: nats, summed over rows, higher is better; diff and dse: to the best, and its standard error; p_loo: how "
        "many free numbers the fit is worth; weight: in a mixture that would predict best; k>0.7: rows where it cannot be "
        "relied on."
    ]
    close = [str(name) for name, row in made.loo.iterrows() if 0 < row["elpd_diff"] < 2 * row["dse"]]
    if close:
        notes.append(f"No clear difference to the best: {', '.join(close)} (diff below twice dse).")
    bad = [str(name) for name, row in made.loo.iterrows() if row["high_k"] > UNRELIABLE]
    points = [name for name, run in made.runs.items() if run.content["inference"]["name"] == "map"]
    if points:
        notes.append(
            f"Not to be compared: {', '.join(points)}. A single point has no draws to weigh, so its elpd_loo is the log "
            "likelihood of the rows it was fitted to, which is too high."
        )
    if bad:
        notes.append(
            f"Not to be relied on for {', '.join(bad)}: Pareto k is above 0.7 in too many rows, as importance weights cannot "
            "turn its draws into those without a row. Held-out scores below do not need them."
        )
    parts[0] += "".join(f"\n{wrapped(note, '  ')}" for note in notes)
    parts.append(
        f"{title('Held-out scores, cost and verdict')}\n{comparison_page(list(made.runs.values()), list(made.runs))}"
    )
    return "\n\n".join(parts)


def as_dict(made: Compared) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "loo": {str(name): {str(k): float(v) for k, v in row.items()} for name, row in made.loo.iterrows()},
        "runs": {
            name: {
                "directory": str(run.path),
                "model": run.content["model"],
                "inference": run.content["inference"],
                "scores": run.content.get("scores", {}),
                "verdict": run.content["verdict"]["verdict"],
                **{k: v for k, v in run.content["fit"]["info"].items() if k in ("gradient_evaluations", "wall_time")},
            }
            for name, run in made.runs.items()
        },
    }


def _names(directories: Sequence[str]) -> list[str]:
    """Last parts of the paths, or whole ones where two end in the same."""
    last = [Path(d).name or str(d) for d in directories]
    return last if len(set(last)) == len(last) else [str(Path(d)) for d in directories]


def _rows(run: Finished) -> str:
    data = run.content["data"]
    return f"{data['rows']} rows of {run.content.get('dataset', {}).get('name', 'data')}, SHA-256 {data['checksum'][:8]}..."
