"""The prior as a method, as groups, and as what no rows leave."""

import warnings

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bnn_pyro as bnn
import problems
from bnn_pyro import results
from bnn_pyro.isolation import isolated
from bnn_pyro.prior import prior_draws
from bnn_pyro.structure import build_empty_target
from bnn_pyro.units import Units

UNITS = Units({}, (np.array(100.0), np.array(7.0)))  # of y: mean and sd
PLAIN = Units({})
DRAWS = 2000
BOUND = np.sqrt(np.log(2 / 1e-5) / (2 * DRAWS))  # DKW at 1e-5


def test_prior_draws_are_the_priors_and_their_y_the_closed_form():
    t = problems.PROBLEMS["zoo_linear_known_noise"]().target()
    prior, predictive = prior_draws(t, UNITS, DRAWS, seed=12)
    assert prior["w"].shape == (1, DRAWS, 3) and predictive["y"].shape == (1, DRAWS, 12)
    for j in range(3):
        assert stats.kstest(prior["w"][0, :, j], stats.norm(0, 2).cdf).statistic < BOUND
    is_prior_predictive(t.x.numpy(), (predictive["y"][0] - 100) / 7)


def is_prior_predictive(x, y):
    """Of the zoo's ``linear`` with prior_sd 2 and noise 0.5: y (draws, n) is Normal(0, 4 (x x' + 1) + 0.25 I)."""
    n = len(x)
    z = np.concatenate([x, np.ones((n, 1))], 1)
    covariance = 4 * z @ z.T + 0.25 * np.eye(n)
    white = np.linalg.solve(np.linalg.cholesky(covariance), y.T)
    for row in white:
        assert stats.kstest(row, "norm").statistic < BOUND
    assert np.abs(np.cov(white) - np.eye(n)).max() < 6 / np.sqrt(DRAWS)


def test_prior_draws_of_an_improper_prior_are_none():
    assert prior_draws(problems.PROBLEMS["improper"]().target(), PLAIN, 3, seed=13) is None


# ---- inference="prior" ---------------------------------------------------------------------------------------------


def program(x, y=None):
    w = pyro.sample("w", dist.Normal(1.0, 3.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma + p[0]), obs=y)


def rows(n=10, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, 50 + x[:, 0]  # far from what the prior says


@pytest.fixture(scope="module")
def prior():
    return bnn.fit(program, *rows(), inference="prior", draws=DRAWS, seed=4, dtype="float64")


def test_sites_follow_their_priors_whatever_y_says(prior):
    kept = results.dataset(prior.idata, "posterior")
    for values, law in (
        (kept["w"].values[0, :, 0], stats.norm(1, 3)),
        (kept["w"].values[0, :, 1], stats.norm(1, 3)),
        (kept["sigma"].values[0], stats.halfnorm(0, 2)),
        (kept["p"].values[0, :, 0], stats.beta(1, 5)),
        (kept["p"].values[0, :, 2], stats.beta(3, 3)),
    ):
        assert values.shape == (DRAWS,) and stats.kstest(values, law.cdf).statistic < BOUND
    w, sigma = kept["w"].values[0], kept["sigma"].values[0]
    assert np.abs(np.corrcoef([w[:, 0], w[:, 1], sigma]) - np.eye(3)).max() < 5 / np.sqrt(DRAWS)
    assert np.abs(np.corrcoef(w[1:, 0], w[:-1, 0])[0, 1]) < 5 / np.sqrt(DRAWS), "draws are independent"


def test_lp_is_the_log_prior_with_its_log_jacobian(prior):
    """By the target, and by Pyro's own trace at the constrained values."""
    problem = problems.Problem(program, *(torch.as_tensor(a) for a in rows()))
    lp = prior.draws.stats["lp"]
    assert lp.shape == (1, DRAWS)
    for i in range(0, DRAWS, 200):
        z = prior.draws.z[0, i]
        with isolated(dtype=torch.float64):
            assert lp[0, i] == pytest.approx(float(prior.target.log_prior(z)), rel=1e-12)
            log_likelihood = float(prior.target.log_likelihood(z).sum())
            by_pyro = float(problems.pyro_log_density(problem, prior.target, z))
        assert lp[0, i] + log_likelihood == pytest.approx(by_pyro, rel=1e-10)
    assert np.allclose(results.dataset(prior.idata, "function_space")["log_prior"].values, lp, rtol=1e-9)


def test_log_likelihood_is_that_of_the_rows(prior):
    """Nothing was learnt from y, but how well the prior does is still said."""
    x, y = rows()
    kept = results.dataset(prior.idata, "posterior")
    f = kept["w"].values[0] @ x.T
    sd = (kept["sigma"].values + kept["p"].values[..., 0])[0, :, None]
    assert np.allclose(results.dataset(prior.idata, "log_likelihood")["y"].values[0], stats.norm(f, sd).logpdf(y))


def test_predictions_are_the_prior_predictive():
    x = np.random.default_rng(7).normal(size=(12, 3))
    model = bnn.get_model("linear", prior_sd=2.0, noise=0.5)
    settings = {"inference": "prior", "draws": DRAWS, "standardize": False, "dtype": "float64"}
    prediction = model.fit(x, 5 + x[:, 0], **settings).predict(x)
    is_prior_predictive(x, prediction.draws[0])
    design = np.concatenate([x, np.ones((12, 1))], 1)
    epistemic = 4 * (design**2).sum(1)
    assert np.allclose(prediction.epistemic, epistemic, rtol=5 * np.sqrt(2 / DRAWS))
    assert np.allclose(prediction.aleatoric, 0.25)


def test_predictions_of_classes_are_the_prior_predictive():
    """Logits 2 x w of a symmetric prior: one half each, and the closed-form entropy by quadrature."""
    x = np.array([[-1.5], [0.0], [0.5], [2.0]])
    y = np.array(["no", "yes", "yes", "yes"])
    model = bnn.get_model("logistic", prior_sd=2.0)
    prediction = model.fit(x, y, inference="prior", draws=DRAWS, standardize=False).predict(x)
    assert np.abs(prediction.probs - 0.5).max() < 5 * 0.5 / np.sqrt(DRAWS)
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    for row, aleatoric in zip(x[:, 0], prediction.aleatoric, strict=True):
        p = 1 / (1 + np.exp(-2 * np.sqrt(1 + row**2) * nodes))
        p = p.clip(1e-300, 1 - 1e-16)
        by_node = -(p * np.log(p) + (1 - p) * np.log1p(-p))
        mean = (weights * by_node).sum() / weights.sum()
        sd = np.sqrt((weights * by_node**2).sum() / weights.sum() - mean**2)
        assert aleatoric == pytest.approx(mean, abs=5 * sd / np.sqrt(DRAWS))


def test_the_seed_decides_and_more_draws_begin_with_the_same(prior):
    other = bnn.fit(program, *rows(), inference="prior", draws=50, seed=5, dtype="float64")
    fewer = bnn.fit(program, *rows(), inference=bnn.Prior(draws=50), seed=4, dtype="float64")
    assert torch.equal(fewer.draws.z, prior.draws.z[:, :50]) and not torch.equal(other.draws.z, fewer.draws.z)


def test_the_verdict_and_the_name(prior):
    verdict = prior.diagnose()
    assert verdict.verdict == "converged" and "nothing was learnt from y" in str(verdict)
    assert "prior" in bnn.list_inference() and prior.attrs["inference"] == "prior"
    with pytest.raises(bnn.OptionError, match=r"^prior, draws: expected a whole number of at least 1, got 0\.$"):
        bnn.Prior(draws=0)
    with pytest.raises(bnn.UnknownNameError, match=r"^unknown option of prior 'drws': did you mean 'draws'\?"):
        bnn.fit(program, *rows(), inference="prior", drws=4)


def test_an_improper_prior_cannot_be_drawn_from():
    improper = problems.PROBLEMS["improper"]()
    with pytest.raises(bnn.ModelError, match=r"^_improper, inference='prior': expected priors that can be drawn from"):
        bnn.fit(improper.program, improper.x, improper.y, inference="prior")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_priors_made_under_another_dtype_are_cast(dtype):
    """A distribution that a program keeps, made when torch's default dtype was float32 or float64."""
    for kept in (torch.float32, torch.float64):
        made = dist.Normal(torch.zeros(2, dtype=kept), torch.ones(2, dtype=kept)).to_event(1)

        def with_kept(x, y=None, made=made):
            w = pyro.sample("w", made)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

        posterior = bnn.fit(with_kept, *rows(), inference="prior", draws=30, dtype=dtype)
        assert posterior.draws.z.dtype == getattr(torch, dtype)
        assert posterior.predict(rows()[0]).mean.shape == (10,) and "prior" in results.group_names(posterior.idata)


def test_a_run_of_the_prior_is_read_back(prior, tmp_path):
    loaded = bnn.load(prior.save(tmp_path / "run"), model=program)
    assert loaded.method == prior.method and torch.equal(loaded.draws.z, prior.draws.z)
    assert np.array_equal(loaded.predict(rows()[0]).draws, prior.predict(rows()[0]).draws)
    assert str(loaded.diagnose()) == str(prior.diagnose())


# ---- no rows -------------------------------------------------------------------------------------------------


def bernoulli(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.5).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def positive(x, y=None):
    """Its y cannot be 0."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.LogNormal(x @ w, 1.0), obs=y)


def joint(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    return pyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize("inference", ["nuts", "svi", "map", "prior"])
def test_no_rows_leave_the_prior_and_say_so(inference):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = bnn.fit(program, np.zeros((0, 2)), np.zeros(0), inference=inference, draws=DRAWS // 4, seed=2)
    sentence = "program: no rows, so the posterior is the prior; its draws are drawn from there."
    assert [str(w.message) for w in caught] == [sentence] and posterior.warnings == [sentence]
    chains = 4 if inference == "nuts" else 1
    assert posterior.method == bnn.Prior(draws=chains * DRAWS // 4)
    kept = results.dataset(posterior.idata, "posterior")
    bound = BOUND * np.sqrt(4 / chains)
    assert stats.kstest(kept["w"].values[0, :, 0], stats.norm(1, 3).cdf).statistic < bound
    assert stats.kstest(kept["sigma"].values[0], stats.halfnorm(0, 2).cdf).statistic < bound
    z = posterior.draws.z[0, 7]
    assert float(posterior.target.log_density(z)) == pytest.approx(float(posterior.target.log_prior(z)), rel=1e-12)
    assert posterior.draws.stats["lp"][0, 7] == pytest.approx(float(posterior.target.log_prior(z)), rel=1e-5)


@pytest.mark.parametrize("made", [program, bernoulli, positive, joint, "linear", "mlp_gaussian"])
def test_a_fit_to_no_rows_can_be_used_like_any_other(made, tmp_path):
    model = bnn.get_model(made) if isinstance(made, str) else bnn.BNN(made)
    with pytest.warns(UserWarning, match="no rows, so the posterior is the prior"):
        posterior = model.fit(np.zeros((0, 2)), np.zeros(0), draws=100, chains=2)
    names = set(results.group_names(posterior.idata))
    assert names == {"posterior", "sample_stats", "prior", "observed_data", "constant_data", "function_space"}
    table = posterior.summary()
    norms = results.dataset(posterior.idata, "function_space")["log_prior"].values
    assert table.loc["log_prior", "mean"] == pytest.approx(norms.mean(), abs=0.01)
    size = sum(v[0, 0].size for v in results.dataset(posterior.idata, "posterior").data_vars.values())
    assert table.loc["log_likelihood", "mean"] == 0.0 and len(az.summary(posterior.idata)) == size
    assert results.dataset(posterior.idata, "observed_data")["y"].shape == (0,)
    assert posterior.diagnose().verdict == "converged"
    x = rows()[0]
    prediction = posterior.predict(x)
    loaded = bnn.load(posterior.save(tmp_path / "run"), model=None if isinstance(made, str) else model)
    assert loaded.data.n == 0 and torch.equal(loaded.draws.z, posterior.draws.z)
    assert np.array_equal(loaded.predict(x).draws, prediction.draws) and prediction.draws.shape == (1, 200, 10)


def test_no_rows_predict_what_the_prior_method_predicts():
    """Same prior, same seed: the same numbers, whatever rows were there."""
    with pytest.warns(UserWarning, match="no rows"):
        empty = bnn.fit(bernoulli, np.zeros((0, 2)), np.zeros(0, int), inference="prior", draws=300, seed=3)
    x = rows()[0]
    full = bnn.fit(bernoulli, x, np.arange(10) % 2, inference="prior", draws=300, seed=3)
    assert torch.equal(empty.draws.z, full.draws.z)
    assert np.array_equal(empty.predict(x).probs, full.predict(x).probs)


def test_an_empty_target_counts_no_rows():
    with isolated(dtype=torch.float64):
        empty_target()


def empty_target():
    target = build_empty_target(positive, torch.zeros(0, 2), torch.zeros(0), name="positive", dtype=torch.float64)
    result = target.evaluate(torch.zeros(2))
    assert target.n == 0 and result.log_likelihood["y"].shape == (0,)
    assert float(target.log_density(torch.ones(2))) == pytest.approx(stats.norm.logpdf([1.0, 1.0]).sum(), rel=1e-12)
    one = target.evaluate(torch.zeros(2), torch.zeros(1, 2), torch.ones(1)).log_likelihood["y"]
    assert one.tolist() == pytest.approx([stats.lognorm(1).logpdf(1.0)], rel=1e-6), "given rows are counted"


def test_no_labels_leave_the_prior_where_the_classes_are_known():
    with pytest.raises(
        bnn.DataError, match=r"^mlp_categorical, y: expected at least one label, got none\. A pandas Cat"
    ):
        bnn.get_model("mlp_categorical").fit(np.zeros((0, 2)), np.zeros(0, int))
    declared = pd.Categorical([], categories=["a", "b", "c"])
    for name, y, classes in (
        ("logistic", np.zeros(0, int), [0, 1]),
        ("logistic", pd.Categorical([], categories=["no", "yes"]), ["no", "yes"]),
        ("mlp_categorical", declared, ["a", "b", "c"]),
    ):
        with pytest.warns(UserWarning, match="no rows"):
            posterior = bnn.get_model(name).fit(np.zeros((0, 2)), y, inference="svi", draws=400, progress=False)
        prediction = posterior.predict(np.ones((2, 2)))
        assert list(prediction.classes) == classes
        assert np.abs(prediction.probs - 1 / len(classes)).max() < 5 * 0.5 / 20, "the prior is symmetric in the classes"
