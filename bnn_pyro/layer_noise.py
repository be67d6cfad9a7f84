"""Noise of the rows' own in linear layers: local reparameterisation and flipout, without a change to the program.

A weight W ~ Normal(mean, sd), entry by entry, meets rows x in x W. One draw of W for all rows makes their log likelihoods
rise and fall together; each row with a W of its own has the same distribution, and the sum over rows less variance.

    local:    x W ~ Normal(x mean, sqrt(x^2 sd^2)), drawn for each row
    flipout:  x W = x mean + ((x * r) (W - mean)) * s, with signs r and s of each row's own

and a bias that is added to such a product likewise, as the weight of an input that is always 1.
Source: Kingma, Salimans & Welling 2015, arXiv:1506.02557, equation 6; Wen et al. 2018, arXiv:1803.04386, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bnn_pyro.products import Products, Weight


class RowNoise(Products):
    """Inside it, products of rows and weights have noise of each row's own; ``follow`` takes ``linear``, the mean of a
    weight's entries, and ``size``, their sd.

    Args:
        estimator: ``"local"`` or ``"flipout"``.
        rows: How many rows the program is run on: a product of another length is none of rows.
    Raises: NotImplementedError, from ``check``, where rows have not the distribution that one draw of a weight gives them.
    """

    def __init__(self, estimator: str, rows: int):
        super().__init__()
        self._estimator, self._rows = estimator, rows

    def check(self) -> None:
        """Whether weights have been used so that each row has the distribution that one draw of them gives it.

        One product with rows, or any use without: a bias that is added is the same for all rows.
        """
        for site, uses in self.uses.items():
            if "rows" in uses and len(uses) > 1:
                also = ", ".join(f"torch.{u}" for u in uses if u != "rows") or "a second product"
                raise NotImplementedError(
                    f"estimator={self._estimator!r} takes a weight that is used once, and site {site!r} is used in a product "
                    f"with rows and in {also}"
                )
        if not any("rows" in uses for uses in self.uses.values()):
            raise NotImplementedError(
                f"estimator={self._estimator!r} has found no product of rows and weights whose prior is a fixed Normal"
            )

    def takes(self, x: Tensor, weight: Weight, channels: int) -> bool:
        if len(x) != self._rows:  # such as places of rows, put after each other: those of one row share its noise
            return False
        return self._estimator == "flipout" or (channels == -1 and x.ndim == 2)

    def multiply(self, x: Tensor, weight: Weight, product: Callable[[Tensor, Tensor], Tensor], channels: int) -> Tensor:
        return _local(x, product, weight) if self._estimator == "local" else _flipped(x, product, weight, channels)

    def add(self, out: Tensor, bias: Tensor, weight: Weight | None, shape: list[int]) -> Tensor:
        mean = (bias if weight is None else weight.linear).reshape(shape)
        if weight is None:
            return out + mean
        noise_shape = (
            out.shape[0],
            *(bias.numel() if s == -1 else 1 for s in shape),
            *[1] * (out.ndim - 1 - len(shape)),
        )
        if self._estimator == "local":
            return (
                out + mean + _sd(weight).reshape(shape) * torch.randn(noise_shape, dtype=out.dtype, device=out.device)
            )
        return out + mean + (weight.value - weight.linear).reshape(shape) * _signs(out, noise_shape)


def _sd(weight: Weight) -> Tensor:
    assert weight.size is not None, "follow was given it"
    return weight.size


def _local(x: Tensor, product: Callable[[Tensor, Tensor], Tensor], weight: Weight) -> Tensor:
    mean, variance = product(x, weight.linear), product(x * x, _sd(weight) * _sd(weight))
    # a row of zeros has no variance, where the root has no gradient
    sd = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt() * (variance > 0)
    return mean + sd * torch.randn_like(mean)


def _flipped(x: Tensor, product: Callable[[Tensor, Tensor], Tensor], weight: Weight, channels: int) -> Tensor:
    """Places of one row, between its axis and that of channels or beyond, share the row's signs."""
    mean = product(x, weight.linear)
    before, after = (_signs(x, _row_and(channels, t)) for t in (x, mean))
    return mean + product(x * before, weight.value - weight.linear) * after


def _row_and(channels: int, t: Tensor) -> tuple[int, ...]:
    """The shape of one number for each row and channel of t, where t has an axis of channels."""
    return tuple(size if i == 0 or i == channels % t.ndim else 1 for i, size in enumerate(t.shape))


def _signs(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    normal = torch.randn(shape, dtype=like.dtype, device=like.device)
    return torch.where(normal < 0, -torch.ones_like(normal), torch.ones_like(normal))
