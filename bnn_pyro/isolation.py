"""Global state, borrowed and given back: generators, default dtype, parameter store, validation flags, warnings.

Pyro and torch keep much of their state in module globals. Every public call that runs a Pyro program does so inside
``isolated``, so that nothing a caller can observe is different afterwards, whether the call returned or raised.
"""

from __future__ import annotations

import hashlib
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pyro
import torch

from bnn_pyro.errors import OptionError
from bnn_pyro.threads import own_threads

_BACKENDS: Any = torch.backends
_PRECISIONS = (
    _BACKENDS.cuda.matmul,
    *(getattr(library, kind) for library in (_BACKENDS.cudnn, _BACKENDS.mkldnn) for kind in ("conv", "rnn")),
    _BACKENDS.mkldnn.matmul,
)
_LOCK = threading.RLock()  # the state below is per process, so one fit at a time may hold it


@contextmanager
def isolated(
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> Iterator[None]:
    """Runs the body with its own random state, default dtype and empty parameter store, and restores the caller's.

    Tensors are made on the CPU inside, whatever torch's default device, and gradients can be taken. Matrix products have the
    precision of their dtype, on any device: numbers of ten bits would bias what MCMC accepts.

    Pyro's and torch's argument checks are off inside: a density that is not finite is an answer, not an error, and
    ``vmap`` refuses checks that read tensor values. ``bnn_pyro.target`` makes its own, once, before work starts.

    Args:
        seed: Seeds torch, numpy and ``random`` inside; None leaves the inner state as the caller's.
        dtype: Default dtype inside, so that ``dist.Normal(0., 1.)`` in a program follows.
        threads: At most so many torch threads inside; None leaves them.
    """
    with _LOCK:
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        default_dtype = torch.get_default_dtype()
        torch_validates = torch.distributions.Distribution._validate_args  # Pyro restores its own flag only
        try:
            with (
                warnings.catch_warnings(),
                forked_generators(),
                _full_precision(),
                pyro.get_param_store().scope(),
                pyro.validation_enabled(False),
                torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(),
                on_cpu(),
                own_threads(threads),
            ):
                torch.set_default_dtype(dtype)
                if seed is not None:
                    reseed(seed)
                yield
        finally:
            torch.set_default_dtype(default_dtype)
            torch.distributions.Distribution.set_default_validate_args(torch_validates)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def generator_states() -> list[bytes]:
    """Where torch's generators stand: what has drawn from one has changed it."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    return [state.numpy().tobytes() for state in states]


def forked_generators() -> AbstractContextManager:
    """Gives torch's generators back as they were: the CPU's, and those of CUDA devices if this process uses any."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices, device_type="cuda")


@contextmanager
def _full_precision() -> Iterator[None]:
    """Neither bfloat16 nor TF32 in place of float32."""
    before = [setting.fp32_precision for setting in _PRECISIONS]
    try:
        for setting in _PRECISIONS:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(_PRECISIONS, before, strict=True):
            setting.fp32_precision = precision


def on_cpu() -> AbstractContextManager:
    """Inside it, tensors are made on the CPU, whatever torch's default device."""
    return torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext()


def made_on(device: torch.device) -> AbstractContextManager:
    """Inside it, what a program or a guide makes without saying where, such as the numbers of a prior, is on ``device``."""
    return nullcontext() if device.type == "cpu" else device


def program_on(program: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """``program``, run inside ``made_on(device)``."""
    if device.type == "cpu":
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        with made_on(device):
            return program(*args, **kwargs)

    return run


def reseed(seed: int) -> None:
    """Seeds the generators that ``isolated`` restores, and no others: torch.manual_seed would wake up every device."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 32-bit seed (all that numpy takes) from ``seed`` and the keys; other keys give an unrelated stream."""
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def check_seed(seed: int) -> None:
    """Raises: OptionError for a seed that is no whole number from 0 on."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise OptionError(f"seed: expected a whole number of at least 0, got {seed!r}. Pass an int, such as 0.")
