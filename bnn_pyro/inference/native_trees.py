"""``Trees`` whose work between two gradients is done by ``trees.cpp``, in a few microseconds for each chain.

Its tensors are those of ``Trees``, which the library reads and writes where they stand. Both make the same trees of the
same numbers, to rounding. A chain's numbers are bit-equal among any number of chains, with a dense metric too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bnn_pyro import native
from bnn_pyro.inference.metric import GradientCall, Metric
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.trees import POSITION, Info, Trees

SOURCE = Path(__file__).with_name("trees.cpp")
DTYPES = {torch.float32: "float32", torch.float64: "float64"}

_COUNTS = ("chains", "dim", "slots", "max_depth", "dense")
_ROWS = ("leaf", "ends", "chosen", "candidate", "sum", "kept", "inverse_mass", "velocity", "total")
_REALS = ("step_size", "energy", "accept_sum", "log_weight", "new_log_weight", "chosen_density", "candidate_density")
_WHOLES = ("side", "depth", "leaves", "steps")


class State(ctypes.Structure):
    """Sizes and addresses, field by field as in ``trees.cpp``."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in _COUNTS),
        *((name, ctypes.c_void_p) for name in (*_ROWS, *_REALS, *_WHOLES, "diverging", "active", "ended")),
    ]


class NativeTrees(Trees):
    """As ``Trees``, for float32 and float64 on a CPU; use ``make_trees``."""

    kind: ClassVar[str] = "native"

    def __init__(
        self,
        gradient: GradientCall,
        position: Tensor,
        metric: Metric,
        step_size: Tensor,
        uniforms: Uniforms,
        momenta: Momenta,
        max_depth: int,
    ):
        library = native.load(SOURCE)
        assert library is not None, "make_trees asks first"
        self._state = State()
        chains, dim = position.shape
        self._step_size = torch.empty(chains, dtype=torch.float64)
        super().__init__(gradient, position, metric, step_size, uniforms, momenta, max_depth)
        self.ended = torch.zeros(chains, dtype=torch.int64)
        self._work = position.new_zeros(2, dim)
        # numbers of each chain side by side, so that ``info`` takes them out together
        self._reals = torch.stack([getattr(self, name) for name in _REALS])
        self._wholes = torch.stack([getattr(self, name) for name in _WHOLES])
        self._step_size, *reals = self._reals
        for name, tensor in zip((*_REALS[1:], *_WHOLES), (*reals, *self._wholes), strict=True):
            setattr(self, name, tensor)
        state = self._state
        state.chains, state.dim, state.slots, state.max_depth = chains, dim, self.slots, max_depth
        state.velocity, state.total = (row.data_ptr() for row in self._work)
        for name in (*_ROWS[:6], *_REALS, *_WHOLES, "diverging", "active", "ended"):
            setattr(state, name, getattr(self, name).data_ptr())
        self._at, self._nobody = self.leaf[POSITION], self.ended[:0]
        pointer = ctypes.c_void_p
        self._library = library
        self._leap_all = self.function("leap", None, pointer)
        self._settle = self.function("settle", ctypes.c_int64, *[pointer] * 4)
        self._begin = self.function("begin", None, pointer, ctypes.c_int64, *[pointer] * 3)
        self.address = ctypes.addressof(state)

    @property
    def step_size(self) -> Tensor:
        """(c,) float64; what is assigned is copied."""
        return self._step_size

    @step_size.setter
    def step_size(self, step_size: Tensor) -> None:
        self._step_size.copy_(step_size)

    @property
    def metric(self) -> Metric:
        return self._metric

    @metric.setter
    def metric(self, metric: Metric) -> None:
        self._metric = metric
        self._inverse_mass = metric.inverse_mass_matrix.contiguous()  # kept, as the library has its address only
        self._state.inverse_mass, self._state.dense = self._inverse_mass.data_ptr(), metric.dense

    def use(self, metric: Metric, step_size: Tensor) -> None:
        super().use(metric, step_size)
        self.metric = self._metric  # whose numbers, laid side by side, may be a copy

    def begin(self, rows: Tensor, transition: Tensor) -> None:
        if not len(rows):
            return
        numbers = self.momenta.take(rows, transition)
        if self.metric.dense:  # one by one: a triangular system may round differently beside others
            momentum = torch.cat([self.metric.momentum(row) for row in numbers.split(1)])
        else:
            momentum = self.metric.momentum(numbers)
        momentum, rows = momentum.contiguous(), rows.contiguous()
        draw = self.uniforms.now()
        self._begin(self.address, len(rows), rows.data_ptr(), momentum.data_ptr(), draw.data_ptr())

    def function(self, name: str, result: type | None, *arguments: type) -> Callable:
        """A function of the library, for positions of this dtype."""
        function = getattr(self._library, f"{name}_{DTYPES[self._at.dtype]}")
        function.restype, function.argtypes = result, arguments
        return function

    def advance(self) -> Tensor:
        count = self.step()
        return self.ended[:count].clone() if count else self._nobody

    def step(self) -> int:
        """``advance``, but for the chains whose trees ended: how many; they are the first in ``ended``."""
        draw = self.uniforms.next()
        self._leap_all(self.address)
        grad, log_density = self.gradient(self._at)
        grad = _plain(grad, self._at.dtype, self._at.shape)
        log_density = self.log_density = _plain(log_density, torch.float64, self.ended.shape)
        return self._settle(self.address, draw.data_ptr(), grad.data_ptr(), log_density.data_ptr())

    def info(self, rows: Tensor) -> Info:
        step_size, energy, accept_sum, *_, lp, _ = self._reals.index_select(1, rows).unbind()
        _, depth, _, steps = self._wholes.index_select(1, rows).unbind()
        diverging = self.diverging.index_select(0, rows)
        return Info(lp, energy, diverging, depth, steps, accept_sum / steps, step_size)


def _plain(tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """As the library reads it: row after row, without gaps."""
    if tensor.dtype == dtype and tensor.shape == shape and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).expand(shape).contiguous()


def _has_native(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype in DTYPES


def tree_kind(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """``("native", "")``, or ``("torch", why)``, for positions on that device; builds the library the first time."""
    if not _has_native(device, dtype):
        return "torch", f"trees.cpp is for float32 and float64 on a CPU, not {dtype} on {device.type}"
    if native.load(SOURCE) is None:
        return "torch", native.reason(SOURCE)
    return "native", ""


def make_trees(
    gradient: GradientCall,
    position: Tensor,
    metric: Metric,
    step_size: Tensor,
    uniforms: Uniforms,
    momenta: Momenta,
    max_depth: int,
) -> Trees:
    """``NativeTrees`` where it can be, else ``Trees``, which its ``kind`` says; arguments as of ``Trees``."""
    kind, _ = tree_kind(position.device, position.dtype)
    chosen = NativeTrees if kind == "native" else Trees
    return chosen(gradient, position, metric, step_size, uniforms, momenta, max_depth)
