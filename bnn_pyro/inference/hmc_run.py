"""HMC and ChEES-HMC from starts to draws: all chains take the same number of leapfrog steps at a time.

The length of iteration i is 2 h_i times the trajectory length T, with h_i the Halton sequence in base 2: spread evenly over
(0, 2 T), so that no periodic orbit is hit each time. ChEES climbs

    ChEES(T) = E[(|z' - E z'|^2 - |z - E z|^2)^2] / 4

by Adam on log T, with distances in units of the metric, from all chains of an iteration weighed by their acceptance.
Source: Hoffman, Radul & Sountsov 2021, AISTATS 130, sections 3 and 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_pyro.inference.adaptation import Moments, first_settings, stretch, windows
from bnn_pyro.inference.hmc import HMC, ChEES
from bnn_pyro.inference.mcmc import Adaptation, Recorder
from bnn_pyro.inference.metric import DIVERGENCE, GradientCall, Metric, dot, leapfrog, log_acceptance
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.step_sizes import SharedStep
from bnn_pyro.noise import Noise


class Info(NamedTuple):
    """Of one iteration, named as in ArviZ's sample_stats; each (chains,)."""

    lp: Tensor
    energy: Tensor
    diverging: Tensor
    n_steps: Tensor
    acceptance_rate: Tensor
    step_size: Tensor


class Trajectory(NamedTuple):
    """What one iteration did: where it started, proposed to go, and how fast it was there."""

    start: Tensor  # (c, dim)
    proposal: Tensor
    velocity: Tensor
    acceptance_rate: Tensor  # (c,)

    def of(self, chains: Tensor) -> Trajectory:
        """That of the chains where ``chains`` (c,) is True."""
        return self if chains.all() else Trajectory(*(values[chains] for values in self))


def run_hmc(gradient: GradientCall, position: Tensor, method: HMC | ChEES, seed: int, recorder: Recorder) -> Adaptation:
    """Runs ``method.transitions`` of every chain into ``recorder``; what warmup learnt. Arguments as in ``run_nuts``."""
    chains, dim = position.shape
    device = position.device
    everyone = torch.arange(chains, device=device)
    uniforms = Uniforms(Noise(seed, method.name, device), everyone)
    momenta = Momenta(Noise(seed, "momentum", device), everyone, dim, position.dtype)
    metric, step_sizes = first_settings(gradient, position, method, seed)
    step_size = step_sizes.median()
    length = _first_length(method, step_size)
    averaging = SharedStep(step_size, method.target_accept)
    lengths = LengthAdaptation(length) if isinstance(method, ChEES) else None
    moments = Moments(chains, dim, method.dense_mass, device)
    usual = torch.ones_like(everyone, dtype=torch.bool)
    schedule = windows(method.warmup)
    state = State(position, *gradient(position))
    for i in range(method.transitions):
        if recorder.should_stop():
            break
        adapting = i < method.warmup
        trajectory_length = lengths.length if lengths else length
        time = 2 * halton(i) * float(trajectory_length)
        steps = min(max(math.ceil(time / float(step_size)), 1), method.max_steps)
        numbers = torch.full_like(everyone, i)
        momentum = metric.momentum(momenta.take(everyone, numbers))
        uniform = uniforms.next()[:, 0]
        state, info, trajectory = transition(state, momentum, uniform, step_size, steps, metric, gradient)
        recorder.record(everyone, numbers, state.position, info)
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
            before, metric = metric, moments.metric(position.dtype)
            averaging.restart(averaging.average * stretch(before, metric))
            step_size = averaging.step_size
            if lengths is not None and i + 1 == schedule.ends[0]:
                lengths = LengthAdaptation(torch.ones(()))  # about right where the posterior has unit spread
        if i + 1 == method.warmup:
            step_size = averaging.average
            if lengths is not None:
                lengths.finish()
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


class State(NamedTuple):
    """Of all chains: position and gradient (c, dim), log density (c,) float64."""

    position: Tensor
    grad: Tensor
    log_density: Tensor


def transition(
    state: State,
    momentum: Tensor,
    uniform: Tensor,
    step_size: Tensor,
    steps: int,
    metric: Metric,
    gradient: GradientCall,
) -> tuple[State, Info, Trajectory]:
    """One iteration: ``steps`` leapfrog steps from fresh momenta (c, dim), then accept or stay."""
    position, grad, log_density = state
    energy = metric.kinetic(momentum) - log_density
    step = step_size.expand(len(position))
    for _ in range(steps):
        position, grad, momentum, log_density = leapfrog(position, momentum, grad, step, metric, gradient)
    log_ratio = log_acceptance(energy, metric.kinetic(momentum) - log_density)
    rate = log_ratio.clamp(max=0.0).exp()
    accepted = uniform < rate
    new = State(
        torch.where(accepted[:, None], position, state.position),
        torch.where(accepted[:, None], grad, state.grad),
        torch.where(accepted, log_density, state.log_density),
    )
    info = Info(
        lp=new.log_density,
        energy=energy,
        diverging=log_ratio <= -DIVERGENCE,
        n_steps=torch.full_like(accepted, steps, dtype=torch.int64),
        acceptance_rate=rate,
        step_size=step,
    )
    return new, info, Trajectory(state.position, position, metric.velocity(momentum), rate)


class LengthAdaptation:
    """The trajectory length by Adam on its logarithm; the mean of the later iterations is kept."""

    def __init__(self, length: Tensor, lr: float = 0.025, decay: float = 0.95):
        self.log_length = length.double().log()
        self.lr, self.decay = lr, decay
        self._square, self._count = torch.zeros((), dtype=torch.float64), 0
        self._average = self.log_length.clone()

    @property
    def length(self) -> Tensor:
        return self.log_length.exp()

    def update(self, trajectory: Trajectory, metric: Metric, time: float, step_size: float, max_steps: int) -> None:
        """Follows the gradient of ChEES in log T, from trajectories that took ``time``; between 1 and ``max_steps`` steps."""
        rate = trajectory.acceptance_rate
        finite = torch.isfinite(trajectory.proposal).all(1) & torch.isfinite(trajectory.velocity).all(1)
        rate = torch.where(finite, rate, 0.0)
        if not rate.sum() > 0:
            return
        weight = (rate / rate.sum())[:, None]
        proposal = torch.where(finite[:, None], trajectory.proposal, trajectory.start)
        velocity = torch.where(finite[:, None], trajectory.velocity, 0.0)
        before = metric.whiten(trajectory.start - trajectory.start.mean(0))
        after = metric.whiten(proposal - (weight * proposal).sum(0).to(proposal.dtype))
        change = dot(after, after) - dot(before, before)
        slope = float((weight[:, 0] * change * dot(after, metric.whiten(velocity))).sum()) * time
        self._count += 1
        self._square = self.decay * self._square + (1 - self.decay) * slope**2
        scaled = slope / (float(self._square / (1 - self.decay**self._count)) ** 0.5 + 1e-20)
        self.log_length = self.log_length + self.lr * scaled
        self.log_length = self.log_length.clamp(math.log(step_size), math.log(step_size * max(max_steps / 2, 1.0)))
        keep = self._count**-0.5
        self._average = keep * self.log_length + (1 - keep) * self._average

    def finish(self) -> None:
        self.log_length = self._average


def halton(i: int) -> float:
    """The (i+1)-th number of the Halton sequence in base 2: 1/2, 1/4, 3/4, 1/8, ..."""
    i, result, part = i + 1, 0.0, 0.5
    while i:
        result += part * (i & 1)
        i >>= 1
        part /= 2
    return result
