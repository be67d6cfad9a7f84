"""One fit on several devices: chains or members are divided among processes, each with a device of its own.

The processes are joblib's: of this machine, or of a cluster inside ``joblib.parallel_config("dask")``. Each adapts on its own
chains. What comes back is joined along the chains.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnn_pyro.data import Data
from bnn_pyro.devices import find_device
from bnn_pyro.dispatch import infer
from bnn_pyro.draws import Draws
from bnn_pyro.errors import ModelError, OptionError, warn
from bnn_pyro.inference import MCMC, ChEES, Ensemble, Method
from bnn_pyro.interrupts import stopped_by, watch_interrupts
from bnn_pyro.isolation import derive_seed
from bnn_pyro.model import Model
from bnn_pyro.rows_to_target import make_target
from bnn_pyro.units import Units

_TOTALS = ("gradient_evaluations", "divergences")
_LEAST = ("e_bfmi", "steps_taken")
_MOST = ("compile_time", "start_time", "sampling_time")


@dataclass(frozen=True)
class Asked:
    """What every part of a fit has in common."""

    bnn: Model
    data: Data
    units: Units
    dtype: torch.dtype
    engine: str
    backend: str


@dataclass(frozen=True)
class Part:
    """What a process is to do.

    Attributes:
        stop: A file; once it is there, the part ends with what it has.
        home: The process that asked.
    """

    device: str
    method: Method
    seed: int
    progress: bool
    stop: Path
    home: int


def divide(method: Method, devices: int, where: str) -> list[Method]:
    """The settings of each part. Raises: OptionError for a method that cannot be divided, or too few chains or members."""
    if not isinstance(method, MCMC | Ensemble):
        raise OptionError(
            f"{where}, device: expected one for {method.name}, which has no chains or members, got {devices}. Name one."
        )
    what = "members" if isinstance(method, Ensemble) else "chains"
    total = getattr(method, what)
    least = devices * (2 if isinstance(method, ChEES) and method.warmup else 1)
    if total < least:
        raise OptionError(f"{where}, {what}: expected at least {least} for {devices} devices, got {total}. Name fewer.")
    bounds = [total * k // devices for k in range(devices + 1)]
    return [_cut(method, what, begin, end) for begin, end in pairwise(bounds)]


def _cut(method: Method, what: str, begin: int, end: int) -> Method:
    own: dict[str, Any] = {what: end - begin}
    if isinstance(method, MCMC) and method.adaptation is not None:
        step_size, position = method.adaptation.step_size, method.adaptation.position
        position = None if position is None or len(position) <= begin else position[begin:end]
        step_size = step_size if len(step_size) == 1 else step_size[begin:end]
        own["adaptation"] = method.adaptation._replace(step_size=step_size, position=position)
    return replace(method, **own)


def infer_in_parts(asked: Asked, method: Method, devices: Sequence[str], seed: int, progress: bool) -> Draws:
    """Draws by ``method``, divided among ``devices``, in memory; only the first part shows a bar.

    An interrupt ends all parts that see this process's temporary files with the draws that they have.
    Raises: ModelError for a model that cannot be sent to another process; OptionError where a process dies; what a part raises.
    """
    import joblib

    _check_sent(asked.bnn)
    methods = divide(method, len(devices), asked.bnn.name)
    with tempfile.TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"
        parts = [
            Part(device, own, derive_seed(seed, "part", k), progress and k == 0, stop, os.getpid())
            for k, (device, own) in enumerate(zip(devices, methods, strict=True))
        ]
        with watch_interrupts(then=stop.touch):
            # tensors over rows that are mapped from a file read-only would warn
            run = joblib.Parallel(n_jobs=len(parts), batch_size=1, max_nbytes=None)
            try:
                answers = run(joblib.delayed(carry_out)(asked, part) for part in parts)
            except BrokenExecutor as error:
                raise OptionError(
                    f"{asked.bnn.name}, device: expected {len(parts)} processes to end their parts, got one that the system "
                    "ended, as it does when memory runs out. Name fewer devices."
                ) from error
    for text in dict.fromkeys(text for _, said in answers for text in said):
        warn(text)
    draws = join([draws for draws, _ in answers])
    draws.info |= {"device": ",".join(devices), "parts": len(devices)}
    return draws


def carry_out(asked: Asked, part: Part) -> tuple[Draws, list[str]]:
    """The draws of a part, and what it warned of. Runs in a process of its own, or in a thread of a cluster's worker."""
    if os.getpid() != part.home and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes, and the file is there
    device = find_device(part.device)
    assert device is not None, "checked by device_names"
    with stopped_by(part.stop), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bnn = asked.bnn.fresh()
        target = make_target(bnn, asked.data, asked.units, asked.dtype, device)
        draws = infer(target, part.method, bnn, part.seed, asked.engine, asked.backend, part.progress)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the process waits for more work for some minutes
    return draws, [str(w.message) for w in caught]


def join(drawn: Sequence[Draws]) -> Draws:
    """All chains, as far as every part has drawn; a mass matrix for each part."""
    kept = min(draws.z.shape[1] for draws in drawn)
    sizes = [len(draws.z) for draws in drawn]
    return Draws(
        torch.cat([draws.z[:, :kept] for draws in drawn]),
        stats={name: np.concatenate([draws.stats[name][:, :kept] for draws in drawn]) for name in drawn[0].stats},
        history={name: _mean([draws.history[name] for draws in drawn], sizes) for name in drawn[0].history},
        state={
            name: (torch.cat if name == "step_size" else torch.stack)([draws.state[name] for draws in drawn])
            for name in drawn[0].state
        },
        info={name: _one(name, [draws.info[name] for draws in drawn]) for name in drawn[0].info},
        complete=all(draws.complete for draws in drawn),
    )


def _mean(traces: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Over all members, of the steps that every part has taken."""
    steps = min(map(len, traces))
    return np.average([trace[:steps] for trace in traces], axis=0, weights=sizes)


def _one(name: str, values: list[Any]) -> Any:
    if name in _TOTALS:
        return sum(values)
    if name in _LEAST:
        return min(values)
    if name in _MOST:
        return max(values)
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else ", ".join(map(str, different))


def _check_sent(bnn: Model) -> None:
    from joblib.externals.loky.backend.reduction import dumps

    try:
        dumps(bnn)
    except Exception as error:  # whatever an object of the user's raises when it is copied
        raise ModelError(
            f"{bnn.name}, device: expected a model that can be sent to another process, got {type(error).__name__}: {error}. "
            "Keep files, locks and generators out of it, or name one device."
        ) from error
