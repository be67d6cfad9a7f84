"""Scores of predictions on held-out rows, in original units, with standard errors over rows.

Source: log score and Brier score: Gneiting & Raftery 2007, JASA 102; ECE: Naeini et al. 2015, AAAI; Guo et al. 2017,
arXiv:1706.04599.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnn_pyro import labels
from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.data import refuse_not_finite, unmasked
from bnn_pyro.errors import ShapeError
from bnn_pyro.prediction import Prediction


class Scores(dict[str, tuple[float, float]]):
    """Score and standard error by name; printed, a line for each."""

    def __str__(self) -> str:
        return "\n".join(f"{name:<18}{value:.6g} ± {error:.2g}" for name, (value, error) in self.items())


COVERAGES = (0.5, 0.9, 0.95)
BINS = 15  # of confidence, each of width 1/15
RESAMPLES = 500  # of rows, for the standard error of ECE
SEED = 0  # of those


def score(prediction: Prediction | ClassPrediction, y: Any, pointwise: bool = True) -> Scores:
    """Score and standard error by name, for a prediction of numbers or of classes."""
    if isinstance(prediction, ClassPrediction):
        return classification_scores(prediction, y)
    return regression_scores(prediction, y, pointwise)


def regression_scores(prediction: Prediction, y: Any, pointwise: bool = True) -> Scores:
    """Score and standard error by name.

    ``test_rmse``: root mean squared error of the predictive mean, units of y (error by the delta method).
    ``test_lpd``: mean log predictive density of the mixture, nats per row, higher is better.
    ``test_coverage_50``, ``_90``, ``_95``: share of rows inside that central interval. Without ``pointwise`` densities (one
    joint observation of all rows) there is no ``test_lpd``.
    Raises: ShapeError unless y has one value for each predicted row; DataError for one that is not finite.
    """
    y = np.asarray(unmasked(y), dtype=np.float64)
    _check_rows(y, prediction.mean.shape)
    refuse_not_finite(y, "y", "score", None, remedy="Leave such rows out.")
    squared = (prediction.mean - y) ** 2
    rmse = float(np.sqrt(squared.mean()))
    density = {"test_lpd": _mean_and_error(prediction.log_prob(y))} if pointwise else {}
    return Scores(
        {
            "test_rmse": (rmse, _standard_error(squared) / (2 * rmse) if rmse > 0 else 0.0),
            **density,
            **{f"test_coverage_{100 * p:.0f}": _mean_and_error(inside(prediction, y, p)) for p in COVERAGES},
        }
    )


def inside(prediction: Prediction, y: np.ndarray, p: float) -> np.ndarray:
    """1.0 where y lies in its central interval of probability p, 0.0 elsewhere: (n,), or (n, k) as y."""
    lower, upper = prediction.interval(p)
    return ((y >= lower) & (y <= upper)).astype(np.float64)


def classification_scores(prediction: ClassPrediction, y: Any) -> Scores:
    """Score and standard error by name.

    ``test_accuracy``: share of rows whose most probable class is the right one.
    ``test_nll``: minus the mean log probability of the right class under the mixture, nats per row, lower is better.
    ``test_brier``: mean of sum_c (p_c - 1[y = c])**2, between 0 and 2, lower is better.
    ``test_ece``: expected calibration error of the most probable class in 15 equal bins of confidence, lower is better; its
    error by resampling rows. With few rows in a bin it is above zero even for a calibrated model, whose error resampling
    overstates (by a quarter in simulations).
    Raises: DataError for a label that the training rows lack; ShapeError unless y has one label for each row.
    """
    codes = labels.encode(y, prediction.classes, "score, y")
    _check_rows(codes, prediction.probs.shape[:1])
    correct = (prediction.probs.argmax(-1) == codes).astype(np.float64)
    truth = np.eye(len(prediction.classes))[codes]
    confidence = prediction.probs.max(-1)
    return Scores(
        {
            "test_accuracy": _mean_and_error(correct),
            "test_nll": _mean_and_error(-prediction.log_prob(y)),
            "test_brier": _mean_and_error(((prediction.probs - truth) ** 2).sum(-1)),
            "test_ece": (calibration_error(confidence, correct), _resampled_error(confidence, correct)),
        }
    )


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """By bin of confidence, (bins,): rows in it, their mean confidence, and the share of them that is right (0 if empty).

    Bin b holds confidences in (b / bins, (b + 1) / bins].
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(which, minlength=bins).astype(np.float64)
    filled = np.maximum(rows, 1)
    means = np.bincount(which, weights=confidence, minlength=bins) / filled
    return rows, means, np.bincount(which, weights=correct, minlength=bins) / filled


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE: mean over rows of |share right - mean confidence| of the row's bin."""
    rows, means, right = reliability(confidence, correct, bins)
    return float((rows * np.abs(right - means)).sum() / rows.sum())


def _resampled_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    if len(confidence) < 2:
        return float("nan")
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(len(confidence), size=len(confidence)) for _ in range(RESAMPLES)]
    return float(np.std([calibration_error(confidence[i], correct[i]) for i in draws], ddof=1))


def _check_rows(y: np.ndarray, expected: tuple[int, ...]) -> None:
    if y.shape != expected:
        raise ShapeError(f"score: expected y of shape {expected}, got {y.shape}. Give each row its y.")


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), _standard_error(values)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean over rows of values (n,) or (n, k); the outputs of a row are not independent, so its mean counts once."""
    values = values.mean(axis=tuple(range(1, values.ndim)))
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else float("nan")
