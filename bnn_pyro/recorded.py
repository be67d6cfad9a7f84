"""Compiled code of a CPU as a list of calls, which C++ goes through without Python: what CUDA graphs are on a device.

What inductor makes for a CPU is a Python function that allocates tensors and calls kernels and matrix products. For a small
network Python takes as long as they do, and while it runs no other thread gets on. That function is run once, in a namespace
that notes down which kernel is called with which memory. All memory is kept, so that the calls can be made again, by any
thread. Code that does anything else, such as a convolution, is not recorded; nor is any whose calls don't give, bit for bit,
what the function gives.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule

from bnn_pyro import native
from bnn_pyro.threads import own_threads

SOURCE = Path(__file__).with_name("calls.cpp")
MOST = 128  # arguments of a call, as in calls.cpp
PRODUCTS = ("mm", "bmm")  # of torch's C interface: out, then two factors
# In names of operations that inductor leaves to torch on a CPU, of those that networks and their priors have.
EXTERNAL = ("convolution", "linalg", "cholesky", "triangular", "sort", "topk", "cumsum", "cumprod", "fft")


class NotRecordable(Exception):
    """The code does more than call kernels and products."""


class Call(ctypes.Structure):
    """Field by field as in ``calls.cpp``."""

    _fields_: ClassVar = [
        ("checked", ctypes.c_int64),
        ("function", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("arguments", ctypes.c_void_p),
    ]


class Recorded:
    """The calls of a function of one tensor.

    Attributes:
        argument: What it takes; to be filled in place.
        results: What it gives, once the calls have been made.
        calls: The address of the first of them, and ``count`` how many there are.
        bytes: Memory of its own: all that the function allocates, none of which is used twice.
    """

    def __init__(self, argument: Tensor, results: tuple[Tensor, ...], log: _Log):
        self.argument, self.results = argument, results
        self._arguments = [(ctypes.c_void_p * len(given))(*given) for _, _, given in log.calls]
        self._calls = (Call * len(log.calls))(
            *(
                Call(checked, function, len(given), ctypes.addressof(given))
                for (checked, function, _), given in zip(log.calls, self._arguments, strict=True)
            )
        )
        self._kept, self.bytes = log.kept, log.bytes
        self.calls, self.count = ctypes.addressof(self._calls), len(log.calls)

    def __call__(self) -> None:
        if failed := runner()(self.calls, self.count):
            raise RuntimeError(f"call {failed} of {self.count} of compiled code failed")


def record(code: Any, example: Tensor, *held: Tensor) -> Recorded | None:
    """The calls of ``code``, from inductor, for arguments like ``example`` and the tensors ``held``; None if that cannot be.

    On one thread, which is what they are to be made on.
    """
    if not can_record():
        return None
    try:
        with own_threads(1), torch.no_grad():
            argument, log = example.clone(), _Log()
            made = Recorded(argument, tuple(_run_noting(code.current_callable, [argument, *held], log)), log)
            for scale in (1.0, -0.7):
                argument.copy_(example * scale + 0.1)
                made()
                expected = code([argument.clone(), *held])
                for ours, its in zip(made.results, expected, strict=True):
                    if not torch.allclose(ours, its, rtol=0.0, atol=0.0, equal_nan=True):
                        return None
        return made
    except Exception:  # another torch makes its code another way, or has it do what is not recorded
        return None


def refuse_external(graph: GraphModule) -> None:
    """Raises: NotRecordable for operations that would be no kernels, so that nothing is compiled in vain."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(name in str(node.target) for name in EXTERNAL):
            raise NotRecordable


def can_record() -> bool:
    """Whether this machine has what makes the calls."""
    return native.load(SOURCE) is not None


def runner() -> Any:
    """The library's function that makes calls."""
    library = native.load(SOURCE)
    assert library is not None, "record asks first"
    function = library.run_calls
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64]
    return function


class _Log:
    """Calls as (checked, address, addresses given), and all that has to stay where it is."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, int, list[int]]] = []
        self.kept: list[Any] = []
        self.bytes = 0

    def note(self, checked: bool, function: Any, given: list[int], *kept: Any) -> None:
        if len(given) > MOST:
            raise NotRecordable
        self.calls.append((checked, ctypes.cast(function, ctypes.c_void_p).value or 0, given))
        self.kept += [function, *kept]


def _run_noting(call: Any, arguments: list[Tensor], log: _Log) -> list[Tensor]:
    """Runs inductor's method ``call`` in a namespace of its own."""
    function = call.__func__
    names = {name: _noting(name, value, log) for name, value in function.__globals__.items()}
    log.kept += arguments
    return list(FunctionType(function.__code__, names)(call.__self__, list(arguments)))


def _noting(name: str, value: Any, log: _Log) -> Any:
    if name == "extern_kernels":
        return _Products(value, log)
    if name == "empty_strided_cpu":
        return _keeping(value, log)
    if isinstance(getattr(value, "__self__", None), type(torch)) and value.__name__ == "kernel":
        return _kernel(value, log)
    return _Types() if value is torch or value is torch.ops.aten else value


def _keeping(make: Callable[..., Tensor], log: _Log) -> Callable[..., Tensor]:
    def empty(*args: Any) -> Tensor:
        made = make(*args)
        log.kept.append(made)
        log.bytes += made.untyped_storage().nbytes()
        return made

    return empty


def _kernel(function: Any, log: _Log) -> Callable[..., None]:
    library = ctypes.CDLL(function.__self__.__file__)
    address = getattr(library, function.__name__)

    def kernel(*args: Any) -> None:
        if not all(isinstance(arg, Tensor) for arg in args):  # sizes that are not fixed
            raise NotRecordable
        log.note(False, address, [arg.data_ptr() for arg in args], library, args)
        function(*args)

    return kernel


class _Products:
    """In place of torch's operations that write to a tensor that they are given."""

    def __init__(self, real: Any, log: _Log):
        self._real, self._log = real, log

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in PRODUCTS:
            raise NotRecordable
        address = getattr(_torch_library(), f"aoti_torch_cpu_{name}_out")

        def product(one: Tensor, other: Tensor, *, out: Tensor) -> Any:
            handles = [_Handle(tensor) for tensor in (out, one, other)]
            self._log.note(True, address, [handle.address for handle in handles], handles)
            return getattr(self._real, name)(one, other, out=out)

        return product


class _Types:
    """In place of ``torch``: its dtypes, and no operations."""

    def __getattr__(self, name: str) -> torch.dtype:
        value = getattr(torch, name)
        if not isinstance(value, torch.dtype):
            raise NotRecordable
        return value


def _torch_library() -> ctypes.CDLL:
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / name))


_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Handle:
    """A C++ tensor that stands for one of Python's, for as long as this lives."""

    def __init__(self, tensor: Tensor):
        aoti: Any = torch._C._aoti
        (capsule,) = aoti.unsafe_alloc_void_ptrs_from_tensors([tensor])
        self.address: int = _capsule_pointer(capsule, _capsule_name(capsule))
        delete = _torch_library().aoti_torch_delete_tensor_object
        delete.argtypes = [ctypes.c_void_p]
        weakref.finalize(self, delete, self.address).atexit = False
