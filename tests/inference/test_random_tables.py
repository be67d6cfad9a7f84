"""Random numbers for samplers come from tables, in which a device finds its place by itself: they are those of ``Noise``."""

import numpy as np
import pytest
import torch

from bnn_pyro import replay
from bnn_pyro.inference import random_tables
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.noise import Noise

CHAINS, DIM = torch.arange(3), 4


@pytest.fixture(params=["as on a CPU", "as on a device"])
def where(request, monkeypatch):
    monkeypatch.setattr(random_tables, "_STEPS", 5)
    if request.param == "as on a device":
        monkeypatch.setattr(replay, "waits", lambda _: False)


def expected(step):
    return Noise(7, "nuts").uniforms(CHAINS, torch.full_like(CHAINS, step), 4)


def test_uniforms_are_those_of_their_step(where):
    uniforms = Uniforms(Noise(7, "nuts"), CHAINS)
    assert torch.equal(uniforms.now(), expected(0))
    for step in range(1, 23, 2):  # a table holds five
        uniforms.ready(2)
        assert torch.equal(uniforms.next(), expected(step)) and torch.equal(uniforms.next(), expected(step + 1))
        assert torch.equal(uniforms.now(), expected(step + 1))


def test_steps_that_were_taken_back_come_again(monkeypatch):
    """Of a device; a CPU stops at once, and takes none back."""
    monkeypatch.setattr(random_tables, "_STEPS", 5)
    monkeypatch.setattr(replay, "waits", lambda _: False)
    uniforms = Uniforms(Noise(7, "nuts"), CHAINS)
    for _ in range(4):
        uniforms.ready(4)
        for _ in range(4):
            uniforms.next()
        uniforms.back(3)
    assert uniforms.step == 4 and torch.equal(uniforms.now(), expected(4))
    assert uniforms.steps_ahead == 4


def test_momenta_are_those_of_chain_and_transition(where):
    noise, momenta = Noise(7, "momentum"), Momenta(Noise(7, "momentum"), CHAINS, DIM, torch.float64)
    transition = torch.tensor([0, 4, 11])  # chains need not be at the same one
    for _ in range(9):
        momenta.ready(transition.numpy(), 2)
        for _ in range(3):
            assert torch.equal(momenta.take_all(transition), noise.normals(CHAINS, transition, DIM))
            transition = transition + torch.tensor([1, 1, 0])


def test_momenta_of_some_chains_are_the_same():
    noise, momenta = Noise(7, "momentum"), Momenta(Noise(7, "momentum"), CHAINS, DIM, torch.float32)
    rows = torch.tensor([2, 0])
    for step in (0, 3, 1000):
        transition = torch.tensor([step, step + 1])
        assert torch.equal(momenta.take(rows, transition), noise.normals(rows, transition, DIM).float())
    momenta.ready(np.array([1001, 0, 1000]))
    assert torch.equal(
        momenta.take_all(torch.tensor([1001, 0, 1000]))[1], noise.normals(CHAINS[1:2], CHAINS[:1], DIM)[0].float()
    )
