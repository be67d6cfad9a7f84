"""Finds where a program multiplies its rows by latent weights, by watching its operations: nothing in it is changed.

``Products`` follows weights through scaling and transposition to their products with rows, ``x W`` or a convolution, and to
the biases added there. What happens at such a product is its subclasses': noise of each row's own (``layer_noise``), or a
layer's inputs taken down (``layers``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Weight:
    """A latent value as the program has it now, after scaling and moving, with tensors that went the same way.

    Attributes:
        linear: Tensors scaled and moved as the value was.
        size: Likewise, with the absolute value of each scale.
        place: Moved only.
    """

    site: str
    value: Tensor
    linear: Tensor
    size: Tensor | None = None
    place: Tensor | None = None


class Products(TorchFunctionMode, ABC):
    """Inside it, products of rows and the weights that ``follow`` was told of go through ``multiply`` and ``add``."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, Weight] = {}
        self._products: dict[int, Tensor] = {}  # kept, since an id is a tensor's own only while it lives
        self._made: dict[int, Tensor] = {}  # of weights alone, such as their product: no row has gone in
        self.uses: dict[str, list[str]] = {}  # by site: "rows" for each product, and the names of other operations

    def follow(self, site: str, value: Tensor, **beside: Tensor) -> None:
        """A latent value as the program will see it; ``beside`` are the fields of ``Weight``."""
        self._weights[id(value)] = Weight(site, value, **beside)

    @abstractmethod
    def takes(self, x: Tensor, weight: Weight, channels: int) -> bool:
        """Whether a product is one to replace; ``channels`` is the axis of its outputs: -1, or 1 for a convolution."""

    @abstractmethod
    def multiply(self, x: Tensor, weight: Weight, product: Callable[[Tensor, Tensor], Tensor], channels: int) -> Tensor:
        """What stands in place of ``product(x, weight.value)``."""

    @abstractmethod
    def add(self, out: Tensor, bias: Tensor, weight: Weight | None, shape: list[int]) -> Tensor:
        """What stands in place of ``out + bias.reshape(shape)``; ``weight`` is the bias as followed, if it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKS:
            return func(*args, **kwargs)
        tensors = list(_tensors((*args, *kwargs.values())))
        flat = [t for t in tensors if id(t) in self._weights]
        if not flat:
            return self._noted(func(*args, **kwargs), tensors)
        if len(flat) == 1:
            weight = self._weights[id(flat[0])]
            if func in _SCALES and self._scales(func, args, weight):
                return self._carried(weight, func, args, kwargs, moves=False)
            if func in _MOVES and args[0] is weight.value:
                return self._carried(weight, func, args, kwargs, moves=True)
        out = self._product(func, args, kwargs)
        if out is not None:
            self._products[id(out)] = out
            for value in flat:
                self.uses.setdefault(self._weights[id(value)].site, []).append("rows")
            return out
        for value in flat:
            self.uses.setdefault(self._weights[id(value)].site, []).append(getattr(func, "__name__", str(func)))
        return self._noted(func(*args, **kwargs), tensors)

    def _noted(self, out: Any, tensors: list[Tensor]) -> Any:
        """``out``, kept among ``_made`` where all ``tensors`` that went in are weights or made of them."""
        if tensors and all(self._is_of_weights(t) for t in tensors):
            self._made |= {id(t): t for t in _tensors([out])}
        return out

    def _is_of_weights(self, t: Tensor) -> bool:
        return id(t) in self._weights or id(t) in self._made

    def _scales(self, func: Any, args: Any, weight: Weight) -> bool:
        """Whether the result is the weight times something that does not make it larger."""
        if len(args) != 2 or (func in _DIVIDES and args[0] is not weight.value):
            return False
        other = args[1] if args[0] is weight.value else args[0]
        return (
            not isinstance(other, Tensor)
            or torch.broadcast_shapes(other.shape, weight.value.shape) == weight.value.shape
        )

    def _carried(self, weight: Weight, func: Any, args: Any, kwargs: Any, moves: bool) -> Tensor:
        """The operation's result, followed as the weight was."""

        def apply(t: Tensor) -> Tensor:
            return func(*(t if a is weight.value else a for a in args), **kwargs)

        value = apply(weight.value)
        size = None if weight.size is None else apply(weight.size) if moves else apply(weight.size).abs()
        place = apply(weight.place) if moves and weight.place is not None else weight.place
        self._weights[id(value)] = Weight(weight.site, value, apply(weight.linear), size, place)
        return value

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """x W, or that plus a bias, as subclasses have it; None where ``func`` is no such product."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        bias = None
        if func in _ADDS and len(args) == 2 and not kwargs:
            x, bias = args if id(args[0]) in self._products else args[::-1]
            fits = id(x) in self._products and _is_bias(bias) and bias.ndim < x.ndim
            return self._with_bias(x, bias, -1) if fits else None
        if func in _PRODUCTS and len(args) == 2 and isinstance(args[1], Tensor) and args[0].ndim >= 2:
            x, w, product, channels = args[0], args[1], torch.matmul, -1
        elif func is functional.linear and given["input"].ndim >= 2:
            x, w, product, channels, bias = given["input"], given["weight"], functional.linear, -1, given.get("bias")
        elif func is functional.conv2d and given["input"].ndim == 4:
            settings = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}
            product = partial(_convolution, *args[3:], **settings)
            x, w, channels, bias = given["input"], given["weight"], 1, given.get("bias")
        else:
            return None
        weight = self._weights.get(id(w))
        if weight is None or (channels == -1 and w.ndim > 2) or not (bias is None or _is_bias(bias)):
            return None
        if self._is_of_weights(x) or not self.takes(x, weight, channels):  # as A in x (A B)
            return None
        out = self.multiply(x, weight, product, channels)
        return out if bias is None else self._with_bias(out, bias, channels)

    def _with_bias(self, out: Tensor, bias: Tensor, channels: int) -> Tensor:
        """``out`` with a bias () or (channels,)."""
        shape = [-1 if i == channels % out.ndim else 1 for i in range(1, out.ndim)] if bias.ndim else []
        return self.add(out, bias, self._weights.get(id(bias)), shape)


def _is_bias(value: Any) -> bool:
    """Whether it can be one number for each output: one for each place, too, would not lie along their axis alone."""
    return isinstance(value, Tensor) and value.ndim <= 1


def _convolution(*settings: Any, **more: Any) -> Tensor:
    *settings_before, x, w = settings  # partial puts what is known first
    return functional.conv2d(x, w, None, *settings_before, **more)


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


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among arguments, and in lists of them, as ``torch.cat`` takes."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_MOVES = {
    torch.t, torch.transpose, torch.Tensor.t, torch.Tensor.transpose, *_getters("T", "mT"),
    torch.Tensor.expand, torch.Tensor.contiguous, torch.Tensor.clone,
}  # fmt: skip
_LOOKS = {  # what the shape and kind of a tensor are asked with
    *_getters("shape", "dtype", "device", "ndim", "requires_grad"), torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel,
    torch.Tensor.is_floating_point, torch.Tensor.__len__, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full,
    torch.zeros_like, torch.ones_like,
}  # fmt: skip
