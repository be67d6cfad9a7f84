"""Step sizes by themselves: the first guess, dual averaging, the one that all chains share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from batched_targets import F64, TARGETS, normals

from bnn_pyro.inference.metric import Metric, leapfrog, log_acceptance
from bnn_pyro.inference.step_sizes import DualAveraging, SharedStep, first_step_size
from bnn_pyro.noise import Noise


@pytest.mark.parametrize("target", [0.6, 0.8, 0.95])
def test_dual_averaging_reaches_its_target_in_every_chain(target):
    """Chain i accepts at a rate exp(-scale_i e) with noise: its answer is -log(target) / scale_i."""
    scale = torch.logspace(-3, 3, 8, dtype=F64)
    averaging = DualAveraging(torch.full((8,), 0.1, dtype=F64), target)
    for noise in normals(4000, 8, seed=1):
        rate = (-scale * averaging.step_size).exp()
        averaging.update((rate + 0.05 * noise).clamp(0, 1))
    assert ((-scale * averaging.average).exp() - target).abs().max() < 0.02


def test_dual_averaging_follows_its_published_recursion_by_chain():
    """Hoffman & Gelman 2014, equation 6, in sums instead of running means; chains take part as they come."""
    start, target = torch.tensor([0.1, 2.0, 0.5], dtype=F64), 0.7
    averaging = DualAveraging(start, target)
    rates = torch.rand(40, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    takes_part = [torch.arange(3) <= i % 3 for i in range(40)]  # chain 2 every third time
    for rate, mask in zip(rates, takes_part):
        averaging.update(rate.where(mask, torch.nan), mask)
    for chain in range(3):
        seen = [float(rate[chain]) for rate, mask in zip(rates, takes_part) if mask[chain]]
        log_average = 0.0
        for t in range(1, len(seen) + 1):
            error = sum(target - rate for rate in seen[:t]) / (t + 10)
            log_step = math.log(10 * start[chain]) - math.sqrt(t) / 0.05 * error
            log_average = t**-0.75 * log_step + (1 - t**-0.75) * log_average
        assert averaging.step_size[chain].item() == pytest.approx(math.exp(log_step), rel=1e-11)
        assert averaging.average[chain].log().item() == pytest.approx(log_average, rel=1e-12)
    before = averaging.average
    averaging.restart(before)
    assert torch.allclose(averaging.average, before) and torch.allclose(averaging.step_size, before)


@pytest.mark.parametrize("slope", [1.0, 3.0])
@pytest.mark.parametrize("first", [0.1, 1.0, 10.0])
def test_the_shared_step_reaches_its_target_soon_and_then_rests(slope, first):
    """The rate falls from 1 to 0 around log step = 0, steeply as for unstable leapfrog steps; noise; a hundred iterations.

    From ten times too small or too large: ``first_step_size`` is nearer.
    """
    target = 0.651
    averaging = SharedStep(torch.tensor(first, dtype=F64), target)
    steps = []
    for noise in normals(100, seed=1):
        rate = torch.sigmoid(-4 * slope * averaging.step_size.log())
        averaging.update((rate + 0.1 * noise).clamp(0, 1))
        steps.append(float(averaging.step_size))
    assert torch.sigmoid(-4 * slope * averaging.average.log()).item() == pytest.approx(target, abs=0.05)
    assert np.ptp(np.log(steps[-30:])) < 0.3


def test_the_shared_step_follows_its_recursion():
    averaging, rates = SharedStep(torch.tensor(0.3, dtype=F64), 0.6), [0.9, 0.1, 0.7, 0.65]
    log_step = log_average = math.log(0.3)
    for t, rate in enumerate(rates, 1):
        averaging.update(torch.tensor(rate, dtype=F64))
        log_step += (rate - 0.6) / math.sqrt(t)
        log_average += t**-0.75 * (log_step - log_average)
        assert float(averaging.step_size) == pytest.approx(math.exp(log_step), rel=1e-12)
        assert float(averaging.average) == pytest.approx(math.exp(log_average), rel=1e-12)
    kept = averaging.average
    averaging.restart(kept)
    assert averaging.step_size == kept == averaging.average
    averaging.update(torch.tensor(0.7, dtype=F64))
    assert float(averaging.average / kept) == pytest.approx(math.exp(0.1), rel=1e-12)  # t = 1 again


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_step_size_is_the_largest_accepted_of_its_doublings(name):
    target, dim = TARGETS[name], TARGETS[name].dim
    noise, everyone = Noise(3, "first step"), torch.arange(30)
    metric, position = Metric(torch.full((dim,), 1e-3, dtype=F64)), target.exact(30, seed=1)
    steps = first_step_size(target, position, metric, noise)
    momentum = metric.momentum(noise.normals(everyone, 0 * everyone, dim))
    grad, log_density = target(position)

    def accepted(step):
        *_, end, end_density = leapfrog(position, momentum, grad, step, metric, target)
        return log_acceptance(metric.kinetic(momentum) - log_density, metric.kinetic(end) - end_density) > -0.7

    assert accepted(steps).all() and not accepted(2 * steps).any()
    assert ((steps / 0.1).log2() % 1 == 0).all()
