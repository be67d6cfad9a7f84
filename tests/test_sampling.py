"""MCMC of all chains at once through ``fit``: what draws depend on, what is kept, and how a run ends."""

import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import compiled, recording, sampling
from bnn_pyro.inference import native_trees
from bnn_pyro.inference.mcmc import Adaptation
from bnn_pyro.interrupts import Interrupts, watch_interrupts
from bnn_pyro.sampling import run

MODEL = bnn.get_model("mlp_gaussian", hidden=(5,), activation="tanh")
QUICK = {"nuts": {"max_tree_depth": 4}, "hmc": {"max_steps": 20}, "chees": {"max_steps": 20}}


@pytest.fixture(scope="module")
def rows():
    return bnn.load_dataset("stackloss").train


def draws(rows, inference, backend="eager", **options):
    return MODEL.fit(rows, inference=inference, progress=False, backend=backend, **QUICK[inference], **options).draws


def given(dim, dense=False):
    """An adaptation that nothing was learnt for."""
    length = torch.tensor(0.5, dtype=torch.float64)
    inverse = torch.ones(dim, dtype=torch.float64)
    if dense:
        root = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / dim**0.5
        inverse = root @ root.T + torch.eye(dim, dtype=torch.float64)
    return Adaptation(torch.tensor([0.05], dtype=torch.float64), inverse, length)


@pytest.fixture(scope="module")
def dim(rows):
    return draws(rows, "nuts", chains=2, warmup=0, draws=1).z.shape[-1]


@pytest.mark.parametrize("inference", QUICK)
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_chain_is_the_same_among_any_number_and_length(rows, dim, inference, dense, backend):
    settings = {"warmup": 0, "adaptation": given(dim, dense), "dense_mass": dense, "seed": 3, "backend": backend}
    many = draws(rows, inference, chains=64, draws=10, **settings)
    assert len({tuple(chain[-1].tolist()) for chain in many.z}) == 64
    for chains in (1, 2, 4, 16):
        few = draws(rows, inference, chains=chains, draws=20, **settings)
        assert torch.equal(few.z[:, :10], many.z[:chains])
        assert all(np.array_equal(few.stats[k][:, :10], v[:chains]) for k, v in many.stats.items())
    assert not torch.equal(draws(rows, inference, chains=2, draws=10, **{**settings, "seed": 4}).z, many.z[:2])


@pytest.mark.parametrize("inference", QUICK)
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_chunks_of_chains_change_no_bit(monkeypatch, rows, inference, backend):
    """A gradient of all chains, and of a few at a time, whose places in a block are then others."""

    def in_chunks(chunk, call, block, *args):
        parts = [in_blocks(call, block, *(a[i : i + chunk] for a in args)) for i in range(0, len(args[0]), chunk)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    in_blocks, runs = compiled.in_blocks, []
    for chunk in (16, 1, 2, 3, 7, 32):
        monkeypatch.setattr(compiled, "in_blocks", partial(in_chunks, chunk))
        runs.append(draws(rows, inference, backend, chains=16, warmup=10, draws=5, init="prior", seed=1))
        assert runs[-1].info["backend"] == backend
    assert all(torch.equal(made.z, runs[0].z) for made in runs)
    for name, values in runs[0].stats.items():
        assert all(np.array_equal(made.stats[name], values) for made in runs)


@pytest.mark.parametrize("inference", QUICK)
def test_draws_do_not_depend_on_threads_or_on_what_ran_before(rows, inference):
    settings = {"chains": 4, "warmup": 30, "draws": 20, "seed": 1}
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(draws(rows, inference, **settings).z)
            torch.rand(5), np.random.rand(3)  # noqa: NPY002 - the caller's generators have no part in it
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*runs)
    assert torch.equal(draws(rows, inference, **{**settings, "draws": 30}).z[:, :20], runs[0])


def test_thinned_draws_are_every_third(rows):
    all_of_them = draws(rows, "nuts", chains=2, warmup=20, draws=30)
    thinned = draws(rows, "nuts", chains=2, warmup=20, draws=10, thin=3)
    assert torch.equal(thinned.z, all_of_them.z[:, 2::3])
    assert np.array_equal(thinned.stats["lp"], all_of_them.stats["lp"][:, 2::3])


@pytest.mark.parametrize("inference", QUICK)
def test_an_adaptation_is_taken_over_as_it_is(rows, inference):
    first = MODEL.fit(rows, inference=inference, chains=4, warmup=40, draws=5, backend="eager", **QUICK[inference])
    again = draws(rows, inference, chains=4, warmup=0, draws=5, adaptation=first.adaptation)
    for name, value in first.draws.state.items():
        assert torch.equal(again.state[name], value)
    assert np.array_equal(again.stats["step_size"][:, 0], first.draws.stats["step_size"][:, 0])
    with pytest.raises(bnn.OptionError, match="nuts, adaptation: expected the adaptation of a posterior by 3 chains"):
        bnn.NUTS(chains=3, adaptation=Adaptation(torch.ones(2), torch.ones(5)))
    with pytest.raises(bnn.OptionError, match="expected a posterior by MCMC, got one by map"):
        _ = MODEL.fit(rows, inference="map", steps=5).adaptation


def test_a_warning_says_that_trees_are_torchs(rows, monkeypatch):
    monkeypatch.setattr(native_trees.native, "load", lambda source: None)
    monkeypatch.setattr(native_trees.native, "reason", lambda source: "trees.cpp cannot be built: there is no compiler")
    with pytest.warns(
        UserWarning, match=r"trees\.cpp cannot be built: there is no compiler\. NUTS's trees are made by torch"
    ):
        draws(rows, "nuts", chains=2, warmup=0, draws=1)


@pytest.mark.parametrize("inference", ["nuts", "chees"])
def test_chains_go_on_from_where_they_ended_with_other_noise(rows, inference, monkeypatch):
    """The first draw, by steps too small to move, is where the chain ended."""
    first = MODEL.fit(rows, inference=inference, chains=4, warmup=40, draws=5, backend="eager", **QUICK[inference])
    learnt = first.adaptation
    assert torch.equal(learnt.position, first.draws.z[:, -1])
    still = learnt._replace(step_size=torch.full_like(learnt.step_size, 1e-9))
    if learnt.trajectory_length is not None:
        still = still._replace(trajectory_length=torch.tensor(1e-9, dtype=torch.float64))
    for chains in (4, 2, 6):
        short = still._replace(step_size=still.step_size[:1])
        again = draws(rows, inference, chains=chains, warmup=0, draws=1, adaptation=short)
        near = (again.z[:4, 0] - learnt.position[:chains]).abs().amax(1) < 1e-3
        assert near.all() and len(near) == min(chains, 4)
    seeds = []
    monkeypatch.setattr(sampling, "run", lambda gradient, starts, method, seed, *others: seeds.append(seed) or run(
        gradient, starts, method, seed, *others))  # fmt: skip
    for chains, adaptation in (
        (4, still),
        (2, still._replace(step_size=still.step_size[:1])),
        (4, still._replace(position=None)),
    ):
        draws(rows, inference, chains=chains, warmup=0, draws=1, adaptation=adaptation)
    onward, among_fewer, anew = seeds
    assert onward == among_fewer != anew == 0


@pytest.mark.parametrize(("field", "value", "said"), [
    ("inverse_mass_matrix", torch.ones(1), "an inverse mass matrix of shape"),
    ("inverse_mass_matrix", torch.ones(4, 7), "an inverse mass matrix of shape"),
    ("inverse_mass_matrix", None, "positive"),
    ("step_size", torch.tensor([float("nan")]), "positive"),
    ("position", torch.ones(4, 1), "positions of shape"),
])  # fmt: skip
def test_an_adaptation_of_something_else_is_refused_before_work(rows, field, value, said, monkeypatch):
    first = MODEL.fit(rows, chains=2, warmup=3, draws=1, backend="eager", progress=False)
    dim = first.target.dim
    value = torch.ones(dim, dim) if value is None else value  # singular
    monkeypatch.setattr("bnn_pyro.fitting.infer", lambda *_: pytest.fail("work began"))
    with pytest.raises(bnn.OptionError, match=f"mlp_gaussian, adaptation: expected .*{said}"):
        draws(rows, "nuts", chains=1, warmup=0, draws=1, adaptation=first.adaptation._replace(
            step_size=torch.ones(1), position=None)._replace(**{field: value}))  # fmt: skip


def test_pyros_nuts_has_no_adaptation_to_hand_on(rows):
    by_pyro = MODEL.fit(rows, chains=1, warmup=3, draws=2, engine="pyro", progress=False)
    with pytest.raises(bnn.OptionError, match="got one by Pyro's NUTS"):
        _ = by_pyro.adaptation


def test_draws_go_to_a_file_where_they_are_many_and_are_the_same(rows, monkeypatch):
    in_memory = draws(rows, "chees", chains=3, warmup=5, draws=40)
    monkeypatch.setattr(recording, "IN_MEMORY", 100)
    on_disk = draws(rows, "chees", chains=3, warmup=5, draws=40)
    assert torch.equal(on_disk.z, in_memory.z)
    assert all(np.array_equal(on_disk.stats[k], v) for k, v in in_memory.stats.items())


@pytest.mark.usefixtures("usual_interrupts")
def test_an_interrupt_keeps_the_draws_so_far(rows):
    whole = draws(rows, "nuts", chains=2, warmup=10, draws=100, seed=2)

    def press():
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=press).start()
    with pytest.warns(UserWarning, match=r"nuts: interrupted, so \d+ of 100000 draws of each chain are kept"):
        posterior = MODEL.fit(
            rows, inference="nuts", chains=2, warmup=10, draws=100_000, seed=2, backend="eager", max_tree_depth=4
        )
    kept = posterior.draws
    assert not kept.complete and posterior.attrs["complete"] is False
    count = min(kept.z.shape[1], 100)
    assert 0 < kept.z.shape[1] < 100_000 and torch.equal(kept.z[:, :count], whole.z[:, :count])
    assert torch.isfinite(kept.z).all() and all(v.shape == kept.z.shape[:2] for v in kept.stats.values())
    verdict = posterior.diagnose()
    assert verdict.verdict == "not converged" and any("interrupted" in reason for reason in verdict.reasons)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("usual_interrupts")
def test_a_second_interrupt_is_one_at_once():
    with watch_interrupts() as flag:
        signal.raise_signal(signal.SIGINT)
        assert flag.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_interrupts_of_another_thread_are_left_alone():
    found = []

    def look():
        with watch_interrupts() as flag:
            found.append((type(flag), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(Interrupts, signal.getsignal(signal.SIGINT))]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inference": "svi", "engine": "pyro", "batch_size": 5}, "engine='pyro': expected svi without batch_size"),
        ({"inference": "chees", "engine": "pyro"}, "engine: expected 'compiled' or 'eager' for chees"),
        ({"inference": "nuts", "engine": "pyro", "thin": 2}, "expected NUTS without thin and adaptation"),
        ({"inference": "nuts", "engine": "eager", "backend": "inductor"}, "expected backend 'auto' or 'eager'"),
        ({"inference": "nuts", "engine": "jax"}, "unknown engine 'jax'"),
    ],
)
def test_engines_that_do_not_run_a_method_are_refused(rows, settings, said):
    with pytest.raises(bnn.BNNError, match=said):
        MODEL.fit(rows, **settings)


def test_a_program_that_cannot_be_traced_is_warned_of():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        sigma = 0.5 if w > 0 else 2.0
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("y", dist.Normal(w * x[:, 0], sigma), obs=y)

    x = np.ones((5, 1))
    with pytest.warns(
        UserWarning, match=r"cannot be traced: .*site 'w'.* Gradients come from backend 'pyro', which is slow"
    ):
        posterior = bnn.fit(program, x, x[:, 0], inference="nuts", chains=2, warmup=5, draws=5)
    assert posterior.attrs["backend"] == "pyro" and "cannot be traced" in posterior.attrs["backend_reason"]


def test_attrs_say_what_ran(rows):
    posterior = MODEL.fit(rows, inference="hmc", chains=2, warmup=3, draws=4, engine="eager", max_steps=5)
    attrs = posterior.attrs
    assert (attrs["engine"], attrs["backend"], attrs["inference"]) == ("compiled", "eager", "hmc")
    assert attrs["gradient_evaluations"] >= 2 * 7 and {"compile_time", "start_time", "sampling_time"} <= set(attrs)
