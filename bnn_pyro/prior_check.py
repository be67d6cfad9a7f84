"""``bnn-pyro prior``: functions drawn from a model's prior, along one input, and how far y spreads under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.drawing import BLUE, GREY, new_figure, titled, write
from bnn_pyro.errors import OptionError, unknown
from bnn_pyro.inference import Prior
from bnn_pyro.isolation import check_seed
from bnn_pyro.options import parse_sets
from bnn_pyro.out_files import new_file
from bnn_pyro.registry import get_model, model_class
from bnn_pyro.sources import check_rows, open_data
from bnn_pyro.tables import number, title, wrapped

POINTS = 200  # of the grid along the input
CURVES = 30  # functions drawn into the picture


@dataclass(frozen=True)
class PriorCheck:
    """Names, numbers by name (see ``page``), and the picture's path."""

    model: str
    data: str
    target: str
    column: str
    numbers: dict[str, float]
    classes: list[str]
    out: Path


def carry_out(
    model: str,
    data: str | None = None,
    table: dict[str, Any] | None = None,
    missing: str = "refuse",
    column: str | None = None,
    sets: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    out: str | None = None,
    overwrite: bool = False,
) -> PriorCheck:
    """Draws from the prior, writes the picture, and returns the numbers.

    Raises: BNNError, before anything is drawn.
    """
    kind = model_class(model)
    hyperparameters, options = parse_sets(sets, kind, Prior, model)
    if options:
        raise OptionError("--set draws: expected a hyper-parameter of the model, got a flag. Write --draws.")
    if draws < 2:
        raise OptionError(f"--draws: expected at least 2, as their spread is shown, got {draws}. Use 1000.")
    check_seed(seed)
    rows, source = open_data(data or kind.card.dataset, kind.card.task, model, **(table or {}))
    made = get_model(model, **hyperparameters)
    check_rows(made, rows, missing)
    names = [str(c) for c in rows.train.x.columns]
    if column is None:  # the first that varies
        column = next((str(c) for c in rows.train.x.columns if rows.train.x[c].nunique() > 1), names[0])
    if column not in names:
        raise unknown(f"column of {source['name']}", column, names)
    stem = source["name"].replace("/", "_").partition(".")[0]
    if out is None:
        Path("runs").mkdir(exist_ok=True)
    path = new_file(out or f"runs/prior-{model}-{stem}.png", overwrite or out is None)
    posterior = made.fit(rows.train, inference=Prior(draws=draws), seed=seed, missing=missing)
    grid = along(rows.train.x, column)
    curves, spread = posterior.predict(grid), posterior.predict(rows.train.x)
    head = f"Prior of {model} on {source['name']}"
    if isinstance(spread, ClassPrediction):
        numbers = _class_numbers(spread)
        figure = _class_picture(grid[column], column, curves, spread, head)
        classes = [str(c) for c in spread.classes]
    else:
        y = rows.train.y.to_numpy(dtype=np.float64)
        numbers = _numbers(spread, y)
        figure = _picture(grid[column], column, curves, rows.train.x[column], y, rows.card.target, head)
        classes = []
    return PriorCheck(model, source["name"], rows.card.target, column, numbers, classes, write(figure, path))


def along(x: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows in which one column goes through its range, or its values if it is text, and others stay at their middle."""
    own = x[column].dropna()
    if pd.api.types.is_numeric_dtype(own) and not pd.api.types.is_bool_dtype(own):
        low, high = float(own.min()), float(own.max())
        pad = 0.25 * (high - low) or 1.0
        values: Any = np.linspace(low - pad, high + pad, POINTS)
    else:
        values = sorted(own.unique(), key=str)
    grid = {str(name): [_middle(x[name])] * len(values) for name in x.columns}
    frame = pd.DataFrame(grid | {column: values})
    for name in x.columns:
        if name != column and isinstance(x[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(x[name].dtype)
    return frame


def _middle(values: pd.Series) -> Any:
    """The median of numbers, the most frequent of anything else."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return float(values.median())
    return values.mode().iloc[0]


def _numbers(prediction: Any, y: np.ndarray) -> dict[str, float]:
    """Quantiles, since a prior need not have moments."""
    f = prediction.function_draws.reshape(-1, len(y)).astype(np.float64)
    draws = prediction.draws.reshape(f.shape).astype(np.float64)
    return {
        "observed_low": float(np.quantile(y, 0.05)),
        "observed_high": float(np.quantile(y, 0.95)),
        "observed_spread": _spread(y),
        "prior_low": float(np.quantile(draws, 0.05)),
        "prior_high": float(np.quantile(draws, 0.95)),
        "function_spread": float(np.median([_spread(column) for column in f.T])),
        "function_range": float(np.median(np.ptp(f, axis=1))),
        "noise_spread": float(np.median([_spread(column) for column in (draws - f).T])),
    }


def _spread(values: np.ndarray) -> float:
    """Half the central 68 % interval: the sd where values are normal."""
    low, high = np.quantile(values, [0.16, 0.84])
    return float(high - low) / 2


def _class_numbers(prediction: ClassPrediction) -> dict[str, float]:
    top = prediction.function_draws.max(-1)
    return {
        "entropy": float(prediction.entropy.mean()),
        "largest_entropy": float(np.log(len(prediction.classes))),
        "aleatoric": float(prediction.aleatoric.mean()),
        "confidence_low": float(np.quantile(top, 0.05)),
        "confidence_median": float(np.median(top)),
        "confidence_high": float(np.quantile(top, 0.95)),
    }


def page(made: PriorCheck) -> str:
    """What ``bnn-pyro prior`` prints."""
    n = {k: number(v) for k, v in made.numbers.items()}
    if made.classes:
        lines = [
            ("likeliest class's probability", f"{n['confidence_low']} to {n['confidence_high']}",
             "90 % of draws and rows"),
            ("its median", n["confidence_median"], ""),
            ("entropy of the predictive", n["entropy"], f"nats, at most {n['largest_entropy']}"),
            ("of it, given a function", n["aleatoric"], "nats; small if each is sure"),
        ]  # fmt: skip
    else:
        lines = [
            (f"{made.target} observed", f"{n['observed_low']} to {n['observed_high']}", "90 % of the training rows"),
            (f"{made.target} under the prior", f"{n['prior_low']} to {n['prior_high']}", "90 %, noise included"),
            (f"spread of {made.target}", n["observed_spread"], "half its 68 % interval"),
            ("spread of a function's value", n["function_spread"], "over draws; median over rows"),
            ("spread of the noise", n["noise_spread"], "over draws; median over rows"),
            ("range of a function", n["function_range"], "over rows; median over draws"),
        ]
    width = max(len(label) for label, _, _ in lines) + 2
    body = "\n".join(wrapped(f"{value:<17}{said}", f"  {label:<{width}}") for label, value, said in lines)
    note = (
        f"The picture shows functions along {made.column}, other inputs at their median. A prior far narrower than y holds "
        "the network back; one far wider leaves all to the data."
    )
    return f"{title(f'Prior of {made.model} on {made.data}')}\n{body}\n\n{wrapped(note, '  ')}\n\n  picture  {made.out}"


def as_dict(made: PriorCheck) -> dict[str, Any]:
    """The same for ``--json``."""
    return {"model": made.model, "data": made.data, "column": made.column, "classes": made.classes,
            "picture": str(made.out), **made.numbers}  # fmt: skip


def _picture(at: pd.Series, column: str, curves: Any, x: pd.Series, y: np.ndarray, unit: str, head: str) -> Figure:
    figure, (axes,) = new_figure(9.0, 5.0, 1)
    values = at.to_numpy() if len(at) == POINTS else np.arange(len(at))  # a value of text or a boolean has a place
    f = curves.function_draws.reshape(-1, len(at))
    for p, alpha in ((0.9, 0.13), (0.5, 0.2)):
        low, high = curves.interval(p)
        axes.fill_between(values, low, high, color=BLUE, alpha=alpha, linewidth=0, label=f"{100 * p:.0f} % of y")
    for i, one in enumerate(f[:CURVES]):
        axes.plot(
            values, one, color=BLUE, linewidth=0.8, alpha=0.55, label=f"{len(f[:CURVES])} functions" if i == 0 else None
        )
    if len(at) == POINTS:
        axes.plot(x, y, ".", color="black", markersize=4, alpha=0.6, label="training rows (not used)")
        axes.set_xlim(values[0], values[-1])
    else:
        _name_values(axes, at)
    low, high = curves.interval(0.9)
    low, high = min(float(np.median(low)), y.min()), max(float(np.median(high)), y.max())
    pad = 0.3 * (high - low)  # a heavy-tailed prior has functions far outside, beside which nothing could be seen
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlabel(column)
    axes.set_ylabel(f"{unit}, original units")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    return titled(figure, head, f"functions along {column}, other inputs at their median")


def _name_values(axes: Any, at: pd.Series) -> None:
    names = [str(v) if len(str(v)) <= 16 else str(v)[:15] + "…" for v in at]
    turned = sum(map(len, names)) > 60
    axes.set_xticks(np.arange(len(at)), names, rotation=35 if turned else 0, ha="right" if turned else "center")


def _class_picture(at: pd.Series, column: str, curves: Any, spread: Any, head: str) -> Figure:
    figure, (left, right) = new_figure(10.5, 4.8, 1, columns=2, widths=(1.4, 1.0))
    numeric = len(at) == POINTS
    values = at.to_numpy() if numeric else np.arange(len(at))
    p = curves.function_draws.reshape(-1, len(at), len(curves.classes))[:, :, -1]
    for one in p[:CURVES]:
        left.plot(values, one, color=BLUE, linewidth=0.8, alpha=0.55, marker=None if numeric else "o")
    if not numeric:
        _name_values(left, at)
    left.set_ylim(-0.02, 1.02)
    left.set_xlabel(column)
    left.set_ylabel(f"probability of {curves.classes[-1]}")
    left.set_title(
        f"{len(p[:CURVES])} functions along {column}, other inputs at their median", fontsize=9.5, loc="left"
    )
    right.hist(spread.function_draws.max(-1).ravel(), bins=40, range=(0, 1), density=True, color=GREY, alpha=0.6)
    right.axvline(1 / len(curves.classes), color="black", linewidth=1, linestyle="--")
    right.set_xlabel("probability of the likeliest class")
    right.set_ylabel("density over draws and training rows")
    right.set_title("how sure a function is (dashed: all classes alike)", fontsize=9.5, loc="left")
    return titled(figure, head, "what the model expects before it sees a label")
