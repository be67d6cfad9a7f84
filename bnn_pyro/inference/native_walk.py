"""``Walk`` whose transitions are made by ``trees.cpp``: Python sees a batch of them now and then.

What it yields, and what it adapts, is what ``Walk`` does of ``NativeTrees``, to the rounding of logarithms and powers.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch

from bnn_pyro.inference.figures import unstacked
from bnn_pyro.inference.native_gradient import NativeGradient, native_gradient
from bnn_pyro.inference.native_trees import NativeTrees
from bnn_pyro.inference.step_sizes import GAMMA, KAPPA, T0, DualAveraging
from bnn_pyro.inference.trees import Info, Trees
from bnn_pyro.inference.walk import Ended, Walk

_ROOM = 1024  # trees that wait to be yielded
_NUMBERS = 2**19  # in their positions, at most
_PATIENCE = 0.1  # seconds that one waits; what is drawn does not depend on it

_COUNTS = ("warmup", "until", "ahead", "ended", "resting", "left")
_CONSTANTS = ("target", "gamma", "t0", "kappa")
_OWN = ("position", "figures", "chain", "number", "grad", "log_density")
_ADDRESSES = ("normals", "root", "first", "transition", "centre", "averaging", *_OWN)


class WalkState(ctypes.Structure):
    """Sizes, constants and addresses, field by field as ``Walk`` in ``trees.cpp``."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in _COUNTS),
        *((name, ctypes.c_double) for name in _CONSTANTS),
        *((name, ctypes.c_void_p) for name in _ADDRESSES),
    ]


class NativeWalk(Walk):
    """As ``Walk``; use ``make_walk``. Gradients that can be ``recorded`` are taken in C++, too."""

    trees: NativeTrees

    def __init__(self, trees: NativeTrees, averaging: DualAveraging, warmup: int):
        super().__init__(trees, averaging, warmup)
        chains, dim = trees.position.shape
        self._room = chains + min(_ROOM, _NUMBERS // dim)  # all chains may end at once
        self._position = trees.position.new_empty(self._room, dim)
        self._figures = torch.empty(len(Info._fields), self._room, dtype=torch.float64)
        self._chain, self._number = torch.empty(2, self._room, dtype=torch.int64)
        momenta, state = trees.momenta, WalkState()
        state.warmup, state.ahead = warmup, momenta.ahead
        state.target, state.gamma, state.t0, state.kappa = averaging.target, GAMMA, T0, KAPPA
        state.first, state.transition = momenta.first.ctypes.data, self.transition.ctypes.data
        state.normals = momenta.table.data_ptr()
        self._grad, self._log_density = torch.empty_like(trees.position), torch.empty_like(trees.energy)
        for name in _OWN:
            setattr(state, name, getattr(self, f"_{name}").data_ptr())
        self._state, self._address = state, ctypes.addressof(state)
        self._carry_on = trees.function(
            "carry_on", ctypes.c_int64, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_void_p
        )
        self._go = trees.function(
            "go", ctypes.c_int64, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2, ctypes.c_void_p, ctypes.c_double
        )
        self._gradient = native_gradient(trees.gradient, trees.position)

    def to(self, pause: int, should_stop: Callable[[], bool]) -> Iterator[Ended]:
        trees, state, chains = self.trees, self._state, len(self.transition)
        transition = torch.from_numpy(self.transition)
        root = trees.metric.root.contiguous()
        state.until, state.ended, state.resting, state.root = pause, 0, 0, root.data_ptr()
        state.centre, state.averaging = self.averaging.centre.data_ptr(), self.averaging.state.data_ptr()
        trees.begin(trees.chains, transition)
        due = 0.0
        while state.resting < chains and not should_stop():
            left = self._one() if self._gradient is None else self._many(self._gradient)
            if left:  # which need momenta that are not made yet, or those of a dense metric
                rows = trees.ended[:left]
                trees.begin(rows, transition[rows])
            if state.ended and (state.ended > self._room - chains or time.monotonic() > due):
                yield self._batch()
                due = time.monotonic() + _PATIENCE
        if state.ended:
            yield self._batch()

    def _one(self) -> int:
        """A leapfrog step of all chains; how many of those whose trees ended have yet to begin their next ones."""
        trees = self.trees
        count = trees.step()
        if not count:
            return 0
        now = trees.uniforms.now()
        return self._carry_on(trees.address, self._address, count, self._room, now.data_ptr())

    def _many(self, gradient: NativeGradient) -> int:
        """The same of as many steps as C++ can make by itself."""
        uniforms = self.trees.uniforms
        coming = uniforms.coming()
        made = self._go(
            self.trees.address,
            self._address,
            gradient.address,
            len(coming),
            self._room,
            coming.data_ptr(),
            _PATIENCE,
        )
        if made < 0:
            raise RuntimeError("a call of the compiled gradient failed")
        uniforms.skip(made)
        return self._state.left

    def _batch(self) -> Ended:
        count, self._state.ended = self._state.ended, 0
        rows, number = self._chain[:count].clone(), self._number[:count].clone()
        info = unstacked(Info, self._figures[:, :count].clone())
        return Ended(rows, number, self._position[:count].clone(), info)


def make_walk(trees: Trees, averaging: DualAveraging, warmup: int) -> Walk:
    """``NativeWalk`` of native trees, else ``Walk``; arguments as of ``Walk``."""
    return NativeWalk(trees, averaging, warmup) if isinstance(trees, NativeTrees) else Walk(trees, averaging, warmup)
