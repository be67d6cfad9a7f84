"""Many rows in float32: energies and acceptance are those of float64, since log densities are summed in float64.

Logistic regression on N rows has a log likelihood of about -N / 2, of which float32 holds the last 1/16 at N = 1e6 (and a
sum loses more on the way), while a sampler needs differences to a hundredth or so.
"""

from functools import cache

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

import bnn_pyro as bnn
from bnn_pyro.compiled import compile_gradient, threads_for
from bnn_pyro.inference import HMC, Adaptation
from bnn_pyro.inference.metric import Metric, leapfrog
from bnn_pyro.interrupts import Interrupts
from bnn_pyro.isolation import isolated
from bnn_pyro.recording import Recording
from bnn_pyro.sampling import run
from bnn_pyro.structure import build_target

INPUTS, CHAINS = 5, 4
STEPS, STEP = (
    8,
    0.6,
)  # of a trajectory, in units of the posterior's sd: most of an orbit, with an energy error to be seen
BOUND = 1e-3  # nats
FLOATS = (torch.float32, torch.float64)


@cache
def rows(n):
    """x (n, INPUTS) and labels y (n,), float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, INPUTS)).astype(np.float32).astype(np.float64)  # the same numbers in either precision
    p = 1 / (1 + np.exp(-(x @ np.linspace(-1, 1, INPUTS) - 0.5)))
    return x, (rng.random(n) < p).astype(np.float64)


@cache
def mode(n):
    """The posterior's mode (dim,) by Newton's method, and the inverse (dim, dim) of the curvature there."""
    x, y = rows(n)
    z, one = np.zeros(INPUTS + 1), np.c_[x, np.ones(n)]
    for _ in range(12):
        p = 1 / (1 + np.exp(-one @ z))
        covariance = np.linalg.inv((one * (p * (1 - p))[:, None]).T @ one + np.eye(INPUTS + 1))
        z = z + covariance @ (one.T @ (y - p) - z)
    return torch.tensor(z), torch.tensor(covariance)


def made(n, dtype, backend):
    x, y = (torch.tensor(a).to(dtype) for a in rows(n))
    with isolated(seed=0, dtype=dtype):
        target = build_target(bnn.get_model("logistic").model, x, y, name="logistic", dtype=dtype)
    with isolated(seed=0, dtype=dtype, threads=threads_for(target)):
        gradient = compile_gradient(target, torch.randn(2, target.dim) * 0.5, backend)
    return target, gradient


def starts(n, chains=CHAINS):
    """Points about the mode (chains, dim), as far off as draws of the posterior, and standard normal momenta; float32."""
    z, covariance = mode(n)
    noise = np.random.default_rng(1).normal(size=(2, chains, len(z)))
    position = z + torch.tensor(noise[0]) @ torch.linalg.cholesky(covariance).T
    return position.float(), torch.tensor(noise[1]).float()


def plain(target):
    """The log density (chains,) with the terms of rows added up in the target's own precision."""

    def at(z):
        with torch.no_grad():
            results = [target.evaluate(one) for one in z]
        return torch.stack([(r.log_prior.to(z.dtype) + r.log_likelihood["y"].sum()).double() for r in results])

    return at


def energy_changes(n, backend):
    """Change of energy (chains,) along the same trajectory: in float32, in float64, and in float32 with plain sums."""
    changes = []
    for dtype in FLOATS:
        target, gradient = made(n, dtype, backend)
        metric = Metric(mode(n)[1].diagonal().to(dtype))
        position, noise = (t.to(dtype) for t in starts(n))
        momentum, step = metric.momentum(noise), torch.full((CHAINS,), STEP, dtype=torch.float64)
        with isolated(dtype=dtype, threads=threads_for(target)), torch.no_grad():
            (grad, before), plain_before = gradient(position), plain(target)(position)
            kinetic_before = metric.kinetic(momentum)
            for _ in range(STEPS):
                position, grad, momentum, after = leapfrog(position, momentum, grad, step, metric, gradient)
            kinetic = metric.kinetic(momentum) - kinetic_before
            changes.append(kinetic - (after - before))
            if dtype == torch.float32:
                plainly = kinetic - (plain(target)(position) - plain_before)
    return *changes, plainly


@pytest.mark.parametrize(
    ("n", "backend"),
    [
        (1_000, "eager"),
        (10_000, "eager"),
        pytest.param(100_000, "auto", marks=pytest.mark.slow),
        pytest.param(1_000_000, "auto", marks=pytest.mark.slow),
    ],
)
def test_the_energy_of_a_trajectory_is_float64s(n, backend):
    single, double, plainly = energy_changes(n, backend)
    assert double.abs().max() > 10 * BOUND, "a trajectory whose energy error is plain to see"
    assert (single - double).abs().max() <= BOUND
    if n >= 1_000_000:  # what sums in float32 would do
        assert (plainly - double).abs().max() > 10 * BOUND


@pytest.mark.slow
def test_a_million_rows_are_sampled_in_float32_as_in_float64():
    n = 1_000_000
    position, _ = starts(n)
    length = torch.tensor(np.pi / 2, dtype=torch.float64)
    given = Adaptation(torch.tensor([1.2], dtype=torch.float64), mode(n)[1].diagonal(), length)
    method = HMC(chains=CHAINS, warmup=0, draws=100, adaptation=given)
    rate, sd, centre = {}, {}, {}
    for dtype in FLOATS:
        target, gradient = made(n, dtype, "auto")
        with isolated(dtype=dtype, threads=threads_for(target)), tqdm(disable=True) as bar:
            recording = Recording(method, target.dim, dtype, Interrupts(), bar)
            run(gradient, position.to(dtype), method, 3, recording)
        z = recording.positions().double().reshape(-1, target.dim)
        rate[dtype], sd[dtype], centre[dtype] = recording.stats()["acceptance_rate"].mean(), z.std(0), z.mean(0)
    assert 0.6 < rate[torch.float64] < 0.97, "steps large enough for an acceptance that could change"
    assert abs(rate[torch.float32] - rate[torch.float64]) <= 0.02
    ratio = sd[torch.float32] / sd[torch.float64]
    assert ((ratio >= 0.95) & (ratio <= 1.05)).all(), ratio
    exact = mode(n)[1].diagonal().sqrt()
    for dtype in FLOATS:  # with a million rows the posterior is normal, so what both should be is known, too
        assert ((sd[dtype] / exact - 1).abs() < 0.2).all() and ((centre[dtype] - mode(n)[0]).abs() < 0.4 * exact).all()
