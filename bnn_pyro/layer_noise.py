"""Noise of the rows' own in linear layers: local reparameterisation and flipout, without a change to the program.

A weight W ~ Normal(mean, sd), entry by entry, meets rows x in x W. One draw of W for all rows makes their log likelihoods
rise and fall together; each row with a W of its own has the same distribution, and the sum over rows less variance.

    local:    x W ~ Normal(x mean, sqrt(x^2 sd^2)), drawn for each row
    flipout:  x W = x mean + ((x * r) (W - mean)) * s, with signs r and s of each row's own

and a bias that is added to such a product likewise, as the weight of an input that is always 1.

``RowNoise`` finds the products by watching the program's operations: it follows weights through scaling and transposition.
Source: Kingma, Salimans & Welling 2015, arXiv:1506.02557, equation 6; Wen et al. 2018, arXiv:1803.04386, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Weight(NamedTuple):
    site: str
    value: Tensor
    mean: Tensor
    sd: Tensor


class RowNoise(TorchFunctionMode):
    """Inside it, products of rows and the weights that ``follow`` was told of have noise of each row's own.

    Args:
        estimator: ``"local"`` or ``"flipout"``.
    Raises: NotImplementedError, from ``check``, where rows have not the distribution that one draw of a weight gives them.
    """

    def __init__(self, estimator: str):
        super().__init__()
        self._estimator = estimator
        self._weights: dict[int, _Weight] = {}
        self._uses: dict[str, list[str]] = {}
        self._products: dict[int, Tensor] = {}  # kept, since an id is a tensor's own only while it lives

    def follow(self, site: str, value: Tensor, mean: Tensor, sd: Tensor) -> None:
        """A weight as the program will see it, and the moments of its entries."""
        self._weights[id(value)] = _Weight(site, value, mean, sd)

    def check(self) -> None:
        """Whether weights have been used so that each row has the distribution that one draw of them gives it.

        One product with rows, or any use without: a bias that is added is the same for all rows.
        """
        for site, uses in self._uses.items():
            if "rows" in uses and len(uses) > 1:
                also = ", ".join(f"torch.{u}" for u in uses if u != "rows") or "a second product"
                raise NotImplementedError(
                    f"estimator={self._estimator!r} takes a weight that is used once, and site {site!r} is used in a product "
                    f"with rows and in {also}"
                )
        if not any("rows" in uses for uses in self._uses.values()):
            raise NotImplementedError(
                f"estimator={self._estimator!r} has found no product of rows and weights whose prior is a fixed Normal"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and id(a) in self._weights]
        if not flat or func in _LOOKS:
            return func(*args, **kwargs)
        if len(flat) == 1:
            weight = self._weights[id(flat[0])]
            if func in _SCALES and self._scales(func, args, weight):
                return self._carried(weight, func, args, lambda t: t.abs())
            if func in _MOVES and args[0] is weight.value:
                return self._carried(weight, func, args, kwargs=kwargs)
        out = self._product(func, args, kwargs)
        if out is not None:
            self._products[id(out)] = out
            for value in flat:
                self._uses.setdefault(self._weights[id(value)].site, []).append("rows")
            return out
        for value in flat:
            self._uses.setdefault(self._weights[id(value)].site, []).append(getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)

    def _scales(self, func: Any, args: Any, weight: _Weight) -> bool:
        """Whether the result is the weight times something that does not make it larger."""
        if len(args) != 2 or (func in _DIVIDES and args[0] is not weight.value):
            return False
        other = args[1] if args[0] is weight.value else args[0]
        return (
            not isinstance(other, Tensor)
            or torch.broadcast_shapes(other.shape, weight.value.shape) == weight.value.shape
        )

    def _carried(
        self, weight: _Weight, func: Any, args: Any, size: Callable[[Tensor], Tensor] = lambda t: t, kwargs: Any = None
    ) -> Tensor:
        """The operation's result, followed as the weight was."""

        def apply(t: Tensor) -> Tensor:
            return func(*(t if a is weight.value else a for a in args), **(kwargs or {}))

        value = apply(weight.value)
        self._weights[id(value)] = _Weight(weight.site, value, apply(weight.mean), size(apply(weight.sd)))
        return value

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """x W, or that plus a bias, with noise of each row's own; None where ``func`` is no such product."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        bias = None
        if func in _ADDS and len(args) == 2 and not kwargs:
            x, bias = args if id(args[0]) in self._products else args[::-1]
            fits = id(x) in self._products and isinstance(bias, Tensor) and bias.ndim < x.ndim
            return self._with_bias(x, bias, -1) if fits else None
        if func in _PRODUCTS and len(args) == 2 and isinstance(args[1], Tensor) and args[0].ndim >= 2:
            x, w, product, channels = args[0], args[1], torch.matmul, -1
        elif func is functional.linear and given["input"].ndim >= 2:
            x, w, product, channels, bias = given["input"], given["weight"], functional.linear, -1, given.get("bias")
        elif func is functional.conv2d and given["input"].ndim == 4 and self._estimator == "flipout":
            settings = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}
            product = partial(_convolution, *args[3:], **settings)
            x, w, channels, bias = given["input"], given["weight"], 1, given.get("bias")
        else:
            return None
        weight = self._weights.get(id(w))
        if weight is None or (channels == -1 and (w.ndim > 2 or (self._estimator == "local" and x.ndim > 2))):
            return None
        out = _local(x, product, weight) if self._estimator == "local" else _flipped(x, product, weight, channels)
        return out if bias is None else self._with_bias(out, bias, channels)

    def _with_bias(self, out: Tensor, bias: Tensor, channels: int) -> Tensor:
        """A product plus a bias, which has noise of each row's own if it is followed."""
        weight = self._weights.get(id(bias))
        shape = [-1 if i == channels % out.ndim else 1 for i in range(1, out.ndim)] if bias.ndim else []
        mean = (bias if weight is None else weight.mean).reshape(shape)
        if weight is None:
            return out + mean
        noise_shape = (
            out.shape[0],
            *(bias.numel() if s == -1 else 1 for s in shape),
            *[1] * (out.ndim - 1 - len(shape)),
        )
        if self._estimator == "local":
            return out + mean + weight.sd.reshape(shape) * torch.randn(noise_shape, dtype=out.dtype, device=out.device)
        return out + mean + (weight.value - weight.mean).reshape(shape) * _signs(out, noise_shape)


def _convolution(*settings: Any, **more: Any) -> Tensor:
    *settings_before, x, w = settings  # partial puts what is known first
    return functional.conv2d(x, w, None, *settings_before, **more)


def _local(x: Tensor, product: Callable[..., Tensor], weight: _Weight) -> Tensor:
    mean, variance = product(x, weight.mean), product(x * x, weight.sd * weight.sd)
    # a row of zeros has no variance, where the root has no gradient
    sd = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt() * (variance > 0)
    return mean + sd * torch.randn_like(mean)


def _flipped(x: Tensor, product: Callable[..., Tensor], weight: _Weight, channels: int) -> Tensor:
    """Places of one row, between its axis and that of channels or beyond, share the row's signs."""
    mean = product(x, weight.mean)
    before, after = (_signs(x, _row_and(channels, t)) for t in (x, mean))
    return mean + product(x * before, weight.value - weight.mean) * after


def _row_and(channels: int, t: Tensor) -> tuple[int, ...]:
    """The shape of one number for each row and channel of t, where t has an axis of channels."""
    return tuple(size if i == 0 or i == channels % t.ndim else 1 for i, size in enumerate(t.shape))


def _signs(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    normal = torch.randn(shape, dtype=like.dtype, device=like.device)
    return torch.where(normal < 0, -torch.ones_like(normal), torch.ones_like(normal))


def _getters(*names: str) -> set[Any]:
    return {getattr(torch.Tensor, name).__get__ for name in names}


_PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.mv,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.mm,
    torch.Tensor.mv,
}
_ADDS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}
_DIVIDES = {torch.div, torch.Tensor.div, torch.Tensor.__truediv__}
_SCALES = {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__, *_DIVIDES}
_MOVES = {
    torch.t, torch.transpose, torch.Tensor.t, torch.Tensor.transpose, *_getters("T", "mT"),
    torch.Tensor.expand, torch.Tensor.contiguous, torch.Tensor.clone,
}  # fmt: skip
_LOOKS = {  # what the shape and kind of a tensor are asked with
    *_getters("shape", "dtype", "device", "ndim", "requires_grad"), torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel,
    torch.Tensor.is_floating_point, torch.Tensor.__len__, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full,
    torch.zeros_like, torch.ones_like,
}  # fmt: skip
