"""Chains that begin at members of a deep ensemble: weights trained on nine tenths of the rows, taken where the rest agree."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro import starts
from bnn_pyro.compiled import compile_gradient
from bnn_pyro.isolation import derive_seed, isolated
from bnn_pyro.starts import climb, starting_points
from bnn_pyro.structure import build_target

N, NEW, INPUTS, UNITS = 1000, 1000, 20, 30


def overfits(x, y=None):
    """Two weights for three rows and half the noise there is: on its way to the mode Adam passes what predicts best."""
    w = pyro.sample("w", dist.Normal(0.0, INPUTS**-0.5).expand([x.shape[1], UNITS]).to_event(2))
    v = pyro.sample("v", dist.Normal(0.0, 1.0).expand([UNITS]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(torch.tanh(x @ w) @ v, 0.5), obs=y)


def data(n, seed):
    """Rows x (n, INPUTS) and y (n,), about which one column tells something."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, INPUTS))
    return torch.tensor(x), torch.tensor(x[:, 0] + rng.normal(size=n))


@pytest.fixture(scope="module")
def target():
    with isolated(dtype=torch.float64):
        return build_target(overfits, *data(N, 0), dtype=torch.float64)


@pytest.fixture(scope="module")
def gradient(target):
    with isolated(seed=0, dtype=torch.float64):
        return compile_gradient(target, torch.randn(2, target.dim) * 0.5, "eager")


def parted(seed, n=N):
    """Held-out rows and the others, as drawn from ``seed``."""
    with isolated(derive_seed(seed, "held-out rows")):
        order = torch.randperm(n)
    return order[: n // 10], order[n // 10 :].sort().values


def held_out_likelihood(target, rows, z):
    """(chains,) by the program itself."""
    with isolated(dtype=target.dtype), torch.no_grad():
        return torch.stack([target.log_likelihood(one, rows).sum() for one in z])


def test_a_member_is_where_the_held_out_rows_are_most_likely_on_its_way(target, gradient):
    seed, chains = 5, 3
    points = starting_points(target, gradient, "ensemble", seed, chains)
    held_out, training = parted(seed)
    x, y = data(N, 0)
    with isolated(seed=0, dtype=torch.float64):
        alone = build_target(overfits, x[training], y[training], dtype=torch.float64)
        by_itself = compile_gradient(alone, torch.randn(2, alone.dim) * 0.5, "eager", block=gradient.block)
        begin = starting_points(target, gradient, "prior", seed, chains)
        way = torch.stack([climb(by_itself, begin, steps=k) for k in range(0, 201, 10)])
    scores = torch.stack([held_out_likelihood(target, held_out, z) for z in way])
    best = scores.argmax(0)
    assert (best > 0).all(), "training helps"
    assert (best < len(way) - 1).all(), "and then over-fits, or this network tests nothing"
    for i, k in enumerate(best):
        assert torch.allclose(points[i], way[k, i], rtol=1e-9, atol=1e-12)
    assert (held_out_likelihood(target, held_out, points) >= scores.max(0).values - 1e-9).all()


def test_members_predict_new_rows_better_than_modes_do(target, gradient):
    """New rows played no part in either, so this may fail for some; in the mean of 16 chains it has to hold by far."""
    x, y = data(NEW, 1)
    likelihood = {}
    for init in ("map", "ensemble"):
        z = starting_points(target, gradient, init, 2, chains=16)
        with isolated(dtype=torch.float64), torch.no_grad():
            terms = [target.evaluate(one, x, y).log_likelihood["y"].mean() for one in z]
        likelihood[init] = torch.stack(terms).double()
    gain = likelihood["ensemble"] - likelihood["map"]
    assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5


def test_a_member_depends_on_seed_and_chain_only(target, gradient):
    four = starting_points(target, gradient, "ensemble", 3, chains=4)
    assert torch.equal(starting_points(target, gradient, "ensemble", 3, chains=2), four[:2])
    assert len({tuple(z.tolist()) for z in four}) == 4
    assert not torch.equal(starting_points(target, gradient, "ensemble", 4, chains=4), four)
    assert not torch.equal(starting_points(target, gradient, "map", 3, chains=4), four)


def test_a_score_that_is_never_a_number_leaves_the_beginning(gradient, target):
    begin = torch.full((2, target.dim), 0.1, dtype=torch.float64)
    lost = torch.tensor([torch.nan, 1.0], dtype=torch.float64)
    points = climb(gradient, begin, steps=15, score=lambda z: lost)
    assert torch.equal(points, begin)  # equal scores: the first
    rising = iter(range(100))
    points = climb(gradient, begin, steps=15, score=lambda z: torch.full((2,), float(next(rising))))
    assert torch.equal(points, climb(gradient, begin, steps=15))  # looked at after 0, 10 and 15 steps


@pytest.mark.parametrize("engine", ["eager", "pyro"])
def test_fit_begins_at_members(engine):
    """With no warmup and steps too small to move, draws are where the chains began. A dict of inputs has rows, too."""

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([INPUTS]).to_event(1))
        with pyro.plate("data", len(x["a"])):
            return pyro.sample("y", dist.Normal(x["a"] @ w, 1.0), obs=y)

    x, y = data(N, 0)
    how = {"inference": "nuts", "chains": 2, "warmup": 0, "draws": 1, "max_tree_depth": 1, "seed": 7}
    posterior = bnn.fit(program, {"a": x}, y, dtype="float64", engine=engine, init="ensemble", **how)
    _, training = parted(7)
    exact = torch.linalg.solve(torch.eye(INPUTS) + x[training].T @ x[training], x[training].T @ y[training])
    everything = torch.linalg.solve(torch.eye(INPUTS) + x.T @ x, x.T @ y)
    assert torch.isfinite(posterior.draws.z).all()
    with isolated(seed=0, dtype=torch.float64):
        gradient = compile_gradient(posterior.target, torch.zeros(2, INPUTS), "eager")
    score = {init: starting_points(posterior.target, gradient, init, 7, 2) for init in ("map", "ensemble")}
    assert torch.allclose(score["map"], everything.expand(2, INPUTS), atol=1e-3)
    held_out, _ = parted(7)
    want = held_out_likelihood(posterior.target, held_out, exact[None]) - 1e-6
    assert (held_out_likelihood(posterior.target, held_out, score["ensemble"]) >= want).all()


def joint(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    return pyro.sample("y", dist.MultivariateNormal(w * x[:, 0], torch.eye(len(x))), obs=y)


def by_row(x, y=None):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        return pyro.sample("y", dist.Normal(u, 1.0), obs=y)


def all_rows(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        return pyro.sample("y", dist.Normal(w * x[:, 0] + torch.zeros(N), 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "n", "said"),
    [
        (
            joint,
            N,
            r"joint, init='ensemble': expected observations inside .* got one joint observation of all rows.*'map'",
        ),
        (by_row, N, r"by_row, init='ensemble': expected latent sites outside the data plate, got \['u'\] inside"),
        (
            all_rows,
            N,
            r"all_rows, init='ensemble': expected a program that runs on a part of its rows, got \w+ without",
        ),
        (
            overfits,
            1,
            r"overfits, init='ensemble': expected at least 2 rows, one of them to hold out, got 1\. Use init",
        ),
    ],
)
def test_rows_that_cannot_be_held_out_are_refused_before_any_work(program, n, said, monkeypatch):
    monkeypatch.setattr("bnn_pyro.fitting.infer", lambda *_: pytest.fail("work began"))
    with pytest.raises(bnn.BNNError, match=said):
        bnn.fit(program, *data(n, 0), inference="nuts", init="ensemble")


def test_the_share_that_is_held_out(target, gradient, monkeypatch):
    seen = []
    monkeypatch.setattr(starts, "compile_gradient", lambda t, *_, **__: seen.append(t) or gradient)
    for seed in (0, 0, 1):
        starts._without_held_out_rows(target, gradient, seed)
    assert [t.n for t in seen] == [900, 900, 900]
    assert torch.equal(seen[0].x, seen[1].x) and not torch.equal(seen[0].x, seen[2].x)
