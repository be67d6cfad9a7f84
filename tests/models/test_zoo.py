"""Each entry of the zoo: its card, its prior, its gradient, its guide; and ``linear`` against independent formulas."""

import importlib
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch.func import grad_and_value

import bnn_pyro as bnn
import problems
from bnn_pyro import starts
from bnn_pyro.compiled import compile_gradient
from bnn_pyro.data import collect
from bnn_pyro.datasets import dataset_card
from bnn_pyro.guides import make_guide
from bnn_pyro.isolation import isolated
from bnn_pyro.starts import starting_points
from bnn_pyro.structure import build_target

NAMES = bnn.list_models()
X, Y = problems._rows()


def ready(name, **hyperparameters):
    """A model as ``fit`` hands it to inference, with targets that suit its task: real ones, or labels (n,) of classes."""
    model = bnn.get_model(name, **hyperparameters)
    if model.task == "regression":
        return model, Y
    labels = torch.arange(len(X)) % (model.class_count or 3)
    return model.for_data(collect(X.numpy(), labels.numpy(), where=name, classes=True)), labels


def target(name, dtype=torch.float32, **hyperparameters):
    model, y = ready(name, **hyperparameters)
    y = y.to(dtype) if y.is_floating_point() else y
    return build_target(model.model, X.to(dtype), y, name=name, dims=model.dims(), dtype=dtype)


def test_the_zoo_is_the_folder():
    folder = Path(__file__).resolve().parents[2] / "models"
    if folder.is_dir():
        assert {p.stem for p in folder.glob("[!_]*.py")} <= set(NAMES)
    assert {"linear", "logistic", "mlp_categorical", "mlp_gaussian", "mlp_hetero"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_cards(name):
    model = bnn.get_model(name)
    card = model.card
    assert card.name == model.name == name
    assert dataset_card(card.dataset).task == card.task
    assert set(card.inference) <= set(bnn.list_inference()) and card.inference
    assert name in bnn.list_models(task=card.task) and name not in bnn.list_models(task="no such task")
    assert card.reference and re.search(r"\d{4}", card.reference)
    for figure in card.published:
        assert math.isfinite(figure.value) and figure.metric.startswith("test_") and figure.source and figure.splits
        assert (figure.stdev is None) != (figure.stderr is None)
    home = importlib.import_module(f"bnn_pyro.zoo.{name}")
    assert type(model).__module__ == f"bnn_pyro.zoo.{name}" and "~" in home.__doc__, "its docstring states the model"


@pytest.mark.parametrize("name", NAMES)
def test_models_are_values(name):
    one, other = bnn.get_model(name), bnn.get_model(name)
    assert one == other and hash(one) == hash(other)
    with pytest.raises(AttributeError):
        one.hidden = 3


@pytest.mark.parametrize("name", NAMES)
def test_prior_predictive_is_finite_and_of_ys_shape(name):
    model, y = ready(name)
    drawn = []
    for seed in range(20):
        with isolated(seed=seed), torch.no_grad():
            trace = poutine.trace(model.model).get_trace(X.float())
            assert trace.nodes["_RETURN"]["value"].shape == y.shape
            assert trace.nodes["_RETURN"]["value"].isfinite().all() and trace.log_prob_sum().isfinite()
            drawn.append(trace.nodes["_RETURN"]["value"])
    if model.task == "classification":
        assert set(torch.stack(drawn).flatten().tolist()) == set(y.tolist()), "each class is drawn, and nothing else"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("init", ["prior", "uniform", "map"])
def test_the_gradient_is_finite_at_a_start(name, init, monkeypatch):
    monkeypatch.setattr(starts, "climb", partial(starts.climb, steps=20))
    t = target(name)
    with isolated():
        gradient = compile_gradient(t, problems.points(t, 2), "eager")
    (z,) = starting_points(t, gradient, init, seed=3, chains=1)
    assert z.shape == (t.dim,)
    with isolated():
        grad, value = grad_and_value(t.log_density)(z)
    assert value.isfinite() and grad.isfinite().all() and (grad != 0).any()
    assert torch.equal(starting_points(t, gradient, init, seed=3, chains=1)[0], z)
    assert not torch.equal(starting_points(t, gradient, init, seed=4, chains=1)[0], z)


@pytest.mark.parametrize("name", NAMES)
def test_the_guide_has_all_sites_in_their_shapes(name):
    t, model = target(name), ready(name)[0]
    with isolated(seed=4):
        guide = make_guide(None, model.guide, model.model, name, torch.device("cpu"))
        trace = poutine.trace(guide).get_trace(t.x, t.y)
    for site in t.sites:
        assert trace.nodes[site.name]["value"].shape == site.shape


@pytest.mark.parametrize("name", NAMES)
def test_dims_name_each_axis_that_a_reader_may_ask_for(name):
    for site in target(name).sites:
        assert not any(dim.startswith(f"{site.name}_dim_") for dim in site.dims), site


def test_bad_hyperparameters_are_refused():
    for name, options in (("linear", {"prior_sd": -1.0}), ("linear", {"noise": 0.0}), ("linear", {"shape": "2"}),
                          ("linear", {"rate": math.nan}), ("mlp_gaussian", {"hidden": ()}),
                          ("mlp_gaussian", {"hidden": (0,)}), ("mlp_gaussian", {"hidden": (2.5,)}),
                          ("mlp_gaussian", {"hidden": "50"}), ("mlp_gaussian", {"activation": "sine"}),
                          ("logistic", {"prior_sd": 0.0}), ("logistic", {"prior_sd": "1"}),
                          ("mlp_hetero", {"hidden": (0,)}), ("mlp_hetero", {"hidden": "16"}),
                          ("mlp_hetero", {"activation": "sine"}), ("mlp_hetero", {"prior_sd": math.inf}),
                          ("mlp_categorical", {"hidden": (2.5,)}), ("mlp_categorical", {"activation": None}),
                          ("mlp_categorical", {"prior_sd": -1.0}), ("mlp_categorical", {"classes": 1}),
                          ("mlp_categorical", {"classes": 3.0}), ("mlp_categorical", {"classes": True})):  # fmt: skip
        with pytest.raises(bnn.OptionError, match=f"^{name}, {next(iter(options))}: expected"):
            bnn.get_model(name, **options)


# ---- mlp_gaussian ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_gaussian_is_the_network_of_its_docstring(activation):
    t = target("mlp_gaussian", torch.float64, hidden=(4, 2), activation=activation)
    z = problems.points(t, 1)[0]
    with isolated(dtype=torch.float64):
        result = t.evaluate(z)
        v = {k: a.numpy() for k, a in result.values.items()}
    act = np.tanh if activation == "tanh" else lambda a: np.maximum(a, 0)
    h = act(v["scale"] * X.numpy() @ v["w1"] / np.sqrt(3) + v["b1"])
    h = act(v["scale"] * h @ v["w2"] / np.sqrt(4) + v["b2"])
    f = (v["scale"] * h @ v["w3"] / np.sqrt(2) + v["b3"])[:, 0]
    assert np.allclose(result.log_likelihood["y"], stats.norm(f, v["sigma"]).logpdf(Y), rtol=1e-12)
    prior = sum(stats.norm.logpdf(v[k]).sum() for k in ("w1", "b1", "w2", "b2", "w3", "b3"))
    prior += stats.halfcauchy.logpdf(v["scale"]) + stats.halfnorm.logpdf(v["sigma"])
    prior += np.log(v["scale"]) + np.log(v["sigma"])  # d exp(z) / dz
    assert float(result.log_prior) == pytest.approx(float(prior), rel=1e-12)


# ---- linear ------------------------------------------------------------------------------------------------------

Z = np.concatenate([X.numpy(), np.ones((len(X), 1))], 1)
y_ = Y.numpy()


def test_linear_with_known_noise_has_the_evidence_of_a_multivariate_normal():
    exact = bnn.get_model("linear", noise=0.7, prior_sd=1.3).exact(X, Y)
    covariance = 1.3**2 * Z @ Z.T + 0.7**2 * np.eye(len(y_))
    assert exact.log_evidence == pytest.approx(
        stats.multivariate_normal(np.zeros(len(y_)), covariance).logpdf(y_), rel=1e-12
    )
    gain = 1.3**2 * Z.T @ np.linalg.inv(covariance)  # conditioning of a joint normal: another route to the posterior
    assert np.allclose(exact.mean, gain @ y_, rtol=1e-9)
    assert np.allclose(exact.covariance, 1.3**2 * np.eye(4) - gain @ Z * 1.3**2, rtol=1e-8, atol=1e-12)
    assert exact.shape is None and exact.rate is None


def test_linear_with_unknown_noise_has_the_evidence_of_a_multivariate_t():
    model = bnn.get_model("linear", prior_sd=1.3, shape=2.5, rate=0.8)
    exact = model.exact(X, Y)
    scale = 0.8 / 2.5 * (1.3**2 * Z @ Z.T + np.eye(len(y_)))
    t = stats.multivariate_t(np.zeros(len(y_)), scale, df=5.0)
    assert exact.log_evidence == pytest.approx(t.logpdf(y_), rel=1e-12)


def test_linear_with_unknown_noise_has_the_posterior_found_by_summing_over_noise():
    """Brute force: a grid over log sigma, a normal posterior of the weights at each point."""
    model = bnn.get_model("linear", prior_sd=1.3, shape=2.5, rate=0.8)
    exact = model.exact(X, Y)
    grid = np.linspace(-3, 3, 4001)
    precision = Z.T @ Z + np.eye(4) / 1.3**2
    shared = 1.3**2 * Z @ Z.T + np.eye(len(y_))
    logs = [
        stats.multivariate_normal(np.zeros(len(y_)), np.exp(2 * g) * shared).logpdf(y_)
        + stats.invgamma(2.5, scale=0.8).logpdf(np.exp(2 * g)) + np.log(2) + 2 * g
        for g in grid[::20]
    ]  # fmt: skip
    grid = grid[::20]
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    variance = weights @ np.exp(2 * grid)
    assert np.allclose(exact.mean, np.linalg.solve(precision, Z.T @ y_), rtol=1e-9)
    assert np.allclose(exact.covariance, np.linalg.inv(precision) * variance, rtol=1e-6)
    assert exact.rate / (exact.shape - 1) == pytest.approx(variance, rel=1e-6)
    evidence = max(logs) + np.log(np.exp(np.array(logs) - max(logs)).sum() * (grid[1] - grid[0]))
    assert exact.log_evidence == pytest.approx(evidence, rel=1e-6)


@pytest.mark.parametrize("noise", [None, 0.7])
def test_the_log_density_of_linear_is_posterior_plus_evidence(noise):
    """log p(y, theta) = log p(theta | y) + log p(y), with the posterior of ``exact``: program and formulas agree."""
    model = bnn.get_model("linear", prior_sd=1.3, shape=2.5, rate=0.8, noise=noise)
    exact = model.exact(X, Y)
    t = build_target(model.model, X, Y, dtype=torch.float64)
    for z in problems.points(t, 5):
        with isolated(dtype=torch.float64):
            density = float(t.log_density(z))
            v = {k: a.numpy() for k, a in t.evaluate(z).values.items()}
        weights = np.append(v["w"], v["b"])
        if noise is None:
            variance = float(v["sigma"]) ** 2
            covariance = exact.covariance.numpy() * (exact.shape - 1) / exact.rate * variance
            posterior = stats.invgamma(exact.shape, scale=exact.rate).logpdf(variance)
            posterior += np.log(2 * variance)  # of sigma**2 -> of log sigma, which is where z stands
        else:
            covariance, posterior = exact.covariance.numpy(), 0.0
        posterior += stats.multivariate_normal(exact.mean.numpy(), covariance).logpdf(weights)
        assert density == pytest.approx(posterior + exact.log_evidence, rel=1e-10)


def test_linear_mode_is_found_by_the_guide_of_its_choice():
    model = bnn.get_model("linear", noise=0.7)
    posterior = model.fit(
        X, Y, inference="map", steps=1500, lr=0.05, standardize=False, dtype="float64", progress=False
    )
    assert np.allclose(posterior.draws.z[0, 0], model.exact(X, Y).mean, atol=1e-3)
