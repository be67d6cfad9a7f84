"""A chain whose density fails does not move, says so, and disturbs no other; a chain's draws are its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from batched_targets import F64, TARGETS, Kept, normal, padded, run, settings

from bnn_pyro.inference import hmc_run, native_walk
from bnn_pyro.inference.leapfrogs import Leapfrogs, State
from bnn_pyro.inference.metric import Metric, log_acceptance
from bnn_pyro.inference.nuts_run import run_nuts
from bnn_pyro.inference.random_tables import Momenta, Uniforms
from bnn_pyro.inference.trees import Trees
from bnn_pyro.noise import Noise

METHODS = pytest.mark.parametrize("method", ["nuts", "hmc", "chees"])
ENERGIES = [1.5, torch.inf, -torch.inf, torch.nan]
NAN, INF = torch.nan, torch.inf
GRID = pytest.mark.parametrize(("old", "new"), list(itertools.product(ENERGIES, ENERGIES)))


# ---- energies that are not finite --------------------------------------------------------------------------------


@GRID
def test_only_finite_energies_have_a_difference(old, new):
    both = torch.tensor([old, new, 0.25], dtype=F64)
    difference = log_acceptance(both[[0, 2]], both[[1, 2]])
    both_finite = bool(torch.isfinite(both).all())
    assert difference.tolist() == [0.0 if both_finite else -INF, 0.0]


@GRID
def test_hmc_refuses_all_but_finite_energies(old, new):
    """Two chains side by side: the first goes from a density of -old to one of -new, the second is healthy."""
    target = normal(torch.ones(2, dtype=F64))
    z = target.exact(2, seed=1)

    def gradient(q):
        grad, log_density = target(q)
        return grad, torch.cat([torch.full((1,), -new, dtype=F64), log_density[1:]])

    grad, log_density = target(z)
    state = State(z, grad, torch.cat([torch.full((1,), -old, dtype=F64), log_density[1:]]))
    after, info, _ = hmc_run.transition(
        state,
        target.exact(2, seed=2),
        torch.full((2,), 1e-9, dtype=F64),  # takes whatever has a chance
        torch.tensor(0.1, dtype=F64),
        3,
        Leapfrogs(Metric(torch.ones(2, dtype=F64)), gradient),
    )
    taken = old == new == 1.5
    for before, now in zip(state, after):
        assert taken or torch.equal(before[0], now[0]) or (before[0].isnan() & now[0].isnan()).all()
        assert not torch.equal(before[1], now[1])
    assert info.diverging.tolist() == [not taken, False]
    assert info.acceptance_rate[0] == 0 or taken


@GRID
def test_trees_refuse_all_but_finite_energies(old, new):
    target, everyone = normal(torch.ones(2, dtype=F64)), torch.arange(2)
    calls = itertools.count()

    def gradient(q):
        grad, log_density = target(q)
        bad = -old if next(calls) == 0 else -new
        return grad, torch.cat([torch.full((1,), bad, dtype=F64), log_density[1:]])

    trees = Trees(
        gradient,
        target.exact(2, seed=1),
        Metric(torch.ones(2, dtype=F64)),
        torch.full((2,), 0.1, dtype=F64),
        Uniforms(Noise(1, "nuts"), everyone),
        Momenta(Noise(1, "momentum"), everyone, 2, F64),
        3,
    )
    before = trees.chosen[:, 0].clone()
    trees.begin(everyone, torch.zeros_like(everyone))
    ended = trees.advance()
    if old == new == 1.5:
        assert not len(ended) and not trees.diverging.any()
        return
    assert ended.tolist() == [0]
    info = trees.info(ended)
    assert torch.equal(trees.chosen[:, 0], before)
    assert (info.diverging, info.n_steps, info.tree_depth, info.acceptance_rate) == (True, 1, 1, 0)


# ---- a region in which the density fails -------------------------------------------------------------------------

FAILURES = {  # gradient, log density
    "density is NaN": (None, NAN),
    "density is -inf": (None, -INF),
    "density is +inf": (None, INF),
    "gradient is NaN": (NAN, None),
    "gradient is inf": (INF, None),
    "both are NaN": (NAN, NAN),
}
START = 35.0


def failing(failure):
    """A standard normal density but for z0 > 30, which fails everywhere except at z0 = ``START``."""
    bad_grad, bad_density = FAILURES[failure]
    target = normal(torch.ones(4, dtype=F64))

    def gradient(z):
        grad, log_density = target(z)
        bad = (z[:, 0] > 30) & (z[:, 0] != START) | z.isnan().any(1)
        if bad_grad is not None:
            grad = torch.where(bad[:, None], bad_grad, grad)
        if bad_density is not None:
            log_density = torch.where(bad, bad_density, log_density)
        return grad, log_density

    return target, gradient


@METHODS
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_chain_stays_and_the_others_do_not_notice(method, failure):
    target, gradient = failing(failure)
    start = target.exact(6, seed=1)
    start[2, 0] = START
    mass = torch.ones(4, dtype=F64) * 0.5
    chosen = settings(method, 6, 15, 0.1, mass, length=0.2)
    healthy, _ = run(chosen, target, start, seed=5)
    kept, _ = run(chosen, gradient, start, seed=5)
    assert (kept.draws[2] == start[2]).all()
    assert kept.stats["diverging"][2].all() and (kept.stats["acceptance_rate"][2] == 0).all()
    assert (kept.stats["lp"][2] == target(start)[1][2]).all()
    if method == "nuts":
        assert (kept.stats["n_steps"][2] == 1).all() and (kept.stats["tree_depth"][2] == 1).all()
    others = torch.arange(6) != 2
    assert torch.equal(kept.draws[others], healthy.draws[others])
    assert not healthy.stats["diverging"].any() and not (healthy.draws[2] == start[2]).all()
    for name, values in kept.stats.items():
        assert torch.equal(values[others], healthy.stats[name][others]), name


@METHODS
@pytest.mark.parametrize("failure", ["density is NaN", "density is -inf", "density is +inf", "both are NaN"])
def test_a_wall_is_never_crossed_and_the_rest_of_the_density_is_kept(method, failure):
    bad_grad, bad_density = FAILURES[failure]
    target = normal(torch.ones(2, dtype=F64))

    def gradient(z):
        grad, log_density = target(z)
        bad = z[:, 0] > 0.5
        grad = grad if bad_grad is None else torch.where(bad[:, None], bad_grad, grad)
        return grad, torch.where(bad, bad_density, log_density)

    start = torch.full((400, 2), -0.3, dtype=F64)
    kept, _ = run(settings(method, 400, 30, 0.4, torch.ones(2, dtype=F64)), gradient, start, seed=2)
    draws = kept.draws[:, 10:, 0]
    assert torch.isfinite(kept.draws).all() and (draws <= 0.5).all() and kept.stats["diverging"].any()
    exact = -0.3520653 / 0.6914625  # mean of a standard normal number below 0.5: -phi(0.5) / Phi(0.5)
    chains = draws.mean(1)  # independent of each other
    assert abs(chains.mean() - exact) < 4.26 * chains.std() / 20


# ---- a chain's draws are its own ---------------------------------------------------------------------------------

COUNTS = [1, 2, 3, 4, 16]  # beside 64


WIDE = normal(torch.logspace(-1, 1, 50, base=2.0, dtype=F64))


def draws(method, name, chains, count=30, seed=7, dtype=F64):
    """Gradients go coordinate by coordinate, so that their bits do not depend on the batch of two or more."""
    target = WIDE if name == "wide" else TARGETS[name]
    mass = torch.full((target.dim,), 0.8, dtype=F64) * 0.7
    start = target.exact(64, seed=1)[:chains].to(dtype)
    kept, _ = run(settings(method, chains, count, 0.35, mass), padded(target), start, seed)
    return kept


@METHODS
@pytest.mark.parametrize("name", ["funnel", "banana", "wide"])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
def test_a_chain_is_the_same_among_any_number(method, name, dtype):
    among = draws(method, name, 64, count=15, dtype=dtype)
    for chains in COUNTS:
        alone = draws(method, name, chains, count=15, dtype=dtype)
        assert torch.equal(alone.draws, among.draws[:chains]), f"among {chains} chains"
        for key, values in alone.stats.items():
            assert torch.equal(values, among.stats[key][:chains]), f"{key} among {chains} chains"


@METHODS
def test_fewer_draws_are_the_first_of_more(method):
    more, fewer = draws(method, "funnel", 4, count=60), draws(method, "funnel", 4, count=30)
    assert torch.equal(more.draws[:, :30], fewer.draws)
    assert all(torch.equal(more.stats[key][:, :30], fewer.stats[key]) for key in more.stats)


@METHODS
def test_a_seed_gives_the_same_draws_and_another_one_others(method):
    first, again, other = (draws(method, "funnel", 4, seed=seed).draws for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not (first == other).any(1).any()
    assert not (first[0] == first[1]).any()  # nor are two chains alike


class Stopping(Kept):
    def should_stop(self):
        return bool(self.draws[:, 9].isfinite().any())


@METHODS
def test_a_run_that_is_stopped_kept_the_first_draws(method, monkeypatch):
    monkeypatch.setattr(native_walk, "_PATIENCE", -1.0)  # the tenth draw is to be seen when it is there
    whole = draws(method, "funnel", 4)
    target = TARGETS["funnel"]
    chosen = settings(method, 4, 30, 0.35, torch.full((3,), 0.8, dtype=F64) * 0.7)
    kept = Stopping(4, 30, 3)
    runner = hmc_run.run_hmc if method != "nuts" else run_nuts
    runner(padded(target), target.exact(64, seed=1)[:4], chosen, 7, kept)
    made = kept.draws.isfinite().all(2)
    assert made[:, :10].any(0).all() and not made[:, 29].any()
    assert torch.equal(kept.draws[made], whole.draws[made])
