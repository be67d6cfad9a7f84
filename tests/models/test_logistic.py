"""``logistic`` against scipy, scikit-learn's penalised maximum likelihood, and a published reference posterior."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from sklearn.linear_model import LogisticRegression

import bnn_pyro as bnn
import problems
from bnn_pyro import laplace, results
from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target

Z = 4.56
X = problems._rows()[0]
LABELS = torch.arange(len(X)) % 2


def test_logistic_is_the_model_of_its_docstring():
    model = bnn.get_model("logistic", prior_sd=1.3)
    t = build_target(model.model, X, LABELS, name="logistic", dims=model.dims(), dtype=torch.float64)
    assert [s.name for s in t.sites] == ["w", "b"]
    for z in problems.points(t, 4):
        with isolated(dtype=torch.float64):
            result = t.evaluate(z)
        w, b = z.numpy()[:3], z.numpy()[3]
        p = 1 / (1 + np.exp(-(b + X.numpy() @ w)))
        assert np.allclose(result.log_likelihood["y"], stats.bernoulli(p).logpmf(LABELS.numpy()), rtol=1e-12)
        prior = stats.norm(0, 1.3).logpdf(w).sum() + stats.norm(0, 1.3).logpdf(b)
        assert float(result.log_prior) == pytest.approx(float(prior), rel=1e-12)


def penalised(z, y, prior_sd):
    """The mode under Normal(0, prior_sd) weights: maximum likelihood minus |w|^2 / (2 prior_sd^2). z has a ones column."""
    return LogisticRegression(C=prior_sd**2, fit_intercept=False, solver="newton-cholesky", tol=1e-10).fit(z, y)


@pytest.mark.parametrize("prior_sd", [0.5, 1.5])
def test_the_mode_is_that_of_penalised_maximum_likelihood(prior_sd):
    data = bnn.load_dataset("breast_cancer")
    x, y = data.train.x.to_numpy(), data.train.y.to_numpy()
    mean, sd = x.mean(0), x.std(0)
    with_ones = lambda rows: np.column_stack([(rows - mean) / sd, np.ones(len(rows))])
    oracle = penalised(with_ones(x), y, prior_sd)
    assert list(oracle.classes_) == ["benign", "malignant"]
    model = bnn.get_model("logistic", prior_sd=prior_sd)
    posterior = model.fit(data.train, inference="map", lr=0.05, draws=1, dtype="float64", progress=False)
    assert np.allclose(posterior.draws.z[0, 0], oracle.coef_[0], atol=1e-4)
    prediction = posterior.predict(data.test.x)
    probs = oracle.predict_proba(with_ones(data.test.x.to_numpy()))
    assert list(prediction.classes) == list(oracle.classes_)
    assert np.allclose(prediction.probs, probs, atol=1e-5)
    assert (prediction.label == oracle.classes_[probs.argmax(-1)]).all()


# ---- the posterior of the German credit data, as a published reference has it --------------------------------------


@pytest.fixture(scope="module")
def german(data_folder):
    """Rows as the reference standardised them (all 1000, ddof 0), its means, sds and Monte Carlo errors of the means."""
    folder = data_folder / "german_credit"
    table = np.loadtxt(folder / "data.csv", delimiter=",", skiprows=1)
    x, y = table[:, :-1], table[:, -1].astype(int)
    summary = json.loads((folder / "german_credit_numeric_logistic_regression.json").read_text())["summary"]
    rows = [[summary[f"w[{i}]"][k] for k in ("mean", "sd", "mcse_mean")] for i in range(1, 26)]
    return (x - x.mean(0)) / x.std(0), y, *np.array(rows).T


@pytest.mark.slow
def test_nuts_has_the_reference_posterior(german):
    x, y, mean, sd, mcse = german
    posterior = bnn.get_model("logistic", prior_sd=1.0).fit(
        x, y, inference="nuts", chains=4, warmup=400, draws=600, dense_mass=True, standardize=False, dtype="float64",
        seed=31, progress=False,
    )  # fmt: skip
    z = posterior.draws.z.numpy()  # (chain, draw, 25): weights, then the intercept, as in the reference
    table = xr.Dataset({"w": (("chain", "draw", "i"), z)})
    flat = z.reshape(-1, z.shape[-1])
    error = np.hypot(mcse, results.mcse(table, method="mean")["w"])
    assert (abs(flat.mean(0) - mean) < Z * error).all()
    # the reference states no error of its sds; a nearly normal weight's is sd / sqrt(2 ESS), with ESS = (sd / mcse)^2
    error = np.hypot(mcse / np.sqrt(2), results.mcse(table, method="sd")["w"])
    assert (abs(flat.std(0) - sd) < Z * error).all()
    assert (abs(flat.mean(0) - mean) < 0.15 * sd).all()  # Laplace's are up to 0.42 away, below
    verdict = posterior.diagnose()
    assert verdict.verdict == "converged", str(verdict)


def test_laplace_has_the_bias_that_a_mode_has_there(german):
    """A skewed posterior's mode is not its mean: up to 0.42 sds away, as the reference's own mode is."""
    x, y, mean, sd, _ = german
    design = np.column_stack([x, np.ones(len(x))])
    mode = penalised(design, y, 1.0).coef_[0]
    posterior = bnn.get_model("logistic", prior_sd=1.0).fit(
        x, y, inference="laplace", standardize=False, draws=20_000, seed=33, progress=False
    )
    state = posterior.draws.state["mean"].numpy()
    assert np.allclose(state, mode, rtol=0, atol=1e-6)
    away = (state - mean) / sd
    assert abs(away).max() == pytest.approx(0.42, abs=0.005) and abs(away).argmax() == 24  # the intercept
    p = 1 / (1 + np.exp(-design @ mode))
    covariance = np.linalg.inv(np.eye(25) + (design.T * (p * (1 - p))) @ design)
    z = posterior.draws.z[0].numpy()
    assert np.allclose(laplace.gaussian(posterior.draws).covariance().numpy(), covariance, rtol=1e-6, atol=1e-10)
    assert (abs(z.mean(0) - mode) < Z * np.sqrt(np.diag(covariance) / len(z))).all()
    ratio = np.sqrt(np.diag(covariance)) / sd
    assert ratio.min() > 0.94 and ratio.max() < 1.0  # and a little narrower, all of them


@pytest.mark.slow
def test_full_rank_svi_moves_from_the_mode_to_the_references_mean(german):
    x, y, mean, sd, _ = german
    mode = penalised(np.column_stack([x, np.ones(len(x))]), y, 1.0).coef_[0]
    posterior = bnn.get_model("logistic", prior_sd=1.0).fit(
        x, y, inference="svi", steps=6000, draws=4000, standardize=False, dtype="float64", seed=32, progress=False
    )
    z = posterior.draws.z[0].numpy()
    # distances in the reference's sds; a mean of 4000 exact draws would be sqrt(25 / 4000) = 0.08 away
    far, near = np.linalg.norm((mode - mean) / sd), np.linalg.norm((z.mean(0) - mean) / sd)
    assert near < far / 4, (near, far)
    assert (abs(z.std(0) / sd - 1) < 0.1).all(), "a mean-field normal would be too narrow"
