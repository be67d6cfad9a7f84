"""HMC and ChEES-HMC from starts to draws: all chains take the same number of leapfrog steps at a time.

The length of iteration i is 2 h_i times the trajectory length T, with h_i the Halton sequence in base 2: spread evenly over
(0, 2 T), so that no periodic orbit is hit each time. ``lengths`` learns T. On a device a leapfrog step is one launch, and
what an iteration did comes to the host while the next one is under way.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnn_pyro import replay
from bnn_pyro.inference.adaptation import Moments, first_settings, stretch, windows
from bnn_pyro.inference.figures import stacked, unstacked
from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.leapfrogs import Leapfrogs, State
from bnn_pyro.inference.lengths import LengthAdaptation, Trajectory, halton
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import DIVERGENCE, GradientCall, log_acceptance
from bnn_pyro.inference.native_leapfrogs import make_leapfrogs
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import SharedStep
from bnn_pyro.noise import Noise
from bnn_pyro.replay import OnItsWay


class Info(NamedTuple):
    """Of one iteration, named as in ArviZ's sample_stats; each (chains,)."""

    lp: Tensor
    energy: Tensor
    diverging: Tensor
    n_steps: Tensor
    acceptance_rate: Tensor
    step_size: Tensor


def run_hmc(
    gradient: GradientCall,
    position: Tensor,
    method: HMC | ChEES,
    seed: int,
    recorder: Recorder,
    threads: int = 1,
) -> Adaptation:
    """Runs ``method.transitions`` of every chain into ``recorder``; what warmup learnt. Arguments as in ``run_nuts``."""
    metric, step_sizes = first_settings(gradient, position, method, seed)
    with closing(make_leapfrogs(metric, gradient, position, threads)) as leapfrogs:
        return _run(leapfrogs, position, step_sizes.median(), method, seed, recorder)


def _run(
    leapfrogs: Leapfrogs, position: Tensor, step_size: Tensor, method: HMC | ChEES, seed: int, recorder: Recorder
) -> Adaptation:
    chains, dim = position.shape
    device, metric = position.device, leapfrogs.metric
    everyone = torch.arange(chains, device=device)
    uniforms = Uniforms(Noise(seed, method.name, device), everyone)
    momenta = Momenta(Noise(seed, "momentum", device), everyone, dim, position.dtype)
    length = _first_length(method, step_size)
    averaging = SharedStep(step_size, method.target_accept)
    lengths = LengthAdaptation(length) if isinstance(method, ChEES) else None
    moments = Moments(chains, dim, method.dense_mass, device)
    usual = torch.ones_like(everyone, dtype=torch.bool)
    schedule = windows(method.warmup)
    state = State(position, *leapfrogs.gradient(position))
    reports = Reports(recorder, chains)
    for i in range(method.transitions):
        if recorder.should_stop():
            break
        adapting = i < method.warmup
        if i <= method.warmup:  # which makes the host wait for a device
            known = float(lengths.length if lengths else length), float(step_size)
        time = 2 * halton(i) * known[0]
        steps = min(max(math.ceil(time / known[1]), 1), method.max_steps)
        momenta.ready(np.full(chains, i))
        momentum = metric.momentum(momenta.take_all(torch.full_like(everyone, i)))
        uniforms.ready(1)
        uniform = uniforms.next()[:, 0]
        state, info, trajectory = transition(state, momentum, uniform, step_size, steps, leapfrogs)
        reports.add(i, state.position, info)
        if not adapting:
            continue
        rate = trajectory.acceptance_rate
        averaging.update(1 / (1 / rate.clamp(min=1e-10)).mean())
        step_size = averaging.step_size
        if lengths is not None:
            lengths.update(trajectory.of(usual), metric, time, float(averaging.average), method.max_steps)
        if schedule.begin <= i < (schedule.ends[-1] if schedule.ends else 0):
            moments.update(everyone, state.position)
        if i + 1 in schedule.ends:
            usual = moments.usual()
            learnt = moments.metric(position.dtype)
            averaging.restart(averaging.average * stretch(metric, learnt))
            metric.become(learnt)
            step_size = averaging.step_size
            if lengths is not None and i + 1 == schedule.ends[0]:
                lengths = LengthAdaptation(torch.ones(()))  # about right where the posterior has unit spread
        if i + 1 == method.warmup:
            step_size = averaging.average
            if lengths is not None:
                lengths.finish()
    reports.flush()
    return Adaptation(
        step_size[None], metric.inverse_mass_matrix.double(), lengths.length if lengths is not None else length
    )


def _first_length(method: HMC | ChEES, step_size: Tensor) -> Tensor:
    """What was asked for, else what was learnt before, else a quarter turn; where it is to be learnt, a step."""
    if isinstance(method, HMC) and method.trajectory_length is not None:
        return torch.tensor(method.trajectory_length, dtype=torch.float64)
    if method.adaptation is not None and method.adaptation.trajectory_length is not None:
        return method.adaptation.trajectory_length
    return torch.tensor(math.pi / 2, dtype=torch.float64) if isinstance(method, HMC) else step_size


def transition(
    state: State,
    momentum: Tensor,
    uniform: Tensor,
    step_size: Tensor,
    steps: int,
    leapfrogs: Leapfrogs,
) -> tuple[State, Info, Trajectory]:
    """One iteration: ``steps`` leapfrog steps from fresh momenta (c, dim), then accept or stay."""
    metric = leapfrogs.metric
    energy = metric.kinetic(momentum) - state.log_density
    step = step_size.expand(len(momentum))
    end, momentum = leapfrogs(state, momentum, step, steps)
    log_ratio = log_acceptance(energy, metric.kinetic(momentum) - end.log_density)
    rate = log_ratio.clamp(max=0.0).exp()
    accepted = uniform < rate
    new = State(
        torch.where(accepted[:, None], end.position, state.position),
        torch.where(accepted[:, None], end.grad, state.grad),
        torch.where(accepted, end.log_density, state.log_density),
    )
    info = Info(
        lp=new.log_density,
        energy=energy,
        diverging=log_ratio <= -DIVERGENCE,
        n_steps=torch.full_like(accepted, steps, dtype=torch.int64),
        acceptance_rate=rate,
        step_size=step,
    )
    return new, info, Trajectory(state.position, end.position, metric.velocity(momentum), rate)


class Reports:
    """Hands iterations to the recorder: those of a device when they have come to the host, while the next is under way."""

    def __init__(self, recorder: Recorder, chains: int):
        self._recorder, self._chains = recorder, torch.arange(chains)
        self._last: tuple[int, OnItsWay, OnItsWay] | None = None

    def add(self, number: int, position: Tensor, info: Info) -> None:
        """Of iteration ``number``: positions (c, dim) and statistics (c,)."""
        self.flush()
        self._last = number, OnItsWay(position), OnItsWay(stacked(info))
        if replay.waits(position.device):
            self.flush()

    def flush(self) -> None:
        """Hands over what has been added."""
        if self._last is not None:
            number, position, figures = self._last
            numbers = torch.full_like(self._chains, number)
            self._recorder.record(self._chains, numbers, position.take(), unstacked(Info, figures.take()))
        self._last = None
