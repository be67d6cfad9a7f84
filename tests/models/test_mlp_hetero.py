"""``mlp_hetero`` against numpy, its symmetries, and the exact posterior of a linear mean with a linear log-scale."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import bnn_pyro as bnn
import problems
from bnn_pyro import results
from bnn_pyro.isolation import isolated
from bnn_pyro.structure import build_target

Z = 4.56
X, Y = problems._rows()


def target(**hyperparameters):
    model = bnn.get_model("mlp_hetero", **hyperparameters)
    return build_target(model.model, X, Y, name="mlp_hetero", dims=model.dims(), dtype=torch.float64)


def evaluate(t, z):
    with isolated(dtype=torch.float64):
        return t.evaluate(torch.as_tensor(z))


def flat(t, values):
    return np.concatenate([values[site.name].ravel() for site in t.sites])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_mlp_hetero_is_the_network_of_its_docstring(activation):
    t = target(hidden=(4, 2), activation=activation, prior_sd=1.4)
    for z in problems.points(t, 3):
        result = evaluate(t, z)
        v = {k: a.numpy() for k, a in result.values.items()}
        act = np.tanh if activation == "tanh" else lambda a: np.maximum(a, 0)
        h = act(1.4 * X.numpy() @ v["w1"] / np.sqrt(3) + v["b1"])
        h = act(1.4 * h @ v["w2"] / np.sqrt(4) + v["b2"])
        f, s = (1.4 * h @ v["w3"] / np.sqrt(2) + v["b3"]).T
        assert np.allclose(result.log_likelihood["y"], stats.norm(f, np.exp(s)).logpdf(Y), rtol=1e-12)
        prior = sum(stats.norm.logpdf(v[k]).sum() for k in ("w1", "b1", "w2", "b2", "w3", "b3"))
        assert float(result.log_prior) == pytest.approx(float(prior), rel=1e-12)


def test_without_a_hidden_layer_mean_and_log_scale_are_linear():
    t = target(hidden=(), prior_sd=0.8)
    z = problems.points(t, 1)[0]
    result = evaluate(t, z)
    w, b = z[:6].reshape(3, 2).numpy(), z[6:].numpy()
    f, s = (0.8 * X.numpy() @ w / np.sqrt(3) + b).T
    assert np.allclose(result.log_likelihood["y"], stats.norm(f, np.exp(s)).logpdf(Y), rtol=1e-12)


@pytest.mark.parametrize(("s", "noise"), [(300.0, np.exp(10)), (-300.0, np.exp(-10)), (9.9, np.exp(9.9))])
def test_a_log_scale_beyond_ten_is_cut_off(s, noise):
    t = target(hidden=())
    z = torch.zeros(t.dim, dtype=torch.float64)
    z[-1] = s
    assert np.allclose(evaluate(t, z).log_likelihood["y"], stats.norm(0, noise).logpdf(Y), rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_order_of_hidden_units_does_not_matter(activation):
    t = target(hidden=(5, 4), activation=activation)
    z = problems.points(t, 1)[0]
    result = evaluate(t, z)
    v = {k: a.numpy() for k, a in result.values.items()}
    first, second = np.array([3, 0, 4, 1, 2]), np.array([2, 3, 1, 0])
    moved = dict(v, w1=v["w1"][:, first], b1=v["b1"][first], w2=v["w2"][np.ix_(first, second)], b2=v["b2"][second],
                 w3=v["w3"][second])  # fmt: skip
    other = evaluate(t, flat(t, moved))
    assert float(other.log_prior) == pytest.approx(float(result.log_prior), rel=1e-12)
    assert np.allclose(other.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-12)
    wrong = evaluate(t, flat(t, dict(moved, b1=v["b1"])))
    assert not np.allclose(wrong.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-3)


@pytest.mark.parametrize("activation", ["tanh"])
def test_the_signs_of_a_tanh_unit_do_not_matter(activation):
    t = target(hidden=(5,), activation=activation)
    result = evaluate(t, problems.points(t, 1)[0])
    v = {k: a.numpy() for k, a in result.values.items()}
    sign = np.array([1, -1, 1, -1, -1])
    other = evaluate(t, flat(t, dict(v, w1=v["w1"] * sign, b1=v["b1"] * sign, w2=v["w2"] * sign[:, None])))
    assert float(other.log_prior) == pytest.approx(float(result.log_prior), rel=1e-12)
    assert np.allclose(other.log_likelihood["y"], result.log_likelihood["y"], rtol=1e-12)


# ---- hidden=(), one input: given the log-scale's two weights, those of the mean have a normal posterior --------------

PRIOR_SD = 1.5
NEW = np.array([400.0, 700.0, 1000.0, 1500.0, 2500.0])  # incomes, in francs


@dataclass(frozen=True)
class Exact:
    """Means and sds of (w_f, w_s, b_f, b_s); mean, epistemic and aleatoric at NEW, francs; log evidence, standard units."""

    mean: np.ndarray
    sd: np.ndarray
    predictive: tuple[np.ndarray, np.ndarray, np.ndarray]
    log_evidence: float


@cache
def household_rows():
    """Every third training row of engel: income and food, in francs."""
    train = bnn.load_dataset("engel").train
    return train.x.to_numpy()[::3, 0], train.y.to_numpy()[::3]


@cache
def exact(points=161):
    """Sums over a grid of (w_s, b_s): weighted least squares with a normal prior at each node, in standard units."""
    income, food = household_rows()
    x, y = (income - income.mean()) / income.std(), (food - food.mean()) / food.std()
    new = (NEW - income.mean()) / income.std()
    design, at_new = np.stack([PRIOR_SD * x, 1 + 0 * x], 1), np.stack([PRIOR_SD * new, 1 + 0 * new], 1)
    w_s, b_s = np.meshgrid(np.linspace(-1.0, 1.2, points), np.linspace(-2.2, 0.2, points), indexing="ij")
    node = np.stack([w_s.ravel(), b_s.ravel()], 1)
    s = node @ design.T  # (nodes, n) log sd of each row
    precision = np.eye(2) + np.einsum("gn,ni,nj->gij", np.exp(-2 * s), design, design)
    covariance = np.linalg.inv(precision)
    pull = np.einsum("gn,ni,n->gi", np.exp(-2 * s), design, y)
    centre = np.einsum("gij,gj->gi", covariance, pull)
    log_marginal = -0.5 * (len(y) * np.log(2 * np.pi) + 2 * s.sum(1) + np.exp(-2 * s) @ y**2
                           + np.linalg.slogdet(precision)[1] - (pull * centre).sum(1))  # fmt: skip
    log_joint = log_marginal + stats.norm.logpdf(node).sum(1)
    cell = (w_s[1, 0] - w_s[0, 0]) * (b_s[0, 1] - b_s[0, 0])
    weight = np.exp(log_joint - log_joint.max())
    log_evidence = log_joint.max() + np.log(weight.sum() * cell)
    weight /= weight.sum()
    edge = weight.reshape(w_s.shape)
    assert max(edge[0].max(), edge[-1].max(), edge[:, 0].max(), edge[:, -1].max()) < 1e-9, (
        "the grid holds the posterior"
    )
    expect = lambda q: np.einsum("g,g...->...", weight, q)
    moments = lambda q, within: (expect(q), expect(within + q**2) - expect(q) ** 2)
    mean_f, var_f = moments(centre, covariance.diagonal(axis1=1, axis2=2))
    mean_s, var_s = moments(node, 0.0)
    within = np.einsum("ki,gij,kj->gk", at_new, covariance, at_new)
    mean, epistemic = moments(centre @ at_new.T, within)
    aleatoric = expect(np.exp(2 * node @ at_new.T))
    predictive = mean * food.std() + food.mean(), epistemic * food.var(), aleatoric * food.var()
    mean_all, var_all = (np.array([a[0], b[0], a[1], b[1]]) for a, b in ((mean_f, mean_s), (var_f, var_s)))
    return Exact(mean_all, np.sqrt(var_all), predictive, float(log_evidence))


def test_the_grid_is_fine_enough_and_its_marginal_is_that_of_a_multivariate_normal():
    coarse, fine = exact(81), exact()
    assert np.allclose(coarse.mean, fine.mean, atol=1e-8) and np.allclose(coarse.sd, fine.sd, rtol=1e-7)
    assert coarse.log_evidence == pytest.approx(fine.log_evidence, abs=1e-8)


def fit(**settings):
    income, food = household_rows()
    model = bnn.get_model("mlp_hetero", hidden=(), prior_sd=PRIOR_SD)
    return model.fit(income[:, None], food, dtype="float64", progress=False, **settings)


@pytest.mark.slow
def test_nuts_has_the_exact_posterior():
    posterior = fit(inference="nuts", chains=4, warmup=300, draws=500, dense_mass=True, init="map", seed=41)
    z, answer = posterior.draws.z.numpy(), exact()
    income, food = household_rows()
    x = (NEW - income.mean()) / income.std()
    f = (PRIOR_SD * x * z[..., :1] + z[..., 2:3]) * food.std() + food.mean()
    noise = np.exp(2 * (PRIOR_SD * x * z[..., 1:2] + z[..., 3:4])) * food.var()
    table = xr.Dataset({k: (("chain", "draw", k + "_i"), v) for k, v in (("z", z), ("f", f), ("noise", noise))})
    of_mean, of_sd = results.mcse(table, method="mean"), results.mcse(table, method="sd")
    assert (abs(z.mean((0, 1)) - answer.mean) < Z * of_mean["z"]).all()
    assert (abs(z.std((0, 1)) - answer.sd) < Z * of_sd["z"]).all()
    prediction = posterior.predict(NEW[:, None])
    mean, epistemic, aleatoric = answer.predictive
    assert (abs(prediction.mean - mean) < Z * of_mean["f"]).all()
    assert (abs(np.sqrt(prediction.epistemic) - np.sqrt(epistemic)) < Z * of_sd["f"]).all()
    assert (abs(prediction.aleatoric - aleatoric) < Z * of_mean["noise"]).all()
    assert np.allclose(prediction.std**2, prediction.epistemic + prediction.aleatoric, rtol=1e-10)
    assert posterior.diagnose().verdict == "converged", str(posterior.diagnose())


def test_full_rank_svi_stays_below_the_evidence_and_weights_of_its_draws_find_it():
    posterior = fit(inference="svi", guide="multivariate", steps=1500, draws=2000, seed=42)
    log_weight = (posterior.draws.stats["log_p"] - posterior.draws.stats["log_q"])[0]
    elbo, error = log_weight.mean(), log_weight.std() / np.sqrt(len(log_weight))
    ratio = np.exp(log_weight - exact().log_evidence)  # its mean is one: importance sampling
    print(
        f"evidence {exact().log_evidence:.4f}, ELBO {elbo:.4f} +- {error:.4f}, importance sampling {ratio.mean():.4f}"
    )
    assert elbo < exact().log_evidence + Z * error
    assert elbo > exact().log_evidence - 0.1, "the posterior is nearly normal"
    assert abs(ratio.mean() - 1) < Z * ratio.std() / np.sqrt(len(ratio))
    assert abs(posterior.draws.history["elbo"][-500:].mean() - elbo) < 0.1, "the ELBO of the fit is that of its draws"
