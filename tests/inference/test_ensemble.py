"""Deep ensembles: members at exact modes, their diversity, and what their spread is and is not."""

import signal

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner
from pyro import poutine
from scipy import optimize, stats

import bnn_pyro as bnn
import problems
from bnn_pyro import ensemble, results
from bnn_pyro.cli import main
from bnn_pyro.graphs import normal_priors
from bnn_pyro.isolation import isolated
from bnn_pyro.minibatches import MiniBatches
from bnn_pyro.points import Point, PointData

NOISE = 0.7
PLAIN = {"inference": "ensemble", "dtype": "float64", "engine": "eager", "progress": False}
SETTLED = {"steps": 2000, "lr": 0.05, "lr_decay": 1e-3}  # on the problems here the rest of the way is below 1e-6


def members(posterior):
    """(members, dim): where each stands."""
    z = posterior.draws.z
    assert (z == z[:, :1]).all(), "all draws of a member are copies of it"
    return z[:, 0]


@pytest.fixture
def trainings(monkeypatch):
    """What each call of ``optimise`` is about to train."""
    seen, original = [], ensemble.optimise

    def listen(training, *rest):
        seen.append(training)
        original(training, *rest)

    monkeypatch.setattr(ensemble, "optimise", listen)
    return seen


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn for all members of a fit so far, by step, in order: the tensors of x, and y."""
    seen, original = [], MiniBatches.draw

    def listen(batches):
        mine = original(batches)
        if len(mine[0]) > 1:  # a batch of one member is that of a check
            seen.append(mine)
        return mine

    monkeypatch.setattr(MiniBatches, "draw", listen)
    return seen


@pytest.fixture(scope="module")
def problem():
    """`linear` with known noise on diabetes, three members, and the exact posterior."""
    data = bnn.load_dataset("diabetes")
    model = bnn.get_model("linear", noise=NOISE)
    posterior = model.fit(data.train, members=3, seed=1, **PLAIN)
    return data, model, posterior, model.exact(posterior.target.x, posterior.target.y)


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_each_member_reaches_the_exact_mode(problem):
    _, _, posterior, exact = problem
    z = members(posterior)
    assert z.shape == (3, 11) and (z - exact.mean).abs().max() < 1e-6
    with isolated(dtype=torch.float64):
        density = posterior.target.log_density(exact.mean)
    assert posterior.draws.stats["lp"] == pytest.approx(np.full((3, 20), float(density)), abs=1e-6)
    assert posterior.draws.history["elbo"][-1] == pytest.approx(float(density), abs=1e-6)


def scaled(x, y=None):
    w = pyro.sample("w", dist.Normal(0.5, 2.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.5))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)


def simplex(x, y=None):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ p, 2.0), obs=y)


def levels(x, y=None):
    """Inputs in a dict, one of them whole numbers."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("data", x["z"].shape[0]):
        return pyro.sample("y", dist.Normal(level[x["unit"]] + x["z"][:, 0], 0.7), obs=y)


def units():
    embedding = problems.PROBLEMS["embedding"]()
    return problems.Problem(levels, embedding.x, embedding.y)


# with a mode inside the support, where the density is smooth
STATIONARY = {
    name: problems.PROBLEMS[name]
    for name in (
        "two_observed",
        "factor",
        "scaled_and_masked",
        "event_of_outputs",
        "intercept",
        "categorical",
        "bernoulli",
        "gp",
    )
}
STATIONARY |= {"simplex": lambda: problems.Problem(simplex, *problems._rows()), "dict": units}


@pytest.mark.parametrize("name", STATIONARY)
def test_the_gradient_of_pyros_own_log_joint_vanishes_at_a_member(name):
    """Without log-Jacobian: the density of the constrained values, whatever the program observes and takes."""
    problem = STATIONARY[name]()
    posterior = bnn.fit(problem.program, problem.x, problem.y, members=2, standardize=False, **SETTLED, **PLAIN)
    target = posterior.target

    def gradient(z):
        with isolated(dtype=torch.float64):
            z = z.clone().requires_grad_(True)
            value = problems.pyro_log_joint(problem, target.evaluate(z).values)
            return torch.autograd.grad(value, z)[0].abs().max()

    start = problems.points(target, 1)[0]
    for z in members(posterior):
        assert gradient(z) < 1e-5 * max(1.0, gradient(start))


def test_members_start_at_draws_of_the_prior_and_scales_where_a_network_can_learn():
    x, y, _ = problems.linear_gaussian(seed=1)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(1.0, 2.0).expand([x.shape[-1]]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, sigma), obs=y)

    posterior = bnn.fit(program, x, y, members=400, steps=1, lr=1e-12, draws=1, **PLAIN)
    z = members(posterior)
    assert stats.kstest(z[:, :3].reshape(-1).numpy(), "norm", (1.0, 2.0)).pvalue > 1e-4
    assert len(z[:, 0].unique()) == 400
    assert z[:, 3].abs().max() < 1e-9  # sigma = exp(0)


def brief(seed=3, **options):
    """Members on their way, where each still remembers its start."""
    x, y, _ = problems.linear_gaussian(seed=1)
    return members(bnn.fit(scaled, x, y, steps=20, lr=0.01, seed=seed, standardize=False, **options, **PLAIN))


def test_a_member_depends_on_seed_and_its_number_only():
    many = brief(members=5)
    for m in range(4):
        assert torch.allclose(brief(members=m + 1)[m], many[m], rtol=1e-9, atol=1e-9)
    assert torch.pdist(many).min() > 0.1


@pytest.mark.parametrize("options", [{}, {"bootstrap": True, "batch_size": 5}, {"anchored": True}])
def test_the_same_seed_gives_the_same_bits_and_another_others(options):
    first, again, other = (brief(seed, members=3, **options) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max(1).values.min() > 0.1


# ---- the density ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False], ids=["priors at once", "priors of the program"])
def test_terms_are_those_of_pyros_trace_without_a_jacobian(at_once):
    x, y, _ = problems.linear_gaussian(seed=2)
    target = problems.Problem(scaled, x, y).target()
    with isolated(dtype=torch.float64):
        point = Point(target, normal_priors(target) if at_once else None)
        for z in problems.points(target, 3):
            values = {"w": z[:3], "sigma": z[3].exp()}
            trace = poutine.trace(poutine.condition(scaled, data=values)).get_trace(x, y)
            trace.compute_log_prob()
            prior = trace.nodes["w"]["log_prob_sum"] + trace.nodes["sigma"]["log_prob_sum"]
            got = point.terms(z, PointData())
            assert got[0] == pytest.approx(float(trace.nodes["y"]["log_prob_sum"]), rel=1e-12)
            assert got[1] == pytest.approx(-float(prior), rel=1e-12)


def test_terms_with_weights_rows_a_scale_and_an_anchor():
    x, y, _ = problems.linear_gaussian(seed=2)
    target = problems.Problem(scaled, x, y).target()
    weights = torch.arange(len(y)).double() % 3
    shift = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    z = problems.points(target, 1)[0]
    by_row = torch.distributions.Normal(x @ z[:3], z[3].exp()).log_prob(y)
    scale_prior = torch.distributions.HalfNormal(torch.tensor(1.5, dtype=torch.float64)).log_prob(z[3].exp())
    moved = torch.distributions.Normal(0.5 + shift[:3], 2.0).log_prob(z[:3]).sum() + scale_prior
    with isolated(dtype=torch.float64):
        point = Point(target, normal_priors(target))
        got = point.terms(z, PointData(weights=weights, shift=shift))
        assert got[0] == pytest.approx(float((weights * by_row).sum()), rel=1e-12)
        assert got[1] == pytest.approx(-float(moved), rel=1e-12)
        part = point.terms(z, PointData(x=x[5:9], y=y[5:9], scale=10.0))
        assert part[0] == pytest.approx(10 * float(by_row[5:9].sum()), rel=1e-12)
        assert part[1] == pytest.approx(-float(moved) + _shifted(z, shift), rel=1e-12)
        other = point.terms(z, PointData(y=y + 1.0))
        expected = torch.distributions.Normal(x @ z[:3], z[3].exp()).log_prob(y + 1.0).sum()
        assert other[0] == pytest.approx(float(expected), rel=1e-12)


def _shifted(z, shift):
    """By how much the log prior of w is higher at the anchor than at the prior's mean."""
    normal = torch.distributions.Normal
    return float((normal(0.5 + shift[:3], 2.0).log_prob(z[:3]) - normal(0.5, 2.0).log_prob(z[:3])).sum())


# ---- bootstrap -----------------------------------------------------------------------------------------------------


def one_weight_each(x, y=None):
    """Row i tells of weight i alone, so its mode gives away how often the row was counted."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", x.shape[0]):
        return pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_modes_of_a_bootstrap_are_ridge_solutions_of_rows_drawn_with_replacement():
    """w_i = c_i y_i / (c_i + 1), so c_i = w_i / (y_i - w_i): whole numbers that add up to n, Binomial(n, 1 / n) each."""
    n = 12
    x, y = torch.eye(n, dtype=torch.float64), torch.linspace(1.0, 2.0, n, dtype=torch.float64)
    posterior = bnn.fit(one_weight_each, x, y, bootstrap=True, members=60, standardize=False, **SETTLED, **PLAIN)
    w = members(posterior)
    counts = w / (y - w)
    assert (counts - counts.round()).abs().max() < 1e-3
    assert (counts.round().sum(1) == n).all()
    assert len(counts.round().unique(dim=0)) == 60
    expected = 720 * stats.binom(n, 1 / n).pmf([0, 1, 2])
    assert np.allclose([(counts.round() == k).sum() for k in range(3)], expected, atol=4.5 * expected**0.5)


def test_members_of_a_bootstrap_solve_the_weighted_ridge_problem(problem, trainings):
    data, model, _, _ = problem
    posterior = model.fit(data.train, members=3, bootstrap=True, seed=5, **PLAIN)
    (weights,) = trainings[0].more
    x, y = posterior.target.x, posterior.target.y
    assert weights.shape == (3, len(y)) and (weights.sum(1) == len(y)).all() and (weights >= 0).all()
    z = torch.cat([x, torch.ones(len(y), 1)], 1)
    for w, member in zip(weights, members(posterior), strict=True):
        precision = torch.eye(11) / model.prior_sd**2 + z.T @ (w[:, None] * z) / NOISE**2
        assert torch.allclose(member, torch.linalg.solve(precision, z.T @ (w * y)) / NOISE**2, atol=1e-6)


def test_batches_of_a_bootstrap_come_from_each_members_own_rows(drawn):
    rows, ys = batches_of_twelve(drawn, bootstrap=True)
    assert torch.equal(ys, 100.0 + rows)
    first, second = rows[:, :12].sort(1).values, rows[:, 12:24].sort(1).values
    assert torch.equal(first, second)  # each epoch goes through the same rows
    assert len(first.unique(dim=0)) == 4  # each member through others
    assert all(len(own.unique()) < 12 for own in first)  # drawn with replacement


def batches_of_twelve(drawn, **options):
    """Two epochs of twelve rows, x and y = 100 + x, by member in order: each (4, 24 or more)."""
    x = torch.arange(12).double()[:, None].expand(12, 2)
    options |= {"members": 4, "batch_size": 4, "steps": 6, "standardize": False}
    bnn.fit(problems.linear_model, x, 100.0 + x[:, 0], **options, **PLAIN)
    return torch.cat([x[..., 0] for x, _ in drawn], 1), torch.cat([y for _, y in drawn], 1)


# ---- anchors -------------------------------------------------------------------------------------------------------


def test_an_anchored_member_solves_its_perturbed_ridge_problem(problem, trainings):
    data, model, _, _ = problem
    posterior = model.fit(data.train, members=4, anchored=True, seed=6, **PLAIN)
    ys, shift = trainings[0].more
    x = posterior.target.x
    z = torch.cat([x, torch.ones(len(x), 1)], 1)
    precision = torch.eye(11) / model.prior_sd**2 + z.T @ z / NOISE**2
    for y, anchor, member in zip(ys, shift, members(posterior), strict=True):
        pull = z.T @ y / NOISE**2 + anchor / model.prior_sd**2
        assert torch.allclose(member, torch.linalg.solve(precision, pull), atol=1e-6)
    noise = ys - posterior.target.y
    assert stats.kstest(noise.reshape(-1).numpy(), "norm", (0.0, NOISE)).pvalue > 1e-4
    assert torch.corrcoef(noise).triu(1).abs().max() < 4.5 / len(x) ** 0.5


def test_anchors_are_draws_of_the_prior_less_its_mean_and_other_sites_have_none(trainings):
    x, y, _ = problems.linear_gaussian(seed=1)
    bnn.fit(scaled, x, y, members=500, anchored=True, steps=1, draws=1, **PLAIN)
    shift = trainings[-1].more[-1]
    assert shift.shape == (500, 4) and (shift[:, 3] == 0).all()
    assert stats.kstest(shift[:, :3].reshape(-1).numpy(), "norm", (0.0, 2.0)).pvalue > 1e-4


@pytest.mark.slow
def test_anchored_members_are_draws_of_the_exact_posterior_of_a_linear_model():
    count = 4000
    x, y, exact = problems.linear_gaussian(seed=1)
    options = {"draws": 1, "seed": 1, "standardize": False, **SETTLED, **PLAIN}
    z = members(bnn.fit(problems.linear_model, x, y, members=count, anchored=True, **options))
    assert ((z.mean(0) - exact.mean).abs() < 4.5 * (exact.covariance.diagonal() / count).sqrt()).all()
    gap = torch.linalg.norm(torch.cov(z.T) - exact.covariance) / torch.linalg.norm(exact.covariance)
    assert gap <= 0.05
    white = (z - exact.mean) @ torch.linalg.inv(torch.linalg.cholesky(exact.covariance)).T
    assert stats.kstest(white.reshape(-1).numpy(), "norm").pvalue > 1e-4
    alone = members(bnn.fit(problems.linear_model, x, y, members=50, **options))
    assert torch.cov(alone.T).diagonal().max() < 1e-8 * exact.covariance.diagonal().min()


def test_anchors_go_with_batches_and_each_member_keeps_its_own_targets(drawn):
    rows, ys = batches_of_twelve(drawn, anchored=True)
    noise = [{} for _ in range(4)]
    for m in range(4):
        for row, y in zip(rows[m].tolist(), ys[m].tolist(), strict=True):
            assert noise[m].setdefault(row, y - 100.0 - row) == y - 100.0 - row  # the same in each epoch
    noise = np.array([[own[row] for row in range(12)] for own in noise])
    assert np.abs(np.corrcoef(noise)[np.triu_indices(4, 1)]).max() < 0.95  # and each its own
    assert stats.kstest(noise.reshape(-1), "norm", (0.0, 0.5)).pvalue > 1e-4


def test_noise_has_the_likelihoods_sd_by_row(trainings):
    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 0.1 + x), obs=y)

    x = torch.linspace(0, 1, 15, dtype=torch.float64)
    bnn.fit(program, x, x, members=600, anchored=True, steps=1, draws=1, standardize=False, **PLAIN)
    noise = trainings[0].more[0] - x
    assert len(trainings) == 1  # the sd is known: no mode is looked for
    assert torch.allclose(noise.std(0), 0.1 + x, rtol=4.5 / 1200**0.5)


def test_a_latent_sd_is_taken_at_a_mode(trainings):
    def program(x, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mu, sigma).expand([len(x)]), obs=y)

    y = np.random.default_rng(2).normal(1.0, 2.0, size=50)

    def minus_log_joint(at):
        return -(
            stats.norm(0, 1).logpdf(at[0])
            + stats.halfnorm(scale=0.5).logpdf(np.exp(at[1]))
            + stats.norm(at[0], np.exp(at[1])).logpdf(y).sum()
        )

    sigma = np.exp(optimize.minimize(minus_log_joint, [0.0, 0.0], tol=1e-12).x[1])
    assert abs(sigma - y.std()) > 0.1  # the prior has its part in it
    options = {"members": 400, "anchored": True, "draws": 1, "standardize": False, "steps": 500}
    bnn.fit(program, np.zeros(50), y, **options, **PLAIN)
    assert len(trainings) == 2 and len(trainings[0].state.position) == 1  # that for the mode is the first
    noisy, seen = trainings[1].more[0].unbind(-1)
    assert torch.equal(seen, torch.tensor(y).expand_as(seen))
    noise = noisy - seen
    assert float(noise.std()) == pytest.approx(sigma, rel=4.5 / (2 * noise.numel()) ** 0.5)


@pytest.mark.parametrize("options", [{}, {"batch_size": 100}])
@pytest.mark.parametrize("name", ["linear", "mlp_hetero"])
def test_members_learn_a_latent_noise_from_the_targets_as_they_are(name, options):
    """Not from those with noise added, whose sd is root two times as large."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 1))
    y = x[:, 0] + 0.5 * rng.normal(size=400)
    model = bnn.get_model(name, **({"hidden": (3,), "activation": "tanh"} if name == "mlp_hetero" else {}))
    made = {"members": 6, "anchored": True, "steps": 800, "draws": 1, "standardize": False, "seed": 4}
    posterior = bnn.fit(model, x, y, **made, **options, **PLAIN)
    said = np.sqrt(posterior.predict(x).aleatoric.mean())
    assert said == pytest.approx(np.std(y - x[:, 0]), rel=0.08)


def test_labels_get_no_noise(trainings):
    problem = problems.PROBLEMS["bernoulli"]()
    bnn.fit(problem.program, problem.x, problem.y, members=2, anchored=True, steps=1, **PLAIN)
    (shift,) = trainings[0].more
    assert shift.shape == (2, problems.D) and shift.abs().min() > 0


# ---- mini-batches --------------------------------------------------------------------------------------------------


def test_each_member_has_an_order_of_its_own(drawn):
    rows, ys = batches_of_twelve(drawn)
    assert torch.equal(ys, 100.0 + rows)
    for epoch in (rows[:, :12], rows[:, 12:24]):
        assert (epoch.sort(1).values == torch.arange(12)).all()  # each row once
        assert len(epoch.unique(dim=0)) == 4
    assert not torch.equal(rows[:, :12], rows[:, 12:24])


def test_batches_reach_the_mode_as_the_learning_rate_falls():
    x, y, exact = problems.linear_gaussian(seed=1, n=400)
    sd = exact.covariance.diagonal().sqrt()
    gap = {}
    for decay in (1.0, 1e-3):
        options = {"members": 4, "batch_size": 40, "lr_decay": decay, "clip_norm": 1e6, "standardize": False}
        z = members(bnn.fit(problems.linear_model, x, y, steps=3000, **options, **PLAIN))
        gap[decay] = float(((z - exact.mean) / sd).square().mean().sqrt())  # in posterior sds
        assert torch.pdist(z).min() > 0
    assert gap[1e-3] < 0.25 * gap[1.0] and gap[1e-3] < 0.1


def test_inputs_in_a_dict_are_cut_into_batches():
    problem = units()
    options = {"members": 2, "standardize": False, **SETTLED, **PLAIN}
    whole, parts = (
        members(bnn.fit(problem.program, problem.x, problem.y, batch_size=size, **options)) for size in (None, 6)
    )
    assert (whole - parts).abs().max() < 0.02 and whole[0].std() > 0.2


# ---- what stands in ArviZ, in files, on pages ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """Three members with noise of each row's own, in units of y."""
    data = bnn.load_dataset("engel")
    model = bnn.get_model("mlp_hetero", hidden=(4,))
    return data, model.fit(data.train, members=3, steps=300, lr=0.05, seed=2, **PLAIN)


def test_variance_is_split_between_members_and_within(network):
    """A deep ensemble's mixture: mean and variance from the members' own means and variances."""
    data, posterior = network
    x = data.test.x
    prediction = posterior.predict(x)
    assert prediction.function_draws.shape == (3, 20, len(x))
    means = prediction.function_draws[:, 0]
    assert (prediction.function_draws == means[:, None]).all()
    units = posterior.units
    inputs = torch.tensor(units.inputs(np.asarray(x, dtype=float)))
    with isolated(dtype=torch.float64):
        each = [posterior.target.forward(z, inputs) for z in members(posterior)]
    scale, y_mean = float(units.y_sd), float(units.y_mean)
    assert np.allclose(means, [fn.mean.numpy() * scale + y_mean for fn in each], rtol=1e-9)
    sds = np.array([fn.stddev.numpy() * scale for fn in each])
    assert np.allclose(prediction.epistemic, means.var(0), rtol=1e-9)
    assert np.allclose(prediction.aleatoric, (sds**2).mean(0), rtol=1e-9)
    assert np.allclose(prediction.std**2, (sds**2 + means**2).mean(0) - means.mean(0) ** 2, rtol=1e-7)
    assert (prediction.epistemic > 0).all()
    y = np.asarray(data.test.y, dtype=float)
    mixture = np.exp(stats.norm(means, sds).logpdf(y)).mean(0)
    assert np.allclose(prediction.log_prob(y), np.log(mixture), rtol=1e-6)


def test_each_member_is_a_chain(network):
    _, posterior = network
    idata = posterior.idata
    weights = results.dataset(idata, "posterior")
    assert weights.sizes["chain"] == 3 and weights.sizes["draw"] == 20
    z = members(posterior)
    for m in range(3):
        values = posterior.target.constrain(z[m])
        for name, value in values.items():
            assert np.allclose(weights[name].values[m], value.detach().numpy(), rtol=1e-9), name
    lp = results.dataset(idata, "sample_stats")["lp"].values
    with isolated(dtype=torch.float64):
        assert np.allclose(lp, [[float(posterior.target.log_density(one))] * 20 for one in z], rtol=1e-9)
    log_likelihood = results.dataset(idata, "log_likelihood")["y"].values
    loo = az.loo(idata)
    own = np.log(np.exp(log_likelihood.reshape(60, -1)).mean(0)).sum()
    assert np.isfinite(loo.elpd_loo) and loo.elpd_loo < own
    table = az.summary(idata, group="function_space", var_names=["f"])
    f = results.dataset(idata, "function_space")["f"].values
    assert table.loc["f[0]", "mean"] == pytest.approx(f[:, 0, 0].mean(), abs=0.5 * 10**-3 + 1e-3 * abs(f).max())


def test_a_run_is_read_back_as_it_was(network, tmp_path):
    data, posterior = network
    posterior.save(tmp_path / "run")
    again = bnn.load(tmp_path / "run")
    assert again.method == posterior.method == bnn.Ensemble(members=3, steps=300, lr=0.05)
    assert torch.equal(again.draws.z, posterior.draws.z)
    assert np.array_equal(again.draws.history["elbo"], posterior.draws.history["elbo"])
    assert str(again.diagnose()) == str(posterior.diagnose())
    x = data.test.x
    assert np.array_equal(again.predict(x).draws, posterior.predict(x).draws)


def test_the_verdict_says_what_members_are(problem):
    data, model, posterior, _ = problem
    verdict = posterior.diagnose()
    assert verdict.verdict == "approximate" and verdict.numbers["elbo_gain"] < 0.1
    assert verdict.reasons[0].startswith("the log joint density has settled")
    assert verdict.reasons[1].startswith("3 members: their spread is not the posterior's")
    said = {}
    for options in ({"members": 1}, {"members": 2, "anchored": True}):
        said[options["members"]] = model.fit(data.train, **options, **PLAIN).diagnose().reasons[1]
    assert said[1] == "one member: epistemic uncertainty is absent by construction."
    assert said[2].startswith("2 anchored members: draws of the posterior where the model is linear")
    early = model.fit(data.train, members=2, steps=250, lr=1e-3, **PLAIN).diagnose()
    assert early.verdict == "not converged" and "log joint density still rose" in early.reasons[0]
    assert early.remedies == ["steps=500"]


def command(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


@pytest.mark.slow
def test_the_command_line_fits_shows_compares_and_reports(tmp_path):
    path, other = tmp_path / "ensemble", tmp_path / "map"
    for where, flags in ((path, ("ensemble", "--set", "members=3")), (other, ("map",))):
        words = ("--data", "engel", "--inference", *flags, "--set", "steps=400", "--backend", "eager", "--out", where)
        result = command("fit", "mlp_hetero", *words)
        assert result.exit_code in (0, 1), result.output
    page = command("summary", path).stdout
    assert page.startswith("mlp_hetero on engel by ensemble\n")
    assert "3 members" in page or "not converged" in page
    assert all(len(line) <= 80 or str(path) in line for line in page.splitlines())
    assert bnn.load(path).method.members == 3
    compared = command("compare", path, other)
    assert compared.exit_code == 0, compared.output
    assert "ensemble" in compared.stdout and all(
        len(line) <= 80 or str(tmp_path) in line for line in compared.stdout.splitlines()
    )
    drawn = {p.name for p in path.glob("*.png")}
    assert {"predictions.png", "elbo.png"} <= drawn


def test_an_estimator_predicts_what_the_members_do():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 2))
    y = x @ [1.0, -2.0] + 0.3 * rng.normal(size=60)
    settings = {"inference": "ensemble", "options": {"members": 3, "steps": 400, "engine": "eager"}, "random_state": 1}
    fitted = bnn.BNNRegressor("mlp_gaussian", hyperparameters={"hidden": (4,)}, **settings).fit(x, y)
    mean, sd = fitted.predict(x, return_std=True)
    prediction = fitted.posterior_.predict(x)
    assert fitted.posterior_.draws.z.shape[0] == 3
    assert np.allclose(mean, prediction.function_draws[:, 0].mean(0)) and np.allclose(sd, prediction.std)
    assert fitted.score(x, y) > 0.9


# ---- refusals, interrupts, divergence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 0}, r"ensemble, members: expected a whole number of at least 1, got 0\.$"),
        ({"members": 2.0}, r"ensemble, members: expected a whole number of at least 1, got 2\.0\.$"),
        ({"draws": 0}, r"ensemble, draws: expected a whole number of at least 1, got 0\.$"),
        ({"batch_size": 0}, r"ensemble, batch_size: expected a whole number of at least 1, got 0\.$"),
        ({"batch_size": 41}, r"batch_size: expected at most the 40 training rows, got 41\. Use a smaller one, or None"),
        ({"lr": 0.0}, r"ensemble, lr: expected a positive number, got 0\.0\.$"),
        ({"lr": -1}, r"ensemble, lr: expected a positive number, got -1\.$"),
        ({"lr_decay": float("nan")}, r"ensemble, lr_decay: expected a positive number, got nan\.$"),
        ({"bootstrap": "yes"}, r"ensemble, bootstrap: expected True or False, got 'yes'\.$"),
        ({"anchored": 1}, r"ensemble, anchored: expected True or False, got 1\.$"),
        ({"engine": "pyro"}, r"engine: expected 'compiled' or 'eager' for ensemble, .* got 'pyro'\.$"),
        ({"member": 3}, r"members"),
    ],
)
def test_options_are_refused_before_any_work(options, said, monkeypatch):
    monkeypatch.setattr("bnn_pyro.fitting.infer", lambda *_: pytest.fail("work began"))
    x, y, _ = problems.linear_gaussian(seed=1)
    with pytest.raises(bnn.BNNError, match=said) as caught:
        bnn.fit(problems.linear_model, x, y, **{**PLAIN, **options})
    assert isinstance(caught.value, bnn.OptionError | bnn.UnknownNameError)


@pytest.mark.usefixtures("usual_interrupts")
def test_an_interrupt_keeps_the_steps_so_far(monkeypatch):
    """As far as a fit whose learning rate falls as the first hundred of four hundred steps do."""
    x, y, _ = problems.linear_gaussian(seed=1)
    done = bnn.fit(problems.linear_model, x, y, members=2, steps=100, lr=1e-3, lr_decay=0.05**0.25, **PLAIN)
    add = ensemble.ElboRecord.add

    def press(record, terms):
        add(record, terms)
        if record.count == 100:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ensemble.ElboRecord, "add", press)
    with pytest.warns(UserWarning, match=r"linear_model, ensemble: interrupted after 100 of 400 steps"):
        posterior = bnn.fit(problems.linear_model, x, y, members=2, steps=400, lr=1e-3, **PLAIN)
    assert posterior.draws.complete is False and posterior.attrs["complete"] is False
    assert posterior.draws.info["steps_taken"] == 100 and len(posterior.draws.history["elbo"]) == 100
    assert torch.allclose(members(posterior), members(done), rtol=1e-9)
    assert posterior.diagnose().verdict == "not converged"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_diverging_member_is_named_with_its_step_and_a_remedy():
    def explosive(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(torch.exp(torch.exp(w * x)), 1.0), obs=y)

    x = torch.linspace(1, 2, 10)
    with pytest.raises(
        bnn.ModelError, match=r"explosive, ensemble: expected a finite .* at step 2\. Lower lr \(now 100"
    ):
        bnn.fit(explosive, x, 10.0 + 0 * x, members=3, lr=100.0, steps=300, standardize=False, **PLAIN)


@pytest.mark.parametrize("inference", ["ensemble", "mc_dropout"])
def test_steps_of_the_program_itself_are_taken_where_they_are_asked_for(inference):
    """The same as the graph's, and no compiler has a hand in it."""
    data = bnn.load_dataset("stackloss")
    model = bnn.get_model("mlp_gaussian", hidden=(3,))
    settings = {"inference": inference, "steps": 30, "seed": 1, "dtype": "float64", "progress": False}
    plain, traced = (model.fit(data.train, backend=backend, **settings) for backend in ("pyro", "eager"))
    for posterior, backend in ((plain, "pyro"), (traced, "eager")):
        assert (posterior.draws.info["backend"], posterior.draws.info["backend_reason"]) == (backend, "")
    assert torch.allclose(plain.draws.z, traced.draws.z, atol=1e-8)


def test_the_mode_that_noise_is_taken_from_is_searched_as_members_are_trained(monkeypatch):
    found, fit = [], ensemble.fit_ensemble

    def watched(target, method, *args, **more):
        found.append(method)
        draws = fit(target, method, *args, **more)
        draws.complete = False
        return draws

    monkeypatch.setattr(ensemble, "fit_ensemble", watched)
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(KeyboardInterrupt):
        bnn.fit(
            bnn.get_model("mlp_gaussian", hidden=(3,)), x, x[:, 0], inference="ensemble", members=3, anchored=True, steps=20,
            batch_size=8, clip_norm=2.0, progress=False,
        )  # fmt: skip
    alone = found[-1]
    assert (alone.members, alone.anchored, alone.batch_size, alone.clip_norm, alone.steps) == (1, False, 8, 2.0, 20)
