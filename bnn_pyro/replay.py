"""Work on a device without the host in between: a CUDA graph in place of a step's many launches, copies while it goes on.

A step of a small network is a few hundred operations of a few microseconds each, and to launch each takes as long. Compiled
together they are a few dozen, and recorded once, all of them go out as one launch. What is recorded works on tensors that
stay where they are, knows no sizes that depend on values, and asks for no number on the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from bnn_pyro.errors import warn
from bnn_pyro.inductor import compile_in_place, sentence, trace_in_place


def waits(device: torch.device) -> bool:
    """Whether the host waits for each operation there anyway, so that to ask for a value costs nothing."""
    return device.type == "cpu"


class Replay:
    """``function``, which takes nothing and changes tensors in place, as one launch; on a CPU, the function as it is.

    The first calls prepare that, and do what the function does. A function that makes the host wait cannot be recorded: it
    goes on as it is, with a warning.

    Args:
        fuses: Whether torch can trace through it: then its operations are compiled together first.
    """

    def __init__(self, function: Callable[[], object], device: torch.device, fuses: bool = False):
        self._function: Callable[[], object] | None = function
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._to_come: list[Callable[[], None]] = []
        if device.type == "cuda":
            # libraries set themselves up, and compiled code is tuned, in the call before the one that is recorded
            self._to_come = [*([self._compile] if fuses else [self._call]), self._try_out, self._record]

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self._to_come:
            prepare = self._to_come.pop(0)
            prepare()
        else:
            self._call()

    def _call(self) -> None:
        assert self._function is not None, "kept while there is no graph"
        self._function()

    def _compile(self) -> None:
        assert self._function is not None, "kept while there is no graph"
        traced = trace_in_place(self._function)
        try:
            self._function = compile_in_place(traced)
        except Exception as error:  # no compiler for the device, an operation without a lowering
            warn(
                f"{self._device}: operations are not compiled together, which is slower: inductor failed: {sentence(error)}."
            )

    def _try_out(self) -> None:
        """Looks for what cannot be recorded."""
        with self._aside():
            said = _watched(self._call)
        if said:
            self._to_come.clear()
            warn(f"{self._device}: operations are launched one by one, which is slower, since {said}.")

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            aside = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self._call()
        self._graph, self._function = graph, None  # whoever owns both need not wait for the garbage collector
        graph.replay()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream that is not the usual one, which may not be recorded."""
        with torch.cuda.device(self._device):
            here, aside = torch.cuda.current_stream(), _other_stream(self._device)
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                yield
            here.wait_stream(aside)


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _watched(function: Callable[[], object]) -> str:
    """Runs it; what torch says of the first operation that made the host wait, or ""."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    said = [str(w.message).strip().splitlines()[0] for w in caught if "synchroniz" in str(w.message)]
    return said[0].rstrip(".") if said else ""


class OnItsWay:
    """A copy of a device's tensor on the host, made while the device goes on to what it is told next."""

    def __init__(self, tensor: Tensor):
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._copy = tensor.cpu()
        else:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def take(self) -> Tensor:
        """The copy, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
