"""Scores of predictions on held-out rows, in original units, with standard errors over rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnn_pyro.prediction import Prediction


def regression_scores(prediction: Prediction, y: Any, pointwise: bool = True) -> dict[str, tuple[float, float]]:
    """Score and standard error by name.

    ``test_rmse``: root mean squared error of the predictive mean, units of y (error by the delta method).
    ``test_lpd``: mean log predictive density of the mixture, nats per row, higher is better.
    ``test_coverage_90``: share of rows inside the central 90 % interval. Without ``pointwise`` densities (one joint
    observation of all rows) there is no ``test_lpd``.
    """
    y = np.asarray(y, dtype=np.float64)
    squared = (prediction.mean - y) ** 2
    lower, upper = prediction.interval(0.9)
    inside = ((y >= lower) & (y <= upper)).astype(np.float64)
    rmse = float(np.sqrt(squared.mean()))
    density = {"test_lpd": _mean_and_error(prediction.log_prob(y))} if pointwise else {}
    return {
        "test_rmse": (rmse, _standard_error(squared) / (2 * rmse) if rmse > 0 else 0.0),
        **density,
        "test_coverage_90": _mean_and_error(inside),
    }


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), _standard_error(values)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")
