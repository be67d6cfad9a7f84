"""On a CUDA device: the same numbers, the same posterior, no more memory as a run goes on. Not run where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

import signal
import sys
import threading
import time
from pathlib import Path

import bnn_pyro as bnn

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from batched_targets import F64, normal, run, settings
from test_invariance import STEP, distance, inverse_mass

from bnn_pyro.inference import walk
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.nuts_run import run_nuts
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.trees import Trees
from bnn_pyro.isolation import derive_seed
from bnn_pyro.noise import Noise
from bnn_pyro.replay import Replay

CUDA = torch.device("cuda")
Z = 4.56  # a false alarm in 200,000
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(200, 3))
Y = X @ [1.0, -2.0, 0.5] + 0.3 * GENERATOR.normal(size=200)


def test_noise_is_that_of_the_cpu():
    chains, steps = torch.arange(7)[:, None], torch.tensor([0, 5, 2**40])
    one, other = Noise(3, "nuts"), Noise(3, "nuts", CUDA)
    assert torch.equal(one.words(chains, steps, 9), other.words(chains, steps, 9).cpu())
    assert torch.equal(one.uniforms(chains, steps, 9), other.uniforms(chains, steps, 9).cpu())
    assert (one.normals(chains, steps, 9) - other.normals(chains, steps, 9).cpu()).abs().max() < 1e-5


def trees(chains=32, dim=5):
    everyone = torch.arange(chains, device=CUDA)
    target = normal(torch.linspace(0.5, 2, dim, dtype=F64, device=CUDA))
    uniforms = Uniforms(Noise(1, "nuts", CUDA), everyone)
    momenta = Momenta(Noise(1, "momentum", CUDA), everyone, dim, F64)
    start = torch.ones(chains, dim, dtype=F64, device=CUDA)
    steps = torch.linspace(0.1, 1.0, chains, dtype=F64, device=CUDA)
    return Trees(target, start, Metric(torch.ones(dim, dtype=F64, device=CUDA)), steps, uniforms, momenta, 6)


def test_an_iteration_is_one_graph_that_does_what_its_operations_do(monkeypatch):
    made = []

    class Watched(Replay):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    def walked():
        from bnn_pyro.inference.step_sizes import DualAveraging

        own = trees()
        ended = list(walk.Walk(own, DualAveraging(own.step_size, 0.8), 10).to(40, lambda: False))
        assert sum(len(e.rows) for e in ended) == 32 * 40
        order = torch.cat([e.rows * 40 + e.transition for e in ended]).argsort()
        return torch.cat([e.position for e in ended])[order]

    monkeypatch.setattr(walk, "Replay", Watched)
    replayed = walked()
    assert made[0]._graph is not None
    monkeypatch.setattr(walk, "Replay", lambda function, device: function)
    assert torch.equal(replayed, walked())


@pytest.mark.parametrize("name", ["normal", "banana"])
@pytest.mark.parametrize("method", ["nuts", "hmc", "chees"])
def test_one_transition_leaves_the_target_as_it_was(method, name):
    from batched_targets import TARGETS

    target, count = TARGETS[name], 50_000
    there = normal(torch.ones(3, dtype=F64, device=CUDA)) if name == "normal" else target
    options = {"max_tree_depth": 6} if method == "nuts" else {"length": 2.2}
    chosen = settings(method, count, 1, STEP[name], inverse_mass(name), **options)
    start = target.exact(count, seed=3)
    kept, _ = run(chosen, there, start.to(CUDA), seed=11)
    assert distance(name, kept.draws[:, -1].numpy()) < 1
    assert (kept.draws[:, -1] != start).any(1).float().mean() > 0.5


METHODS = {
    "nuts": {"chains": 64, "warmup": 200, "draws": 100},
    "hmc": {"chains": 64, "warmup": 200, "draws": 100},
    "chees": {"chains": 64, "warmup": 200, "draws": 100},
    "svi": {"guide": "multivariate", "steps": 3000, "draws": 4000},
    "laplace": {"draws": 4000},
    "map": {"steps": 3000},
    "ensemble": {"members": 8, "steps": 1000},
    "mc_dropout": {"steps": 1000, "draws": 200},
    "prior": {"draws": 500},
}


def fitted(name, method, device, **more):
    settings_ = {**METHODS[method], **more}
    return bnn.fit(bnn.get_model(name), X, Y, inference=method, device=device, progress=False, **settings_)


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_goes_through_and_all_that_follows_it(method, tmp_path):
    posterior = fitted("mlp_gaussian", method, "cuda")
    assert posterior.attrs["device"].startswith("cuda")
    assert posterior.draws.z.device.type == "cpu"
    if method not in ("laplace", "prior"):
        assert posterior.attrs["backend"] == "inductor", posterior.attrs["backend_reason"]
    assert np.isfinite(posterior.predict(X[:5]).mean).all()
    assert "function_space" in str(posterior.idata)
    posterior.diagnose()
    again = bnn.load(posterior.save(tmp_path / "run"))
    assert np.allclose(again.predict(X[:5]).mean, posterior.predict(X[:5]).mean, atol=1e-4)


@pytest.mark.parametrize("method", ["nuts", "hmc", "chees", "svi", "laplace"])
def test_the_posterior_is_that_of_the_cpu(method):
    """Means of the weights and of log sigma, and their spread, apart by Monte Carlo error at most."""
    one, other = (fitted("linear", method, device).draws.z.double() for device in ("cpu", "cuda"))
    for f in (lambda z: z, lambda z: (z - z.mean((0, 1))) ** 2):
        a, b = f(one), f(other)
        if method in ("svi", "laplace"):
            error = (a.var((0, 1)) / a[..., 0].numel() + b.var((0, 1)) / b[..., 0].numel()).sqrt()
            tolerance = 0.1 * a.mean((0, 1)).abs().clamp(min=1e-3) if method == "svi" else 0.0  # of its optimum
        else:
            error = (a.mean(1).var(0) / len(a) + b.mean(1).var(0) / len(b)).sqrt()
            tolerance = 0.0
        assert ((a.mean((0, 1)) - b.mean((0, 1))).abs() < Z * error + tolerance).all()


@pytest.mark.parametrize("method", ["nuts", "chees", "svi"])
def test_the_same_call_gives_the_same_bits(method):
    one, other = (fitted("mlp_gaussian", method, "cuda", draws=50) for _ in range(2))
    assert torch.equal(one.draws.z, other.draws.z)


def test_memory_does_not_grow_in_a_hundred_thousand_iterations():
    seen = []

    class Recorder:
        iterations = 0

        def record(self, rows, transition, position, info):
            self.iterations += int(info.n_steps.sum()) / 64
            if self.iterations > 1e4 * (len(seen) + 1):
                seen.append(torch.cuda.memory_allocated())

        def should_stop(self):
            return self.iterations > 1e5

    target = normal(torch.linspace(0.5, 2, 20, dtype=torch.float32, device=CUDA))
    chosen = settings("nuts", 64, 100_000, 0.1, torch.ones(20))
    start = torch.ones(64, 20, device=CUDA)
    run_nuts(target, start, chosen, 1, Recorder())
    assert len(seen) >= 9 and max(seen[1:]) <= seen[1] + 2**16


def test_an_interrupt_keeps_the_draws():
    threading.Timer(20.0, lambda: signal.raise_signal(signal.SIGINT)).start()
    began = time.perf_counter()
    with pytest.warns(UserWarning, match="interrupted"):
        posterior = fitted("mlp_gaussian", "nuts", "cuda", warmup=50, draws=1_000_000, thin=1, keep=())
    assert time.perf_counter() - began < 60
    assert not posterior.attrs["complete"] and 0 < posterior.draws.z.shape[1] < 1_000_000


def test_chains_that_do_not_fit_are_refused_with_the_figure():
    with pytest.raises(bnn.OptionError, match=r"chains: expected at most \d+ in the \d+ GiB of cuda:0"):
        fitted("mlp_gaussian", "nuts", "cuda", chains=10**9)


def test_two_processes_share_the_chains():
    whole = fitted("mlp_gaussian", "nuts", ["cuda:0", "cuda:0"], chains=4)
    alone = fitted("mlp_gaussian", "nuts", "cuda:0", chains=2, seed=derive_seed(0, "part", 1))
    assert torch.equal(whole.draws.z[2:], alone.draws.z)


def test_auto_takes_the_gpu_where_there_is_work_for_it():
    small = fitted("linear", "nuts", "auto", chains=4)
    large = bnn.fit(
        bnn.get_model("mlp_gaussian", hidden=(200, 200)),
        X,
        Y,
        inference="map",
        device="auto",
        steps=100,
        progress=False,
    )
    assert small.attrs["device"] == "cpu" and "less than" in small.attrs["device_reason"]
    work = large.target.dim * 200
    assert (large.attrs["device"] == "cuda:0") == (work >= 20_000_000)


def test_products_keep_their_precision_whatever_the_user_has_set():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        loose = fitted("mlp_gaussian", "chees", "cuda", draws=20)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(loose.draws.z, fitted("mlp_gaussian", "chees", "cuda", draws=20).draws.z)
