"""The posterior predictive distribution at new rows: an equal-weight mixture over draws.

    p(y | x, data) = 1/S sum_s p(y | x, theta_s)
    Var[y] = Var_s(E[y | theta_s]) + E_s(Var[y | theta_s]) = epistemic + aleatoric

Source: law of total variance; Depeweg et al. 2018, arXiv:1710.07283.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.batching import map_draws
from bnn_pyro.data import Units
from bnn_pyro.errors import OptionError, ShapeError
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import mean_and_variance, split
from bnn_pyro.target import Target

COLUMN_BLOCK = 32 * 2**20  # bytes of a float64 copy when moments and quantiles are taken over draws


class Prediction:
    """What a posterior says of y at n rows, in original units; arrays are numpy, n stands for (n,) or (n, k).

    Attributes:
        mean, std: Of the predictive mixture, (n,); ``std**2`` is ``epistemic + aleatoric``.
        epistemic: Variance over draws of the conditional mean, (n,): what more data would remove.
        aleatoric: Mean over draws of the conditional variance, (n,): noise, which more data leaves.
        draws: Draws of y, (chain, draw, n), one for each draw of the weights, noise included.
        function_draws: Conditional means, (chain, draw, n), no noise.
    """

    def __init__(
        self, function_draws: np.ndarray, draws: np.ndarray, aleatoric: np.ndarray, log_prob: Callable[[Any], np.ndarray]
    ):
        self.function_draws, self.draws, self.aleatoric = function_draws, draws, aleatoric
        flat = function_draws.reshape(-1, *function_draws.shape[2:])
        self.mean, self.epistemic = _mean_and_variance_over_draws(flat)
        self._log_prob = log_prob

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self.epistemic + self.aleatoric)

    def interval(self, p: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval that holds y with probability p: lower and upper bounds, each (n,), by quantiles of ``draws``.

        With S draws in all, a bound at quantile q is off by about sqrt(q (1 - q) / S) in probability.
        """
        if not 0 < p < 1:
            raise OptionError(f"interval: expected a probability between 0 and 1, got {p!r}. Use 0.9 for 90 %.")
        flat = self.draws.reshape(-1, *self.draws.shape[2:])
        tails = [(1 - p) / 2, (1 + p) / 2]
        lower, upper = (np.empty(flat.shape[1:], flat.dtype) for _ in tails)
        for block in _column_blocks(flat):
            lower[block], upper[block] = np.quantile(flat[:, block], tails, axis=0)
        return lower, upper

    def log_prob(self, y: Any) -> np.ndarray:
        """Log density of the mixture at y (n,), in original units: log 1/S sum_s p(y_i | x_i, theta_s), (n,) nats.

        Raises: ShapeError if y does not have one value for each predicted row.
        """
        return self._log_prob(y)


def predict(target: Target, units: Units, z: Tensor, x: Any, seed: int, block: int | None = None) -> Prediction:
    """The prediction of draws z (chain, draw, dim) at rows x, given in the units that the program sees.

    Memory: the two arrays of draws, plus ``batching.MEMORY_BUDGET`` and some. The same numbers for any ``block``.
    """
    chains, draws, dim = z.shape
    flat = z.reshape(-1, dim)
    where = f"{target.name}, predict"
    made: list[Callable] = []

    def conditional(one: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        fn = target.forward(one, x)
        tensors, make = split(fn)
        made[:] = [make]
        return (*mean_and_variance(fn, where), tensors)

    y_mean, y_sd = (torch.as_tensor(v, dtype=torch.float64) for v in (units.y_mean, units.y_sd))
    functions = noisy = None
    aleatoric: np.ndarray | None = None
    with isolated(seed=seed, dtype=target.dtype), torch.no_grad():
        for start, (means, variances, tensors) in map_draws(conditional, flat, block):
            if functions is None:
                shape = (flat.shape[0], *means.shape[1:])
                functions, noisy = np.empty(shape, _numpy(target.dtype)), np.empty(shape, _numpy(target.dtype))
                aleatoric = np.zeros(shape[1:])
            stop = start + means.shape[0]
            functions[start:stop] = (means.cpu() * y_sd + y_mean).numpy()
            for i in range(stop - start):  # one draw after another: sums and noise are the same for any block size
                aleatoric += variances[i].cpu().double().numpy()
                y = made[0]([t[i] for t in tensors]).sample()
                noisy[start + i] = (y.cpu() * y_sd + y_mean).numpy()
    assert functions is not None and noisy is not None and aleatoric is not None, "there is at least one draw"
    aleatoric *= (units.y_sd**2) / flat.shape[0]

    def log_prob(y: Any) -> np.ndarray:
        return log_predictive_density(target, units, flat, x, y, block)

    shape = (chains, draws, *functions.shape[1:])
    return Prediction(functions.reshape(shape), noisy.reshape(shape), aleatoric, log_prob)


def log_predictive_density(
    target: Target, units: Units, z: Tensor, x: Any, y: Any, block: int | None = None
) -> np.ndarray:
    """Pointwise log density of the mixture over draws z (draws, dim) at y, given in original units: (n,) nats."""
    observed = target.observed[0].shape
    y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y, dtype=np.float64)
    from bnn_pyro.data import rows

    expected = (rows(x), *observed[1:])
    if y.shape != expected:
        raise ShapeError(f"{target.name}, log_prob: expected y of shape {expected}, got {y.shape}. Give each row its y.")
    standard = torch.as_tensor(units.targets(y)).to(dtype=target.dtype, device=target.device)

    def pointwise(one: Tensor) -> Tensor:
        terms = target.evaluate(one, x, standard).log_likelihood.values()
        return torch.stack(list(terms)).sum(0).double()

    total: Tensor | None = None
    with isolated(dtype=target.dtype), torch.no_grad():
        for _, block_terms in map_draws(pointwise, z, block):
            for one in block_terms:
                total = one if total is None else torch.logaddexp(total, one)
    assert total is not None, "there is at least one draw"
    return (total - math.log(z.shape[0])).cpu().numpy() - units.log_jacobian


def _mean_and_variance_over_draws(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, variance = np.empty(flat.shape[1:]), np.empty(flat.shape[1:])
    for block in _column_blocks(flat):
        columns = flat[:, block].astype(np.float64)
        mean[block], variance[block] = columns.mean(0), columns.var(0)
    return mean, variance


def _column_blocks(flat: np.ndarray) -> list[slice]:
    rows_of_columns = flat.shape[1]
    width = max(1, COLUMN_BLOCK // max(1, 8 * flat[:, :1].size))
    return [slice(i, i + width) for i in range(0, rows_of_columns, width)]


def _numpy(dtype: torch.dtype) -> Any:
    return np.float64 if dtype == torch.float64 else np.float32
