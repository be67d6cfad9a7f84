"""MCMC through ``fit`` against exact posteriors, by every sampler and by Pyro's own NUTS, and the record of iterations."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import bnn_pyro as bnn
from bnn_pyro import results

Z = 4.56  # Bonferroni for 200 quantities at a family rate of 1e-3


def z_scores(series, exact):
    """|mean of a (chain, draw, k) series - exact| in Monte Carlo standard errors, (k,)."""
    table = xr.Dataset({"q": (("chain", "draw", "k"), series)})
    return np.abs(series.mean((0, 1)) - exact) / results.mcse(table, method="mean")["q"]


def products(draws, mean):
    """Products (chain, draw, pairs) of centred draws (chain, draw, k), whose means are the covariances."""
    centred = draws - mean
    i, j = np.triu_indices(draws.shape[-1])
    return centred[..., i] * centred[..., j]


SAMPLERS = {
    "nuts": {"inference": "nuts", "chains": 4, "draws": 2500, "dense_mass": True},
    "nuts, diagonal": {"inference": "nuts", "chains": 16, "draws": 2500},
    "hmc": {"inference": "hmc", "chains": 4, "draws": 2500, "dense_mass": True},
    "chees": {"inference": "chees", "chains": 16, "draws": 2500},
    "pyro": {"inference": "nuts", "chains": 4, "draws": 2500, "dense_mass": True, "engine": "pyro"},
}


@pytest.fixture(scope="module", params=SAMPLERS)
def known_noise(request):
    """`linear` with a known noise on diabetes: the posterior, and its exact counterpart."""
    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("linear", noise=0.7)
    posterior = model.fit(data.train, warmup=500, dtype="float64", seed=11, **SAMPLERS[request.param])
    return posterior, model.exact(posterior.target.x, posterior.target.y)


@pytest.mark.slow
def test_means_variances_and_covariances_are_exact(known_noise):
    posterior, exact = known_noise
    draws = posterior.draws.z.numpy()
    mean, covariance = exact.mean.numpy(), exact.covariance.numpy()
    assert z_scores(draws, mean).max() < Z
    expected = covariance[np.triu_indices(len(mean))]
    assert z_scores(products(draws, mean), expected).max() < Z


@pytest.mark.slow
def test_marginals_follow_the_exact_normal(known_noise):
    posterior, exact = known_noise
    draws = posterior.draws.z.numpy()
    table = xr.Dataset({"q": (("chain", "draw", "k"), draws)})
    sd = exact.covariance.diagonal().sqrt().numpy()
    for k, ess in enumerate(results.ess(table)["q"]):
        flat = draws[:, :, k].reshape(-1)
        distance = stats.kstest(flat, stats.norm(exact.mean[k].item(), sd[k]).cdf).statistic
        assert distance < np.sqrt(np.log(2 / 1e-4) / (2 * min(ess, flat.size)))  # DKW at the effective size


@pytest.mark.slow
def test_a_posterior_that_counts_the_likelihood_twice_is_far_outside_the_bound(known_noise):
    posterior, exact = known_noise
    x, y = posterior.target.x, posterior.target.y
    twice = bnn.get_model("linear", noise=0.7).exact(torch.cat([x, x]), torch.cat([y, y]))
    expected = twice.covariance.numpy()[np.triu_indices(len(exact.mean))]
    assert z_scores(products(posterior.draws.z.numpy(), exact.mean.numpy()), expected).max() > 4 * Z


@pytest.mark.slow
def test_it_converges_in_function_space(known_noise):
    verdict = known_noise[0].diagnose()
    assert verdict.verdict == "converged", str(verdict)
    assert verdict.numbers["r_hat"] < 1.01 and verdict.numbers["ess_bulk"] > 400


@pytest.mark.slow
def test_unknown_noise_has_the_inverse_gamma_posterior_and_the_student_t_predictive():
    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("linear")
    posterior = model.fit(data.train, chains=4, warmup=500, draws=1500, dense_mass=True, dtype="float64", seed=12)
    exact = model.exact(posterior.target.x, posterior.target.y)
    sigma = posterior.idata.posterior["sigma"].values
    variance = stats.invgamma(exact.shape, scale=exact.rate)
    assert z_scores(sigma[..., None] ** 2, variance.mean()).max() < Z
    w = np.concatenate([posterior.idata.posterior["w"].values, posterior.idata.posterior["b"].values[..., None]], -1)
    assert z_scores(w, exact.mean.numpy()).max() < Z
    expected = exact.covariance.numpy()[np.triu_indices(11)]
    assert z_scores(products(w, exact.mean.numpy()), expected).max() < Z
    # the predictive at held-out rows: Student-t with 2 shape degrees of freedom
    rows = data.test.x.iloc[:20]
    y = data.test.y.to_numpy()[:20]
    z = np.column_stack([posterior.units.inputs(rows.to_numpy()), np.ones(20)])
    scale2 = exact.rate / exact.shape * (1 + np.einsum("ni,ij,nj->n", z, _unit_covariance(exact), z))
    student = stats.t(2 * exact.shape, loc=z @ exact.mean.numpy(), scale=np.sqrt(scale2))
    expected = student.logpdf(posterior.units.targets(y)) - posterior.units.log_jacobian
    assert np.abs(posterior.predict(rows).log_prob(y) - expected).max() < 0.02  # Monte Carlo error at 6000 draws


def _unit_covariance(exact):
    return exact.covariance.numpy() * (exact.shape - 1) / exact.rate


@pytest.mark.parametrize("engine", ["compiled", "pyro"])
def test_statistics_have_arviz_names_and_add_up(engine):
    data = bnn.load_dataset("stackloss")
    settings = {"chains": 2, "warmup": 100, "draws": 50, "dtype": "float64", "seed": 3, "engine": engine}
    posterior = bnn.get_model("linear").fit(data.train, **settings)
    kept = posterior.draws.stats
    assert set(kept) == {"lp", "energy", "diverging", "tree_depth", "n_steps", "acceptance_rate", "step_size"}
    assert all(v.shape == (2, 50) for v in kept.values())
    assert (kept["n_steps"] <= 2 ** kept["tree_depth"] - 1).all() and (
        kept["n_steps"] >= 2 ** (kept["tree_depth"] - 1)
    ).all()
    assert ((kept["acceptance_rate"] >= 0) & (kept["acceptance_rate"] <= 1)).all()
    assert (kept["energy"][:, 1:] >= -kept["lp"][:, :-1]).all()  # kinetic energy is not negative
    from bnn_pyro.isolation import isolated

    with isolated(dtype=torch.float64):
        for chain, draw in ((0, 0), (1, 49)):
            assert float(posterior.target.log_density(posterior.draws.z[chain, draw])) == pytest.approx(
                kept["lp"][chain, draw], rel=1e-10
            )
    assert (kept["step_size"] == kept["step_size"][:, :1]).all()  # frozen after warmup


def test_chains_of_pyros_nuts_depend_on_seed_and_index_only():
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("linear")
    settings = {"warmup": 50, "dtype": "float64", "engine": "pyro"}
    two = model.fit(data.train, chains=2, draws=20, seed=5, **settings).draws.z
    one = model.fit(data.train, chains=1, draws=30, seed=5, **settings).draws.z
    other = model.fit(data.train, chains=1, draws=20, seed=6, **settings).draws.z
    assert torch.equal(two[0], one[0, :20])  # the first 20 of 30 draws, whatever the number of chains
    assert not torch.equal(two[0], two[1]) and not torch.equal(one[0, :20], other[0])


@pytest.mark.parametrize("init", ["prior", "map", "uniform"])
def test_starts_are_finite_and_differ_by_chain(init):
    from bnn_pyro.compiled import compile_gradient
    from bnn_pyro.isolation import isolated
    from bnn_pyro.starts import starting_points

    data = bnn.load_dataset("stackloss")
    target = bnn.get_model("mlp_gaussian", hidden=(3,)).fit(data.train, inference="map", steps=20).target
    with isolated(dtype=torch.float32):
        gradient = compile_gradient(target, torch.zeros(1, target.dim))
    points = starting_points(target, gradient, init, 1, chains=2)
    assert torch.isfinite(points).all() and not torch.equal(*points)
    if init == "map":
        with isolated(dtype=torch.float32):
            prior = starting_points(target, gradient, "prior", 1, chains=2)
            assert (gradient(points)[1] > gradient(prior)[1]).all()
