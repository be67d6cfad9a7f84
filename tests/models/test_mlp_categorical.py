"""``mlp_categorical`` against numpy, its symmetries, scikit-learn's multinomial regression, and ``logistic``."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

import bnn_pyro as bnn
import problems
from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target

X = problems._rows()[0]
N, D, K = *X.shape, 4
LABELS = torch.arange(N) % K


def target(labels=LABELS, x=X, name="mlp_categorical", **hyperparameters):
    model = bnn.get_model(name, **hyperparameters)
    return build_target(model.model, x, labels, name=name, dims=model.dims(), dtype=torch.float64)


def evaluate(t, z):
    with isolated(dtype=torch.float64):
        return t.evaluate(torch.as_tensor(z))


def flat(t, values):
    return np.concatenate([values[site.name].ravel() for site in t.sites])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_categorical_is_the_network_of_its_docstring(activation):
    t = target(hidden=(4, 2), activation=activation, prior_sd=1.4, classes=K)
    for z in problems.points(t, 3):
        result = evaluate(t, z)
        v = {k: a.numpy() for k, a in result.values.items()}
        act = np.tanh if activation == "tanh" else lambda a: np.maximum(a, 0)
        h = act(1.4 * X.numpy() @ v["w1"] / np.sqrt(D) + v["b1"])
        h = act(1.4 * h @ v["w2"] / np.sqrt(4) + v["b2"])
        f = 1.4 * h @ v["w3"] / np.sqrt(2) + v["b3"]
        expected = np.log(special.softmax(f, -1)[np.arange(N), LABELS])
        assert np.allclose(result.log_likelihood["y"], expected, rtol=1e-12)
        prior = sum(stats.norm.logpdf(v[k]).sum() for k in ("w1", "b1", "w2", "b2", "w3", "b3"))
        assert float(result.log_prior) == pytest.approx(float(prior), rel=1e-12)


def test_a_constant_added_to_all_logits_leaves_the_likelihood():
    t = target(hidden=(5,), classes=K)
    result = evaluate(t, problems.points(t, 1)[0])
    v = {k: a.numpy() for k, a in result.values.items()}
    raised = evaluate(t, flat(t, dict(v, b2=v["b2"] + 7.5)))
    assert np.allclose(raised.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-12)
    shift = stats.norm.logpdf(v["b2"] + 7.5).sum() - stats.norm.logpdf(v["b2"]).sum()  # but the prior knows it
    assert float(raised.log_prior - result.log_prior) == pytest.approx(float(shift), rel=1e-12)
    one = evaluate(t, flat(t, dict(v, b2=v["b2"] + np.array([7.5, 0, 0, 0]))))
    assert not np.allclose(one.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-3)


def test_the_order_of_hidden_units_does_not_matter():
    t = target(hidden=(5, 4), classes=K)
    result = evaluate(t, problems.points(t, 1)[0])
    v = {k: a.numpy() for k, a in result.values.items()}
    first, second = np.array([3, 0, 4, 1, 2]), np.array([2, 3, 1, 0])
    moved = dict(v, w1=v["w1"][:, first], b1=v["b1"][first], w2=v["w2"][np.ix_(first, second)], b2=v["b2"][second],
                 w3=v["w3"][second])  # fmt: skip
    other = evaluate(t, flat(t, moved))
    assert float(other.log_prior) == pytest.approx(float(result.log_prior), rel=1e-12)
    assert np.allclose(other.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-12)
    wrong = evaluate(t, flat(t, dict(moved, b1=v["b1"])))
    assert not np.allclose(wrong.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-3)


def test_the_order_of_classes_does_not_matter():
    order = np.array([2, 0, 3, 1])  # class c becomes position order.index(c)
    t = target(hidden=(5,), classes=K)
    other = target(torch.as_tensor(np.argsort(order))[LABELS], hidden=(5,), classes=K)
    result = evaluate(t, problems.points(t, 1)[0])
    v = {k: a.numpy() for k, a in result.values.items()}
    moved = evaluate(other, flat(other, dict(v, w2=v["w2"][:, order], b2=v["b2"][order])))
    assert np.allclose(moved.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-12)
    assert float(moved.log_prior) == pytest.approx(float(result.log_prior), rel=1e-12)


@pytest.mark.parametrize(("name", "prior_sd"), [("iris", 1.0), ("wine", 2.5)])
def test_without_a_hidden_layer_the_mode_is_that_of_multinomial_regression(name, prior_sd):
    """A logit is prior_sd x w / sqrt(d) + b with Normal(0, 1) weights: columns (prior_sd x / sqrt(d), 1), C = 1."""
    data = bnn.load_dataset(name)
    x, y = data.train.x.to_numpy(), data.train.y.to_numpy()
    mean, sd = x.mean(0), x.std(0)
    columns = lambda rows: np.column_stack([prior_sd * (rows - mean) / sd / np.sqrt(x.shape[1]), np.ones(len(rows))])
    oracle = LogisticRegression(C=1.0, fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=1000)
    oracle.fit(columns(x), y)
    model = bnn.get_model("mlp_categorical", hidden=(), prior_sd=prior_sd)
    posterior = model.fit(data.train, inference="map", lr=0.05, draws=1, dtype="float64", progress=False)
    z = posterior.draws.z[0, 0].numpy()
    d, k = x.shape[1], len(oracle.classes_)
    assert np.allclose(z[: d * k].reshape(d, k), oracle.coef_[:, :-1].T, atol=1e-4)
    assert np.allclose(z[d * k :], oracle.coef_[:, -1], atol=1e-4)
    prediction = posterior.predict(data.test.x)
    assert list(prediction.classes) == list(oracle.classes_)
    assert np.allclose(prediction.probs, oracle.predict_proba(columns(data.test.x.to_numpy())), atol=1e-5)


def test_two_classes_without_a_hidden_layer_are_logistic_regression_and_a_sum_that_nothing_informs():
    """With v = theta_1 - theta_0 and u = theta_1 + theta_0, both Normal(0, sqrt(2)) and independent under the prior:

    log p(theta_0, theta_1, y) = log p_logistic(v, y) + log Normal(u; 0, sqrt(2)) + dim log 2,

    where ``logistic`` has prior sd sqrt(2) and sees x prior_sd / sqrt(d); 2 is |d(u, v) / d(theta_0, theta_1)|.
    """
    prior_sd, labels = 1.7, torch.arange(N) % 2
    softmax = target(labels, hidden=(), classes=2, prior_sd=prior_sd)
    logistic = target(labels, X * prior_sd / np.sqrt(D), name="logistic", prior_sd=2**0.5)
    for z in problems.points(softmax, 4).numpy():
        theta = np.vstack([z[: 2 * D].reshape(D, 2), z[2 * D :]])  # (d + 1, 2)
        v, u = theta[:, 1] - theta[:, 0], theta.sum(1)
        two, one = evaluate(softmax, z), evaluate(logistic, v)
        assert np.allclose(two.log_likelihood["y"], one.log_likelihood["y"], rtol=1e-11)
        expected = float(one.log_prior) + stats.norm(0, 2**0.5).logpdf(u).sum() + (D + 1) * np.log(2)
        assert float(two.log_prior) == pytest.approx(float(expected), rel=1e-12)


def test_classes_come_from_the_labels_and_are_asked_for_where_there_are_none():
    with pytest.raises(bnn.ModelError, match=r"^mlp_categorical, classes: expected a number, got None"):
        bnn.get_model("mlp_categorical").model(X)
    x, y = X.numpy(), np.array(["c", "a", "d", "b"])[LABELS]
    posterior = bnn.get_model("mlp_categorical", hidden=(3,)).fit(x, y, inference="map", steps=50, progress=False)
    assert posterior.model.classes == 4 and list(posterior.predict(x).classes) == ["a", "b", "c", "d"]
