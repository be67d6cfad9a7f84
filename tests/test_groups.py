"""Every ArviZ group for SVI, MAP and NUTS alike: named dims, original units, and the calls that users type."""

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import stats
from scipy.special import logsumexp

import bnn_pyro as bnn
from bnn_pyro import results

matplotlib.use("Agg")
GROUPS = {
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "function_space",
}
METHODS = {
    "nuts": {"inference": "nuts", "chains": 4, "warmup": 40, "draws": 30, "max_tree_depth": 4},
    "svi": {"inference": "svi", "steps": 300, "draws": 120},
    "map": {"inference": "map", "steps": 300},
    "ensemble": {"inference": "ensemble", "members": 3, "steps": 300},
}


@pytest.fixture(scope="module")
def posteriors():
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("mlp_gaussian", hidden=(3, 2))
    return {name: model.fit(data.train, seed=1, **settings) for name, settings in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_groups_dims_and_coords(posteriors, name):
    posterior = posteriors[name]
    idata = posterior.idata
    assert set(results.group_names(idata)) == GROUPS
    weights = results.dataset(idata, "posterior")
    assert weights["w1"].dims == ("chain", "draw", "feature", "hidden_1")
    assert weights["w2"].dims == ("chain", "draw", "hidden_1", "hidden_2")
    assert weights["b3"].dims == ("chain", "draw", "output")
    assert list(weights["feature"].values) == list(posterior.data.columns)
    watched = results.dataset(idata, "function_space")
    assert watched["f"].dims == ("chain", "draw", "probe")
    expected = {"f", "noise_scale", "log_likelihood", "log_prior", *(f"norm_{k}{i}" for k in "wb" for i in (1, 2, 3))}
    assert set(watched.data_vars) == expected
    assert results.dataset(idata, "log_likelihood")["y"].dims == ("chain", "draw", "row")
    assert results.dataset(idata, "constant_data")["x"].dims == ("row", "feature")
    assert np.array_equal(results.dataset(idata, "observed_data")["y"].values, posterior.data.y)
    kept = results.dataset(idata, "sample_stats")
    wanted = {
        "nuts": {"energy", "diverging", "tree_depth"},
        "svi": {"log_p", "log_q"},
        "map": {"lp"},
        "ensemble": {"lp"},
    }[name]
    assert wanted <= set(kept.data_vars)
    for attribute in ("model", "inference", "seed", "settings", "data_checksum", "versions", "engine", "wall_time"):
        assert attribute in idata.attrs, attribute


@pytest.mark.parametrize("name", METHODS)
def test_the_calls_that_users_type(posteriors, name):
    idata = posteriors[name].idata
    table = az.summary(idata, group="function_space")
    f = results.dataset(idata, "function_space")["f"].values
    assert table.loc["f[0]", "mean"] == pytest.approx(f[..., 0].mean(), abs=0.01)
    assert np.isfinite(az.loo(idata).elpd_loo)
    assert set(az.compare({"a": idata, "b": posteriors["nuts"].idata}).index) == {"a", "b"}
    az.plot_trace(idata.function_space, var_names=["log_likelihood", "noise_scale"])
    az.plot_ppc(idata, num_pp_samples=10)
    plt.close("all")


@pytest.mark.parametrize("name", METHODS)
def test_log_likelihood_is_in_original_units(posteriors, name):
    """Against scipy, from f and sigma of the draws: log Normal(y; f sd_y + mean_y, sigma sd_y)."""
    posterior = posteriors[name]
    idata, units = posterior.idata, posterior.units
    f = posterior.predict(pd.DataFrame(posterior.data.x, columns=posterior.data.columns)).function_draws
    sigma = results.dataset(idata, "posterior")["sigma"].values[..., None] * units.y_sd
    expected = stats.norm(f, sigma).logpdf(posterior.data.y)
    assert np.allclose(results.dataset(idata, "log_likelihood")["y"].values, expected, atol=2e-4)
    watched = results.dataset(idata, "function_space")
    assert np.allclose(watched["log_likelihood"].values, expected.sum(-1), atol=2e-3)
    assert np.allclose(watched["noise_scale"].values, sigma[..., 0], rtol=1e-5)
    probes = results.dataset(idata, "constant_data")["probe_row"].values
    assert np.allclose(watched["f"].values, f[..., probes], rtol=1e-5)
    w1 = results.dataset(idata, "posterior")["w1"].values.astype(float)
    assert np.allclose(watched["norm_w1"].values, np.linalg.norm(w1, axis=(-1, -2)), rtol=1e-5)


def test_prior_groups_are_draws_of_the_prior(posteriors):
    idata = posteriors["svi"].idata
    prior = results.dataset(idata, "prior")
    assert stats.kstest(prior["b1"].values.reshape(-1), "norm").pvalue > 1e-4
    assert stats.kstest(prior["sigma"].values.reshape(-1), "halfnorm").pvalue > 1e-4
    assert stats.kstest(prior["scale"].values.reshape(-1), "halfcauchy").pvalue > 1e-4
    assert results.dataset(idata, "prior_predictive")["y"].shape == (1, 500, posteriors["svi"].data.n)


def test_posterior_predictive_has_the_noise_of_its_draw(posteriors):
    posterior = posteriors["nuts"]
    replicated = results.dataset(posterior.idata, "posterior_predictive")["y"].values
    f = posterior.predict(pd.DataFrame(posterior.data.x, columns=posterior.data.columns)).function_draws
    sigma = results.dataset(posterior.idata, "posterior")["sigma"].values[..., None] * posterior.units.y_sd
    standard = ((replicated - f) / sigma).reshape(-1)
    assert stats.kstest(standard, "norm").pvalue > 1e-4


def test_an_improper_prior_leaves_its_groups_out_and_says_so():
    from torch.distributions import constraints

    def program(x, y=None):
        w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    x = torch.linspace(-1, 1, 20)
    posterior = bnn.fit(program, x, 2 * x, chains=1, warmup=50, draws=20)
    with pytest.warns(UserWarning, match="a prior is improper, so 'prior' and 'prior_predictive' are left out"):
        names = results.group_names(posterior.idata)
    assert GROUPS - set(names) == {"prior", "prior_predictive"}


def test_inputs_in_a_dict_and_a_joint_observation():
    def program(x, y=None):
        level = pyro.sample("level", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        f = level[x["group"]] + x["t"]
        pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)

    x = {"group": torch.arange(12) % 3, "t": torch.linspace(0, 1, 12)}
    posterior = bnn.fit(program, x, x["t"] + x["group"], inference="svi", steps=200, draws=30)
    names = set(results.group_names(posterior.idata))
    assert GROUPS - names == {"log_likelihood"}  # one joint term has no pointwise log likelihood
    assert set(results.dataset(posterior.idata, "constant_data").data_vars) == {"group", "t", "probe_row"}
    assert posterior.predict(x).mean.shape == (12,)


def test_function_space_does_not_depend_on_blocks(posteriors):
    from bnn_pyro.function_space import function_space

    posterior = posteriors["svi"]
    z = posterior.draws.z
    whole, parts = (function_space(posterior.target, posterior.units, z, block) for block in (200, 7))
    assert list(whole) == list(parts)
    for name, value in whole.items():
        assert np.allclose(value, parts[name], rtol=1e-5), name


# ---- classes -------------------------------------------------------------------------------------------------------


def classified(k, labels):
    """A network's posterior of k classes, with its rows."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(70, 2))
    y = np.asarray(labels)[(x[:, 0] * k / 4 + k / 2 + 0.3 * rng.normal(size=70)).astype(int).clip(0, k - 1)]
    model = bnn.get_model("mlp_categorical", hidden=(3,), activation="tanh")
    return model.fit(x, y, inference="svi", steps=300, draws=120, seed=1, dtype="float64"), x, y


@pytest.mark.parametrize("labels", [["ash", "elm", "oak"], [1, 2, 7], [False, True]], ids=["text", "int", "bool"])
def test_groups_of_a_classifier_name_their_classes(labels):
    k = len(labels)
    posterior, x, y = classified(k, labels)
    idata = posterior.idata
    assert set(results.group_names(idata)) == GROUPS
    weights = results.dataset(idata, "posterior")
    assert weights["w2"].dims == ("chain", "draw", "hidden_1", "class") and weights["b2"].dims[2:] == ("class",)
    assert weights["class"].values.tolist() == labels
    watched = results.dataset(idata, "function_space")
    assert set(watched.data_vars) == {
        "f",
        "log_likelihood",
        "log_prior",
        *(f"norm_{k}{i}" for k in "wb" for i in (1, 2)),
    }
    assert watched["f"].dims == (("chain", "draw", "probe") if k == 2 else ("chain", "draw", "probe", "class"))
    probes = results.dataset(idata, "constant_data")["probe_row"].values
    p = posterior.predict(x).function_draws
    assert np.allclose(watched["f"].values, p[..., probes, 1] if k == 2 else p[..., probes, :])
    if k > 2:
        assert watched["class"].values.tolist() == labels
        assert np.allclose(watched["f"].sel({"class": labels[-1]}).values, p[..., probes, -1])
    codes = [labels.index(v) for v in y.tolist()]
    assert results.dataset(idata, "observed_data")["y"].values.tolist() == codes
    assert set(np.unique(results.dataset(idata, "posterior_predictive")["y"].values)) <= set(range(k))
    table = az.summary(idata, group="function_space", var_names=["log_likelihood"])
    assert table.loc["log_likelihood", "mean"] == pytest.approx(watched["log_likelihood"].values.mean(), abs=0.01)


def test_loo_of_a_classifier_by_hand():
    """Pointwise log probabilities of the labels, smoothed importance weights 1 / p, and their sums."""
    posterior, x, y = classified(3, ["ash", "elm", "oak"])
    p = posterior.predict(x).function_draws[0]
    own = p[:, np.arange(70), np.searchsorted(["ash", "elm", "oak"], y)]
    kept = results.dataset(posterior.idata, "log_likelihood")["y"].values[0]
    assert np.allclose(kept, np.log(own), rtol=1e-9)
    assert np.allclose(results.dataset(posterior.idata, "function_space")["log_likelihood"].values[0], kept.sum(-1))
    loo = az.loo(posterior.idata, pointwise=True)
    density = np.log(own.mean(0)).sum()
    assert loo.elpd_loo + loo.p_loo == pytest.approx(density, rel=1e-9)
    log_weights = az.psislw(-np.log(own).T, reff=1.0)[0]  # reff: one chain, as loo takes it
    by_row = logsumexp(log_weights + np.log(own).T, axis=-1)
    assert np.allclose(loo.loo_i, by_row, rtol=1e-6) and loo.elpd_loo == pytest.approx(by_row.sum(), rel=1e-6)
    assert loo.elpd_loo < density < 0


def test_posterior_predictive_labels_have_the_probabilities_of_their_draw():
    posterior, x, _ = classified(3, ["ash", "elm", "oak"])
    p = posterior.predict(x).function_draws[0]
    replicated = results.dataset(posterior.idata, "posterior_predictive")["y"].values[0]
    for c in range(3):
        hits, sd = (replicated == c) - p[..., c], np.sqrt((p[..., c] * (1 - p[..., c])).sum())
        assert abs(hits.sum()) < 5 * sd


def test_a_users_bernoulli_program_has_probabilities_for_f():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x = np.random.default_rng(4).normal(size=(12, 2))
    posterior = bnn.fit(program, x, np.arange(12) % 2, inference="prior", draws=50)
    watched = results.dataset(posterior.idata, "function_space")
    w = results.dataset(posterior.idata, "posterior")["w"].values[0]
    assert set(watched.data_vars) == {"f", "log_likelihood", "log_prior", "norm_w"}
    assert np.allclose(watched["f"].values[0], 1 / (1 + np.exp(-w @ x.T)), atol=1e-6)


KEEPING = {"inference": "svi", "steps": 20, "draws": 40, "seed": 1}


@pytest.mark.parametrize("keep", [["sigma", "w2"], ["sigma", "sigma"], ("b3",)])
def test_sites_may_be_left_out_and_nothing_else_changes(keep):
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("mlp_gaussian", hidden=(3, 2))
    whole, lean = model.fit(data.train, **KEEPING), model.fit(data.train, keep=keep, **KEEPING)
    assert lean.keep == tuple(dict.fromkeys(keep)) and whole.keep is None
    for group in results.group_names(whole.idata):
        want, have = results.dataset(whole.idata, group), results.dataset(lean.idata, group)
        if group in ("posterior", "prior"):
            assert set(have.data_vars) == set(keep)
            want = want[list(have.data_vars)]
        assert have.drop_attrs().equals(want.drop_attrs()), group
    assert np.array_equal(lean.predict(data.test.x).draws, whole.predict(data.test.x).draws)
    assert str(lean.diagnose()) == str(whole.diagnose())


def test_all_sites_may_be_left_out_and_loo_still_works():
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("mlp_gaussian", hidden=(3,))
    whole, lean = model.fit(data.train, **KEEPING), model.fit(data.train, keep=(), **KEEPING)
    assert set(results.group_names(lean.idata)) == GROUPS - {"prior"}
    (name, left), *more = results.dataset(lean.idata, "posterior").data_vars.items()
    assert (name, left.dims, more) == ("log_likelihood", ("chain", "draw"), [])
    by_row = results.dataset(lean.idata, "log_likelihood")["y"].values
    assert left.values == pytest.approx(by_row.sum(-1), rel=1e-6)
    assert az.loo(lean.idata).elpd_loo == pytest.approx(az.loo(whole.idata).elpd_loo, abs=0.5)


def test_a_deterministic_site_may_be_kept():
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        double = pyro.deterministic("double", 2 * w)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(double * x, 1.0), obs=y)

    x = torch.linspace(-1, 1, 20)
    posterior = bnn.fit(program, x, 2 * x, keep=["double"], **KEEPING)
    assert set(results.dataset(posterior.idata, "posterior").data_vars) == {"double"}
    assert np.allclose(posterior.idata["posterior"]["double"].values, 2 * posterior.draws.z[..., 0].numpy())


@pytest.mark.parametrize(
    ("keep", "error", "said"),
    [
        (
            ["simga"],
            bnn.UnknownNameError,
            r"unknown site in keep of mlp_gaussian 'simga': did you mean 'sigma'\? Its sites",
        ),
        (["f"], bnn.UnknownNameError, r"Its sites are scale, w1, b1, w2, b2, sigma\.$"),  # f stands over rows
        (
            "sigma",
            bnn.OptionError,
            r"fit, keep: expected a list of sites' names, .* got 'sigma'\. Write keep=\['sigma'\]",
        ),
        ([3], bnn.OptionError, r"fit, keep: expected a list of sites' names, or None for all, got '\[3\]'\."),
    ],
)
def test_sites_that_are_not_there_are_refused_before_any_work(keep, error, said, monkeypatch):
    monkeypatch.setattr("bnn_pyro.fitting.infer", lambda *_: pytest.fail("work began"))
    with pytest.raises(error, match=said):
        bnn.get_model("mlp_gaussian", hidden=(3,)).fit(bnn.load_dataset("stackloss").train, keep=keep, **KEEPING)
