"""MCMC over a target with all chains at once (``engine="compiled"``): compiles the gradient, finds starts, runs, keeps."""

from __future__ import annotations

import time
from typing import Any

import torch
from tqdm.auto import tqdm

from bnn_pyro import native, recorded
from bnn_pyro.compiled import Gradient, compile_for_groups, compile_gradient, threads_for, warn_of_backend
from bnn_pyro.devices import chains_at_once, memory_of
from bnn_pyro.draws import Draws
from bnn_pyro.errors import warn
from bnn_pyro.inference import HMC, MCMC, NUTS, ChEES, native_leapfrogs, native_trees
from bnn_pyro.inference.groups import shares
from bnn_pyro.inference.hmc_run import run_hmc
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.native_trees import tree_kind
from bnn_pyro.inference.nuts_run import run_nuts
from bnn_pyro.interrupts import watch_interrupts
from bnn_pyro.isolation import derive_seed, isolated
from bnn_pyro.recording import Recording
from bnn_pyro.starts import starting_points
from bnn_pyro.target import Target
from bnn_pyro.watching import Watch


def sample(target: Target, method: MCMC, seed: int, backend: str = "auto", progress: bool = True) -> Draws:
    """Draws of ``method``. On one backend, chain i depends on (seed, i, what warmup learnt) only.

    An interrupt ends the run with the draws that all chains have, and ``complete`` is False.
    Raises: KeyboardInterrupt if it comes before there is one.
    """
    began, on_cpu, allowed = time.perf_counter(), target.device.type == "cpu", torch.get_num_threads()
    with transitions_bar(method, progress) as bar:
        bar.set_description("compiling")
        if on_cpu:
            for source in (
                recorded.SOURCE,
                native_trees.SOURCE if isinstance(method, NUTS) else native_leapfrogs.SOURCE,
            ):
                native.begin(source)  # while other work goes on
        with isolated(derive_seed(seed, "check"), target.dtype, threads=threads_for(target)):
            points = torch.randn(3, target.dim, dtype=target.dtype, device=target.device) * 0.5
            block = None if on_cpu else chains_at_once(target, points[0], method, memory_of(target.device))
            compile_ = compile_for_groups if on_cpu else compile_gradient
            gradient = compile_(target, points, backend, block=block, chains=type(method).chains)
        info: dict[str, Any] = {"backend": gradient.backend, "backend_reason": gradient.reason}
        if isinstance(method, NUTS):
            info["trees"], info["trees_reason"] = tree_kind(target.device, target.dtype)
            # beside a slow gradient, trees matter little
            if on_cpu and info["trees_reason"] and not gradient.reason:
                warn(f"{target.name}: {info['trees_reason']}. NUTS's trees are made by torch, which is slower.")
        elif gradient.groups and (reason := native.reason(native_leapfrogs.SOURCE)):
            warn(f"{target.name}: {reason}. Trajectories are made by torch, which is slower.")
        warn_of_backend(gradient, target.name)
        compiled = time.perf_counter()
        bar.set_description("starts")
        given = method.adaptation.position if method.adaptation is not None else None
        starts = starting_points(target, gradient, method.init, seed, method.chains, given)
        if given is not None:  # not the noise that led there
            seed = derive_seed(seed, "onward", given[0].cpu().numpy().tobytes().hex())
        started = time.perf_counter()
        info["chain_groups"] = len(shares(gradient, starts, allowed))
        # torch's other threads, once they have worked, keep a processor busy for a while, waiting for more
        torch_threads = 1 if gradient.groups else gradient.threads
        with watch_interrupts() as interrupts, isolated(dtype=target.dtype, threads=torch_threads):
            recording = Recording(method, target.dim, target.dtype, interrupts, bar, Watch(target))
            adaptation = run(gradient, starts, method, seed, recording, allowed)
        recording.close()
    if not recording.kept:
        raise KeyboardInterrupt
    if not recording.complete:
        warn(
            f"{target.name}, {method.name}: interrupted, so {recording.kept} of {method.draws} draws of each chain are kept."
        )
    now = time.perf_counter()
    learnt = adaptation._replace(position=None)._asdict()
    state = {name: value.cpu() for name, value in learnt.items() if value is not None}
    info |= {
        "gradient_evaluations": recording.gradients,
        **recording.facts(),
        "compile_time": compiled - began,
        "start_time": started - compiled,
        "sampling_time": now - started,
    }
    return Draws(recording.positions(), stats=recording.stats(), state=state, info=info, complete=recording.complete)


def run(
    gradient: Gradient, starts: torch.Tensor, method: MCMC, seed: int, recorder: Recorder, threads: int = 1
) -> Adaptation:
    """All transitions of all chains into ``recorder``; what warmup learnt."""
    with torch.no_grad():
        if isinstance(method, NUTS):
            return run_nuts(gradient, starts, method, seed, recorder, threads)
        assert isinstance(method, HMC | ChEES), "make_method knows no other"
        return run_hmc(gradient, starts, method, seed, recorder, threads)


def transitions_bar(method: MCMC, progress: bool) -> tqdm:
    """A progress bar over the transitions of all chains, on a terminal only; one that shows nothing without ``progress``."""
    return tqdm(total=method.chains * method.transitions, disable=None if progress else True, unit="it")
