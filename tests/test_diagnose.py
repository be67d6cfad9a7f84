"""The verdict: healthy draws are believed, each planted fault is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bnn_pyro as bnn
from bnn_pyro.diagnose import _k_hat_words, _rose, elbo_gain

CHAINS, DRAWS = 4, 250


@pytest.fixture(scope="module")
def fitted():
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("linear", noise=0.5)
    posterior = model.fit(data.train, chains=CHAINS, warmup=20, draws=DRAWS, dtype="float64", backend="eager")
    return posterior, model.exact(posterior.target.x, posterior.target.y)


@pytest.fixture
def healthy(fitted):
    """The posterior with independent draws of the exact one, and statistics without a fault."""
    posterior, exact = fitted
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(CHAINS, DRAWS, 4, generator=generator, dtype=torch.float64)
    energy = np.random.default_rng(0).normal(size=(CHAINS, DRAWS))
    posterior.__dict__.pop("idata", None)
    posterior.__dict__.pop("verdict", None)
    posterior.draws.z = exact.mean + noise @ torch.linalg.cholesky(exact.covariance).T
    posterior.draws.stats |= {
        "diverging": np.zeros((CHAINS, DRAWS), bool),
        "tree_depth": np.full((CHAINS, DRAWS), 3),
        "energy": energy,
    }
    return posterior


def test_exact_draws_are_converged(healthy):
    verdict = healthy.diagnose()
    assert verdict.verdict == "converged" and not verdict.remedies
    assert verdict.numbers["r_hat"] < 1.01 and verdict.numbers["ess_bulk"] > 400


def test_a_chain_elsewhere(healthy):
    healthy.draws.z[3] += 10 * healthy.draws.z.std((0, 1))
    verdict = healthy.diagnose()
    assert verdict.verdict == "not converged" and "chains disagree" in str(verdict)


def test_a_chain_that_is_stuck(healthy):
    healthy.draws.z[2] = healthy.draws.z[2, :1]
    assert healthy.diagnose().verdict == "not converged"


def test_all_chains_stuck(healthy):
    healthy.draws.z[:] = healthy.draws.z[:, :1]
    assert healthy.diagnose().verdict == "not converged"


def test_slow_chains(healthy):
    healthy.draws.z = healthy.draws.z[:, : DRAWS // 5].repeat_interleave(5, 1)
    verdict = healthy.diagnose()
    assert (
        verdict.verdict == "not converged" and "ESS of" in str(verdict) and any("draws=" in r for r in verdict.remedies)
    )


def test_one_divergence(healthy):
    healthy.draws.stats["diverging"][1, 7] = True
    verdict = healthy.diagnose()
    assert verdict.verdict == "not converged" and "1 of 1000 draws diverged" in str(verdict)
    assert any("target_accept=0.9" in r for r in verdict.remedies)


def test_transitions_between_kept_draws_count(healthy, monkeypatch):
    monkeypatch.setattr(healthy, "method", replace(healthy.method, thin=10))
    monkeypatch.setattr(healthy.draws, "info", healthy.draws.info | {"divergences": 3, "e_bfmi": 0.1})
    said = str(healthy.diagnose())
    assert "3 of 10000 transitions diverged" in said and "E-BFMI is 0.10" in said


def test_a_thinned_fit_says_what_it_left_out():
    settings = {
        "chains": 4,
        "warmup": 20,
        "draws": 30,
        "thin": 4,
        "dtype": "float64",
        "backend": "eager",
        "progress": False,
    }
    posterior = bnn.get_model("linear", noise=0.5).fit(bnn.load_dataset("stackloss").train, **settings)
    assert posterior.draws.info["divergences"] == posterior.diagnose().numbers["divergences"]
    assert posterior.draws.info["e_bfmi"] == posterior.diagnose().numbers["e_bfmi"] > 0.3


def test_trees_at_their_limit(healthy):
    healthy.draws.stats["tree_depth"][0, :20] = healthy.method.max_tree_depth
    verdict = healthy.diagnose()
    assert verdict.verdict == "not converged" and verdict.numbers["at_limit"] == 0.02
    assert "2.0% of trajectories stopped at max_tree_depth=" in str(verdict)


def test_energy_explored_slowly(healthy):
    healthy.draws.stats["energy"] = healthy.draws.stats["energy"].cumsum(1)
    verdict = healthy.diagnose()
    assert verdict.verdict == "not converged" and "E-BFMI" in str(verdict)


def test_draws_that_are_not_finite(healthy):
    healthy.draws.z[0, 0, 0] = float("nan")
    assert healthy.diagnose().verdict == "not converged"


def test_two_chains_cannot_be_judged():
    data = bnn.load_dataset("stackloss")
    posterior = bnn.get_model("linear").fit(data.train, chains=2, warmup=20, draws=20, backend="eager")
    assert "R-hat needs at least 4" in str(posterior.diagnose())


def test_svi_that_still_moves_and_svi_that_has_settled():
    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("linear")
    short = model.fit(data.train, inference="svi", steps=250, lr=0.003, lr_decay=1.0, draws=50).diagnose()
    assert short.verdict == "not converged" and short.remedies == ["steps=500"]
    long = model.fit(data.train, inference="svi", steps=3000, draws=500).diagnose()
    assert long.verdict == "approximate" and "k-hat" in str(long)
    for steps in (1, 15, 100, 199):  # a flat stretch of so few says nothing
        few = model.fit(data.train, inference="svi", steps=steps, draws=50).diagnose()
        assert few.verdict == "not converged" and f"{steps} steps are too few" in few.reasons[0]


def test_map_is_never_more_than_approximate():
    data = bnn.load_dataset("stackloss")
    verdict = bnn.get_model("linear").fit(data.train, inference="map", steps=2000).diagnose()
    assert verdict.verdict == "approximate" and "epistemic uncertainty is absent" in str(verdict)


def test_elbo_gain_and_its_error():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=4000)
    gain, error = elbo_gain(flat)
    assert abs(gain) < 4 * error and error == pytest.approx(np.sqrt(2 / 400), rel=0.1)
    gain, error = elbo_gain(flat + 0.01 * np.arange(4000))
    assert gain == pytest.approx(16.0, abs=4 * error) and error == pytest.approx(np.sqrt(2 / 400), rel=0.1)


@pytest.mark.parametrize(("nats", "words"), [
    (3.26, "rose by 3.3 nats"), (-0.5, "fell by 0.5 nats"), (0.04, "moved by less than 0.1 nats"),
    (-0.04, "moved by less than 0.1 nats"), (0.0, "moved by less than 0.1 nats"),
])  # fmt: skip
def test_a_change_is_said_without_a_sign(nats, words):
    assert _rose(nats) == words


def test_an_elbo_that_fell_says_so():
    posterior = bnn.get_model("linear").fit(bnn.load_dataset("stackloss").train, inference="svi", steps=400, draws=50)
    noise = np.random.default_rng(0).normal(0.0, 0.1, 400)
    posterior.draws.history["elbo"] = noise - np.linspace(0.0, 2.0, 400)
    said = posterior.diagnose().reasons[0]
    assert "(it fell by 0.8 nats in the second half of the steps; a rise of" in said or "fell by 0.9 nats" in said


def test_a_high_k_hat_blames_a_network_only_where_there_is_one():
    data = bnn.load_dataset("stackloss")
    for model, guide, end in (
        (bnn.get_model("linear"), "normal", "which knows no correlations; guide='multivariate' does."),
        (bnn.get_model("linear"), "lowrank", "cannot repair the guide."),
        (bnn.get_model("mlp_gaussian", hidden=(3,)), "normal", ", as is usual for a network."),
    ):
        posterior = model.fit(data.train, inference=bnn.SVI(guide=guide, steps=200, draws=200))
        posterior.draws.history["elbo"] = np.random.default_rng(0).normal(size=200)
        posterior.draws.stats["log_q"] = -40.0 * np.random.default_rng(1).pareto(
            1.0, (1, 200)
        )  # weights with heavy tails
        said = posterior.diagnose().reasons[-1]
        assert "above 0.7: importance weights cannot repair the guide" in said and said.endswith(end), said
    assert "network" not in _k_hat_words(0.6, True, True) + _k_hat_words(0.3, True, True)


@pytest.mark.parametrize("method", ["svi", "map"])
def test_two_hundred_steps_are_the_fewest_that_are_judged(method):
    data = bnn.load_dataset("stackloss")
    few, enough = (bnn.get_model("linear").fit(data.train, inference=method, steps=n).diagnose() for n in (199, 200))
    assert few.verdict == "not converged" and few.reasons[0].startswith("199 steps are too few")
    assert "too few" not in str(enough)
