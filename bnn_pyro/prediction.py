"""The posterior predictive distribution at new rows: an equal-weight mixture over draws.

    p(y | x, data) = 1/S sum_s p(y | x, theta_s)
    Var[y] = Var_s(E[y | theta_s]) + E_s(Var[y | theta_s]) = epistemic + aleatoric

Source: law of total variance; Depeweg et al. 2018, arXiv:1710.07283.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.batching import map_draws
from bnn_pyro.data import rows, unmasked
from bnn_pyro.errors import ModelError, OptionError, ShapeError
from bnn_pyro.isolation import isolated
from bnn_pyro.likelihoods import has_mean, mean_and_variance, no_mean, split
from bnn_pyro.target import Target
from bnn_pyro.units import Units

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
        self,
        function_draws: np.ndarray,
        draws: np.ndarray,
        aleatoric: np.ndarray,
        log_prob: Callable[[Any], np.ndarray],
    ):
        self.function_draws, self.draws, self.aleatoric = function_draws, draws, aleatoric
        flat = function_draws.reshape(-1, *function_draws.shape[2:])
        self.mean, self.epistemic = _mean_and_variance_over_draws(flat)
        self._log_prob = log_prob

    def __repr__(self) -> str:
        chains, draws, *rows = self.draws.shape
        return (
            f"Prediction({' x '.join(map(str, rows))} rows, {chains} x {draws} draws; .mean .std .epistemic .aleatoric "
            ".interval(0.9))"
        )

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self.epistemic + self.aleatoric)

    def interval(self, p: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval that holds y with probability p: lower and upper bounds, each (n,), by quantiles of ``draws``.

        With S draws in all, a bound at quantile q is off by about sqrt(q (1 - q) / S) in probability.
        """
        if isinstance(p, bool) or not isinstance(p, int | float | np.number) or not 0 < p < 1:
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

    Memory: the two arrays of draws, plus ``batching.MEMORY_BUDGET`` and some. Noise does not depend on ``block``.
    Raises: ModelError for a likelihood without a mean, such as a Cauchy one. Classes: see ``class_prediction``.
    """
    where = _refuse_no_mean(target, z, x)
    chains, draws, dim = z.shape
    flat = z.reshape(-1, dim)
    functions: np.ndarray | None = None
    noisy: np.ndarray | None = None
    for start, means, variances, ys in _walk(target, units, flat, x, seed, block, where):
        if functions is None:
            functions, noisy = (np.empty((len(flat), *means.shape[1:]), _storage(target, units)) for _ in range(2))
            aleatoric = np.zeros(means.shape[1:])
        stop = start + len(means)
        assert noisy is not None, "made with functions"
        functions[start:stop], noisy[start:stop] = means, ys
        for one in variances:  # one draw after another: the same sum for any block size
            aleatoric += one
    assert functions is not None and noisy is not None, "there is at least one draw"

    def log_prob(y: Any) -> np.ndarray:
        return log_predictive_density(target, units, flat, x, y, block)

    shape = (chains, draws, *functions.shape[1:])
    return Prediction(functions.reshape(shape), noisy.reshape(shape), aleatoric / len(flat), log_prob)


def predictive_mean(target: Target, units: Units, z: Tensor, x: Any) -> np.ndarray:
    """``predict(...).mean`` alone: draw after draw is added up, so that memory is ``batching.MEMORY_BUDGET`` and some."""
    where = _refuse_no_mean(target, z, x)

    def conditional(one: Tensor) -> Tensor:
        return mean_and_variance(target.forward(one, x), where)[0]

    total: Any = 0.0
    flat = z.reshape(-1, z.shape[-1])
    with isolated(dtype=target.dtype), torch.no_grad():
        for _, means in map_draws(conditional, flat):
            functions = means.cpu().double().numpy() * units.y_sd + units.y_mean
            for one in functions.astype(_storage(target, units)):  # rounded as ``predict`` stores them
                total = total + one.astype(np.float64)
    return total / len(flat)


def _refuse_no_mean(target: Target, z: Tensor, x: Any) -> str:
    """What complaints of a prediction begin with. Raises: ModelError for a likelihood without a mean."""
    where = f"{target.name}, predict"
    with isolated(dtype=target.dtype), torch.no_grad():
        fn = target.forward(z[0, 0], x)
    if not has_mean(fn):
        raise no_mean(fn, where)
    return where


def predictive_draws(target: Target, units: Units, z: Tensor, x: Any, seed: int) -> np.ndarray:
    """Draws of y alone, (chain, draw, n) in original units: for any likelihood that can be sampled."""
    flat = z.reshape(-1, z.shape[-1])
    parts = [ys for _, _, _, ys in _walk(target, units, flat, x, seed, None, None)]
    joined = np.concatenate(parts).astype(_storage(target, units), copy=False)
    return joined.reshape(*z.shape[:2], *joined.shape[1:])


def _walk(
    target: Target, units: Units, flat: Tensor, x: Any, seed: int, block: int | None, moments: str | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """By block of draws: index of the first, then means, variances and draws of y, float64 in original units.

    ``moments`` names the caller where means and variances are wanted; else they are empty.
    """

    def summarise(fn: Any) -> tuple[Tensor, ...]:
        return mean_and_variance(fn, moments) if moments else ()

    sd, mean = units.y_sd, units.y_mean
    for start, said, ys in walk(target, flat, x, seed, block, summarise):
        noisy = ys * sd + mean
        if not moments:
            yield start, np.empty(0), np.empty(0), noisy
            continue
        yield start, said[0] * sd + mean, said[1] * sd**2, noisy


def walk(
    target: Target, flat: Tensor, x: Any, seed: int, block: int | None, summarise: Callable[[Any], tuple[Tensor, ...]]
) -> Iterator[tuple[int, list[np.ndarray], np.ndarray]]:
    """By block of draws (draws, dim): index of the first, what ``summarise`` says of the distribution of y at rows x given
    each, and a draw of y from each (draws, n), all float64 in the program's units."""
    made: list[Callable] = []

    def conditional(one: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        fn = target.forward(one, x)
        tensors, make = split(fn)
        made[:] = [make]
        return summarise(fn), tensors

    with isolated(seed=seed, dtype=target.dtype), torch.no_grad():
        for start, (said, tensors) in map_draws(conditional, flat, block):
            count = len(tensors[0])
            ys = [made[0]([t[i] for t in tensors]).sample() for i in range(count)]  # in order, for any block
            yield start, [s.cpu().double().numpy() for s in said], torch.stack(ys).cpu().double().numpy()


def log_predictive_density(
    target: Target, units: Units, z: Tensor, x: Any, y: Any, block: int | None = None
) -> np.ndarray:
    """Pointwise log density of the mixture over draws z (draws, dim) at y, given in original units: (n,) nats."""
    if target.joint:
        raise ModelError(
            f"{target.name}, log_prob: expected observations inside pyro.plate('data', ...), got one joint observation of all "
            "rows, which has no pointwise density. Use prediction.mean and .interval."
        )
    assert target.predicted is not None, "forward refuses a program that observes several sites"
    observed = target.predicted.shape
    y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else unmasked(y), dtype=np.float64)
    expected = (rows(x), *observed[1:])
    if y.shape != expected:
        raise ShapeError(
            f"{target.name}, log_prob: expected y of shape {expected}, got {y.shape}. Give each row its y."
        )
    standard = torch.tensor(units.targets(y)).to(dtype=target.dtype, device=target.device)

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


def _storage(target: Target, units: Units) -> Any:
    """float32 for float32 targets, unless y lies so far from 0 that float32 would round its spread away."""
    far = bool(np.any(np.abs(units.y_mean) > 1e3 * units.y_sd))
    return np.float64 if target.dtype == torch.float64 or far else np.float32
