"""Several stochastic passes in two numbers each: the mean and the standard deviation over draws of the weights.

Textbooks call this prediction by S forward passes. The standard deviation of passes is epistemic alone: what is not known about
the network. The noise of y is not in it, and is added here where a number is predicted. ``posterior.predict`` has it all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.errors import OptionError
from bnn_pyro.posterior import Posterior


class Passes(NamedTuple):
    """``mean`` and ``sd``: of the same shape, (n, classes) or (n,)."""

    mean: np.ndarray
    sd: np.ndarray


def predict_proba(posterior: Posterior, x: Any) -> Passes:
    """Mean and sd over draws of the probability of each class, (n, classes), in the order of ``predict(x).classes``.

    The mean is what to decide by. The sd is epistemic; the label's own uncertainty is in the mean.
    Raises: OptionError for a model that does not predict classes.
    """
    prediction = posterior.predict(x)
    if not isinstance(prediction, ClassPrediction):
        raise OptionError(
            f"predict_proba: expected a model of classes, got {posterior.model.name}, which predicts numbers. Use "
            "predict_regression."
        )
    flat = prediction.function_draws.reshape(-1, *prediction.probs.shape)
    return Passes(prediction.probs, flat.std(0))


def predict_regression(posterior: Posterior, x: Any, noise: bool = True) -> Passes:
    """Mean and sd of y at n rows, (n,), in y's units.

    Args:
        noise: Whether the sd is that of y, sqrt(epistemic + aleatoric); else that of the passes, sqrt(epistemic), which is too
            small for a new y.
    Raises: OptionError for a model that does not predict numbers.
    """
    prediction = posterior.predict(x)
    if isinstance(prediction, ClassPrediction):
        raise OptionError(
            f"predict_regression: expected a model of numbers, got {posterior.model.name}, which predicts classes. Use "
            "predict_proba."
        )
    return Passes(prediction.mean, prediction.std if noise else np.sqrt(prediction.epistemic))
