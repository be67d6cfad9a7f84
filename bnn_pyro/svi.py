"""SVI and MAP over a target and any guide: ELBO, gradient and Adam's update as one compiled step.

The guide is Pyro's or the user's; its parameters are those in Pyro's store. Pyro's own loop (``pyro_svi``)
runs what cannot be traced, and ``engine="pyro"``.
"""

from __future__ import annotations

import time
from typing import Any

import pyro
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation

from bnn_pyro.batching import gather_draws
from bnn_pyro.compiled import threads_for
from bnn_pyro.draws import Draws
from bnn_pyro.elbo_record import ElboRecord
from bnn_pyro.errors import OptionError, warn
from bnn_pyro.guide_draws import draw_guide
from bnn_pyro.guide_steps import compile_guide_step
from bnn_pyro.guides import MEAN_FIELD_GUIDES, begin_parameters, check_sites, float_observations, laplace, make_guide
from bnn_pyro.inference import MAP, SVI
from bnn_pyro.interrupts import watch_interrupts
from bnn_pyro.isolation import derive_seed, isolated, made_on, reseed
from bnn_pyro.minibatches import Batches
from bnn_pyro.pyro_svi import optimise_by_pyro
from bnn_pyro.target import Target
from bnn_pyro.training import optimise

# Learning rates where none is asked for. In the steps that are usual a mean-field guide reaches a higher ELBO by the larger
# one, a full-rank guide by the smaller: bnn-pyro fit MODEL --inference svi --set lr=0.02 (or 0.05) prints it.
MEAN_FIELD_LR, LR = 0.05, 0.02


def fit_guide(
    target: Target,
    method: SVI | MAP,
    own_guide: Any,
    seed: int,
    engine: str,
    backend: str,
    progress: bool = True,
    batches: Batches | None = None,
) -> Draws:
    """Fits the guide by Adam and draws from it: one chain of ``method.draws`` draws.

    ``stats`` has ``log_p`` and ``log_q``, unconstrained log densities up to the same constant, from which k-hat; of rows that
    come in ``batches``, of which the target has a sample, ``log_q`` alone.
    Raises: ModelError where the guide does not have the program's latent sites, or the ELBO is not finite; OptionError for
        options that Pyro's loop lacks, where it has to run, and for a guide that needs all rows where they come in batches.
    """
    began = time.perf_counter()
    where = f"{target.name}, guide"
    asked = "delta" if isinstance(method, MAP) else method.guide
    with isolated(derive_seed(seed, "svi"), target.dtype, threads=threads_for(target)), made_on(target.device):
        program = float_observations(target)
        begin_parameters(target)
        guide = make_guide(asked, own_guide, program, where, target.device)
        if batches is not None and isinstance(guide, AutoLaplaceApproximation):
            raise OptionError(
                f"{where}: expected one that takes rows in batches, got guide='laplace', whose Hessian is a sum over all rows. "
                "Use guide='multivariate' or 'lowrank', or pass arrays and inference='laplace'."
            )
        check_sites(target, guide, where)
        lr = method.lr or (MEAN_FIELD_LR if isinstance(guide, MEAN_FIELD_GUIDES) else LR)
        trained, reason = None, ""
        if engine != "pyro":
            trained, reason = compile_guide_step(target, guide, method, seed, backend, batches)
        if trained is None and reason:
            _check_pyro_can(target, method, reason)
            warn(f"{target.name}, {method.name}: {reason}. Pyro's own steps are taken, which are slower.")
        elif reason:
            warn(f"{target.name}, {method.name}: {reason}. Steps are taken by 'eager', which is slower.")
        compiled = time.perf_counter()
        with watch_interrupts() as interrupts:
            record = ElboRecord(f"{target.name}, {method.name}", method.steps, lr, method.name, progress)
            if trained is None:
                optimise_by_pyro(target, program, guide, method, lr, record, interrupts)
            else:
                optimise(trained, method, lr, record, interrupts, method.patience)
            record.close()
        if interrupts.pressed:
            if not record.count:
                raise KeyboardInterrupt
            warn(f"{target.name}, {method.name}: interrupted after {record.count} of {method.steps} steps.")
        backend = "pyro" if trained is None else trained.step.backend
        trained = None  # Adam's moments take twice the memory of the guide
        if isinstance(guide, AutoLaplaceApproximation):
            guide = laplace(guide, target, where)
        optimised = time.perf_counter()
        reseed(derive_seed(seed, "guide draws"))
        z, log_q = draw_guide(target, guide, method.draws)
        stats = {}
        if batches is None:  # with the program's own parameters as trained
            log_p = gather_draws(target.log_density, z).cpu().numpy()[None]
            stats = {"lp": log_p} if isinstance(guide, AutoDelta) else {"lp": log_p, "log_p": log_p}
        state = {name: value.detach().cpu().clone() for name, value in pyro.get_param_store().named_parameters()}
        params = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    if not isinstance(guide, AutoDelta):
        stats["log_q"] = log_q.cpu().numpy()[None]
    particles = 1 if isinstance(method, MAP) else method.particles
    info = {
        "gradient_evaluations": record.count * particles,
        "guide": type(guide).__name__,
        "lr": lr,
        "steps_taken": record.count,
        "backend": backend,
        "backend_reason": reason,
        "compile_time": compiled - began,
        "sampling_time": optimised - compiled,
    }
    return Draws(
        z.cpu()[None], stats=stats, history=record.history(), state=state, params=params, info=info,
        complete=not interrupts.pressed,
    )  # fmt: skip


def _check_pyro_can(target: Target, method: SVI | MAP, reason: str) -> None:
    """Raises: OptionError for what only compiled steps have."""
    for option in method.beyond_pyro():
        raise OptionError(
            f"{target.name}, {method.name}, {option}: expected steps that can be compiled, but {reason}. Leave {option} out."
        )
