"""What ``bnn-pyro predict`` prints: a page for people, or all rows for ``--json``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bnn_pyro.predicting import Predicted
from bnn_pyro.tables import WIDTH, aligned, number, score_lines, title, wrapped

SHOWN = 10  # rows in the table that is printed
LONGEST = 16  # characters of a label in that table


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
