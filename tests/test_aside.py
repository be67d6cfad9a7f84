"""Tensors in memory and in files are the same tensors; a fit that takes the large way is the fit."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import aside, batching, elbo, graphs, simplify
from bnn_pyro.aside import Aside, saved_aside


@pytest.fixture(params=["in memory", "in a file"])
def place(request, monkeypatch):
    monkeypatch.setattr(aside, "IN_MEMORY", 10**9 if request.param == "in memory" else 1)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_what_is_put_aside_comes_back_whole_and_in_parts(place, dtype):
    tensor = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    kept, expected = Aside(tensor), tensor.clone()
    tensor.zero_()
    assert kept.take().dtype == dtype and torch.equal(kept.take(), expected)
    assert torch.equal(kept.part(5, 9), expected.reshape(-1)[5:9])
    assert torch.equal(kept.part(20, 100), expected.reshape(-1)[20:])
    kept.put(expected.flip(0))
    assert torch.equal(kept.take(), expected.flip(0))


def test_a_transposed_tensor_comes_back_as_it_reads(place):
    tensor = torch.randn(3, 5).t()
    assert torch.equal(Aside(tensor).take(), tensor)


def test_gradients_are_the_same_where_what_they_need_waits_in_files(place):
    w = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(7, 6, dtype=torch.float64)
    loss = lambda: (torch.tanh(x @ w) ** 2).sum() + w.exp().sum()
    (expected,) = torch.autograd.grad(loss(), w)
    with saved_aside():
        (found,) = torch.autograd.grad(loss(), w)
    assert torch.equal(found, expected)


def program(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 0.5).expand([3, 4]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 0.5).expand([4]).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    f = torch.tanh(x @ w) @ v
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(f, sd), obs=y)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"batch_size": 16}, {"closed_form_kl": True}], ids=str)
def test_a_large_network_is_fitted_as_a_small_one(options, backend, monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(48, 3))
    y = np.tanh(x[:, 0]) + 0.1 * generator.normal(size=48)

    def fitted():
        return bnn.fit(program, x, y, inference="svi", guide="normal", steps=300, draws=5, dtype="float64", backend=backend,
                       standardize=False, progress=False, **options)  # fmt: skip

    small = fitted()
    for module, name in ((aside, "IN_MEMORY"), (elbo, "LARGE"), (simplify, "LARGE"), (graphs, "VALUES_UP_TO"),
                         (batching, "ALONE")):  # fmt: skip
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr("bnn_pyro.guide_steps.LARGE", 1)
    large = fitted()
    assert (large.draws.info["backend"], large.draws.info["backend_reason"]) == (backend, "")
    # Site by site the same numbers meet the same noise: what differs is rounding.
    for name, value in small.draws.state.items():
        assert torch.allclose(large.draws.state[name], value, rtol=1e-6, atol=1e-6)
    assert np.allclose(small.draws.history["elbo"], large.draws.history["elbo"], rtol=1e-6)
    assert torch.allclose(small.draws.z, large.draws.z, rtol=1e-6, atol=1e-6)
    assert np.allclose(small.draws.stats["log_q"], large.draws.stats["log_q"], rtol=1e-6)
