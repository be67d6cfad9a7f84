"""Groups of chains in threads of their own make the draws of all chains together, and end when they are told to."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from batched_targets import F64, Kept, correlated, normal, settings

import bnn_pyro as bnn
from bnn_pyro import compiled, native, recorded
from bnn_pyro.compiled import Gradient
from bnn_pyro.inference import groups, random_tables
from bnn_pyro.inference.groups import Groups, shares
from bnn_pyro.inference.nuts_run import run_nuts
from bnn_pyro.isolation import isolated

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 3, generator=GENERATOR)
Y = X[:, 0] - X[:, 1] + 0.3 * torch.randn(30, generator=GENERATOR)
DIM = 3 * 4 + 4 + 4 + 1 + 2  # of a network with four hidden units, its output scale and sigma
pytestmark = pytest.mark.skipif(native.load(recorded.SOURCE) is None, reason="a machine without a C++ compiler")


@pytest.fixture(scope="module")
def gradient():
    target = bnn.fit(bnn.get_model("mlp_gaussian", hidden=(4,)), X, Y, inference="prior", draws=2).target
    with isolated(0, target.dtype, threads=1):
        return compiled.compile_for_groups(target, torch.zeros(3, target.dim), "inductor")


def draws(gradient, threads, chains=5, warmup=60, **options):
    method = bnn.NUTS(chains=chains, warmup=warmup, draws=20, max_tree_depth=5, **options)
    start = torch.randn(chains, DIM, generator=torch.Generator().manual_seed(1))
    kept = Kept(chains, method.transitions, DIM, torch.float32)
    with isolated(dtype=torch.float32), torch.no_grad():
        learnt = run_nuts(gradient, start, method, 3, kept, threads)
    return kept, learnt


def assert_same(one, other):
    assert torch.equal(one[0].draws, other[0].draws) and one[0].draws.isfinite().all()
    assert torch.equal(one[1].step_size, other[1].step_size)
    assert torch.equal(one[1].inverse_mass_matrix, other[1].inverse_mass_matrix)


@pytest.mark.parametrize("dense_mass", [False, True])
@pytest.mark.parametrize("chains", [3, 5, 8])
def test_draws_do_not_depend_on_groups_nor_on_who_makes_the_calls(gradient, chains, dense_mass, monkeypatch):
    monkeypatch.setattr(random_tables, "_STEPS", 37)
    usual = draws(gradient, 1, chains, dense_mass=dense_mass)
    for threads in (2, 3, 16):
        assert_same(usual, draws(gradient, threads, chains, dense_mass=dense_mass))
    monkeypatch.setattr(Gradient, "recorded", lambda self, z: None)  # calls by Python
    assert_same(usual, draws(gradient, 2, chains, dense_mass=dense_mass))


def test_chains_are_shared_out_by_blocks(gradient):
    position = torch.zeros(7, DIM)
    assert gradient.block == 2
    assert shares(gradient, position, 1) == [slice(0, 7)]
    assert shares(gradient, position, 2) == [slice(0, 4), slice(4, 7)]
    assert shares(gradient, position, 3) == [slice(0, 4), slice(4, 6), slice(6, 7)]
    assert shares(gradient, position, 9) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert shares(gradient, position[:2], 9) == [slice(0, 2)]
    assert shares(normal(torch.ones(3, dtype=F64)), position, 9) == [slice(0, 7)]


class Slow:
    """A walk that goes on until it is told to stop."""

    def __init__(self, fails=False):
        self.transition, self.fails, self.ended = torch.zeros(2), fails, False
        self.trees = SimpleNamespace(uniforms=None)

    def to(self, pause, should_stop):
        while not should_stop():
            time.sleep(0.01)
            if self.fails:
                raise ArithmeticError("planted")
            yield SimpleNamespace(_replace=lambda rows: rows, rows=torch.zeros(1))
        self.ended = True


def test_an_error_in_one_group_ends_the_others_and_is_raised():
    walks = [Slow(), Slow(fails=True), Slow()]
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="planted"):
        list(Groups(walks).to(3, lambda: False))
    assert walks[0].ended and walks[2].ended and threading.active_count() == before


def test_who_stops_listening_ends_them(monkeypatch):
    monkeypatch.setattr(groups, "_WAITING", 1)  # full at once
    walks = [Slow(), Slow()]
    before = threading.active_count()
    for _ in Groups(walks).to(3, lambda: False):
        time.sleep(0.2)
        break
    time.sleep(0.3)
    assert all(walk.ended for walk in walks) and threading.active_count() == before


def test_threads_and_grad_mode_are_as_before(gradient):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        posterior = bnn.fit(
            bnn.get_model("mlp_gaussian", hidden=(4,)), X, Y, inference="nuts", warmup=30, draws=10, backend="inductor",
            progress=False,
        )  # fmt: skip
        assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
        torch.set_num_threads(1)
        alone = bnn.fit(
            bnn.get_model("mlp_gaussian", hidden=(4,)), X, Y, inference="nuts", warmup=30, draws=10, backend="inductor",
            progress=False,
        )  # fmt: skip
        assert torch.equal(posterior.draws.z, alone.draws.z)
    finally:
        torch.set_num_threads(before)


def test_a_normal_target_by_groups_has_its_moments(gradient, monkeypatch):
    """A gradient that is for groups, and is called by Python: what matters here is who has which chain."""
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    target = normal(scale**2)

    class Marked:
        block, groups = 2, 4

        def __call__(self, z):
            return target(z)

    kept = Kept(8, 1500, 3, F64)
    start = torch.randn(8, 3, generator=GENERATOR, dtype=F64)
    with torch.no_grad():
        run_nuts(Marked(), start, settings("nuts", 8, 1500, 0.5, correlated(3, seed=1).diagonal()), 5, kept, 4)
    assert ((kept.draws.mean((0, 1)) / scale).abs() < 0.1).all()
    assert ((kept.draws.std((0, 1)) / scale - 1).abs() < 0.1).all()
