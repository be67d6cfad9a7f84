"""Conditional distributions of y given weights: their moments, and their tensors taken out and put back.

A distribution that a program builds under ``vmap`` cannot leave it; its tensors can. ``split`` takes any torch or Pyro
distribution apart into tensors and a function that puts it together again around other tensors of the same shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

from bnn_pyro.errors import ModelError


def split(fn: Distribution) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Distribution]]:
    """Tensors of a distribution (nested ones and those of transforms included), and how to rebuild it from others."""
    tensors: list[Tensor] = []

    def template(value: Any) -> Callable[[Sequence[Tensor]], Any]:
        if isinstance(value, Tensor):
            index = len(tensors)
            tensors.append(value)
            return lambda new: new[index]
        if isinstance(value, Distribution | Transform):
            parts = {name: template(part) for name, part in vars(value).items()}
            kind = type(value)

            def rebuild(new: Sequence[Tensor]) -> Any:
                made = copy.copy(value) if not isinstance(value, Distribution) else kind.__new__(kind)
                made.__dict__.update({name: part(new) for name, part in parts.items()})
                return made

            return rebuild
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor | Distribution | Transform) for v in value):
            items = [template(v) for v in value]
            container = type(value)
            return lambda new: container(item(new) for item in items)
        return lambda new: value

    make = template(fn)
    return tensors, make


def has_mean(fn: Distribution) -> bool:
    """Whether y has a mean: Categorical and Cauchy have none, and torch gives NaN or raises. Not under ``vmap``."""
    try:
        return not bool(torch.isnan(fn.mean).all())
    except (NotImplementedError, AttributeError):
        return False


def mean_and_variance(fn: Distribution, where: str) -> tuple[Tensor, Tensor]:
    """Mean and variance of y by row, each of y's shape, in y's units and squared units.

    Raises: ModelError where the distribution states none (see ``has_mean`` for those that give NaN instead).
    """
    try:
        mean, variance = fn.mean, fn.variance
    except (NotImplementedError, AttributeError) as error:
        raise no_mean(fn, where) from error
    shape = fn.batch_shape + fn.event_shape
    return mean.expand(shape), variance.expand(shape)


def class_count(fn: Any) -> int | None:
    """Number of classes where y is a label 0, 1, ... for each row (Categorical, Bernoulli and kin), else None."""
    if len(fn.event_shape) or len(fn.batch_shape) != 1:
        return None
    base = unwrapped(fn)
    if isinstance(base, Bernoulli):
        return 2
    return int(base.param_shape[-1]) if isinstance(base, Categorical) else None


def class_log_probs(fn: Any) -> Tensor:
    """Log probability of each class by row, (n, k) float64, for a likelihood that ``class_count`` knows."""
    base = unwrapped(fn)
    if isinstance(base, Bernoulli):
        logits = base.logits.double()
        log_probs = torch.stack([-softplus(logits), -softplus(-logits)], -1)
    else:
        log_probs = torch.log_softmax(base.logits.double(), -1)
    return log_probs.expand(*fn.batch_shape, log_probs.shape[-1])


def unwrapped(fn: Any) -> Any:
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return fn


def no_mean(fn: Any, where: str) -> ModelError:
    """The error for a likelihood whose mean and variance are asked for and do not exist."""
    return ModelError(
        f"{where}: expected a likelihood with a mean and a variance, got {type(unwrapped(fn)).__name__}, which has none. "
        "Its draws are in posterior.idata's posterior_predictive."
    )


def sum_to_rows(log_prob: Tensor, dim: int) -> Tensor:
    """Sums a log density over every batch axis but ``dim`` (negative, as Pyro counts plates): (n,) remains."""
    moved = torch.movedim(log_prob, dim, 0)
    return moved.reshape(moved.shape[0], -1).sum(-1) if moved.ndim > 1 else moved
