"""Means and sds over passes: of probabilities, and of numbers with and without the noise."""

import numpy as np
import pytest
from scipy import stats

import bnn_pyro as bnn

FAST = {"inference": "svi", "steps": 60, "draws": 300, "backend": "eager", "progress": False}


def test_the_sd_of_passes_lacks_the_noise_that_y_has():
    """Where the posterior is known: sd^2 over draws of the weights is x' cov x, and y's has the noise's variance beside it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = x @ [1.0, -1.0] + rng.normal(size=60) * 0.7
    model = bnn.get_model("linear", noise=0.7)
    posterior = model.fit(x, y, inference="laplace", draws=4000, standardize=False, progress=False, seed=1)
    new = np.array([[0.0, 0.0], [3.0, 3.0]])
    alone, whole = bnn.predict_regression(posterior, new, noise=False), bnn.predict_regression(posterior, new)
    design = np.column_stack([x, np.ones(60)])
    covariance = np.linalg.inv(design.T @ design / 0.7**2 + np.eye(3))
    at = np.column_stack([new, np.ones(2)])
    exact = np.sqrt(np.einsum("ij,jk,ik->i", at, covariance, at))
    assert np.allclose(alone.sd, exact, rtol=5 / np.sqrt(2 * 4000))
    assert np.allclose(whole.sd**2 - alone.sd**2, 0.7**2, rtol=1e-6)
    assert np.array_equal(alone.mean, whole.mean) and np.array_equal(whole.sd, posterior.predict(new).std)


def test_probabilities_have_a_mean_and_an_sd_over_draws():
    data = bnn.load_dataset("iris")
    posterior = bnn.get_model("mlp_categorical", hidden=(3,)).fit(data.train, **FAST)
    mean, sd = bnn.predict_proba(posterior, data.test.x)
    prediction = posterior.predict(data.test.x)
    drawn = prediction.function_draws.reshape(300, len(data.test), 3)
    assert np.array_equal(mean, prediction.probs) and np.allclose(mean, drawn.mean(0), atol=1e-6)
    assert np.allclose(mean.sum(1), 1.0) and sd.shape == mean.shape and sd.max() > 0.01
    assert np.allclose(sd, np.sqrt(((drawn - drawn.mean(0)) ** 2).mean(0)), atol=1e-6)


def test_each_names_the_other_where_it_does_not_fit():
    classes, numbers = bnn.load_dataset("iris"), bnn.load_dataset("stackloss")
    posterior = bnn.get_model("mlp_categorical", hidden=(3,)).fit(classes.train, **FAST)
    with pytest.raises(bnn.OptionError, match="Use predict_proba"):
        bnn.predict_regression(posterior, classes.test.x)
    posterior = bnn.get_model("linear").fit(numbers.train, **FAST)
    with pytest.raises(bnn.OptionError, match="Use predict_regression"):
        bnn.predict_proba(posterior, numbers.test.x)


@pytest.mark.slow
def test_the_error_of_the_mixture_falls_with_the_root_of_its_passes():
    """The density of S passes against that with the weights integrated out: 16 times the passes, a quarter of the error."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 2))
    y = x @ [1.0, -1.0] + rng.normal(size=30)
    model = bnn.get_model("linear", noise=1.0)
    design, new = np.column_stack([x, np.ones(30)]), rng.normal(size=(40, 2)) * 2
    covariance = np.linalg.inv(design.T @ design + np.eye(3))
    at, there = np.column_stack([new, np.ones(40)]), rng.normal(size=40)
    sd = np.sqrt(1 + np.einsum("ij,jk,ik->i", at, covariance, at))
    exact = stats.norm(at @ covariance @ design.T @ y, sd).logpdf(there)
    error = {}
    for passes in (50, 800):
        found = [
            model.fit(x, y, inference="laplace", draws=passes, standardize=False, progress=False, seed=seed)
            .log_predictive_density(new, there) for seed in range(12)
        ]  # fmt: skip
        error[passes] = np.sqrt(np.mean((np.array(found) - exact) ** 2))
    assert 2.6 < error[50] / error[800] < 6.0, error
