"""A gradient whose calls are recorded, as the C++ of ``leapfrog.h`` takes it."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from torch import Tensor

from bnn_pyro.inference.metric import GradientCall
from bnn_pyro.recorded import Recorded, runner


class GradientState(ctypes.Structure):
    """Field by field as ``Gradient`` in ``leapfrog.h``."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("run", "calls")),
        *((name, ctypes.c_int64) for name in ("count", "block", "row", "column")),
        *((name, ctypes.c_void_p) for name in ("position", "grad", "log_density")),
    ]


class NativeGradient:
    """What ``gradient`` comes down to for one thread, and the memory that it works on, which lives as long as this."""

    def __init__(self, gradient: GradientCall, made: Recorded):
        grad, log_density = made.results
        state = GradientState()
        state.run = ctypes.cast(runner(), ctypes.c_void_p)
        state.calls, state.count, state.block = made.calls, made.count, len(made.argument)
        state.row, state.column = grad.stride()
        for name, tensor in (("position", made.argument), ("grad", grad), ("log_density", log_density)):
            setattr(state, name, tensor.data_ptr())
        self.gradient, self.made, self.block = gradient, made, state.block
        self._state, self.address = state, ctypes.addressof(state)


def native_gradient(gradient: GradientCall, position: Tensor) -> NativeGradient | None:
    """That of a gradient at positions like (c, dim); None where its calls cannot be made without Python."""
    recorded = getattr(gradient, "recorded", None)
    made: Recorded | None = recorded(position) if recorded is not None else None
    if made is None or made.argument.dtype != position.dtype:  # C++ takes numbers as they lie
        return None
    return NativeGradient(gradient, made)
