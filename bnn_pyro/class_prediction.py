"""What a posterior says of the class of new rows: an equal-weight mixture over draws.

    p(c | x, data) = 1/S sum_s p(c | x, theta_s)
    H[p(. | x, data)] = (H - E_s H[p(. | x, theta_s)]) + E_s H[p(. | x, theta_s)] = epistemic + aleatoric

Source: Houlsby et al. 2011, arXiv:1112.5745 (mutual information of label and weights); Depeweg et al. 2018,
arXiv:1710.07283.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro import labels
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import class_count, class_log_probs
from bnn_pyro.prediction import log_predictive_density, walk
from bnn_pyro.target import Target
from bnn_pyro.units import Units


class ClassPrediction:
    """What a posterior says of the class of n rows; arrays are numpy, k is the number of classes.

    Attributes:
        classes: Labels, (k,), in the order of the columns of ``probs``.
        probs: Class probabilities of the predictive mixture, (n, k).
        aleatoric: Mean over draws of the entropy of the conditional probabilities, (n,) nats: what more data leaves.
        codes: Classes drawn, (chain, draw, n) positions in ``classes``, one for each draw of the weights.
    """

    def __init__(
        self,
        classes: np.ndarray,
        probs: np.ndarray,
        aleatoric: np.ndarray,
        codes: np.ndarray,
        log_prob: Callable[[Any], np.ndarray],
        function_draws: Callable[[], np.ndarray],
    ):
        self.classes, self.probs, self.aleatoric, self.codes = classes, probs, aleatoric, codes
        self._log_prob, self._function_draws = log_prob, function_draws

    def __repr__(self) -> str:
        return (
            f"ClassPrediction({len(self.probs)} rows, {len(self.classes)} classes; .probs .label .entropy .epistemic)"
        )

    @property
    def label(self) -> np.ndarray:
        """The most probable class of each row, (n,); of equal ones, the first."""
        return self.classes[self.probs.argmax(-1)]

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of ``probs``, (n,) nats, between 0 and log k: ``epistemic + aleatoric``."""
        return _entropy(self.probs)

    @property
    def epistemic(self) -> np.ndarray:
        """Mutual information of label and weights, (n,) nats: what knowing the weights would tell about the label."""
        return np.maximum(self.entropy - self.aleatoric, 0.0)  # rounding may leave -1e-17

    @property
    def draws(self) -> np.ndarray:
        """Labels drawn, (chain, draw, n), one for each draw of the weights."""
        return self.classes[self.codes]

    @property
    def function_draws(self) -> np.ndarray:
        """Class probabilities by draw of the weights, (chain, draw, n, k); computed when asked for, as it can be large."""
        return self._function_draws()

    def log_prob(self, y: Any) -> np.ndarray:
        """Log probability of the labels y under the mixture, (n,) nats: log 1/S sum_s p(y_i | x_i, theta_s).

        Raises: DataError for a label that is none of ``classes``; ShapeError unless there is one for each row.
        """
        return self._log_prob(y)


def counts_classes(target: Target, z: Tensor, x: Any) -> int | None:
    """Number of classes that the target's likelihood has at rows x given z (dim,); None where y is no label."""
    with isolated(dtype=target.dtype), torch.no_grad():
        return class_count(target.forward(z, x))


def predict_classes(
    target: Target, units: Units, z: Tensor, x: Any, seed: int, classes: np.ndarray, block: int | None = None
) -> ClassPrediction:
    """The prediction of draws z (chain, draw, dim) at rows x, given in the units that the program sees.

    Probabilities are float64 and computed from logits: a row's sum is 1 to rounding, and log probabilities are finite.
    Labels drawn do not depend on ``block``.
    """
    flat = z.reshape(-1, z.shape[-1])
    total: np.ndarray | None = None
    entropy: np.ndarray = np.zeros(0)
    codes: np.ndarray = np.zeros(0)

    def summarise(fn: Any) -> tuple[Tensor, ...]:
        return (class_log_probs(fn),)

    for start, (log_probs,), ys in walk(target, flat, x, seed, block, summarise):
        if total is None:
            total, entropy = np.zeros(log_probs.shape[1:]), np.zeros(log_probs.shape[1:-1])
            codes = np.empty((len(flat), *entropy.shape), np.int16 if len(classes) < 2**15 else np.int64)
        codes[start : start + len(ys)] = ys
        for one in log_probs:  # one draw after another: the same sum for any block size
            p = np.exp(one)
            total += p
            entropy -= (p * np.where(p > 0, one, 0.0)).sum(-1)
    assert total is not None, "there is at least one draw"

    probs = total / total.sum(-1, keepdims=True)

    def log_prob(y: Any) -> np.ndarray:
        coded = labels.encode(y, classes, f"{target.name}, log_prob, y")
        return log_predictive_density(target, units, flat, x, coded, block)

    def function_draws() -> np.ndarray:
        parts = [np.exp(log_probs) for _, (log_probs,), _ in walk(target, flat, x, seed, block, summarise)]
        return np.concatenate(parts).reshape(*z.shape[:2], *probs.shape)

    shape = (*z.shape[:2], *codes.shape[1:])
    return ClassPrediction(classes, probs, entropy / len(flat), codes.reshape(shape), log_prob, function_draws)


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(-1)
