"""``Leapfrogs`` by ``trajectories.cpp``: whole trajectories without Python, chains shared among threads.

A thread takes its chains from one end of the trajectory to the other, so that none waits for another after each gradient. They
are the trajectories of ``Leapfrogs`` to rounding, and the same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bnn_pyro import native
from bnn_pyro.inference.groups import Worker, shares
from bnn_pyro.inference.leapfrogs import Leapfrogs, State
from bnn_pyro.inference.metric import GradientCall, Metric
from bnn_pyro.inference.native_gradient import NativeGradient, native_gradient
from bnn_pyro.inference.native_trees import DTYPES

SOURCE = Path(__file__).with_name("trajectories.cpp")
HANDOVER = 50e-6  # seconds, about, to have other threads work and to wait for them
PATIENCE = 0.1  # seconds after which a thread asks whether to go on
_, _ARRIVED, _TO_GO_ON = -1, 0, 1  # as in ``trajectories.cpp``


class TrajectoryState(ctypes.Structure):
    """Field by field as ``Trajectories`` in ``trajectories.cpp``."""

    _fields_: ClassVar = [
        *((name, ctypes.c_int64) for name in ("chains", "dim", "dense", "chain", "taken")),
        *((name, ctypes.c_void_p) for name in (*State._fields, "momentum", "step", "inverse_mass", "velocity")),
    ]


class NativeLeapfrogs(Leapfrogs):
    """As ``Leapfrogs``; use ``make_leapfrogs``.

    Args:
        gradients: One for each of ``groups``, the chains that a thread has to itself.
    """

    def __init__(self, metric: Metric, gradients: list[NativeGradient], groups: list[slice], position: Tensor):
        super().__init__(metric, gradients[0].gradient)
        library = native.load(SOURCE)
        assert library is not None, "make_leapfrogs asks first"
        self._library_go = getattr(library, f"go_{DTYPES[position.dtype]}")
        self._library_go.restype = ctypes.c_int64
        self._library_go.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_double]
        # memory of its own, as the library has its addresses: of a state, momentum and step
        rows, numbers = torch.empty(3, *position.shape, dtype=position.dtype), torch.empty(2, len(position)).double()
        self._own = rows[0], rows[1], numbers[0], rows[2], numbers[1]
        self._work = position.new_empty(len(groups), position.shape[1])
        self._states = [self._state(of, work) for of, work in zip(groups, self._work, strict=True)]
        self._gradients = gradients
        shared = len(position) - max(state.chains for state in self._states)
        self._gain = shared * _seconds(gradients[0]) / gradients[0].block  # of a step by several threads
        self._others = [Worker() for _ in groups[1:]]
        self._over = False

    def _state(self, rows: slice, work: Tensor) -> TrajectoryState:
        state = TrajectoryState(chains=rows.stop - rows.start, dim=work.shape[0], velocity=work.data_ptr())
        for name, tensor in zip((*State._fields, "momentum", "step"), self._own, strict=True):
            setattr(state, name, tensor[rows].data_ptr())
        return state

    def __call__(self, state: State, momentum: Tensor, step: Tensor, steps: int) -> tuple[State, Tensor]:
        for own, value in zip(self._own, (*state, momentum, step), strict=True):
            own.copy_(value)
        mass = self.metric.inverse_mass_matrix.contiguous()
        for group in self._states:
            group.inverse_mass, group.dense = mass.data_ptr(), self.metric.dense
        self._travel(steps)
        position, grad, log_density, momentum, _ = (own.clone() for own in self._own)
        return State(position, grad, log_density), momentum

    def _travel(self, steps: int) -> None:
        first, *others = (
            partial(self._travel_one, *pair, steps) for pair in zip(self._states, self._gradients, strict=True)
        )
        if self._gain * steps < HANDOVER:
            for travel in (first, *others):
                travel()
            return
        for worker, travel in zip(self._others, others, strict=True):
            worker.begin(travel)
        first()
        for worker in self._others:
            worker.wait()

    def _travel_one(self, state: TrajectoryState, gradient: NativeGradient, steps: int) -> None:
        state.chain = state.taken = 0
        outcome = _TO_GO_ON
        while outcome == _TO_GO_ON and not self._over:  # in between an interrupt gets through
            outcome = self._library_go(ctypes.addressof(state), gradient.address, steps, PATIENCE)
        if outcome != _ARRIVED and not self._over:
            raise RuntimeError("a call of the compiled gradient failed")

    def close(self) -> None:
        self._over = True
        for worker in self._others:
            worker.close()


def _seconds(gradient: NativeGradient) -> float:
    """For a block; of a short one, the fastest of five."""
    seconds = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        gradient.made()
        seconds = min(seconds, time.perf_counter() - began)
        if seconds > HANDOVER:
            break
    return seconds


def make_leapfrogs(metric: Metric, gradient: GradientCall, position: Tensor, threads: int) -> Leapfrogs:
    """``NativeLeapfrogs`` on up to ``threads`` threads where C++ can take the gradients, else ``Leapfrogs``.

    Args:
        position: (chains, dim)
    """
    groups = shares(gradient, position, threads)
    made = [native_gradient(gradient, position[rows]) for rows in groups]
    gradients = [one for one in made if one is not None]
    if len(gradients) < len(groups) or position.dtype not in DTYPES or native.load(SOURCE) is None:
        return Leapfrogs(metric, gradient)
    return NativeLeapfrogs(metric, gradients, groups, position)
