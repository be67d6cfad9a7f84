"""Leapfrog steps of HMC are those of ``leapfrog`` one by one, also as on a device, where a step is traced once."""

import pytest
import torch
from batched_targets import F64, correlated, normal
from traced import Traced, made

from bnn_pyro import replay
from bnn_pyro.inference import leapfrogs as module
from bnn_pyro.inference.leapfrogs import Leapfrogs, State
from bnn_pyro.inference.metric import Metric, leapfrog

CHAINS, DIM = 5, 3
GRADIENT = normal(torch.tensor([0.5, 1.0, 2.0], dtype=F64))
MASS = correlated(DIM, seed=1)


@pytest.fixture(params=["cpu", "device", "traced"])
def place(request, monkeypatch):
    if request.param != "cpu":
        monkeypatch.setattr(replay, "waits", lambda _: False)
    if request.param == "traced":
        made.clear()
        monkeypatch.setattr(module, "Replay", Traced)
    return request.param


def test_they_are_single_steps_whatever_metric_follows(place):
    metric, given = Metric(torch.ones(DIM, dtype=F64)), torch.Generator().manual_seed(0)
    leapfrogs = Leapfrogs(metric, GRADIENT)
    for count, mass in ((3, torch.ones(DIM, dtype=F64)), (4, MASS.diagonal().clone()), (2, MASS), (5, 2 * MASS)):
        metric.become(Metric(mass))
        position, momentum = torch.randn(2, CHAINS, DIM, generator=given, dtype=F64)
        step = torch.rand(CHAINS, generator=given, dtype=F64) / 4
        state = State(position, *GRADIENT(position))
        kept = [t.clone() for t in (*state, momentum, step)]
        end, momentum_there = leapfrogs(state, momentum, step, count)
        assert all(map(torch.equal, (*state, momentum, step), kept))  # as they were
        now, density = (position, momentum, state.grad), state.log_density
        for _ in range(count):
            there, grad, moved, density = leapfrog(*now, step, Metric(mass), GRADIENT)
            now = there, moved, grad
        for a, b in zip((*end, momentum_there), (now[0], now[2], density, now[1]), strict=True):
            assert torch.allclose(a, b, rtol=1e-12)
    if place == "traced":
        assert len(made) == 2  # a metric that became dense is another graph


def test_energy_is_kept_to_the_order_of_the_step(place):
    leapfrogs = Leapfrogs(Metric(MASS), GRADIENT)
    position = torch.ones(CHAINS, DIM, dtype=F64)
    momentum = torch.linspace(-1, 1, CHAINS * DIM, dtype=F64).view(CHAINS, DIM)

    def error(step, count):
        state = State(position, *GRADIENT(position))
        end, there = leapfrogs(state, momentum, torch.full((CHAINS,), step, dtype=F64), count)
        energy = lambda r, density: leapfrogs.metric.kinetic(r) - density
        return (energy(there, end.log_density) - energy(momentum, state.log_density)).abs().max()

    assert 3.5 < error(0.1, 10) / error(0.05, 20) < 4.5
