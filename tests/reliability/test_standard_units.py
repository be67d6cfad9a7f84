"""Standard units change no answer: with priors that say the same, scores in original units agree with and without them.

In standard units y is divided by its standard deviation s, so that sigma and the weights shrink with it: the prior
sigma**2 ~ InverseGamma(shape, rate) there is InverseGamma(shape, rate s**2) in y's own units, and w_j ~ Normal(0, prior_sd
sigma) follows sigma by itself. Rows have columns in standard units already and y of mean 0.
"""

from functools import cache
from math import log, pi

import arviz as az
import numpy as np
import pytest
import torch
from scipy.stats import norm

import bnn_pyro as bnn

N, HELD_OUT, SPREAD = 60, 40, 37.5
PRIOR_SD, SHAPE, RATE = 1.5, 2.0, 0.7
WITHIN = 4.56  # combined Monte Carlo errors: two-sided probability 5e-6
SETTINGS = {"inference": "nuts", "chains": 2, "warmup": 200, "draws": 2000, "dtype": "float64", "progress": False}


@cache
def rows():
    """x (n, 3) with columns of mean 0 and sd 1, y (n,) of mean 0 and sd ``SPREAD``; then the held-out rows."""
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(N, 3)), rng.normal(size=(HELD_OUT, 3))
    x = (x - x.mean(0)) / x.std(0)
    w = np.array([1.0, -0.5, 0.2])
    noise = rng.permutation(norm.ppf((np.arange(N) + 0.5) / N))  # without an outlier, which would spoil PSIS
    y, y_new = x @ w + noise, new @ w + rng.normal(size=HELD_OUT)
    s = y.std() / SPREAD
    return x, (y - y.mean()) / s, new, (y_new - y.mean()) / s


def model(standardize):
    s = 1.0 if standardize else rows()[1].std()
    return bnn.get_model("linear", prior_sd=PRIOR_SD, shape=SHAPE, rate=RATE * s**2)


@cache
def fitted(standardize):
    x, y, _, _ = rows()
    seed = 11 if standardize else 12  # two chains of randomness, so that agreement is no accident
    return model(standardize).fit(x, y, standardize=standardize, seed=seed, **SETTINGS)


def predictive(x, y, new, y_new, of=None):
    """Log density (m,) of y_new under the exact Student-t predictive of rows x, y, all in one system of units.

    y_new | x ~ Student-t(2 a)(z m, b / a (1 + z P^-1 z')),  z = (x, 1),  where sigma**2 ~ InverseGamma(a, b)
    """
    exact = (of or model(False)).exact(torch.as_tensor(x), torch.as_tensor(y))
    z = torch.cat([torch.as_tensor(new), torch.ones(len(new), 1, dtype=torch.float64)], 1)
    inverse = exact.covariance * (exact.shape - 1) / exact.rate  # P^-1
    scale = (exact.rate / exact.shape * (1 + (z @ inverse * z).sum(1))).sqrt()
    return torch.distributions.StudentT(2 * exact.shape, z @ exact.mean, scale).log_prob(torch.as_tensor(y_new)).numpy()


# ---- exactly -----------------------------------------------------------------------------------------------------


def test_the_exact_predictive_density_and_evidence_are_the_same_in_both_units():
    x, y, new, y_new = rows()
    s = y.std()
    original = predictive(x, y, new, y_new)
    standard = predictive(x, y / s, new, y_new / s, model(True)) - log(s)
    assert np.abs(original - standard).max() < 1e-10
    evidence = [
        model(k).exact(torch.as_tensor(x), torch.as_tensor(y / (s if k else 1))).log_evidence for k in (False, True)
    ]
    assert evidence[0] == pytest.approx(evidence[1] - N * log(s), abs=1e-9)


def test_the_exact_predictive_density_adds_up_to_the_evidence():
    """p(y) = product of p(y_i | y_1, ..., y_i-1): the oracle of this file is right about its own constants."""
    x, y, _, _ = rows()
    steps = [float(predictive(x[:i], y[:i], x[i : i + 1], y[i : i + 1])[0]) for i in range(N)]
    assert sum(steps) == pytest.approx(
        model(False).exact(torch.as_tensor(x), torch.as_tensor(y)).log_evidence, abs=1e-8
    )


def test_the_pointwise_log_likelihood_of_a_draw_is_in_units_of_y_in_either():
    """sigma and f of a draw, in original units, give its log likelihood by the formula of the normal density."""
    x, y, _, _ = rows()
    for standardize in (True, False):
        how = {"inference": "svi", "steps": 5, "draws": 20, "dtype": "float64", "progress": False}
        posterior = model(standardize).fit(x, y, standardize=standardize, **how)  # right for any draw
        s = y.std() if standardize else 1.0
        draws = posterior.idata["posterior"]
        sigma, f = draws["sigma"].values * s, (draws["w"].values @ x.T + draws["b"].values[..., None]) * s
        expected = -0.5 * ((y - f) / sigma[..., None]) ** 2 - np.log(sigma)[..., None] - 0.5 * log(2 * pi)
        got = posterior.idata["log_likelihood"]["y"].values
        assert np.abs(got - expected).max() < 1e-9


# ---- by sampling -------------------------------------------------------------------------------------------------


def mean_and_error(draws):
    """Mean over (chain, draw) and its Monte Carlo error."""
    return float(draws.mean()), float(az.mcse(draws))


@pytest.mark.slow
def test_the_summed_log_likelihood_agrees():
    values = [mean_and_error(fitted(k).idata["log_likelihood"]["y"].values.sum(-1)) for k in (True, False)]
    (a, a_error), (b, b_error) = values
    assert max(a_error, b_error) < 0.1  # log sd of y times rows, by which a mistake would be off, is above 200
    assert abs(a - b) < WITHIN * np.hypot(a_error, b_error), values


@pytest.mark.slow
def test_the_rmse_of_held_out_rows_agrees_and_is_the_exact_one():
    x, y, new, y_new = rows()
    exact = model(False).exact(torch.as_tensor(x), torch.as_tensor(y))
    mean = new @ exact.mean[:-1].numpy() + float(exact.mean[-1])
    rmse = np.sqrt(np.mean((y_new - mean) ** 2))
    scores = []
    for k in (True, False):
        posterior = fitted(k)
        f = posterior.predict(new).function_draws  # (chain, draw, m), units of y
        # to first order RMSE moves with the mean's error along the residuals
        along = ((mean - y_new) * (f - mean)).mean(-1) / rmse
        scores.append((posterior.score(new, y_new)["test_rmse"][0], float(az.mcse(along))))
    (a, a_error), (b, b_error) = scores
    assert abs(a - b) < WITHIN * np.hypot(a_error, b_error), scores
    for value, error in scores:
        assert error < 0.01 * rmse and abs(value - rmse) < WITHIN * error, (value, rmse, error)


@pytest.mark.slow
def test_held_out_log_predictive_densities_agree_with_the_exact_ones():
    x, y, new, y_new = rows()
    exact = predictive(x, y, new, y_new).mean()
    for k in (True, False):
        posterior = fitted(k)
        lpd = posterior.log_predictive_density(new, y_new)
        draws = posterior.idata["posterior"]
        s = y.std() if k else 1.0
        sigma, f = draws["sigma"].values[..., None] * s, posterior.predict(new).function_draws
        p = np.exp(-0.5 * ((y_new - f) / sigma) ** 2 - np.log(sigma) - 0.5 * log(2 * pi))
        error = float(az.mcse((p / p.mean((0, 1))).mean(-1)))  # delta method, averaged over rows
        assert abs(lpd.mean() - exact) < WITHIN * error, (k, lpd.mean(), exact, error)


@pytest.mark.slow
def test_loo_agrees_and_is_the_exact_leave_one_out():
    """PSIS is biased by about 1/S only where k-hat is small, so its Monte Carlo error is that of importance weights."""
    x, y, _, _ = rows()
    out = [np.arange(N) != i for i in range(N)]
    exact = np.array([predictive(x[k], y[k], x[~k], y[~k])[0] for k in out])
    found = []
    for k in (True, False):
        loo = az.loo(fitted(k).idata, pointwise=True)
        assert float(np.max(loo.pareto_k)) < 0.5
        likelihood = fitted(k).idata["log_likelihood"]["y"].values
        weight = np.exp(-likelihood + likelihood.min((0, 1)))  # 1 / p(y_i | draw)
        error = float(az.mcse((weight / weight.mean((0, 1))).sum(-1)))
        found.append((float(loo.elpd_loo), error))
        assert abs(found[-1][0] - exact.sum()) < WITHIN * error, (k, found[-1], exact.sum())
        assert np.abs(np.asarray(loo.loo_i) - exact).max() < 0.1
    (a, a_error), (b, b_error) = found
    assert abs(a - b) < WITHIN * np.hypot(a_error, b_error), found
