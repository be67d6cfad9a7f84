"""Trajectories by C++ are those of ``Leapfrogs``, by however many threads."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
import torch
from batched_targets import Kept, correlated

import bnn_pyro as bnn
from bnn_pyro import compiled, native, recorded
from bnn_pyro.compiled import Gradient
from bnn_pyro.inference import native_leapfrogs
from bnn_pyro.inference.groups import shares
from bnn_pyro.inference.hmc_run import run_hmc
from bnn_pyro.inference.leapfrogs import Leapfrogs, State
from bnn_pyro.inference.metric import Metric
from bnn_pyro.inference.native_leapfrogs import NativeLeapfrogs, make_leapfrogs
from bnn_pyro.isolation import isolated

CHAINS = 7  # the last block is not full
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 3, generator=GENERATOR)
Y = X[:, 0] - X[:, 1] + 0.3 * torch.randn(30, generator=GENERATOR)
pytestmark = pytest.mark.skipif(native.load(recorded.SOURCE) is None, reason="a machine without a C++ compiler")


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def gradient(request):
    model = bnn.get_model("mlp_gaussian", hidden=(4,))
    target = bnn.fit(model, X, Y, inference="prior", draws=2, dtype=str(request.param)[6:], progress=False).target
    assert target.dtype == request.param
    with isolated(0, target.dtype, threads=1):
        return compiled.compile_for_groups(target, torch.zeros(3, target.dim), "inductor")


@pytest.fixture
def start(gradient):
    """A state, momenta and step sizes that differ."""
    dim = 3 * 4 + 4 + 4 + 1 + 2
    given = torch.Generator().manual_seed(1)
    position, momentum = torch.randn(2, CHAINS, dim, generator=given, dtype=gradient.dtype)
    with isolated(dtype=gradient.dtype):
        return State(position / 2, *gradient(position / 2)), momentum, torch.linspace(0.01, 0.04, CHAINS).double()


@pytest.fixture
def paced(request, monkeypatch):
    """Whether other threads are worth their while."""
    monkeypatch.setattr(native_leapfrogs, "HANDOVER", {"together": 0.0, "one by one": float("inf")}[request.param])


def travel(leapfrogs, start, steps=6):
    try:
        with isolated(dtype=start[0].position.dtype, threads=1):
            end, momentum = leapfrogs(*start, steps)
    finally:
        leapfrogs.close()
    return *end, momentum


def metric_of(start, dense):
    covariance = correlated(start[1].shape[1], seed=1).to(start[1].dtype)
    return Metric(covariance if dense else covariance.diagonal().clone())


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("paced", ["together", "one by one"], indirect=True)
@pytest.mark.usefixtures("paced")
def test_they_are_plain_leapfrog_steps_in_either_metric(gradient, start, dense):
    kept = [t.clone() for t in (*start[0], *start[1:])]
    expected = travel(Leapfrogs(metric_of(start, dense), gradient), start)
    fast = make_leapfrogs(metric_of(start, dense), gradient, start[0].position, 3)
    assert isinstance(fast, NativeLeapfrogs)
    rounding = 1e-12 if gradient.dtype == torch.float64 else 2e-5
    for ours, plain, before in zip(travel(fast, start), expected, (*start[0], start[1]), strict=True):
        assert torch.allclose(ours, plain, rtol=rounding, atol=10 * rounding)
        assert (ours - before).abs().amax(-1).min() > 1e-2 or ours.ndim == 1
    assert all(map(torch.equal, (*start[0], *start[1:]), kept))  # what it was given is as it was


def test_a_metric_that_changes_or_becomes_dense_is_followed(gradient, start):
    metric = metric_of(start, dense=False)
    leapfrogs = make_leapfrogs(metric, gradient, start[0].position, 2)
    with isolated(dtype=gradient.dtype, threads=1):
        first, _ = leapfrogs(*start, 3)
        for other in (Metric(2 * metric.inverse_mass_matrix), metric_of(start, dense=True)):
            metric.become(other)
            now, _ = leapfrogs(*start, 3)
            expected, _ = Leapfrogs(other, gradient)(*start, 3)
            assert torch.allclose(now.position, expected.position, atol=1e-4)
            assert not torch.allclose(now.position, first.position, atol=1e-2)
    leapfrogs.close()


@pytest.mark.parametrize("paced", ["together"], indirect=True)
@pytest.mark.usefixtures("paced")
def test_threads_and_other_chains_change_no_bit(gradient, start):
    state, momentum, step = start
    alone = travel(make_leapfrogs(metric_of(start, False), gradient, state.position, 1), start)
    for threads in (2, 3, 16):
        shared = travel(make_leapfrogs(metric_of(start, False), gradient, state.position, threads), start)
        assert all(map(torch.equal, alone, shared))
    for chains in (1, 2, 5):
        some = State(*(t[:chains] for t in state)), momentum[:chains], step[:chains]
        fewer = travel(make_leapfrogs(metric_of(start, False), gradient, some[0].position, 2), some)
        assert all(torch.equal(a[:chains], b) for a, b in zip(alone, fewer, strict=True))
    broken = State(*(t.index_fill(0, torch.tensor([2]), torch.nan) for t in state)), momentum, step
    others = torch.arange(CHAINS) != 2
    for a, b in zip(alone, travel(make_leapfrogs(metric_of(start, False), gradient, state.position, 2), broken)):
        assert torch.equal(a[others], b[others]) and b[2].isnan().all()


def test_a_way_back_ends_where_it_began(gradient, start):
    state, momentum, step = start
    leapfrogs = make_leapfrogs(metric_of(start, True), gradient, state.position, 2)
    with isolated(dtype=gradient.dtype, threads=1):
        end, there = leapfrogs(state, momentum, step, 8)
        back, gone = leapfrogs(end, -there, step, 8)
    leapfrogs.close()
    rounding = 1e-10 if gradient.dtype == torch.float64 else 1e-3
    assert torch.allclose(back.position, state.position, atol=rounding)
    assert torch.allclose(-gone, momentum, atol=rounding)


def test_without_recorded_calls_they_are_torchs(gradient, start, monkeypatch):
    metric, position = metric_of(start, False), start[0].position
    assert type(make_leapfrogs(metric, lambda z: gradient(z), position, 2)) is Leapfrogs
    monkeypatch.setattr(native, "load", lambda _: None)
    assert type(make_leapfrogs(metric, gradient, position, 2)) is Leapfrogs


@pytest.mark.parametrize("name", ["hmc", "chees"])
def test_draws_do_not_depend_on_threads(gradient, start, name, monkeypatch):
    options = {"chains": CHAINS, "warmup": 40, "draws": 20, "max_steps": 16}
    method = bnn.HMC(**options) if name == "hmc" else bnn.ChEES(**options)
    seen = []

    def draws(threads):
        kept = Kept(CHAINS, method.transitions, start[1].shape[1], gradient.dtype)
        with isolated(dtype=gradient.dtype, threads=1), torch.no_grad():
            learnt = run_hmc(gradient, start[0].position, method, 3, kept, threads)
        seen.append(threading.active_count())
        return kept.draws, *learnt[:3]

    monkeypatch.setattr(native_leapfrogs, "HANDOVER", float("inf"))
    usual = draws(1)
    assert usual[0].isfinite().all() and len(usual[0].unique(dim=1)) == CHAINS
    for handover in (0.0, float("inf")):
        monkeypatch.setattr(native_leapfrogs, "HANDOVER", handover)
        for threads in (2, 4):
            assert all(map(torch.equal, usual, draws(threads)))
    assert set(seen) == {seen[0]}  # none is left behind


@pytest.mark.parametrize("paced", ["together", "one by one"], indirect=True)
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.usefixtures("paced")
def test_a_call_that_fails_is_an_error(gradient, start, monkeypatch, group):
    before = threading.active_count()
    leapfrogs = make_leapfrogs(metric_of(start, False), gradient, start[0].position, 2)
    right, broken = leapfrogs._library_go, leapfrogs._gradients[group].address
    monkeypatch.setattr(leapfrogs, "_library_go", lambda *given: -1 if given[1] == broken else right(*given))
    with pytest.raises(RuntimeError, match="a call of the compiled gradient failed"):
        travel(leapfrogs, start)
    assert threading.active_count() == before


@pytest.mark.parametrize("paced", ["together", "one by one"], indirect=True)
@pytest.mark.usefixtures("paced")
def test_a_trajectory_that_is_looked_in_on_is_the_same(gradient, start, monkeypatch):
    expected = travel(make_leapfrogs(metric_of(start, False), gradient, start[0].position, 2), start)
    monkeypatch.setattr(native_leapfrogs, "PATIENCE", 0.0)  # after each step
    looked = travel(make_leapfrogs(metric_of(start, False), gradient, start[0].position, 2), start)
    assert all(map(torch.equal, expected, looked))


@pytest.mark.parametrize("paced", ["together", "one by one"], indirect=True)
@pytest.mark.usefixtures("paced")
def test_an_interrupt_gets_through_within_a_trajectory(gradient, start):
    """Which would go on for hours."""
    before, threads = signal.getsignal(signal.SIGINT), threading.active_count()
    leapfrogs = make_leapfrogs(metric_of(start, False), gradient, start[0].position, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            travel(leapfrogs, start, steps=10**10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert threading.active_count() == threads


def test_positions_of_another_dtype_are_not_for_c(gradient, start):
    other = torch.float64 if gradient.dtype == torch.float32 else torch.float32
    position = start[0].position.to(other)
    assert type(make_leapfrogs(Metric(torch.ones(position.shape[1], dtype=other)), gradient, position, 2)) is Leapfrogs


def test_groups_are_as_many_as_there_is_memory_for(gradient, start, monkeypatch):
    posterior = bnn.fit(bnn.get_model("mlp_gaussian", hidden=(4,)), X, Y, inference="prior", draws=2, progress=False)
    points = torch.zeros(3, posterior.target.dim)
    with isolated(0, torch.float32, threads=1):
        each = compiled.compile_for_groups(posterior.target, points, "inductor").recorded(points).bytes
        for room, most in ((each - 1, 1), (each, 1), (3 * each, 3)):
            monkeypatch.setattr(compiled, "RECORDED_BYTES", room)
            made = compiled.compile_for_groups(posterior.target, points, "inductor")
            assert made.groups == most and len(shares(made, points.repeat(5, 1), 16)) == most
    assert each > 30 * 4 * 4 * made.block  # hidden units, of all rows and chains, at least


def test_a_fit_goes_on_when_the_main_thread_has_ended():
    code = """
import threading, time, torch, bnn_pyro as bnn
from bnn_pyro import sampling
from bnn_pyro.inference import native_leapfrogs
torch.set_num_threads(2)
native_leapfrogs.HANDOVER = 0.0
x, run, compiled = torch.randn(30, 3), sampling.run, threading.Event()
def run_late(*given):
    compiled.set()
    time.sleep(1)
    return run(*given)
sampling.run = run_late
def fit():
    posterior = bnn.fit(bnn.get_model("mlp_gaussian", hidden=(4,)), x, x[:, 0], inference="chees", warmup=20, draws=5,
                        backend="inductor", progress=False)
    print(tuple(posterior.draws.z.shape), posterior.attrs["chain_groups"])
threading.Thread(target=fit).start()
compiled.wait()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(16, 5, 23) 2", done.stderr


def test_a_fit_has_the_same_draws_by_one_thread_and_two():
    before = torch.get_num_threads()
    model = bnn.get_model("mlp_gaussian", hidden=(4,))
    options = {"warmup": 30, "draws": 10, "backend": "inductor", "progress": False}
    try:
        made = []
        for threads in (2, 1):
            torch.set_num_threads(threads)
            made.append(bnn.fit(model, X, Y, inference="chees", **options))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0].draws.z, made[1].draws.z)


def test_blocks_are_small_enough_for_eight_threads(gradient):
    assert isinstance(gradient, Gradient) and gradient.groups > 8 and gradient.block == 2
