"""What a program reads from outside, as arguments: its parameters, and the random numbers that it draws.

A guide keeps its parameters in Pyro's store or in modules, and draws with torch's generator. Under ``Substituted`` each use
of a parameter sees a tensor that the caller gave in its place, wherever the program had it from, and random numbers come
from a vector of standard normal ones. What is left is a pure function of tensors, which can be traced, differentiated,
batched and compiled, and repeated with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.special import ndtr


class Substituted(TorchFunctionMode):
    """Inside it, ``leaves`` read as ``values``, and random numbers are made of ``noise``, from its first entry on.

    Uniform numbers are the normal distribution function of standard normal ones, exponential ones minus the log of those.

    Args:
        noise: (k,) standard normal numbers; None for torch's generator, which tells in ``used`` how many are needed.
    Raises: NotImplementedError for numbers of another distribution, such as gamma's, and where ``noise`` is too short.
    """

    def __init__(self, leaves: Sequence[Tensor] = (), values: Sequence[Tensor] = (), noise: Tensor | None = None):
        super().__init__()
        self.noise, self.used = noise, 0
        self._values = {id(leaf): value for leaf, value in zip(leaves, values, strict=True)}
        self._kept: list[Tensor] = list(leaves)  # an id is a tensor's own only while it lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draw = _DRAWS.get(func)
        if draw is not None:
            filled = args[0] if args and _name(func).endswith("_") else None
            if kwargs.get("out") is not None or (isinstance(filled, Tensor) and filled._is_view()):
                raise NotImplementedError(f"random numbers that {_name(func)} puts into a part of another tensor")
            return self._instead(args[0] if args else None, draw(self, *args, **kwargs), func)
        if func in _REFUSED and not (func is torch.nn.functional.dropout and kwargs.get("training") is False):
            raise NotImplementedError(f"random numbers by {_name(func)} do not come from normal ones")
        if self._values:
            args = [self._read(a) for a in args]
            kwargs = {k: self._read(a) for k, a in kwargs.items()}
        return func(*args, **kwargs)

    def normal(self, shape: Sequence[int], like: Any) -> Tensor:
        """Standard normal numbers of a shape, in the dtype of ``like`` (a tensor, or keywords of a factory)."""
        shape = torch.Size(shape)
        start, self.used = self.used, self.used + shape.numel()
        dtype = like.dtype if isinstance(like, Tensor) else like.get("dtype") or torch.get_default_dtype()
        if self.noise is None:
            device = like.device if isinstance(like, Tensor) else like.get("device")
            return torch.randn(shape, dtype=dtype, device=device)
        if self.used > self.noise.shape[0]:
            raise NotImplementedError(
                f"expected {self.noise.shape[0]} random numbers, as before, got {self.used} asked for"
            )
        return self.noise[start : self.used].reshape(shape).to(dtype, copy=True)  # a program may write into it

    def uniform(self, shape: Sequence[int], like: Any) -> Tensor:
        """Uniform numbers between 0 and 1, neither of which comes up."""
        normal = self.normal(shape, like)
        tiny = torch.finfo(normal.dtype).eps / 2
        return ndtr(normal).clamp(tiny, 1 - tiny)

    def _read(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._values.get(id(value), value)
        if type(value) in (list, tuple):  # not a torch.Size, which torch tells from a tuple
            return type(value)(self._read(v) for v in value)
        return value

    def _instead(self, written: Any, value: Tensor, func: Any) -> Tensor:
        """The drawn value; a tensor that would have been filled in place reads as it from now on."""
        if isinstance(written, Tensor) and _name(func).endswith("_"):
            self._values[id(written)] = value
            self._kept.append(written)
        return value


def _size(size: tuple[Any, ...]) -> Sequence[int]:
    return size[0] if size and not isinstance(size[0], int) else size


def _normal_(mode: Substituted, t: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return mode.normal(t.shape, t) * std + mean


def _uniform_(mode: Substituted, t: Tensor, low: float = 0.0, high: float = 1.0, **more: Any) -> Tensor:
    low, high = more.get("from", low), more.get("to", high)
    return mode.uniform(t.shape, t) * (high - low) + low


def _exponential_(mode: Substituted, t: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return -mode.uniform(t.shape, t).log() / lambd


def _cauchy_(mode: Substituted, t: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return (torch.pi * (mode.uniform(t.shape, t) - 0.5)).tan() * sigma + median


def _randn(mode: Substituted, *size: Any, **like: Any) -> Tensor:
    return mode.normal(_size(size) if size else like["size"], like)


def _rand(mode: Substituted, *size: Any, **like: Any) -> Tensor:
    return mode.uniform(_size(size) if size else like["size"], like)


def _randn_like(mode: Substituted, t: Tensor, **like: Any) -> Tensor:
    return mode.normal(t.shape, {"dtype": t.dtype, "device": t.device} | like)


def _rand_like(mode: Substituted, t: Tensor, **like: Any) -> Tensor:
    return mode.uniform(t.shape, {"dtype": t.dtype, "device": t.device} | like)


def _normal(mode: Substituted, mean: Any, std: Any = 1.0, size: Any = None, **like: Any) -> Tensor:
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors)) if tensors else size
    return mode.normal(shape, tensors[0] if tensors else like) * mode._read(std) + mode._read(mean)


_DRAWS: dict[Any, Callable[..., Tensor]] = {
    torch.Tensor.normal_: _normal_,
    torch.Tensor.uniform_: _uniform_,
    torch.Tensor.exponential_: _exponential_,
    torch.Tensor.cauchy_: _cauchy_,
    torch.randn: _randn,
    torch.rand: _rand,
    torch.randn_like: _randn_like,
    torch.rand_like: _rand_like,
    torch.normal: _normal,
}  # fmt: skip
_REFUSED = {
    torch._standard_gamma, torch._sample_dirichlet, torch.binomial, torch.poisson, torch.multinomial, torch.bernoulli,
    torch.randint, torch.randperm, torch.Tensor.bernoulli, torch.Tensor.bernoulli_, torch.Tensor.multinomial,
    torch.Tensor.geometric_, torch.Tensor.log_normal_, torch.Tensor.random_,
    torch.nn.functional.dropout,
}  # fmt: skip


def _name(func: Any) -> str:
    return f"torch.{getattr(func, '__name__', func)}"
